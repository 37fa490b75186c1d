"""Precision, recall, density and coverage: what part of each set of features lies near the other.

A set's manifold is the union of balls, one around each vector, that reach to its k-th nearest other vector.
Distances are Euclidean, in feature space. All four grow or shrink with the number of images, so only
values at the same numbers compare.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from unveil.errors import UnveilError
from unveil.evaluation.distances import check_features

PRECISION_NEIGHBOURS = 3  # 1904.06991, section 3
DENSITY_NEIGHBOURS = 5  # 2002.09797, section 3
BLOCK_ROWS = 1000  # rows of distances that are held at once: 200 MB against 50,000 images


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of the samples among the real images, and of the real images among the samples."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """How many real balls hold a sample, over k (0 upwards, 1 for equal sets), and the share of them that hold one."""

    density: float
    coverage: float


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = PRECISION_NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall of features [N, D] and [M, D] (Kynkäänniemi et al. 2019, 1904.06991).

    Computed by torch-fidelity, in blocks. Raises UnveilError for features that are not finite, of different
    dimension, or not more than ``neighbours`` in either set.
    """
    _check(samples, reference, neighbours)
    found = prc_features_to_metric(
        samples,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=BLOCK_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


def density_coverage(samples: Tensor, reference: Tensor, neighbours: int = DENSITY_NEIGHBOURS) -> DensityCoverage:
    """Density and coverage of samples [N, D] on the manifold of a reference [M, D] (Naeem et al. 2020, 2002.09797).

    Equations 4 and 5, with closed balls as in ``precision_recall``. Raises UnveilError as that does.
    """
    _check(samples, reference, neighbours)
    inside, covered = 0, 0
    for rows in reference.split(BLOCK_ROWS):
        radii = torch.cdist(rows, reference).kthvalue(neighbours + 1, dim=1).values  # the nearest is itself
        distances = torch.cdist(rows, samples)
        within = distances <= radii[:, None]
        inside += int(within.sum())
        covered += int(within.any(dim=1).sum())
    return DensityCoverage(inside / (neighbours * len(samples)), covered / len(reference))


def _check(samples: Tensor, reference: Tensor, neighbours: int) -> None:
    if neighbours < 1:
        raise UnveilError(f"neighbours: found {neighbours}, expected 1 or more")
    least = neighbours + 1
    check_features(samples, least, "features of the samples")
    check_features(reference, least, "features of the reference", samples.shape[1])
