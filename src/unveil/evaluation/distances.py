"""Distances between two sets of images, from their features, with the two controls that give them a scale."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kernel_poly,
    kid_features_to_metric,
)

from unveil.errors import UnveilError
from unveil.evaluation.features import FeatureSet

DIGITS = 6  # significant ones that are kept; float32 features carry no more
BLOCK_ROWS = 2048  # rows of the kernel matrix that are held at once

Statistics = dict[str, Any]


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation of the squared maximum mean discrepancy over random subsets."""

    mean: float
    std: float


@dataclass(frozen=True)
class FourSets:
    """Features [images, D] of the samples and of the three others; the noise has as many as the samples."""

    samples: Tensor
    reference: Tensor
    held_out: Tensor
    noise: Tensor


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance (divisor N - 1) of features [N, D], in float64. Needs N >= 2."""
    if features.dim() != 2 or len(features) < 2:
        raise UnveilError(f"features: found shape {list(features.shape)}, expected [N, D] with N >= 2")
    if not torch.isfinite(features).all():
        raise UnveilError("features: found NaN or infinity, expected finite numbers")
    found: Statistics = fid_features_to_statistics(features.to(torch.float64))
    return found


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """Squared Fréchet distance of the Gaussians with these statistics (Heusel et al. 2017, 1706.08500).

    ``|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, as torch-fidelity computes it. It is biased upwards
    by an amount that falls with the number of images, so only distances at the same numbers compare.
    """
    return float(fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID])


def kernel_distance(one: Tensor, other: Tensor, subsets: int, subset_size: int, seed: int) -> KernelDistance:
    """KID of features [N, D] and [M, D]: unbiased, may be below 0 (Binkowski et al. 2018, 1801.01401).

    The kernel is ``(x.y / D + 1)^3``; each of ``subsets`` estimates draws ``subset_size`` vectors of each
    set without replacement. The subsets are those that torch-fidelity draws for ``rng_seed=seed``.
    """
    smaller = min(len(one), len(other))
    if not 2 <= subset_size <= smaller:
        raise UnveilError(
            f"evaluate.kid_subset_size: found {subset_size}, expected 2 to {smaller}, the images of the set"
        )
    one, other = one.to(torch.float64), other.to(torch.float64)
    if len(one) ** 2 + len(other) ** 2 <= 2 * subsets * subset_size**2:
        return _kernel_distance_at_once(one.numpy(), other.numpy(), subsets, subset_size, seed)
    found = kid_features_to_metric(
        one, other, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    return KernelDistance(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])


def _kernel_distance_at_once(
    one: NDArray[np.float64], other: NDArray[np.float64], subsets: int, subset_size: int, seed: int
) -> KernelDistance:
    """The same estimates from one kernel matrix of all vectors, for subsets that overlap much.

    With s the indicator of a subset, the sum of its block of K is s' K s.
    """
    random = np.random.RandomState(seed)
    in_one, in_other = np.zeros((len(one), subsets)), np.zeros((len(other), subsets))
    for column in range(subsets):  # torch-fidelity's order of draws
        in_one[random.choice(len(one), subset_size, replace=False), column] = 1
        in_other[random.choice(len(other), subset_size, replace=False), column] = 1
    pairs = subset_size * (subset_size - 1)
    within_one = (_block_sums(one, one, in_one, in_one) - _diagonal_sums(one, in_one)) / pairs
    within_other = (_block_sums(other, other, in_other, in_other) - _diagonal_sums(other, in_other)) / pairs
    between = _block_sums(one, other, in_one, in_other) / subset_size**2
    estimates = within_one + within_other - 2 * between
    return KernelDistance(float(estimates.mean()), float(estimates.std()))


def _block_sums(
    x: NDArray[np.float64], y: NDArray[np.float64], in_x: NDArray[np.float64], in_y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For every column s of in_x and t of in_y: s' K t, with K the kernel matrix of x and y."""
    sums = np.zeros(in_x.shape[1])
    for start in range(0, len(x), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        sums += (in_x[rows] * (kernel_poly(x[rows], y) @ in_y)).sum(axis=0)
    return sums


def _diagonal_sums(x: NDArray[np.float64], in_x: NDArray[np.float64]) -> NDArray[np.float64]:
    diagonal: NDArray[np.float64] = ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3
    return diagonal @ in_x


def measure(sets: FourSets, features: FeatureSet, subsets: int, subset_size: int, seed: int) -> dict[str, float | int]:
    """Distances of samples, held-out images and noise from the reference, flat, for metrics/evaluate.json.

    ``<name>`` is the distance of the samples, ``<name>_floor`` that of held-out real images,
    ``<name>_noise`` that of uniform noise, and ``<name>_fraction`` where the samples lie on the way from
    the floor (0) to the noise (1); it is left out where noise is no farther away than the floor.
    ``num_samples`` is the number of samples and of noise images, ``num_reference`` and ``num_held_out``
    those of the real images.
    """
    if len(sets.noise) != len(sets.samples):
        counts = f"{len(sets.samples)} samples and {len(sets.noise)} noise images"
        raise UnveilError(f"features: found {counts}, expected as many of one as of the other")
    reference = statistics(sets.reference)
    found: dict[str, float | int] = {}
    others = {"": sets.samples, "_floor": sets.held_out, "_noise": sets.noise}
    for suffix, other in others.items():
        found[features.frechet + suffix] = frechet_distance(statistics(other), reference)
    if (share := fraction(found, features)) is not None:
        found[f"{features.frechet}_fraction"] = share
    for suffix, other in others.items():
        distance = kernel_distance(other, sets.reference, subsets, subset_size, seed)
        found[features.kernel + suffix] = distance.mean
        if not suffix:
            found[f"{features.kernel}_std"] = distance.std
    rounded: dict[str, float | int] = {name: significant(value) for name, value in found.items()}
    return rounded | {
        "num_samples": len(sets.samples),
        "num_reference": len(sets.reference),
        "num_held_out": len(sets.held_out),
    }


def fraction(found: dict[str, float | int], features: FeatureSet) -> float | None:
    """``(samples - floor) / (noise - floor)`` of the Fréchet distance, or None without a way to divide by."""
    name = features.frechet
    way = found[f"{name}_noise"] - found[f"{name}_floor"]
    return (found[name] - found[f"{name}_floor"]) / way if way > 0 else None


def significant(value: float, digits: int = DIGITS) -> float:
    """The value rounded to so many significant decimal digits."""
    return float(f"{value:.{digits}g}")
