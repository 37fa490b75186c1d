"""The Fréchet distance, and its limit for endlessly many samples."""

from typing import TYPE_CHECKING

from unveil.evaluation.metrics.guidance import AT_SCALE
from unveil.evaluation.metrics.metric import Entry, Found, Kind

if TYPE_CHECKING:
    from unveil.evaluation.metrics.measurement import Asked, Sets
    from unveil.evaluation.metrics.uncertainty import FrechetBySize, FrechetInterval

LIMIT = Kind(
    r"(fid|fd_\w+?)_infinity",
    "Fréchet distance without the bias of a finite N",
    lower_is_better=True,
    source="1911.07023",
    depends_on_n=False,
)
DISTANCE = Kind(r"fid|fd_\w+", "Fréchet distance", lower_is_better=True, source="1706.08500")


def measure(sets: "Sets", asked: "Asked") -> Found:
    """The distance with floor and noise; if asked for, also its interval, and the limit where there is one."""
    from unveil.evaluation.metrics.distances import frechet_distance, statistics
    from unveil.evaluation.metrics.uncertainty import frechet_by_size, frechet_interval

    name, reference = sets.features.frechet, statistics(sets.reference)
    values = sets.each(lambda rows: frechet_distance(statistics(rows), reference), noise=True)
    way = values["noise"] - values["held_out"]
    share = (values["samples"] - values["held_out"]) / way if way > 0 else None
    if not asked.interval_splits:
        return Found((sets.metric(name, values, fraction=share),))
    interval = frechet_interval(sets.samples, reference, asked.seed, asked.interval_splits)
    found = frechet_by_size(sets.samples, reference, interval, asked.seed)
    metrics = [sets.metric(name, values, fraction=share, **_ends(interval))]
    if found.infinity is not None:
        metrics.append(sets.metric(f"{name}_infinity", {"samples": found.infinity}, **_ends(found)))
    return Found(tuple(metrics), by_size=found)


def _ends(found: "FrechetInterval | FrechetBySize") -> dict[str, float | None]:
    return {"stderr": found.stderr, "low": found.low, "high": found.high, "level": found.level}


ENTRY = Entry(2, (LIMIT, AT_SCALE, DISTANCE), measure)
