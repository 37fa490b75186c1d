"""What a scale of guidance gives and takes: distance, precision and recall of as many samples at each scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unveil.evaluation.metrics.metric import Kind, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.evaluation.metrics.measurement import Sets

NAMED = {0.0: "unconditional", 1.0: "conditional"}  # scales whose distance is a metric of its own
AT_SCALE = Kind(
    rf"(fid|fd_\w+?)_({'|'.join(NAMED.values())})",
    "Fréchet distance at a scale of guidance",
    lower_is_better=True,
    source="2207.12598",
)


@dataclass(frozen=True)
class AtScale:
    """What was measured on the samples of one scale, which have the seeds and attributes of every other's."""

    scale: float
    images: int
    distance: float
    """Fréchet's, to the reference of all other distances."""
    precision: float
    recall: float
    accuracy: float | None = None
    """Mean over attributes of the share of samples that have what they were asked for; None without an oracle."""


def measure_scales(scales: "Mapping[float, Tensor]", sets: "Sets") -> tuple[AtScale, ...]:
    """Of the features [n, D] of each scale's samples, in rising order of the scales."""
    from unveil.evaluation.metrics.distances import frechet_distance, significant, statistics
    from unveil.evaluation.metrics.manifold import PRECISION_NEIGHBOURS, precision_recall

    if not scales:
        return ()
    reference, radii = statistics(sets.reference), sets.radii(PRECISION_NEIGHBOURS)
    found = []
    for scale, rows in sorted(scales.items()):
        near = precision_recall(rows, sets.reference, radii=radii)
        numbers = (frechet_distance(statistics(rows), reference), near.precision, near.recall)
        found.append(AtScale(scale, len(rows), *map(significant, numbers)))
    return tuple(found)


def scale_metrics(found: tuple[AtScale, ...], sets: "Sets") -> tuple[Metric, ...]:
    """The distances of the unconditional and of the conditional samples, where these were drawn."""
    return tuple(
        Metric(
            name=f"{sets.features.frechet}_{NAMED[one.scale]}",
            value=one.distance,
            lower_is_better=True,
            n=one.images,
            n_reference=len(sets.reference),
            features=sets.features.name,
        )
        for one in found
        if one.scale in NAMED
    )
