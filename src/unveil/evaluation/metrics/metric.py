"""What a metric is: its number with all that a reader needs to judge it, its kind, and its entry in the registry.

This module and those of the entries import PyTorch and SciPy only to measure, so that a card is read without them.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from unveil.section import Count, Key

if TYPE_CHECKING:
    from unveil.evaluation.metrics.copies import Copies
    from unveil.evaluation.metrics.measurement import Asked, Sets
    from unveil.evaluation.metrics.uncertainty import FrechetBySize

LEVEL = 0.95  # of confidence intervals
DATA = ("data.source", "data.protocol", "data.image_size")
REFERENCE = (*DATA, "data.shards", "data.shard_hashes", "data.reference")
FEATURES = (
    "features.extractor",
    "features.layer",
    "features.dimension",
    "features.preprocessing",
    "features.weights_sha256",
)
AFTER_NOISE = 2  # a turn of measuring, of those that need none
FLAT = ("stderr", "std", "low", "high", "floor", "noise", "fraction")


class Metric(BaseModel):
    """One number with what a reader needs to judge it.

    Attributes:
        name: as in metrics/evaluate.json.
        value: of the samples.
        lower_is_better: which direction is good.
        n: samples that it is of (of bits per dimension: held-out images).
        n_reference: real images that they were compared with; None where there are none.
        stderr: standard error of ``value``.
        std: spread of the estimates that ``value`` is the mean of, over subsets (KID) or splits (Inception Score).
        low: lower end of the confidence interval.
        high: its upper end.
        level: its confidence, in (0, 1).
        floor: value of held-out real images.
        noise: value of uniform noise.
        fraction: where the samples lie on the way from floor (0) to noise (1).
        controls: values of real images that were damaged in a known way, by the control's name (``jpeg75``).
        n_controls: images of each of them; None where there are none.
        features: the feature network that it is on, a key of ``choices.features``; None for one without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Key
    value: FiniteFloat
    lower_is_better: bool
    n: Count
    n_reference: Count | None = None
    stderr: Annotated[FiniteFloat, Field(ge=0)] | None = None
    std: Annotated[FiniteFloat, Field(ge=0)] | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    level: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    floor: FiniteFloat | None = None
    noise: FiniteFloat | None = None
    fraction: FiniteFloat | None = None
    controls: dict[str, FiniteFloat] = {}
    n_controls: Count | None = None
    features: Key | None = None

    @model_validator(mode="after")
    def _known_and_whole(self) -> Self:
        from unveil.evaluation.metrics.registry import kind_of  # which is made of the entries, and these of this module

        kind_of(self.name)
        if len({self.low is None, self.high is None, self.level is None}) > 1:
            raise ValueError("low, high and level stand together or not at all")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


def flat_metrics(metrics: Iterable[Metric]) -> dict[str, float]:
    """The numbers of metrics as metrics/evaluate.json has them, in the order of their names.

    ``<name>`` is of the samples. Behind it ``_stderr``, ``_std``, ``_low``, ``_high``, ``_floor``, ``_noise`` and
    ``_fraction`` name what ``Metric`` calls so, where there is one.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        found[metric.name] = metric.value
        found |= {f"{metric.name}_{end}": getattr(metric, end) for end in FLAT if getattr(metric, end) is not None}
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Kind:
    """A kind of metric.

    Attributes:
        names: pattern that its names match whole; the features may stand behind (``kid_dinov2``).
        title: its usual name.
        lower_is_better: its direction.
        source: the paper that defines it.
        defined_by: choices of the card, dotted, without which its values are numbers on different things. A name
            stands for everything below it; ``features`` for those of the metric's own network.
        depends_on_n: whether its expected value changes with the number of samples.
        has_reference: whether samples are compared with real images.
        listed: whether the card's table of metrics has it.
    """

    names: re.Pattern[str]
    title: str
    lower_is_better: bool
    source: str
    defined_by: tuple[str, ...] = (*REFERENCE, *FEATURES)
    depends_on_n: bool = True
    has_reference: bool = True
    listed: bool = True


@dataclass(frozen=True)
class Found:
    """What was measured on one network: metrics in a reader's order, and what a card and its figures show besides.

    Attributes:
        metrics: the headline first.
        by_size: the Fréchet distance at several N.
        copies: of training images and of each other.
    """

    metrics: tuple[Metric, ...]
    by_size: "FrechetBySize | None" = None
    copies: "Copies | None" = None


@dataclass(frozen=True)
class Entry:
    """A name of ``evaluate.metrics``.

    Attributes:
        least: images that a set needs for it to be defined.
        kinds: of the metrics that it gives.
        measure: from the features of one network.
        logits: whether it needs logits, and so is left out on networks without.
        turn: when it is measured: 0 where it needs the noise, 1 as the last that does, 2 after its features were let
            go, so that memory is free.
    """

    least: int
    kinds: tuple[Kind, ...]
    measure: "Callable[[Sets, Asked], Found]"
    logits: bool = False
    turn: int = AFTER_NOISE
