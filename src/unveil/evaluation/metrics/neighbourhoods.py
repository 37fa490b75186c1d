"""Precision and recall, density and coverage: what part of each set lies near the other."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from unveil.evaluation.metrics.metric import FEATURES, REFERENCE, Entry, Found, Kind

if TYPE_CHECKING:
    from unveil.evaluation.metrics.measurement import Asked, Sets


def _kind(name: str, source: str) -> Kind:
    defined_by = (*REFERENCE, *FEATURES, "evaluation.neighbours")
    return Kind(rf"{name}(_\w+)?", name, lower_is_better=False, source=source, defined_by=defined_by)


def measure_precision_recall(sets: "Sets", asked: "Asked") -> Found:
    """Both with floor and standard error."""
    from unveil.evaluation.metrics.manifold import PRECISION_NEIGHBOURS, precision_recall, precision_recall_stderr

    return _measure(sets, asked, PRECISION_NEIGHBOURS, precision_recall, precision_recall_stderr)


def measure_density_coverage(sets: "Sets", asked: "Asked") -> Found:
    """Both with floor and standard error."""
    from unveil.evaluation.metrics.manifold import DENSITY_NEIGHBOURS, density_coverage, density_coverage_stderr

    return _measure(sets, asked, DENSITY_NEIGHBOURS, density_coverage, density_coverage_stderr)


def _measure(
    sets: "Sets", asked: "Asked", neighbours: int, values: Callable[..., Any], errors: Callable[..., Any]
) -> Found:
    """Each number of the pair that ``values`` gives, with the one of its name that ``errors`` gives."""
    radii = sets.radii(neighbours)
    pairs = sets.each(lambda rows: asdict(values(rows, sets.reference, radii=radii)))
    stderr = asdict(errors(sets.samples, sets.reference, asked.seed, radii=radii))
    metrics = [
        sets.metric(sets.features.metric(name), {key: pair[name] for key, pair in pairs.items()}, stderr=error)
        for name, error in stderr.items()
    ]
    return Found(tuple(metrics))


PRECISION_RECALL = Entry(4, (_kind("precision", "1904.06991"), _kind("recall", "1904.06991")), measure_precision_recall)
DENSITY_COVERAGE = Entry(6, (_kind("density", "2002.09797"), _kind("coverage", "2002.09797")), measure_density_coverage)
