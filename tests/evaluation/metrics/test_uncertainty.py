"""Intervals cover at their rate, and the limit has no bias of the samples' number."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from unveil.errors import UnveilError
from unveil.evaluation.card.sentences import on_limit
from unveil.evaluation.metrics.distances import Statistics, frechet_distance, statistics
from unveil.evaluation.metrics.uncertainty import (
    FrechetBySize,
    FrechetInterval,
    frechet_by_size,
    frechet_interval,
)

REPETITIONS = 200
calibration = pytest.mark.calibration


class _Model:
    """Gaussian samples at a known distance from a known reference, with a falling spectrum as features have."""

    def __init__(self, dimension: int, count: int, kind: str) -> None:
        self.count, self.dimension = count, dimension
        self.random = np.random.default_rng(count)
        self.spectrum = np.arange(1, dimension + 1) ** -0.7
        self.scale = {
            "equal": np.ones(dimension),
            "near": np.linspace(0.7, 1.2, dimension),
            "far": np.full(dimension, 0.5),
        }[kind]
        self.shift = {"equal": 0.0, "near": 0.1, "far": 0.5}[kind]
        self.reference: Statistics = {"mu": np.zeros(dimension), "sigma": np.diag(self.spectrum)}

    def draw(self) -> Tensor:
        normal = self.random.standard_normal((self.count, self.dimension))
        return torch.from_numpy(self.shift + normal * np.sqrt(self.spectrum) * self.scale)

    @property
    def limit(self) -> float:
        """The closed form: the distance of infinitely many samples."""
        return float(self.dimension * self.shift**2 + (self.spectrum * (1 - self.scale) ** 2).sum())

    def mean(self, draws: int = 800) -> float:
        return float(np.mean([frechet_distance(statistics(self.draw()), self.reference) for _ in range(draws)]))


def _band(rate: float = 0.95, sigmas: float = 3.5, repetitions: int = REPETITIONS) -> float:
    return sigmas * math.sqrt(rate * (1 - rate) / repetitions)


def _covered(found: list[FrechetInterval] | list[FrechetBySize], truth: float) -> float:
    ends = [(one.low, one.high) for one in found]
    return float(np.mean([low is not None and high is not None and low <= truth <= high for low, high in ends]))


@pytest.mark.parametrize(
    ("kind", "dimension", "count", "repetitions"),
    [
        ("near", 6, 150, 60),
        *(
            pytest.param(kind, dimension, count, REPETITIONS, marks=calibration)
            for kind in ("equal", "near")
            for dimension, count in ((6, 150), (32, 40))
        ),
    ],
)
def test_interval_covers_the_mean_over_seeds_at_its_rate(
    kind: str, dimension: int, count: int, repetitions: int
) -> None:
    """At N far above D and near it; the standard error is that of the values themselves, within a fifth."""
    model = _Model(dimension, count, kind)
    found = [frechet_interval(model.draw(), model.reference, seed) for seed in range(repetitions)]
    assert abs(_covered(found, model.mean()) - 0.95) <= _band(repetitions=repetitions)
    scatter = np.std([one.estimate for one in found])
    stderr = math.sqrt(np.mean([one.stderr**2 for one in found]))
    assert 0.8 < stderr / scatter < 1.3


@calibration
def test_interval_below_the_dimension_is_rather_too_wide() -> None:
    model = _Model(16, 10, "near")
    found = [frechet_interval(model.draw(), model.reference, seed) for seed in range(REPETITIONS)]
    assert _covered(found, model.mean()) >= 0.95 - _band()


@calibration
def test_interval_covers_at_another_level() -> None:
    model = _Model(6, 150, "near")
    found = [frechet_interval(model.draw(), model.reference, seed, level=0.8) for seed in range(REPETITIONS)]
    assert abs(_covered(found, model.mean()) - 0.8) <= _band(0.8)


@pytest.mark.parametrize("count", [30, 150])
def test_interval_is_around_the_distance_itself_and_is_its_seeds(count: int) -> None:
    """Both ways to the eigenvalues: N <= 2 D and above."""
    model = _Model(20, count, "near")
    samples = 50 + model.draw()
    reference = {"mu": model.reference["mu"] + 49, "sigma": _rotated(model.reference["sigma"])}
    found = frechet_interval(samples, reference, seed=1)
    assert found.estimate == pytest.approx(frechet_distance(statistics(samples), reference), rel=1e-9)
    assert found.low < found.estimate < found.high
    assert found.stderr**2 == pytest.approx(found.linear + found.quadratic)
    narrow = frechet_interval(samples, reference, seed=1, level=0.8)
    share = student.ppf(0.9, found.degrees) / student.ppf(0.975, found.degrees)
    assert narrow.level == 0.8 and narrow.high - narrow.low == pytest.approx(share * (found.high - found.low))
    assert found == frechet_interval(samples, reference, seed=1) != frechet_interval(samples, reference, seed=2)


def _rotated(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=sigma.shape))
    return q @ sigma @ q.T


@pytest.mark.parametrize(
    ("kind", "repetitions"),
    [("equal", 60), *(pytest.param(kind, REPETITIONS, marks=calibration) for kind in ("equal", "near"))],
)
def test_limit_has_no_bias_and_its_interval_covers_the_closed_form(kind: str, repetitions: int) -> None:
    model = _Model(8, 240, kind)
    found: list[FrechetBySize] = []
    at_n: list[float] = []
    for seed in range(repetitions):
        samples = model.draw()
        interval = frechet_interval(samples, model.reference, seed)
        found.append(frechet_by_size(samples, model.reference, interval, seed))
        at_n.append(interval.estimate)
    limits = np.array([one.infinity for one in found])
    bias = np.mean(at_n) - model.limit
    assert bias > 5 * np.std(at_n) / math.sqrt(repetitions) if kind == "equal" else bias > 0
    assert abs(limits.mean() - model.limit) < max(0.1 * bias, 4 * limits.std() / math.sqrt(repetitions))
    assert abs(_covered(found, model.limit) - 0.95) <= _band(repetitions=repetitions)
    errors = [one.stderr for one in found if one.stderr is not None]
    assert 0.8 < math.sqrt(np.mean(np.square(errors))) / limits.std() < 1.25


def test_limit_keeps_the_bias_of_the_reference() -> None:
    """From a small reference drawn alike, even infinitely many samples are as far as its moments are."""
    model = _Model(8, 3000, "equal")
    reference = statistics(model.draw()[:100])
    population = {"mu": np.zeros(8), "sigma": np.diag(model.spectrum)}
    samples = model.draw()
    interval = frechet_interval(samples, reference, 0)
    found = frechet_by_size(samples, reference, interval, 0)
    truth = frechet_distance(population, reference)
    assert found.low is not None and found.high is not None
    assert found.low <= truth <= found.high and found.low > 0.5 * truth


def test_sizes_are_four_and_distances_are_means_over_their_subsets() -> None:
    model = _Model(4, 60, "near")
    samples = model.draw()
    interval = frechet_interval(samples, model.reference, 0)
    found = frechet_by_size(samples, model.reference, interval, seed=3)
    assert found.sizes == (60, 50, 40, 30)
    assert found.distances[0] == pytest.approx(interval.estimate)
    order = np.random.default_rng(3).permutation(60)
    for size, distance in zip(found.sizes[1:], found.distances[1:], strict=True):
        runs = [np.roll(order, -10 * start)[:size] for start in range(6)]
        parts = [frechet_distance(statistics(samples[run]), model.reference) for run in runs]
        assert distance == pytest.approx(np.mean(parts), rel=1e-9)
    slope, intercept = np.polyfit(1 / np.array(found.sizes), found.distances, 1)
    assert found.infinity is not None
    assert found.infinity == pytest.approx(intercept) and slope > 0 and found.infinity < found.distances[0]
    assert on_limit(found, 4) == []


@pytest.mark.parametrize(("count", "limit"), [(30, False), (191, False), (192, True)])
def test_there_is_no_limit_below_four_samples_for_each_feature_in_half_of_them(count: int, limit: bool) -> None:
    model = _Model(24, count, "near")
    samples = model.draw()
    found = frechet_by_size(samples, model.reference, frechet_interval(samples, model.reference, 0), 0)
    assert {value is not None for value in (found.infinity, found.stderr, found.low, found.high)} == {limit}
    assert len(found.distances) == 4 and (on_limit(found, 24) == []) == limit
    if not limit:
        assert f"{count} samples are fewer than 192, 4 for each of the 24 features" in on_limit(found, 24)[0]


@calibration
@pytest.mark.parametrize("kind", ["equal", "near"])
def test_where_the_limit_begins_little_of_the_bias_stays_and_its_interval_nearly_covers(kind: str) -> None:
    model = _Model(16, 128, kind)
    found: list[FrechetBySize] = []
    at_n: list[float] = []
    for seed in range(REPETITIONS):
        samples = model.draw()
        interval = frechet_interval(samples, model.reference, seed, splits=10)
        found.append(frechet_by_size(samples, model.reference, interval, seed))
        at_n.append(interval.estimate)
    limits = np.array([one.infinity for one in found])
    noise = 4 * limits.std() / math.sqrt(REPETITIONS)
    assert abs(limits.mean() - model.limit) < 0.07 * (np.mean(at_n) - model.limit) + noise
    assert _covered(found, model.limit) >= 0.92 - _band(0.92)


@calibration
def test_interval_covers_heavy_tails_at_nearly_its_rate() -> None:
    """Rectified features, and twice a folded normal added to a tenth of the samples: 91.6 % for 95 %."""
    random = np.random.default_rng(0)

    def draw(count: int = 400) -> Tensor:
        heavy = 2 * np.abs(random.standard_normal((count, 16))) * (random.random((count, 1)) < 0.1)
        return torch.from_numpy(np.maximum(random.standard_normal((count, 16)), 0) + heavy)

    reference = statistics(draw(4000) - 0.3)
    mean = float(np.mean([frechet_distance(statistics(draw()), reference) for _ in range(800)]))
    found = [frechet_interval(draw(), reference, seed, splits=10) for seed in range(REPETITIONS)]
    assert abs(_covered(found, mean) - 0.916) <= _band(0.916)


def test_more_quadratic_variance_widens_the_limit_more_than_the_interval() -> None:
    model = _Model(4, 60, "near")
    samples = model.draw()
    interval = replace(frechet_interval(samples, model.reference, 0), linear=0.0, quadratic=1.0)
    stderr = frechet_by_size(samples, model.reference, interval, 0).stderr
    assert stderr is not None and 1 < stderr < 2


def test_bad_input_is_one_line() -> None:
    model = _Model(4, 60, "near")
    samples = model.draw()
    with pytest.raises(
        UnveilError, match=r"features of the samples: found shape \[7, 4\], expected \[N, D\] with N >= 8"
    ):
        frechet_interval(samples[:7], model.reference, 0)
    with pytest.raises(UnveilError, match="found 3 numbers an image, expected 4"):
        frechet_interval(samples[:, :3], model.reference, 0)
    with pytest.raises(UnveilError, match="found NaN"):
        frechet_interval(samples / 0, model.reference, 0)
    interval = frechet_interval(samples, model.reference, 0)
    with pytest.raises(UnveilError, match="N >= 24"):
        frechet_by_size(samples[:23], model.reference, interval, 0)
