"""Distances between two sets of images, from their features."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.errors import UnveilError

DIGITS = 6  # significant ones that are kept; float32 features carry no more
BLOCK_ROWS = 2048  # rows of a kernel matrix, or of features in float64, that are held at once

KERNEL_VALUES = 2**22  # of a kernel matrix that are held at once in float64
WHOLE_VALUES = 2**25  # of one that is computed once for all subsets
INCEPTION_SCORE_SPLITS = 10

Statistics = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of an estimate over random subsets (KID) or disjoint parts (Inception Score)."""

    mean: float
    std: float


def check_features(features: Tensor, at_least: int = 1, what: str = "features", dimension: int | None = None) -> None:
    """Raise UnveilError unless features are finite and [N, D], N >= ``at_least`` and, if given, D = ``dimension``.

    ``what`` names them in the error, as in "features of the samples".
    """
    if features.dim() != 2 or len(features) < at_least:
        raise UnveilError(f"{what}: found shape {list(features.shape)}, expected [N, D] with N >= {at_least}")
    if dimension is not None and features.shape[1] != dimension:
        raise UnveilError(
            f"{what}: found {features.shape[1]} numbers an image, expected {dimension} as of the others; "
            f"extract all sets with one network"
        )
    if not all(bool(block.isfinite().all()) for block in features.split(BLOCK_ROWS)):  # its copies are large
        raise UnveilError(f"{what}: found NaN or infinity, expected finite numbers")


def statistics(features: Tensor) -> Statistics:
    """Mean ``mu`` [D] and covariance ``sigma`` [D, D] (divisor N - 1) of features [N, D], in float64.

    Equal to torch-fidelity's of the features in float64, but only a block of rows is ever held in float64.
    Raises UnveilError unless the features are finite and N >= 2. A covariance of N <= D vectors is singular,
    which the Fréchet distance allows.
    """
    check_features(features, at_least=2)
    blocks = features.split(BLOCK_ROWS)
    mean = torch.stack([block.to(torch.float64).sum(dim=0) for block in blocks]).sum(dim=0) / len(features)
    scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in blocks:
        centred = block.to(torch.float64) - mean
        scatter.addmm_(centred.T, centred)
    return {"mu": mean.numpy(), "sigma": (scatter / (len(features) - 1)).numpy()}


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """Squared Fréchet distance of the Gaussians with these statistics (Heusel et al. 2017, 1706.08500).

    ``|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, as torch-fidelity computes it. It is biased upwards
    by an amount that falls with the number of images, so only distances at the same numbers compare.
    Raises UnveilError for features of different dimension.
    """
    if one["mu"].shape != other["mu"].shape:
        found = f"{len(one['mu'])} and {len(other['mu'])} numbers an image"
        raise UnveilError(f"features: found {found}, expected as many; extract both sets with one network")
    between = one["mu"] - other["mu"]
    eigenvalues = np.linalg.eigvals(one["sigma"] @ other["sigma"]).astype(np.complex128)
    root = np.sqrt(eigenvalues).real.sum()  # of the trace
    return float(between @ between + np.trace(one["sigma"]) + np.trace(other["sigma"]) - 2 * root)


def kernel_distance(one: Tensor, other: Tensor, subsets: int, subset_size: int, seed: int) -> Spread:
    """KID of features [N, D] and [M, D]: unbiased, may be below 0 (Binkowski et al. 2018, 1801.01401).

    The kernel is ``(x.y / D + 1)^3``; each of ``subsets`` estimates draws ``subset_size`` vectors of each
    set without replacement. The subsets are those that torch-fidelity draws for ``rng_seed=seed``.
    """
    smaller = min(len(one), len(other))
    if not 2 <= subset_size <= smaller:
        raise UnveilError(
            f"evaluate.kid_subset_size: found {subset_size}, expected 2 to {smaller}, the images of the set"
        )
    check_features(one)
    check_features(other, dimension=one.shape[1])
    random = np.random.RandomState(seed)
    # Small sets, whose subsets overlap much, have every value of their kernel once.
    few = (len(one) + len(other)) ** 2 <= WHOLE_VALUES
    whole = _kernel(torch.cat((one, other)).double()) if few else None
    estimates = np.empty(subsets)
    for place in range(subsets):  # torch-fidelity's draws and estimate; only a subset is ever held in float64
        x, y = (torch.from_numpy(random.choice(len(part), subset_size, replace=False)) for part in (one, other))
        if whole is None:
            kernel = _kernel(torch.cat((one[x], other[y])).double())
        else:
            rows = torch.cat((x, len(one) + y))
            kernel = whole[rows[:, None], rows]
        within = kernel[:subset_size, :subset_size].sum() + kernel[subset_size:, subset_size:].sum() - kernel.trace()
        between = kernel[:subset_size, subset_size:].mean()
        estimates[place] = within / (subset_size * (subset_size - 1)) - 2 * between
    return Spread(float(estimates.mean()), float(estimates.std()))


def kernel_stderr(samples: Tensor, reference: Tensor, distance: Spread, subsets: int) -> float:
    """Standard error of ``distance.mean``, a mean over ``subsets`` subsets, over draws of the samples.

    The reference [M, D] is held fixed; samples are [N, D], N >= 4. It has two parts. With
    ``h(x, x') = k(x, x') - f(x) - f(x')`` and ``f(x)`` the mean of ``k(x, y)`` over the reference, the estimate
    from all vectors is a U-statistic of h and a constant. Its variance is (Hoeffding 1948, eq. 5.13)
    ``[4 (N - 2) s1 + 2 s2] / (N (N - 1))``, where ``s2 = var h`` and ``s1 = var E[h | x]`` are estimated without
    bias by the means of products ``h_ij h_ik`` and ``h_ij h_kl`` over different indices. Given the vectors, the
    subsets are independent draws whose mean is that estimate: they add ``distance.std^2 / subsets``.
    Unlike ``distance.std``, which says how much one subset scatters, it says how far a model's value can be trusted.
    """
    check_features(samples, at_least=4, what="features of the samples")
    check_features(reference, dimension=samples.shape[1], what="features of the reference")
    n = len(samples)
    height = max(1, KERNEL_VALUES // max(n, len(reference)))
    to_reference = torch.empty(n, dtype=torch.float64)
    for start in range(0, n, height):  # into one tensor: small ones between blocks would keep those from being reused
        rows = slice(start, start + height)
        to_reference[rows] = _kernel(samples[rows], reference).mean(dim=1)
    level = float(to_reference.mean())  # taken off every h, which changes no variance and spares digits
    sums, squares = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for start in range(0, n, height):
        rows = slice(start, start + height)
        h = _kernel(samples[rows], samples).sub_(to_reference[rows, None]).sub_(to_reference).add_(level)
        h.diagonal(offset=start).zero_()
        sums[rows], squares[rows] = h.sum(dim=1), (h * h).sum(dim=1)
    same = float(squares.sum())
    shared = float((sums * sums).sum()) - same
    disjoint = float(sums.sum()) ** 2 - 4 * shared - 2 * same
    pairs = n * (n - 1)
    squared_mean = disjoint / (pairs * (n - 2) * (n - 3))
    s2 = max(same / pairs - squared_mean, 0.0)
    s1 = max(shared / (pairs * (n - 2)) - squared_mean, 0.0)
    variance = (4 * (n - 2) * s1 + 2 * s2) / pairs
    return math.sqrt(variance + distance.std**2 / subsets)


def _kernel(x: Tensor, y: Tensor | None = None) -> Tensor:
    """KID's kernel of x and y, or x itself, float64 [len(x), len(y)]; the product is in the features' own type."""
    return (x @ (x if y is None else y).T).to(torch.float64).div_(x.shape[1]).add_(1).pow_(3)


def inception_score(logits: Tensor, seed: int, splits: int = INCEPTION_SCORE_SPLITS) -> Spread:
    """``exp E KL(p(y|x) || p(y))`` of logits [N, classes] (Salimans et al. 2016, 1606.03498), by torch-fidelity.

    The samples are shuffled as torch-fidelity does for ``rng_seed=seed``, and cut into ``splits`` parts. It
    depends on the classifier alone, knows no reference, and says little of faces: ImageNet has no such class.
    Raises UnveilError where there are fewer samples than parts.
    """
    # It imports torchvision, which takes seconds, and this is wanted with Inception alone, which does so anyway.
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    check_features(logits, at_least=splits, what="logits")
    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return Spread(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def significant(value: float, digits: int = DIGITS) -> float:
    """The value rounded to so many significant decimal digits."""
    return float(f"{value:.{digits}g}")
