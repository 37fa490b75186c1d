"""Samples at several scales of guidance: the same seeds and the same attributes at each."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unveil.errors import UnveilError
from unveil.evaluation.images.foreign import check_images, digest, stored_arrays
from unveil.evaluation.metrics.measurement import ImageSet
from unveil.files import parse_json
from unveil.section import Key, NonNegative
from unveil.tensors import open_tensors

MEND = "run `dvc repro sample`"


class _Facts(BaseModel):
    """What the file must say of itself; what else it says is of the model and its sampler."""

    model_config = ConfigDict(extra="allow")
    scales: tuple[NonNegative, ...]
    attributes: tuple[Key, ...] = ()
    model: Key | None = None


@dataclass(frozen=True)
class ScaleSamples:
    """The samples of each scale, uint8 [n, 3, H, W]; none if no scales were asked for."""

    images: Mapping[float, Tensor]
    names: tuple[str, ...] = ()
    """Of the attributes."""
    attributes: Tensor | None = None
    """What the samples of each scale were asked for, int8 [n, k]."""

    def sets(self) -> dict[str, ImageSet]:
        """The same as sets to extract features of, by the names of :func:`set_name`."""
        return {
            set_name(scale): ImageSet(set_name(scale), {"sha256": digest(rows)}, len(rows), partial(list, (rows,)))
            for scale, rows in self.images.items()
        }


NO_SCALES = ScaleSamples({})


def set_name(scale: float) -> str:
    """What a set of samples at this scale is called."""
    return f"guidance {scale:g}"


def load_scales(path: Path, model: str | None) -> ScaleSamples:
    """Read the samples of every scale, of the model with these weights (their hash; None = any).

    Raises UnveilError for a file that is missing, damaged, or of another model.
    """
    with open_tensors(path, MEND) as file:
        text, arrays = (file.metadata() or {}).get("facts", ""), stored_arrays(file)
        facts = parse_json(text, _Facts, f"{path}: metadata", MEND)
        if not facts.scales:
            return ScaleSamples({})
        if model is not None and facts.model != model:
            raise UnveilError(f"{path}: samples of another model than the others; {MEND}")
        kind, shape = arrays.get("images", ("nothing", ()))
        count = len(facts.scales)
        if shape[:1] != (count,):
            raise UnveilError(f"{path}: images are {kind} {list(shape)}, expected uint8 [{count}, n, 3, H, W]; {MEND}")
        check_images(path, "images", kind, shape[1:], MEND)
        images = dict(zip(facts.scales, file.get_tensor("images"), strict=True))
        if "attributes" not in arrays:
            return ScaleSamples(images)
        if arrays["attributes"] != (expected := ("int8", (shape[1], len(facts.attributes)))):
            found = f"{arrays['attributes'][0]} {list(arrays['attributes'][1])}"
            raise UnveilError(f"{path}: attributes are {found}, expected {expected[0]} {list(expected[1])}; {MEND}")
        return ScaleSamples(images, facts.attributes, file.get_tensor("attributes"))
