"""Published FIDs on CelebA 64 x 64, each with the measurement that it is of, and whether ours is the same one.

Left out are numbers of another measurement than FID, such as those of Soft Truncation (2106.05527), whose code resizes
as clean-fid does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unveil.parameter_file import package_data

if TYPE_CHECKING:
    from unveil.evaluation.card.card import Card

PUBLISHED_SAMPLES = 50_000
PUBLISHED_SIZE = 64
INCEPTION = "inception"
FID = "fid"


@dataclass(frozen=True)
class PublishedValue:
    """A FID in the literature: 50,000 samples as PNG or in memory, Inception-v3 of 2015-12-05, the training images."""

    model: str  # as its authors call it
    sampler: str  # what drew the samples; empty where the source does not say
    steps: int | None  # network evaluations a sample; None where the source does not say
    fid: float
    protocol: str  # the images' crop and resize, by the authors' code; a key of PROTOCOLS
    source: str  # arXiv number, or address
    where: str  # place in the source
    reference_images: int | None = None  # training images that were compared with; None = all
    image_size: int = PUBLISHED_SIZE  # side in pixels
    samples: int = PUBLISHED_SAMPLES
    note: str = ""  # what a reader should know before comparing


PUBLISHED = tuple(PublishedValue(**value) for value in package_data(__package__, "published.yaml")["values"])
PROTOCOLS_WITH_VALUES = tuple(dict.fromkeys(value.protocol for value in PUBLISHED))


def comparable(card: "Card") -> tuple[PublishedValue, ...]:
    """The published values that are of the same measurement as the card's ``comparable`` metric, best first."""
    if _general_differences(card):
        return ()
    protocol = card.choices.data.protocol
    fitting = (value for value in PUBLISHED if value.protocol == protocol and _same_images(value, card))
    return tuple(sorted(fitting, key=lambda value: value.fid))


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
            f"{card.comparable.n:,} against {data.reference.share}"
        )
    return "; ".join(reasons)


def _general_differences(card: "Card") -> list[str]:
    data, metric, size = card.choices.data, card.comparable, PUBLISHED_SIZE
    protocols = " and ".join(PROTOCOLS_WITH_VALUES)
    sampling = card.choices.sampling
    reasons = {
        f"they are FIDs, on Inception's features, and this is {metric.name}": metric.name == FID
        and metric.features == INCEPTION,
        f"they are of CelebA, and these images are of the source {data.source}": data.source == "celeba",
        f"they are at {size} x {size}, and this is at {data.image_size}": data.image_size == size,
        f"they use the protocols {protocols}, and this is {data.protocol}": data.protocol in PROTOCOLS_WITH_VALUES,
        f"they are distances from the training images, and this is from the {data.reference.name} split": (
            data.reference.name == "train"
        ),
        "they are of samples without guidance, and these were guided": sampling.get("guidance", "none") in ("none", 1),
        "they are of all faces, and these were asked for some attributes": (
            sampling.get("asked") in (None, "", [], ["data"], "data")
        ),
        "they are of samples as the model gives them, and these went through a lossy file format": not card.lossy,
    }
    return [reason for reason, same in reasons.items() if not same]


def _same_images(value: PublishedValue, card: "Card") -> bool:
    reference = card.choices.data.reference
    expected = reference.images if value.reference_images is None else value.reference_images
    return value.samples == card.comparable.n and expected == reference.taken
