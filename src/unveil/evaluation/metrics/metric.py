"""What a metric is: its number with all that a reader needs to judge it, its kind, and its entry in the registry.

This module and those of the entries import PyTorch and SciPy only to measure, so that a card is read without them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from unveil.section import Count, Key

if TYPE_CHECKING:
    from unveil.evaluation.images.labelled import Labelled
    from unveil.evaluation.metrics.copies import Copies
    from unveil.evaluation.metrics.guidance import AtScale
    from unveil.evaluation.metrics.measurement import Asked, Sets
    from unveil.evaluation.metrics.uncertainty import FrechetBySize

UNDAMAGED = "undamaged"  # the name, among the controls, of the same real images as they are
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
FLAT = ("stderr", "std", "low", "high", "floor", "noise", "fraction")


class Metric(BaseModel):
    """One number with what a reader needs to judge it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Key
    """As in metrics/evaluate.json."""
    value: FiniteFloat
    lower_is_better: bool
    n: Count
    """Samples that it is of (of bits per dimension: held-out images)."""
    n_reference: Count | None = None
    """Real images that they were compared with; None where there are none."""
    stderr: Annotated[FiniteFloat, Field(ge=0)] | None = None
    """Standard error of ``value``."""
    std: Annotated[FiniteFloat, Field(ge=0)] | None = None
    """Spread of the estimates that ``value`` is the mean of, over subsets (KID) or splits (Inception Score)."""
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    level: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    """Confidence of the interval from ``low`` to ``high``, in (0, 1)."""
    floor: FiniteFloat | None = None
    """Value of held-out real images."""
    noise: FiniteFloat | None = None
    """Value of uniform noise."""
    fraction: FiniteFloat | None = None
    """Where the samples lie on the way from floor (0) to noise (1)."""
    controls: dict[str, FiniteFloat] = {}
    """Values of real images that were damaged in a known way, by the control's name (``jpeg75``)."""
    n_controls: Count | None = None
    """Images of each of them; None where there are none."""
    features: Key | None = None
    """The feature network that it is on, a key of ``choices.features``; None for one without."""

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
    """A kind of metric."""

    names: str
    """Pattern that its names match whole; the features may stand behind (``kid_dinov2``)."""
    title: str
    lower_is_better: bool
    source: str
    defined_by: tuple[str, ...] = (*REFERENCE, *FEATURES)
    """Choices of the card, dotted, without which its values are numbers on different things. A name stands for
    everything below it; ``features`` for those of the metric's own network."""
    depends_on_n: bool = True
    """Whether its expected value changes with the number of samples."""
    has_reference: bool = True
    """Whether samples are compared with real images."""
    listed: bool = True
    """Whether the card's table of metrics has it."""
    apart: bool = False
    """Whether there are so many of it that a page has them in a table of their own."""


@dataclass(frozen=True)
class Found:
    """What was measured on one network: metrics in a reader's order, and what a card and its figures show besides."""

    metrics: tuple[Metric, ...]
    """The headline first."""
    by_size: "FrechetBySize | None" = None
    """The Fréchet distance at several N."""
    copies: "Copies | None" = None
    """Of training images and of each other."""
    by_guidance: "tuple[AtScale, ...]" = ()
    """What each scale of guidance gives and takes."""


@dataclass(frozen=True)
class Entry:
    """A name of ``evaluate.metrics``."""

    least: int
    """Images that a set needs for it to be defined."""
    kinds: tuple[Kind, ...]
    measure: "Callable[[Sets, Asked], Found] | None"
    """From the features of one network; None of a metric that needs none."""
    logits: bool = False
    """Whether it needs logits, and so is left out on networks without."""
    measure_labelled: "Callable[[Labelled, Asked], Found] | None" = None
    """From images and their attributes."""
