"""Published FIDs on CelebA 64 x 64, each with the measurement that it is of, and whether ours is the same one.

Left out are numbers of another measurement than FID, such as those of Soft Truncation (2106.05527), whose code resizes
as clean-fid does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unveil.evaluation.card.card import Card

PUBLISHED_SAMPLES = 50_000
PUBLISHED_SIZE = 64
INCEPTION = "inception"
FID = "fid"


@dataclass(frozen=True)
class PublishedValue:
    """A FID in the literature: 50,000 samples as PNG or in memory, Inception-v3 of 2015-12-05, the training images.

    Attributes:
        model: as its authors call it.
        sampler: what drew the samples; empty where the source does not say.
        steps: network evaluations a sample; None where the source does not say.
        fid: the value.
        protocol: the images' crop and resize, by the authors' code; a key of ``PROTOCOLS``.
        source: arXiv number, or address.
        where: place in the source.
        reference_images: training images that were compared with; None = all.
        image_size: side in pixels.
        samples: N.
        note: what a reader should know before comparing.
    """

    model: str
    sampler: str
    steps: int | None
    fid: float
    protocol: str
    source: str
    where: str
    reference_images: int | None = None
    image_size: int = PUBLISHED_SIZE
    samples: int = PUBLISHED_SAMPLES
    note: str = ""


_DDIM = ("ddim", "2010.02502", "table 1")
_MEASURED_AGAIN = "the paper's checkpoint was measured at 5.88 by a reader (github.com/ermongroup/ddim, issue 17)"
_WHICH = "the paper says all training images, its repository 50,000 of them (github.com/forever208/DDPM-IP, issue 28)"
_CURVES = ("adm-ip", "github.com/forever208/DDPM-IP", "curves")

PUBLISHED = (
    PublishedValue("DDPM", "ancestral, large variance", 1000, 3.26, *_DDIM, note=_MEASURED_AGAIN),
    PublishedValue("DDPM", "ancestral, small variance", 1000, 5.98, *_DDIM),
    PublishedValue("DDIM", "ddim, eta 0", 1000, 3.51, *_DDIM),
    PublishedValue("DDIM", "ddim, eta 0", 100, 6.53, *_DDIM),
    PublishedValue("DDIM", "ddim, eta 0", 50, 9.17, *_DDIM),
    PublishedValue("DDIM", "ddim, eta 0", 20, 13.73, *_DDIM),
    PublishedValue("DDIM", "ddim, eta 0", 10, 17.33, *_DDIM),
    PublishedValue("ADM-IP", "", None, 1.27, "adm-ip", "2301.11706", "abstract", note=_WHICH),
    PublishedValue("ADM-IP", "", None, 1.31, *_CURVES, reference_images=50_000, note=_WHICH),
    PublishedValue("ADM", "", None, 1.60, *_CURVES, reference_images=50_000, note=_WHICH),
)
PROTOCOLS_WITH_VALUES = tuple(dict.fromkeys(value.protocol for value in PUBLISHED))


def comparable(card: "Card") -> tuple[PublishedValue, ...]:
    """The published values that are of the same measurement as the card's ``comparable`` metric, best first."""
    protocol = card.choices.data.protocol
    fitting = [value for value in PUBLISHED if value.protocol == protocol and _same_images(value, card)]
    return () if _general_differences(card) else tuple(sorted(fitting, key=lambda value: value.fid))


def why_not_comparable(card: "Card") -> str | None:
    """Why no published value is of the same measurement, as one clause that names each difference; None if one is."""
    if comparable(card):
        return None
    reasons, data = _general_differences(card), card.choices.data
    candidates = [value for value in PUBLISHED if value.protocol == data.protocol] or PUBLISHED
    if not any(_same_images(value, card) for value in candidates):
        counts = dict.fromkeys(value.reference_images for value in candidates)
        references = " or ".join("all training images" if count is None else f"{count:,} of them" for count in counts)
        reasons.append(
            f"they are of {PUBLISHED_SAMPLES:,} samples against {references}, and this is of "
            f"{card.comparable.n:,} against {share(data.reference.taken, data.reference.images)}"
        )
    return "; ".join(reasons)


def _general_differences(card: "Card") -> list[str]:
    data, metric, size = card.choices.data, card.comparable, PUBLISHED_SIZE
    protocols = " and ".join(PROTOCOLS_WITH_VALUES)
    reasons = {
        f"they are FIDs, on Inception's features, and this is {metric.name}": metric.name == FID
        and metric.features == INCEPTION,
        f"they are of CelebA, and these images are of the source {data.source}": data.source == "celeba",
        f"they are at {size} x {size}, and this is at {data.image_size}": data.image_size == size,
        f"they use the protocols {protocols}, and this is {data.protocol}": data.protocol in PROTOCOLS_WITH_VALUES,
        f"they are distances from the training images, and this is from the {data.reference.name} split": (
            data.reference.name == "train"
        ),
        "they are of samples as the model gives them, and these went through a lossy file format": not card.lossy,
    }
    return [reason for reason, same in reasons.items() if not same]


def _same_images(value: PublishedValue, card: "Card") -> bool:
    reference = card.choices.data.reference
    expected = reference.images if value.reference_images is None else value.reference_images
    return value.samples == card.comparable.n and expected == reference.taken


def share(taken: int, total: int) -> str:
    """How many of a set, in words: ``all 40`` or ``24 of 40``."""
    return f"all {total:,}" if taken == total else f"{taken:,} of {total:,}"
