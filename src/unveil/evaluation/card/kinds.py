"""What the metrics are: which direction is good, what each says in one sentence, and which choices define it."""

import re
from dataclasses import dataclass

DATA = ("data.source", "data.protocol", "data.image_size")
REFERENCE = (*DATA, "data.shards", "data.shard_hashes", "data.reference")
FEATURES = (
    "features.extractor",
    "features.layer",
    "features.dimension",
    "features.preprocessing",
    "features.weights_sha256",
)


@dataclass(frozen=True)
class Kind:
    """A kind of metric.

    Attributes:
        names: pattern that its names match whole; the features may stand behind (``kid_dinov2``).
        title: its usual name.
        lower_is_better: its direction.
        meaning: one sentence for a reader who has never met it.
        source: the paper that defines it.
        defined_by: choices of the card, dotted, without which its values are numbers on different things. A name
            stands for everything below it; ``features`` for those of the metric's own network.
        depends_on_n: whether its expected value changes with the number of samples.
    """

    names: re.Pattern[str]
    title: str
    lower_is_better: bool
    meaning: str
    source: str
    defined_by: tuple[str, ...]
    depends_on_n: bool = True


KINDS = (
    Kind(
        re.compile(r"(fid|fd_\w+?)_infinity"),
        "Fréchet distance without the bias of a finite N",
        lower_is_better=True,
        meaning="the Fréchet distance that endlessly many samples would have, extrapolated from several N",
        source="1911.07023",
        defined_by=(*REFERENCE, *FEATURES),
        depends_on_n=False,
    ),
    Kind(
        re.compile(r"fid|fd_\w+"),
        "Fréchet distance",
        lower_is_better=True,
        meaning="how far the features of the samples, as one Gaussian, lie from those of real images: it sees both "
        "bad images and missing variety, and falls with N",
        source="1706.08500",
        defined_by=(*REFERENCE, *FEATURES),
    ),
    Kind(
        re.compile(r"kid(_\w+)?"),
        "kernel distance",
        lower_is_better=True,
        meaning="how well a kernel tells the features of the samples from those of real images: 0 where it cannot, "
        "and by chance a little below; N does not bias it",
        source="1801.01401",
        defined_by=(*REFERENCE, *FEATURES),
        depends_on_n=False,
    ),
    Kind(
        re.compile(r"inception_score(_\w+)?"),
        "Inception Score",
        lower_is_better=False,
        meaning="how surely a classifier of objects names each sample, and how many different names it gives: made "
        "for ImageNet, it says little about faces",
        source="1606.03498",
        defined_by=(*DATA, *FEATURES, "evaluation.inception_score_splits"),
    ),
    Kind(
        re.compile(r"precision(_\w+)?"),
        "precision",
        lower_is_better=False,
        meaning="the share of samples that lie among the real images: low where images are bad",
        source="1904.06991",
        defined_by=(*REFERENCE, *FEATURES, "evaluation.neighbours"),
    ),
    Kind(
        re.compile(r"recall(_\w+)?"),
        "recall",
        lower_is_better=False,
        meaning="the share of real images that lie among the samples: low where variety is missing",
        source="1904.06991",
        defined_by=(*REFERENCE, *FEATURES, "evaluation.neighbours"),
    ),
    Kind(
        re.compile(r"density(_\w+)?"),
        "density",
        lower_is_better=False,
        meaning="in how many neighbourhoods of real images a sample lies, as a share of those expected: about 1 for "
        "real images, low where images are bad",
        source="2002.09797",
        defined_by=(*REFERENCE, *FEATURES, "evaluation.neighbours"),
    ),
    Kind(
        re.compile(r"coverage(_\w+)?"),
        "coverage",
        lower_is_better=False,
        meaning="the share of real images that have a sample in their neighbourhood: low where variety is missing",
        source="2002.09797",
        defined_by=(*REFERENCE, *FEATURES, "evaluation.neighbours"),
    ),
    Kind(
        re.compile(r"bits_per_dim"),
        "bits per dimension",
        lower_is_better=True,
        meaning="how many bits a number of a held-out image costs when the model is used to compress it, an upper "
        "bound: it says how likely the model finds real images, not how good its samples look",
        source="2011.13456",
        defined_by=(*DATA, "data.shards", "data.held_out.name"),
        depends_on_n=False,
    ),
)


def kind_of(name: str) -> Kind:
    """The kind of the metric of this name. Raises ValueError for a name that is none's."""
    for kind in KINDS:
        if kind.names.fullmatch(name):
            return kind
    raise ValueError(f"metric {name!r} is of no known kind; expected one of {', '.join(kind.title for kind in KINDS)}")
