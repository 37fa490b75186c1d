"""Precision, recall, density and coverage: what part of each set of features lies near the other.

A set's manifold is the union of balls, one around each vector, that reach to its k-th nearest other vector.
Distances are Euclidean, in feature space, from products: far from 0 their squares lose digits, so the mean of
the reference is taken away first. Groups that lie far from each other still lose some. All four grow or shrink
with the number of images, so only values at the same numbers compare.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unveil.data.order import spread
from unveil.errors import UnveilError
from unveil.evaluation.metrics.distances import check_features

PRECISION_NEIGHBOURS = 3  # 1904.06991, section 3
DENSITY_NEIGHBOURS = 5  # 2002.09797, section 3
SPLITS = 10  # random halvings for standard errors
MOST_FOR_ERROR = 2000  # images of a set that they look at
BLOCK_ROWS = 1000  # rows of distances that are held at once: 200 MB against 50,000 images


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of the samples among the real images, and of the real images among the samples."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """How many real balls hold a sample, over k, and the share of the balls that hold one.

    Density is 0 upwards, about 1 for sets that are drawn alike, and (k + 1) / k of one and the same set.
    """

    density: float
    coverage: float


def ball_radii(reference: Tensor, *neighbours: int) -> dict[int, Tensor]:
    """Radii [M] of the balls around the vectors of a reference [M, D], by their number of neighbours.

    They are most of the work where the reference is large, and serve every set that is compared with it.
    """
    least = max(neighbours) + 1  # the nearest of all is the vector itself
    check_features(reference, least, "features of the reference")
    nearest = _nearest(reference - reference.mean(dim=0), least)
    return {count: nearest[:, count].contiguous() for count in neighbours}


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = PRECISION_NEIGHBOURS, radii: Tensor | None = None
) -> PrecisionRecall:
    """Improved precision and recall of features [N, D] and [M, D] (Kynkäänniemi et al. 2019, 1904.06991).

    Computed in blocks, to torch-fidelity's numbers; ``radii`` [M] of the reference are computed where they are not
    given. Raises UnveilError for features that are not finite, of different dimension, or not more than ``neighbours``
    in either set.
    """
    samples, reference, radii = _prepared(samples, reference, neighbours, radii)
    own = _nearest(samples, neighbours + 1)[:, -1]
    balls, recalled = _overlap(samples, reference, radii, own)
    return PrecisionRecall(float((balls > 0).double().mean()), recalled / len(reference))


def density_coverage(
    samples: Tensor, reference: Tensor, neighbours: int = DENSITY_NEIGHBOURS, radii: Tensor | None = None
) -> DensityCoverage:
    """Density and coverage of samples [N, D] on the manifold of a reference [M, D] (Naeem et al. 2020, 2002.09797).

    Equations 4 and 5, with closed balls as in ``precision_recall``; ``radii`` [M] of the reference are computed where
    they are not given. Raises UnveilError as that does.
    """
    samples, reference, radii = _prepared(samples, reference, neighbours, radii)
    balls, covered = _overlap(samples, reference, radii)
    return DensityCoverage(int(balls.sum()) / (neighbours * len(samples)), covered / len(reference))


def precision_recall_stderr(
    samples: Tensor, reference: Tensor, seed: int, radii: Tensor | None = None
) -> PrecisionRecall:
    """Standard errors of both over draws of the samples, with the reference fixed; arguments as ``precision_recall``.

    Precision is a mean over independent samples. Recall is not, so its error is from ``SPLITS`` random halvings of the
    samples: the mean of (r1 - r2)^2 / 4, with r1 and r2 of the halves, is the variance of all, as far as it falls as
    1/N. Of more than ``MOST_FOR_ERROR`` images a set, so many are taken evenly, and the error of N samples is that of n
    times sqrt(n / N): rather too large, in simulations up to twice.
    """
    samples, reference, radii = _prepared(samples, reference, PRECISION_NEIGHBOURS, radii)
    inside = _overlap(samples, reference, radii)[0] > 0
    few, real = _few(samples), _few(reference)
    between, among = torch.cdist(real, few), torch.cdist(few, few)

    def recall(half: Tensor) -> float:
        place = min(PRECISION_NEIGHBOURS + 1, len(half))
        radii = among[half][:, half].kthvalue(place, dim=1).values
        return float((between[:, half] <= radii).any(dim=1).double().mean())

    return PrecisionRecall(_error_of_mean(inside), _error_by_halves(recall, len(few), len(samples), seed))


def density_coverage_stderr(
    samples: Tensor, reference: Tensor, seed: int, radii: Tensor | None = None
) -> DensityCoverage:
    """Standard errors of both, as ``precision_recall_stderr``: density is the mean, coverage needs the halves."""
    samples, reference, radii = _prepared(samples, reference, DENSITY_NEIGHBOURS, radii)
    counts = _overlap(samples, reference, radii)[0] / DENSITY_NEIGHBOURS
    few = _few(samples)
    within = torch.cdist(_few(reference), few) <= _few(radii)[:, None]

    def coverage(half: Tensor) -> float:
        return float(within[:, half].any(dim=1).double().mean())

    return DensityCoverage(_error_of_mean(counts), _error_by_halves(coverage, len(few), len(samples), seed))


def _nearest(features: Tensor, count: int) -> Tensor:
    """Distances of each vector [N, D] to the nearest of its set, itself the first: [N, count]."""
    blocks = [torch.cdist(rows, features).topk(count, largest=False).values for rows in features.split(BLOCK_ROWS)]
    return torch.cat(blocks)


def _overlap(samples: Tensor, reference: Tensor, radii: Tensor, own: Tensor | None = None) -> tuple[Tensor, int]:
    """In how many balls of the reference each sample lies, [N], and how many balls hold a sample.

    With radii ``own`` [N] of the samples instead how many of the reference lie in a ball of theirs.
    """
    balls, held = torch.zeros(len(samples), dtype=torch.int64), 0
    for rows, reach in zip(reference.split(BLOCK_ROWS), radii.split(BLOCK_ROWS), strict=True):
        distances = torch.cdist(rows, samples)
        within = distances <= reach[:, None]
        balls += within.sum(dim=0)
        held += int((within if own is None else distances <= own).any(dim=1).sum())
    return balls, held


def _few(features: Tensor) -> Tensor:
    """Of [N, ...] rows, so many that errors are found in a moment, evenly spaced."""
    return features[torch.from_numpy(spread(len(features), min(len(features), MOST_FOR_ERROR)))]


def _error_of_mean(values: Tensor) -> float:
    return float(values.double().std() / len(values) ** 0.5)


def _error_by_halves(value: Callable[[Tensor], float], few: int, count: int, seed: int) -> float:
    random = np.random.default_rng(seed)
    squares = []
    for _ in range(SPLITS):
        one, other = torch.from_numpy(random.permutation(few)).tensor_split(2)
        squares.append((value(one) - value(other)) ** 2 / 4)
    return float(np.sqrt(np.mean(squares) * few / count))


def _prepared(
    samples: Tensor, reference: Tensor, neighbours: int, radii: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both sets less the mean of the reference, and its radii. Raises UnveilError for features that are not taken."""
    if neighbours < 1:
        raise UnveilError(f"neighbours: found {neighbours}, expected 1 or more")
    least = neighbours + 1
    check_features(samples, least, "features of the samples")
    check_features(reference, least, "features of the reference", samples.shape[1])
    centre = reference.mean(dim=0)
    samples, reference = samples - centre, reference - centre
    return samples, reference, _nearest(reference, least)[:, -1] if radii is None else radii
