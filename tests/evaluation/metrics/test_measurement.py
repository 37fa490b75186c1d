import weakref
from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase

from unveil.distributed import Processes
from unveil.evaluation.card.sentences import on_limit, on_training
from unveil.evaluation.card.statement import by_size_of
from unveil.evaluation.features.cache import FeatureCache
from unveil.evaluation.features.extraction import Extractor
from unveil.evaluation.features.published import FEATURE_SETS, FeatureSet
from unveil.evaluation.metrics.distances import frechet_distance, kernel_distance, statistics
from unveil.evaluation.metrics.manifold import density_coverage, precision_recall
from unveil.evaluation.metrics.measurement import Asked, ImageSet, extract_sets, measure
from unveil.evaluation.metrics.metric import UNDAMAGED, Found, flat_metrics
from unveil.evaluation.metrics.registry import MetricName, kind_of

LITE = FEATURE_SETS["efficientnet-lite0"]
INCEPTION = FEATURE_SETS["inception"]
TWO: tuple[MetricName, ...] = ("frechet", "kernel")
NAME = "fd_efficientnet_lite0"
EVERY = get_args(MetricName)


def _sets(shift: float = 0.3, noise: float = 5.0, count: int = 60) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference, held_out, samples, far = torch.randn(4, count, 8, generator=generator)
    return {"samples": samples + shift, "reference": reference, "held_out": held_out, "noise": far + noise}


def _measure(sets: Mapping[str, Tensor], features: FeatureSet = LITE, **changes: Any) -> Found:
    asked: dict[str, Any] = {
        "metrics": TWO,
        "kid_subsets": 10,
        "kid_subset_size": 30,
        "interval_splits": 0,
        "seed": 0,
    }
    layers = {name: {features.layer: rows, "logits_unbiased": rows} for name, rows in sets.items()}
    return measure(layers, features, Asked(**asked | changes))


def _flat(*arguments: Any, **changes: Any) -> dict[str, float]:
    return flat_metrics(_measure(*arguments, **changes).metrics)


def test_values_are_flat_and_named_after_their_features() -> None:
    found = _flat(_sets())
    assert set(found) == {
        *(NAME + end for end in ("", "_floor", "_noise", "_fraction")),
        *(f"kid_efficientnet_lite0{end}" for end in ("", "_std", "_stderr", "_low", "_high", "_floor", "_noise")),
    }
    inception = _flat(_sets(), INCEPTION)
    assert inception["fid"] == found[NAME] and "kid_std" in inception
    assert not any(name.startswith("fd_") for name in inception)


def test_samples_lie_between_the_controls() -> None:
    sets = _sets()
    found = _flat(sets)
    for name in (NAME, "kid_efficientnet_lite0"):
        assert found[f"{name}_floor"] < found[name] < found[f"{name}_noise"]
    way = found[f"{NAME}_noise"] - found[f"{NAME}_floor"]
    expected = (found[NAME] - found[f"{NAME}_floor"]) / way
    assert found[f"{NAME}_fraction"] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 0.1
    perfect = _flat(sets | {"samples": sets["reference"]}, kid_subset_size=60)
    assert perfect[NAME] == pytest.approx(0, abs=1e-5)
    assert perfect[f"{NAME}_fraction"] < 0


def test_the_fraction_is_left_out_where_noise_is_not_farther() -> None:
    sets = _sets()
    found = _flat(sets | {"held_out": sets["noise"], "noise": sets["held_out"]})
    assert f"{NAME}_fraction" not in found


def test_sets_may_have_other_numbers() -> None:
    sets = _sets(count=80)
    few = sets | {"samples": sets["samples"][:50], "held_out": sets["held_out"][:40], "noise": sets["noise"][:50]}
    found = _flat(few)
    reference = statistics(sets["reference"])
    for suffix, name in (("", "samples"), ("_floor", "held_out"), ("_noise", "noise")):
        expected = frechet_distance(statistics(few[name]), reference)
        assert found[NAME + suffix] == pytest.approx(expected, rel=1e-5)


def test_controls_stand_beside_the_same_images_undamaged() -> None:
    sets = _sets(count=80)
    damaged = sets["held_out"][::2] * 1.5  # of spread(80, 40)
    found = _measure(sets | {"blur": damaged}, metrics=("frechet",))
    reference = statistics(sets["reference"])
    (metric,) = found.metrics
    assert metric.controls == {
        UNDAMAGED: pytest.approx(frechet_distance(statistics(sets["held_out"][::2]), reference), rel=1e-5),
        "blur": pytest.approx(frechet_distance(statistics(damaged), reference), rel=1e-5),
    }
    assert metric.n_controls == 40 and all(metric.n_controls is None for metric in _measure(sets).metrics)


def test_every_metric_has_the_controls_also_where_they_are_fewer_than_a_subset() -> None:
    sets = _sets(count=80)
    blurred, far = sets["held_out"][::4] * 1.2, sets["held_out"][::4] + 50
    found = _measure(sets | {"blur": blurred, "noisy": far}, INCEPTION, metrics=EVERY)
    controls = {metric.name: metric.controls for metric in found.metrics if kind_of(metric.name).listed}
    assert {*controls} == {*("fid", "kid", "precision", "recall", "density", "coverage", "inception_score")}
    assert all(list(values) == [UNDAMAGED, "blur", "noisy"] for values in controls.values())
    undamaged, reference = sets["held_out"][::4], sets["reference"]
    for key, rows in ((UNDAMAGED, undamaged), ("blur", blurred), ("noisy", far)):
        pair, both = precision_recall(rows, reference), density_coverage(rows, reference)
        expected = {"precision": pair.precision, "recall": pair.recall, **asdict(both)}
        for name, value in expected.items():
            assert controls[name][key] == pytest.approx(value, rel=1e-5)
        assert controls["kid"][key] == pytest.approx(kernel_distance(rows, reference, 10, 20, 0).mean, rel=1e-5)
    assert controls["precision"]["noisy"] == 0


def test_everything_that_is_asked_for_is_listed_and_has_a_value() -> None:
    found = _measure(_sets(count=70), INCEPTION, metrics=EVERY, interval_splits=10)
    assert [metric.name for metric in found.metrics] == [
        "fid",
        "fid_infinity",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "inception_score",
        "nearer_to_training",
        "near_duplicates",
    ]
    values = flat_metrics(found.metrics)
    for name in ("precision", "recall", "density", "coverage"):
        assert 0 < values[f"{name}_stderr"] < 0.2
    reach = 1.96 * values["kid_stderr"]
    assert values["kid_high"] - values["kid"] == pytest.approx(reach, rel=1e-3)
    assert values["kid"] - values["kid_low"] == pytest.approx(reach, rel=1e-3)
    assert values["fid_low"] < values["fid"] < values["fid_high"]
    assert found.by_size is not None and found.by_size.sizes[0] == 70
    assert found.copies is not None and found.copies.of_training.memorized is False


def test_training_images_as_samples_are_called_memorized_and_repetitions_duplicated() -> None:
    sets = _sets(count=600, shift=0.0)
    training = _measure(sets | {"samples": sets["reference"] + 1e-3}, metrics=("memorization",))
    assert training.copies is not None
    assert training.copies.of_training.memorized is True and not training.copies.duplicates.duplicated
    again = _measure(sets | {"samples": sets["samples"][:30].repeat(20, 1)}, metrics=("memorization",))
    assert again.copies is not None
    assert again.copies.duplicates.duplicated and again.copies.of_training.memorized is False
    held_out = _measure(sets, metrics=("memorization",))
    assert held_out.copies is not None
    assert not held_out.copies.duplicates.duplicated and held_out.copies.of_training.memorized is False


def test_nothing_found_in_a_part_of_the_training_images_is_undecided() -> None:
    found = _measure(_sets(), metrics=("memorization",), training_total=601)
    assert found.copies is not None and found.copies.of_training.memorized is None
    assert "searched 60 of 601 training images" in on_training(found.copies.of_training)


def test_too_few_samples_for_their_features_have_an_interval_and_no_limit() -> None:
    found = _measure(_sets(), metrics=("frechet",), interval_splits=10)
    (metric,) = found.metrics
    assert metric.name == NAME and metric.low is not None and found.by_size is not None
    part = by_size_of(NAME, found.by_size)
    assert part.extrapolation is None and len(part.points) == 4
    assert "60 samples are fewer than 64" in on_limit(found.by_size, 8)[0]


@pytest.mark.parametrize("metrics", [TWO, (*TWO, "inception-score")])
def test_logits_are_in_memory_only_for_the_inception_score(metrics: tuple[MetricName, ...]) -> None:
    kept = {"2048": torch.zeros(3, 2048), "logits_unbiased": torch.zeros(3, 1008)}
    cache = cast(FeatureCache, SimpleNamespace(get_or=lambda facts, compute: dict(kept)))
    extractor = Extractor(INCEPTION, cast(FeatureExtractorBase, None), "weights.pth", "0" * 64)
    images = {"samples": ImageSet("samples", {}, 3, list)}
    found = extract_sets(images, extractor, cache, 1, torch.device("cpu"), Processes(), print, metrics)
    assert found is not None
    assert set(found["samples"]) == (set(kept) if "inception-score" in metrics else {"2048"})


def test_features_are_let_go_when_the_last_metric_has_seen_them() -> None:
    layers = {name: {LITE.layer: rows} for name, rows in _sets().items()}
    noise = weakref.ref(layers["noise"][LITE.layer])
    measure(layers, LITE, Asked(TWO, 10, 30, 0, seed=0))
    assert noise() is None and not any(layers.values())
