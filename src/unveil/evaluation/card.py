"""The evaluation card: one page that says what a number is, and everything that made it.

It holds no dates, run times or paths of a machine: equal inputs give equal bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.features import FeatureSet
from unveil.evaluation.sets import SetSizes


@dataclass(frozen=True)
class PublishedValue:
    """A FID of CelebA 64 x 64 in the literature, of 50,000 samples."""

    model: str
    steps: str
    fid: float
    where: str


PUBLISHED = {
    "ddim": (
        PublishedValue("DDPM", "1000", 3.26, "2010.02502"),
        PublishedValue("DDIM", "1000", 3.51, "2010.02502"),
        PublishedValue("DDIM", "100", 6.53, "2010.02502"),
        PublishedValue("DDIM", "50", 9.17, "2010.02502"),
        PublishedValue("DDIM", "10", 17.33, "2010.02502"),
    ),
    "adm-ip": (
        PublishedValue("ADM", "", 1.60, "the curves in DDPM-IP's repository"),
        PublishedValue("ADM-IP", "", 1.31, "the curves in DDPM-IP's repository"),
        PublishedValue("ADM-IP", "", 1.27, "2301.11706"),
    ),
}
PUBLISHED_SIZE = 64
PUBLISHED_SAMPLES = 50_000


@dataclass(frozen=True)
class SplitFacts:
    """A split that images were taken from, how many it has, and how many were taken."""

    name: str
    images: int
    taken: int


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card says."""

    metrics: Mapping[str, float | int]
    features: FeatureSet
    weights_file: str
    weights_sha256: str
    source: str
    protocol: str
    image_size: int
    shards: str  # digest of the shards
    reference: SplitFacts
    held_out: SplitFacts
    kid_subsets: int
    kid_subset_size: int
    seed: int
    device: str
    samples_sha256: str  # of the N images
    samples_total: int
    samples: Mapping[str, Any]  # their file's metadata; "model" and "config" describe the model
    versions: Mapping[str, str]
    commit: str | None
    notes: Sequence[str] = field(default=())

    @property
    def num_images(self) -> int:
        """N, the samples and the noise images."""
        return int(self.metrics["num_samples"])


def notes_on(sizes: SetSizes, features: FeatureSet, shared: int = 0) -> list[str]:
    """What a reader of distances of so many images should be warned of.

    ``shared`` of the held-out images are among those of the reference.
    """
    found = []
    if shared:
        found.append(
            f"{shared:,} of the {sizes.held_out:,} held-out images are in the reference too, because this "
            f"protocol trains on all images: the floor is too low, and the model has seen them."
        )
    if sizes.held_out < sizes.samples:
        found.append(
            f"The held-out split has only {sizes.held_out:,} images: the floor is at N = {sizes.held_out:,}, and "
            f"is higher than it would be at N = {sizes.samples:,}; the fraction is lower."
        )
    counts = {
        f"N = {sizes.samples:,}": sizes.samples,
        f"The reference of {sizes.reference:,} images": sizes.reference,
        f"The held-out set of {sizes.held_out:,} images": sizes.held_out,
    }
    what = min(counts, key=lambda name: counts[name])
    if counts[what] <= features.dimension:
        found.append(
            f"{what} is not above the {features.dimension:,} features, so covariances are singular: "
            f"compare the Fréchet distance with that of other models at these numbers of images only."
        )
    if features.name == "inception" and sizes.samples < PUBLISHED_SAMPLES:
        found.append(
            f"FID is biased upwards at small N: at N = {sizes.samples:,} it is larger than the same model's "
            f"FID at {PUBLISHED_SAMPLES:,}."
        )
    return found


def why_not_comparable(
    features: FeatureSet, source: str, protocol: str, image_size: int, reference: SplitFacts, num_images: int
) -> str | None:
    """Why the published FIDs are numbers on something else, as one clause; None if they are not."""
    reasons = []
    if features.name != "inception":
        reasons.append(f"they are FIDs, on Inception's features, and this is {features.frechet}")
    if source != "celeba":
        reasons.append(f"they are of CelebA, and these images are of the source {source}")
    if image_size != PUBLISHED_SIZE:
        reasons.append(f"they are at {PUBLISHED_SIZE} x {PUBLISHED_SIZE}, and this is at {image_size}")
    if protocol not in PUBLISHED:
        reasons.append(f"they use the protocols {' and '.join(PUBLISHED)}, and this is {protocol}")
    if reference.name != "train":
        reasons.append(f"they are distances from the training images, and this is from the {reference.name} split")
    if num_images != PUBLISHED_SAMPLES or reference.taken != reference.images:
        reasons.append(
            f"they are of {PUBLISHED_SAMPLES:,} samples against all training images, and this is of "
            f"{num_images:,} against {_share(reference)}"
        )
    return "; ".join(reasons) or None


def render(facts: CardFacts) -> str:
    """The card, in Markdown."""
    sections = (
        _distances(facts),
        _likelihood(facts),
        _notes(facts),
        _data(facts),
        _measurement(facts),
        _section("Samples", _table(("what", "value"), _rows(_sampling(facts)))),
        _model(facts),
        _published(facts),
        _software(facts),
    )
    return "# Evaluation card\n\n" + "\n".join(section for section in sections if section)


def _distances(facts: CardFacts) -> str:
    header = ("metric", "samples", "floor: real, held out", "scale: uniform noise", "fraction of the way")
    rows = []
    for name, more in ((facts.features.frechet, ""), (facts.features.kernel, "_std")):
        value = _number(facts.metrics[name])
        if more:
            value += f" ± {_number(facts.metrics[name + more])}"
        share = facts.metrics.get(f"{name}_fraction")
        rows.append(
            (
                f"`{name}`",
                value,
                _number(facts.metrics[f"{name}_floor"]),
                _number(facts.metrics[f"{name}_noise"]),
                "" if share is None else _number(share),
            )
        )
    text = (
        f"N = {facts.num_images:,} samples. Each number is a distance from the same {facts.reference.taken:,} real "
        f"images of the {facts.reference.name} split, lower is better. The floor is the distance of "
        f"{facts.held_out.taken:,} real images of the {facts.held_out.name} split, the scale that of "
        f"{facts.num_images:,} images of uniform noise; the fraction is 0 at the floor and 1 at the scale."
    )
    return _section("Distances", text + "\n\n" + _table(header, rows))


def _likelihood(facts: CardFacts) -> str:
    metrics = facts.metrics
    if "bits_per_dim" not in metrics:
        return ""
    text = (
        f"{metrics['bits_per_dim']:.4f} ± {metrics['bits_per_dim_stderr']:.4f} bits per dimension, an upper bound, "
        f"lower is better: mean and standard error over {metrics['num_likelihood']:,} images of the "
        f"{facts.held_out.name} split, by the probability-flow ODE (2011.13456) with uniform dequantization, "
        f"{_number(metrics['bits_per_dim_nfe'])} network evaluations an image."
    )
    return _section("Likelihood", text)


def _notes(facts: CardFacts) -> str:
    return _section("Notes", "\n".join(f"- {note}" for note in facts.notes)) if facts.notes else ""


def _data(facts: CardFacts) -> str:
    rows = (
        ("source", f"`{facts.source}`"),
        ("protocol", f"`{facts.protocol}`: {PROTOCOLS[facts.protocol].describe()}"),
        ("image size", f"{facts.image_size} x {facts.image_size}"),
        ("reference", f"{facts.reference.name} split, {_share(facts.reference)} images"),
        ("held out", f"{facts.held_out.name} split, {_share(facts.held_out)} images"),
        ("choice of images", "evenly spaced over the split in the order of ids: place floor(i images / taken)"),
        ("shards", f"sha256 `{facts.shards}`"),
    )
    return _section("Data", _table(("what", "value"), rows))


def _share(split: SplitFacts) -> str:
    return f"all {split.images:,}" if split.taken == split.images else f"{split.taken:,} of {split.images:,}"


def _measurement(facts: CardFacts) -> str:
    features = facts.features
    rows = (
        ("features", f"{features.title}: layer `{features.layer}`, {features.dimension:,} numbers an image"),
        ("input of the network", f"uint8 images with no file in between; {features.preprocessing}"),
        ("weights of the network", f"`{facts.weights_file}`, sha256 `{facts.weights_sha256}`"),
        ("arithmetic", f"features in float32 on {facts.device}, distances in float64"),
        (
            "Fréchet distance",
            "squared Fréchet distance of the Gaussians with the features' mean and covariance (1706.08500)",
        ),
        (
            "kernel distance",
            f"unbiased squared maximum mean discrepancy with the kernel (x.y / {features.dimension} + 1)^3, "
            f"mean and standard deviation over {facts.kid_subsets} random subsets of {facts.kid_subset_size} "
            f"images (1801.01401)",
        ),
        ("evaluation seed", f"{facts.seed}, of the noise and the subsets"),
    )
    return _section("Measurement", _table(("what", "value"), rows))


def _sampling(facts: CardFacts) -> dict[str, Any]:
    said = ("source", "protocol", "image_size", "shards", "model", "config")  # in other sections
    rest = {key: value for key, value in facts.samples.items() if key not in said}
    used = f"{facts.num_images} of {facts.samples_total}, those with the smallest ids"
    return {"images": used} | rest | {"bytes of the images": f"sha256 `{facts.samples_sha256}`"}


def _model(facts: CardFacts) -> str:
    known: dict[str, Any] = {}
    if weights := facts.samples.get("model"):
        known["weights"] = f"sha256 `{weights}`"
    known |= facts.samples.get("config") or {}
    return _section("Model", _table(("what", "value"), _rows(known)) if known else "The samples do not say.")


def _published(facts: CardFacts) -> str:
    title = f"Published values, CelebA {PUBLISHED_SIZE} x {PUBLISHED_SIZE}"
    reason = why_not_comparable(
        facts.features, facts.source, facts.protocol, facts.image_size, facts.reference, facts.num_images
    )
    if reason:
        return _section(title, f"Not comparable: {reason}.")
    rows = [(row.model, row.steps, f"{row.fid:.2f}", row.where) for row in PUBLISHED[facts.protocol]]
    text = (
        f"Published with {PUBLISHED_SAMPLES:,} samples against all images of the training set; "
        f"`fid` above is with {facts.num_images:,} against {_share(facts.reference)}."
    )
    return _section(title, text + "\n\n" + _table(("model", "steps", "FID", "where"), rows))


def _software(facts: CardFacts) -> str:
    commit = f"`{facts.commit}`" if facts.commit else "not in a Git checkout"
    rows = [("last commit that changed the code", commit), *facts.versions.items()]
    return _section("Software", _table(("what", "value"), rows))


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _text(value)) for key, value in flatten(values).items()]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return "none" if value is None else str(value)


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
