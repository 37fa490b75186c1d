"""What decides a picture: the images' numbers, the settings of the sampler, and the weights."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import ValidationError

from unveil.diffusion.config import Guidance, Sampler
from unveil.errors import UnveilError, printable
from unveil.messages import findings, schema_of
from unveil.section import LISTED, Precision, Problem, Seed
from unveil.weights import WEIGHTS, parse_weights

MOST_IMAGES = 1024  # of one request; more are a data set, which the sample stage draws


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

    @property
    def ids(self) -> range:
        """Numbers of the images."""
        return range(self.first, self.first + self.count)

    def unread(self) -> set[str]:
        """What neither the sampler nor the guidance reads."""
        return Sampler.unread(self) | Guidance.unread(self)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with sampler and guidance, and weights without a meaning."""
        yield from Sampler.problems(self)
        yield from Guidance.problems(self)
        if parse_weights(self.weights) is None:
            yield Problem("weights", WEIGHTS)


SCHEMA = schema_of(Request)


def read_request(values: Mapping[str, Any], usual: Request) -> Request:
    """The request that ``values`` make of the usual one.

    Raises:
        UnveilError: in one line, with the key, what was found and what is allowed.
    """
    together = usual.model_dump() | dict(values)
    try:
        return Request.model_validate(together)
    except ValidationError as error:
        found = findings(SCHEMA, error.errors(include_url=False), together, fill=True)
    key, text = next(iter(found.items()))
    raise UnveilError(printable(f"{'.'.join(key)}: {text}"))
