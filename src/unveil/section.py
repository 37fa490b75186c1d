"""A section of the parameters: typed, frozen values, each with its range and the text that params.yaml shows.

Here are also the ranges that several sections, or files between the stages, share.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

Scalar: TypeAlias = bool | int | float | str | None
AnySection = TypeVar("AnySection", bound="Section")

NO_OTHERS = ConfigDict(extra="forbid")
"""``__pydantic_config__`` of a dataclass that is read from a file: a key that it does not have is refused by name."""

LEAST_DEVIATION, GREATEST_DEVIATION = 0.005, 0.28  # relative, of power functions; at 12 ** -0.5 all times weigh alike
LEAST_SIGMA, GREATEST_SIGMA = 1e-8, 1e8  # beyond them float32 keeps nothing of the noise, or of the image

Amount = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Images = Annotated[int, Ge(0), Le(10**15)]  # seen in training, or a half-life of it
Side = Annotated[int, Ge(1), Le(4096)]  # of an image, in pixels
Seed = Annotated[int, Ge(0), Lt(2**32)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
OpenShare = Annotated[float, Gt(0), Lt(1)]
HalfOpenShare = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]
RelativeDeviation = Annotated[float, Ge(LEAST_DEVIATION), Le(GREATEST_DEVIATION)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _like(pattern: str, expected: str) -> AfterValidator:
    """Text that matches the whole pattern."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text, re.ASCII) is None:
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


FileName = Annotated[str, _like(r"\w[\w.+-]{0,199}", "the name of a file in the same folder")]
Key = Annotated[str, _like(r"\w[\w.: -]{0,199}", "a name of at most 200 plain letters")]
Sha256 = Annotated[str, _like(r"[0-9a-f]{64}", "64 hexadecimal digits")]

LISTED = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""Takes a list, as YAML has it, where a tuple is meant."""
OptionalPath = Annotated[
    Path | None, BeforeValidator(lambda value: Path(value) if isinstance(value, str) and value.strip() else value)
]


class Problem(NamedTuple):
    """A combination that cannot work: the key to change (dotted, within its section) and what it could be."""

    key: str
    expected: str


class Section(BaseModel):
    """A frozen, strict part of the parameters: no unknown keys, no bool or text as a number, no infinity.

    Example:
        >>> class Lens(Section):
        ...     zoom: Count = 1
        >>> Lens().replace(zoom=3)
        Lens(zoom=3)
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between values that are each within their own range."""
        yield from ()

    def unread(self) -> Collection[str]:
        """Names of the values that nothing reads, because of what the others choose."""
        return ()

    def read_values(self) -> dict[str, Any]:
        """The values that are read, as JSON has them."""
        return self.model_dump(mode="json", exclude=set(self.unread()))

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked again. Raises pydantic's ValidationError."""
        return type(self)(**(dict(self) | changes))

    def only(self, kind: type[AnySection]) -> AnySection:
        """The values that ``kind`` has, which this section extends."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields})

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        if problems := list(self.problems()):
            text = "; ".join(f"{problem.key}: expected {problem.expected}" for problem in problems)
            raise PydanticCustomError("combination", "{text}", {"text": text, "problems": problems})
        return self


def flatten(section: Section, *, read: bool = False) -> dict[str, Scalar]:
    """Dotted names and plain values of a section and those in it; a list becomes text: ``[1,2]``.

    Args:
        section: such as all parameters.
        read: leave out what nothing reads.
    """
    flat: dict[str, Scalar] = {}
    for name, value in section:
        if read and name in section.unread():
            continue
        if isinstance(value, Section):
            flat.update({f"{name}.{key}": item for key, item in flatten(value, read=read).items()})
        elif isinstance(value, tuple):
            flat[name] = json.dumps(value, separators=(",", ":"))
        else:
            flat[name] = str(value) if isinstance(value, Path) else value
    return flat
