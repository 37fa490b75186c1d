"""The kernel distance."""

from statistics import NormalDist
from typing import TYPE_CHECKING

from unveil.evaluation.metrics.metric import LEVEL, Entry, Found, Kind

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.evaluation.metrics.distances import Spread
    from unveil.evaluation.metrics.measurement import Asked, Sets

KERNEL = Kind(r"kid(_\w+)?", "kernel distance", lower_is_better=True, source="1801.01401", depends_on_n=False)


def measure(sets: "Sets", asked: "Asked") -> Found:
    """The distance with floor, noise, the spread over subsets, and an interval."""
    from unveil.evaluation.metrics.distances import kernel_distance, kernel_stderr

    def distance(rows: "Tensor") -> "Spread":
        # Controls may be fewer than a subset, whose size does not bias the distance.
        size = min(len(rows), asked.kid_subset_size)
        return kernel_distance(rows, sets.reference, asked.kid_subsets, size, asked.seed)

    found = sets.each(distance, noise=True)
    own = found["samples"]
    stderr = kernel_stderr(sets.samples, sets.reference, own, asked.kid_subsets)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * stderr  # normal, as a mean over many pairs of images
    interval = {"stderr": stderr, "low": own.mean - reach, "high": own.mean + reach, "level": LEVEL}
    means = {name: part.mean for name, part in found.items()}
    return Found((sets.metric(sets.features.metric("kid"), means, std=own.std, **interval),))


ENTRY = Entry(4, (KERNEL,), measure)
