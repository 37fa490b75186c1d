"""What is known of an oracle: how often it is right on images that it has not seen. Read without PyTorch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import JsonValue
from safetensors import serialize_file

from unveil.files import atomic_path, read_json, write_json
from unveil.section import NO_OTHERS, Amount, Key, Sha256, Share

MEND = "run `dvc repro oracle`"


@dataclass(frozen=True)
class Answers:
    """Of one attribute: how often it occurs, and how often the oracle is right about held-out images."""

    __pydantic_config__ = NO_OTHERS
    share: Share
    """Of the training images, those that have it."""
    images_yes: Amount
    """Held-out images that have it."""
    images_no: Amount
    yes: Share | None
    """Share of the images that have it of which the oracle says so; None if there are none."""
    no: Share | None
    """Share of the images without it of which the oracle says so."""

    @property
    def accuracy(self) -> float:
        """Share of all images about which it is right."""
        right = (self.yes or 0) * self.images_yes + (self.no or 0) * self.images_no
        return right / max(self.images_yes + self.images_no, 1)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of ``yes`` and ``no``, so that a rare attribute counts as much as its absence."""
        return fmean(share for share in (self.yes, self.no) if share is not None)


@dataclass(frozen=True)
class OracleFacts:
    """What ``oracle.json`` says of the weights beside it; of an oracle of no attributes there are none.

    Attributes:
        attributes: by name, in the order of the classifier's answers.
        accuracy: mean over the attributes.
        balanced_accuracy: mean over the attributes.
        held_out: the split that its accuracy is measured on.
        image_size: height and width in pixels.
        shards: digest of the images that it was trained on.
        weights_sha256: of ``oracle.safetensors``.
        settings: of its training.
    """

    __pydantic_config__ = NO_OTHERS
    format: Literal[1] = 1
    attributes: Mapping[Key, Answers] | None = None
    accuracy: Share | None = None
    balanced_accuracy: Share | None = None
    held_out: str | None = None
    image_size: Amount = 0
    shards: Sha256 | None = None
    weights_sha256: Sha256 | None = None
    settings: Mapping[str, JsonValue] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the attributes, in the order of the classifier's answers."""
        return tuple(self.attributes or ())

    def save(self, path: Path) -> None:
        """Write ``oracle.json``."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "OracleFacts":
        """Read ``oracle.json``. Raises UnveilError if it is missing, damaged or of another format."""
        return read_json(path, cls, MEND)


def write_empty(facts: Path, weights: Path, record: Path) -> None:
    """Write what an oracle of no attributes is: nothing, in files that are there, as DVC wants them."""
    OracleFacts().save(facts)
    with atomic_path(weights) as temporary:
        serialize_file({}, temporary)
    write_json(record, {})
