"""Scales of guidance: each is measured as its samples alone are."""

import torch

from unveil.evaluation.features.published import FEATURE_SETS
from unveil.evaluation.metrics.distances import frechet_distance, significant, statistics
from unveil.evaluation.metrics.guidance import measure_scales, scale_metrics
from unveil.evaluation.metrics.manifold import precision_recall
from unveil.evaluation.metrics.measurement import Sets

FEATURES = FEATURE_SETS["efficientnet-lite0"]


def test_each_scale_is_measured_as_its_samples_alone_and_two_have_a_name() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("samples", "reference", "held_out", "noise")
    sets = Sets(FEATURES, {name: {FEATURES.layer: torch.randn(40, 6, generator=generator)} for name in names})
    scales = {scale: torch.randn(20, 6, generator=generator) / (1 + scale) for scale in (3.0, 0.0, 1.0)}
    found = measure_scales(scales, sets)
    assert [one.scale for one in found] == [0.0, 1.0, 3.0]
    for one in found:
        rows = scales[one.scale]
        near = precision_recall(rows, sets.reference)
        distance = frechet_distance(statistics(rows), statistics(sets.reference))
        assert (one.images, one.distance) == (20, significant(distance))
        assert (one.precision, one.recall) == (near.precision, near.recall)
    assert found[2].recall < found[0].recall
    metrics = {metric.name: (metric.value, metric.n) for metric in scale_metrics(found, sets)}
    assert metrics == {
        "fd_efficientnet_lite0_unconditional": (found[0].distance, 20),
        "fd_efficientnet_lite0_conditional": (found[1].distance, 20),
    }
    assert measure_scales({}, sets) == () == scale_metrics((), sets)
