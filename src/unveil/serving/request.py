"""What decides a picture: the images' numbers, the settings of the sampler, and the weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from annotated_types import Ge, Le, Len
from pydantic import ValidationError

from unveil.diffusion.config import Guidance, Sampler
from unveil.errors import UnveilError, printable
from unveil.files import shortened
from unveil.messages import findings, schema_of
from unveil.section import LISTED, Precision, Problem, Seed
from unveil.weights import WEIGHTS, parse_weights

MOST_IMAGES = 1024  # of one request; more are a data set, which the sample stage draws

MOST_SWITCHES = 64
MOST_SCALES = 16
EVALUATIONS = 300  # taken for what nobody knows before, as of rk45
Scale = Annotated[float, Ge(0), Le(100)]  # of guidance


class Request(Sampler, Guidance):
    """Images first, first + 1, ... of a seed: the bytes that the sample stage draws with the same settings."""

    seed: Seed = 0
    """image i depends on (seed, i) alone"""
    first: Seed = 0
    """number of the first image"""
    count: Annotated[int, Ge(1), Le(MOST_IMAGES)] = 1
    """images to draw"""
    attributes: Annotated[tuple[str, ...], LISTED] = ()
    """what the images are to show: Smiling, or -Smiling for the opposite; [] = nothing is told"""
    weights: Annotated[str, WEIGHTS] = "ema"
    """ema (the model's own) | half-life:N (images) | power:S (relative standard deviation)"""
    precision: Precision = "auto"
    """type of the network's arithmetic: auto | fp32 | bf16 | fp16"""

    switch: Annotated[tuple[str, ...], LISTED, Len(0, MOST_SWITCHES)] = ()
    """a row for each of these attributes: the images without it and with it, from the same noise"""
    scales: Annotated[tuple[Scale, ...], LISTED, Len(0, MOST_SCALES)] = ()
    """a row for each image: guided at each of these scales, from the same noise"""

    @property
    def evaluations(self) -> int:
        """Of networks, for an image; about as many where it depends on the image."""
        return (self.nfe or EVALUATIONS) * (1 + self.guides)

    @property
    def ids(self) -> range:
        """Numbers of the images."""
        return range(self.first, self.first + self.count)

    def unread(self) -> set[str]:
        """What neither the sampler nor the guidance reads."""
        table = {name for name in ("switch", "scales") if not getattr(self, name)}
        return Sampler.unread(self) | Guidance.unread(self) | table | ({"guidance"} if self.scales else set())

    def problems(self) -> Iterator[Problem]:
        """What is wrong with sampler and guidance, and weights without a meaning."""
        yield from Sampler.problems(self)
        yield from Guidance.problems(self)
        if parse_weights(self.weights) is None:
            yield Problem("weights", WEIGHTS)
        if self.switch and self.scales:
            yield Problem("scales", "[] with switch: one picture shows one of the two")
        if (drawn := self.count * sum(map(len, self.groups()))) > MOST_IMAGES:
            yield Problem("count", f"fewer: together they make {drawn:,} images, more than {MOST_IMAGES:,}")

    def groups(self) -> list[list[Self]]:
        """What is drawn: of each group, the same images in several ways, which stand side by side."""
        if self.scales:
            return [[self._plain(guidance=scale) for scale in self.scales]]
        if self.switch:
            return [[self._switched(name, sign) for sign in ("-", "")] for name in self.switch]
        return [[self]]

    def singles(self) -> Iterator[Self]:
        """For every image, in the order of the picture, the request of it alone."""
        for group in self.groups():
            for number in self.ids:
                yield from (way.model_copy(update={"first": number, "count": 1}) for way in group)

    @property
    def columns(self) -> int:
        """Images in a row of the picture."""
        if self.switch or self.scales:
            return self.count * 2 if self.switch else len(self.scales)
        return math.ceil(math.sqrt(self.count))

    def _plain(self, **changes: Any) -> Self:
        return self.model_copy(update={"switch": (), "scales": (), **changes})

    def _switched(self, name: str, sign: str) -> Self:
        others = [word for word in self.attributes if word.removeprefix("-") != name]
        return self._plain(attributes=(*others, f"{sign}{name}"))


AnyRequest = TypeVar("AnyRequest", bound=Request)


def read_request(values: Mapping[str, Any], usual: AnyRequest) -> AnyRequest:
    """The request that ``values`` make of the usual one.

    Raises:
        UnveilError: in one line, with the key, what was found and what is allowed.
    """
    together = usual.model_dump() | dict(values)
    try:
        return type(usual).model_validate(together)
    except ValidationError as error:
        found = findings(schema_of(type(usual)), error.errors(include_url=False), together, fill=True)
    key, text = next(iter(found.items()))
    raise UnveilError(printable(f"{shortened('.'.join(key))}: {text}"))


def in_words(attributes: Sequence[str]) -> str:
    """What is asked for, as a person says it.

    >>> in_words(("Smiling", "-Wearing_Hat"))
    'Smiling, not Wearing_Hat'
    """
    return ", ".join(f"not {word[1:]}" if word.startswith("-") else word for word in attributes) or "no attributes told"
