"""Precision, recall, density and coverage: brute force from their definitions."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from unveil.errors import UnveilError
from unveil.evaluation.metrics.manifold import (
    ball_radii,
    density_coverage,
    density_coverage_stderr,
    precision_recall,
    precision_recall_stderr,
)


def _sets(samples: int = 45, reference: int = 60, shift: float = 0.7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 6, generator=generator) * 1.2 + shift, torch.randn(reference, 6, generator=generator)


def _radius(center: NDArray[np.float64], others: list[NDArray[np.float64]], k: int) -> float:
    return sorted(float(np.sqrt(((center - other) ** 2).sum())) for other in others)[k - 1]


def _balls(points: Tensor, k: int) -> list[tuple[NDArray[np.float64], float]]:
    rows = list(points.double().numpy())
    return [(row, _radius(row, rows[:place] + rows[place + 1 :], k)) for place, row in enumerate(rows)]


def _holds(ball: tuple[NDArray[np.float64], float], point: NDArray[np.float64]) -> bool:
    return float(np.sqrt(((ball[0] - point) ** 2).sum())) <= ball[1]


@pytest.mark.parametrize("block", [7, 1000])
@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_their_definitions(monkeypatch: pytest.MonkeyPatch, k: int, block: int) -> None:
    monkeypatch.setattr("unveil.evaluation.metrics.manifold.BLOCK_ROWS", block)
    samples, reference = _sets()
    balls, points = _balls(reference, k), list(samples.double().numpy())
    density = sum(_holds(ball, point) for ball in balls for point in points) / (k * len(points))
    coverage = sum(any(_holds(ball, point) for point in points) for ball in balls) / len(balls)
    found = density_coverage(samples, reference, k)
    assert found.density == pytest.approx(density, rel=1e-12) and 0 < density
    assert found.coverage == pytest.approx(coverage, rel=1e-12) and 0 < coverage < 1


def test_precision_and_recall_are_their_definitions() -> None:
    samples, reference = _sets()
    shares = [
        np.mean([any(_holds(ball, point) for ball in _balls(of, 3)) for point in points.double().numpy()])
        for of, points in ((reference, samples), (samples, reference))
    ]
    found = precision_recall(samples, reference)
    assert (found.precision, found.recall) == pytest.approx(shares) and 0 < found.precision < 1 and 0 < found.recall < 1


def test_precision_and_recall_are_torch_fidelitys_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = _sets(130, 170)
    expected = prc_features_to_metric(samples, reference, prc_neighborhood=3, verbose=False)
    monkeypatch.setattr("unveil.evaluation.metrics.manifold.BLOCK_ROWS", 32)
    radii = ball_radii(reference, 3, 5)
    for found in (precision_recall(samples, reference), precision_recall(samples, reference, radii=radii[3])):
        assert (found.precision, found.recall) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)
    assert density_coverage(samples, reference, radii=radii[5]) == density_coverage(samples, reference)


def test_equal_distributions_have_density_one_and_the_expected_coverage() -> None:
    """E[density] = 1; a ball is empty if the k nearest of all others are real ones: 2^-k for N = M."""
    samples, reference = torch.randn(2, 1500, 3, generator=torch.Generator().manual_seed(1))
    found = density_coverage(samples, reference)
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.015)


@pytest.mark.parametrize("k", [1, 5])
def test_one_and_the_same_set_has_density_above_one(k: int) -> None:
    """A closed ball holds its centre and k others."""
    reference = torch.randn(300, 8, generator=torch.Generator().manual_seed(2)) + 30
    found = density_coverage(reference, reference.clone(), k)
    assert found.density == pytest.approx((k + 1) / k) and found.coverage == 1


def test_far_from_zero_no_digits_are_lost() -> None:
    """Features of mean 100 and spread 1 in float32, against the same numbers in float64."""
    generator = torch.Generator().manual_seed(3)
    samples, reference = (100 + 0.9 * torch.randn(400, 16, generator=generator) for _ in range(2))
    radii = ball_radii(reference, 3)[3]
    torch.testing.assert_close(radii.double(), ball_radii(reference.double(), 3)[3], rtol=1e-5, atol=0.0)
    for measure in (precision_recall, density_coverage):
        assert measure(samples, reference) == measure(samples.double(), reference.double())
    assert precision_recall(samples, reference, radii=radii) == precision_recall(samples, reference)
    for error in (precision_recall_stderr, density_coverage_stderr):
        assert error(samples, reference, 0) == error(samples.double(), reference.double(), 0)


def test_sets_that_lie_apart_share_nothing_and_copies_everything() -> None:
    samples, reference = _sets(shift=100)
    apart, same = density_coverage(samples, reference), density_coverage(reference, reference)
    assert (apart.density, apart.coverage) == (0, 0) and same.coverage == 1
    assert precision_recall(samples, reference).precision == 0


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_bad_features_are_one_line(measure) -> None:
    good = torch.randn(20, 4)
    with pytest.raises(UnveilError, match=r"features of the samples: found shape \[3, 4\], expected .* N >= [46]"):
        measure(good[:3], good)
    with pytest.raises(UnveilError, match="features of the reference: found 5 numbers an image, expected 4"):
        measure(good, torch.zeros(20, 5))
    with pytest.raises(UnveilError, match="features of the reference: found NaN"):
        measure(good, good / 0)
    with pytest.raises(UnveilError, match="neighbours: found 0"):
        measure(good, good, 0)


@pytest.mark.parametrize(
    ("draws", "scale", "most"),
    [
        (30, 1.0, 2000),
        (30, 0.6, 150),
        *(
            pytest.param(100, scale, most, marks=pytest.mark.calibration)
            for scale in (1.0, 0.6)
            for most in (2000, 150)
        ),
    ],
)
def test_standard_errors_are_the_scatter_over_draws_of_the_samples(
    draws: int, scale: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reference fixed; from half of the images, up to twice as large."""
    monkeypatch.setattr("unveil.evaluation.metrics.manifold.MOST_FOR_ERROR", most)
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(300, 4, generator=generator)
    values, errors = [], []
    for seed in range(draws):
        samples = scale * torch.randn(300, 4, generator=generator)
        pair, both = precision_recall(samples, reference), density_coverage(samples, reference)
        values.append((pair.precision, pair.recall, both.density, both.coverage))
        pair, both = (
            precision_recall_stderr(samples, reference, seed),
            density_coverage_stderr(samples, reference, seed),
        )
        errors.append((pair.precision, pair.recall, both.density, both.coverage))
    ratio = torch.tensor(errors).square().mean(dim=0).sqrt() / torch.tensor(values).std(dim=0)
    assert ((0.75 < ratio) & (ratio < (1.7 if most == 2000 else 2.3))).all(), ratio
