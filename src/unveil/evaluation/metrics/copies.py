"""Does a model return its training images, or the same image again and again?

Near and far are Euclidean (L2) distances between features: two pictures with almost the same features look much
the same, but they need not be the same pixels. Real sets hold near-duplicates of their own, so no distance is called
small by itself: each share is compared with that of held-out real images, and has an expected value.

Samples are called memorized if one of these holds beyond chance (``FALSE_ALARMS`` after Bonferroni):

- They equal a training image more often than held-out images do.
- At least ``STANDING_OUT`` times as many as expected have a training image that is much nearer than the next ones.
- They are nearer to the training images than held-out images are (by the rank test or a share), and those nearest to
  any real image are nearest to a training one more often than to one of as many held-out ones (``SIDE_ALARMS``), which
  typical faces are not.

They are called duplicated (``FALSE_ALARMS``, counted in pairs) if at least twice as many as expected have another
sample nearer, against the distances usual around them, than the nearest 1 % of held-out images have another held-out
image; or if they equal each other more often than held-out images do.

The words on what was found are in :mod:`unveil.evaluation.card.sentences`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.order import spread
from unveil.evaluation.metrics.distances import check_features

SHOWN_NEIGHBOURS = 5
QUANTILES = (0.01, 0.05)
FALSE_ALARMS = 0.001  # of either flag, at most, where samples are as good as held-out images
SIDE_ALARMS = 0.01  # of the question whether near samples are nearer to training than to held-out images
BLOCK_ROWS = 500  # rows of distances that are held at once: 100 MB against 50,000 images
SPARE = 4  # candidates beyond the k nearest: float32 products may swap near ties
ROUNDING = 1e-4  # of the vectors' root mean square norm: below it two vectors are equal
PRODUCT_ROUNDING = 2e-3  # the same, for distances by products in float32

TESTS = 5  # of memorization, whose p values are taken times as many (Bonferroni)
STANDING_OUT = 3  # times the expected share; the density around typical faces alone moves it by less
PART_TO_SEARCH = 0.1  # of the training images, below which finding nothing says nothing
SCALE_OF = 1000  # images of a set that give the distances which are usual in it
SCALE_QUANTILE = 0.1  # of them


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of some targets, nearest first: indices int64 [N, k] and L2 distances float64 [N, k]."""

    indices: NDArray[np.int64]
    distances: NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A share in [0, 1], the value it has where nothing is wrong, and how often chance alone makes it as large."""

    found: float
    expected: float
    p: float


@dataclass(frozen=True)
class CopiesOfTraining:
    """Whether samples are nearer to the training images than held-out images are."""

    nearer: Share
    """P(a sample is nearer to the training images than a held-out image is); ties count half."""
    nearest: dict[float, Share]
    """Per quantile q: the share of samples nearer than the nearest q of held-out images."""
    towards_training: Share | None
    """As many samples as are nearer than the nearest 5 %, those nearest to any of M held-out and M training images: how
    many of them are nearest to a training one. None if there are none."""
    equal: Share
    """Samples that equal a training image within rounding; expected is the share of held-out images that do."""
    standing_out: Share
    """Samples whose nearest training image is nearer, against the fifth, than for 1 % of held-out ones."""
    num_samples: int
    """Different ones: of duplicates, one counts."""
    num_held_out: int
    equal_held_out: int
    """Different held-out images that equal a training image within rounding."""
    shared: int
    """Held-out images that the model was trained on."""
    num_training: int
    """Training images that were searched."""
    training_total: int
    """Images that the model was trained on."""

    @property
    def nearer_than_held_out(self) -> bool:
        """Whether the samples are nearer to training images than chance allows, as typical faces are too."""
        return min(self.nearer.p, *(share.p for share in self.nearest.values())) < FALSE_ALARMS / TESTS

    @property
    def memorized(self) -> bool | None:
        """Whether they are copies of training images; None where it cannot be said."""
        if self.shared:
            return None
        limit, out, towards = FALSE_ALARMS / TESTS, self.standing_out, self.towards_training
        if (
            self.equal.p < limit
            or (out.p < limit and out.found >= STANDING_OUT * out.expected)
            or (self.nearer_than_held_out and towards is not None and towards.p < SIDE_ALARMS)
        ):
            return True
        return None if self.num_training < PART_TO_SEARCH * self.training_total else False


@dataclass(frozen=True)
class Duplicates:
    """Whether samples repeat each other more than held-out images do."""

    near: Share
    """Samples whose nearest other sample is nearer than the nearest 1 % of held-out images' nearest other, each against
    a tenth of the distances around it in its own set: less spread is no repetition."""
    exact: int
    """Samples of all that have an equal one, within rounding."""
    exact_held_out: int
    """The same of the held-out images."""
    num_samples: int
    num_compared: int
    """Of either set; as many of one as of the other, since more images are nearer to each other."""
    num_nearest: int
    """How many the nearest 1 % of these are."""
    duplicated: bool
    threshold: float
    """Nearer than this, two images are duplicates."""


@dataclass(frozen=True)
class Copies:
    """Both questions, and the nearest training images of every sample."""

    of_training: CopiesOfTraining
    duplicates: Duplicates
    neighbours: Neighbours


def find_copies(
    samples: Tensor,
    training: Tensor,
    held_out: Tensor,
    seed: int,
    shared: int = 0,
    training_total: int | None = None,
) -> Copies:
    """Answer both questions from features of samples [N, D], training [T, D] and held-out images [M, D].

    ``training`` are those that the model saw, all or a part, of the ``training_total`` that it was trained on (None:
    all); where that is less than a tenth and nothing was found, memorization is undecided. ``shared`` is how many of
    the held-out images are among them (the protocol adm-ip trains on all images), which leaves it undecided too. Ties
    are broken, and lots drawn, by ``seed``. Raises UnveilError for features that are not finite, of different
    dimension, or fewer than 2 in a set.
    """
    check_features(samples, 2, "features of the samples")
    check_features(training, 2, "features of the training images", samples.shape[1])
    check_features(held_out, 2, "features of the held-out images", samples.shape[1])
    random = np.random.default_rng(seed)
    duplicates = _duplicates(samples, held_out, random)
    ours, theirs = (_first_of_each(part, duplicates.threshold) for part in (samples, held_out))
    neighbours = nearest(samples, training, SHOWN_NEIGHBOURS)
    one = neighbours.distances[ours]
    other = nearest(held_out[torch.from_numpy(theirs)], training, SHOWN_NEIGHBOURS).distances
    copies, equal_held_out = int((one[:, 0] == 0).sum()), int((other[:, 0] == 0).sum())
    nearest_quantiles = {q: quantile_test(one[:, 0], other[:, 0], q, random) for q in QUANTILES}
    near = round(nearest_quantiles[QUANTILES[-1]].found * len(ours))
    of_training = CopiesOfTraining(
        nearer=rank_test(one[:, 0], other[:, 0]),
        nearest=nearest_quantiles,
        equal=_equal_test(copies, len(one), equal_held_out, len(other)),
        standing_out=quantile_test(_ratios(one), _ratios(other), QUANTILES[0], random),
        towards_training=_towards_training(samples[torch.from_numpy(ours)], training, held_out, near, random),
        num_samples=len(one),
        num_held_out=len(held_out),
        equal_held_out=equal_held_out,
        shared=shared,
        num_training=len(training),
        training_total=max(training_total or 0, len(training)),
    )
    return Copies(of_training, duplicates, neighbours)


def nearest(queries: Tensor, targets: Tensor | None = None, k: int = 1) -> Neighbours:
    """The k nearest targets [T, D] of each query [N, D], by L2 distance; fewer than k where T is smaller.

    Without targets they are the other queries, of which an equal one counts as another. Candidates come from products
    in float32, their distances from differences in float64. A distance within rounding of zero is 0, so that equal
    images tie.
    """
    others = targets is None
    targets = queries if targets is None else targets
    centre = targets.mean(dim=0)  # products of centred vectors lose fewer digits
    centred = targets - centre
    norms = (centred * centred).sum(dim=1)
    tie = ROUNDING * float(norms.mean(dtype=torch.float64).sqrt())
    k = min(k, len(targets) - others)
    indices, distances = [], []
    for start in range(0, len(queries), BLOCK_ROWS):
        rows = queries[start : start + BLOCK_ROWS] - centre
        squares = torch.addmm(norms, rows, centred.T, alpha=-2)  # less the query's own square, equal in its row
        if others:
            squares.diagonal(offset=start).fill_(math.inf)
        candidates = squares.topk(min(k + SPARE, len(targets) - others), dim=1, largest=False).indices
        exact = torch.stack([(rows - centred[column]).double().norm(dim=1) for column in candidates.T], dim=1)
        exact[exact <= tie] = 0
        order = exact.argsort(dim=1, stable=True)[:, :k]
        indices.append(candidates.gather(1, order))
        distances.append(exact.gather(1, order))
    return Neighbours(torch.cat(indices).numpy(), torch.cat(distances).numpy())


def to_show(neighbours: Neighbours, count: int) -> NDArray[np.int64]:
    """Places of the samples that a picture shows: the ``count`` nearest to training images, and as many drawn evenly.

    The nearest stand first.
    """
    count = min(count, len(neighbours.distances))
    order = np.argsort(neighbours.distances[:, 0], kind="stable")
    return np.concatenate((order[:count], spread(len(order), count)))


def rank_test(one: NDArray[np.float64], other: NDArray[np.float64]) -> Share:
    """P(one < other), ties counted half, by Mann and Whitney 1947; p is one-sided, that one is smaller.

    The data-copying test of Meehan et al. 2020 (2004.05675), where these are distances to the training images of
    samples and of held-out images; there it is done in cells of the space, here over all of it.
    """
    from scipy.stats import mannwhitneyu  # which takes part of a second to import

    if np.ptp(np.concatenate((one, other))) == 0:
        return Share(0.5, 0.5, 0.5)
    test = mannwhitneyu(one, other, alternative="less", method="asymptotic", use_continuity=False)
    return Share(1 - float(test.statistic) / (len(one) * len(other)), 0.5, float(test.pvalue))


def quantile_test(
    one: NDArray[np.float64], other: NDArray[np.float64], quantile: float, random: np.random.Generator
) -> Share:
    """The share of ``one`` that is below the ``quantile`` of ``other``, with its exact chance; ties fall at random.

    The bound is the k-th smallest of the m of ``other``, k the nearest to quantile (m + 1), at least 1. If all are
    drawn alike, the expected share is k / (m + 1), and the number below the bound is negative hypergeometric. A
    binomial would take the bound as known, and cry wolf.
    """
    below, k = _below(one, other, quantile, random)
    return Share(below / len(one), k / (len(other) + 1), _chance_of(below, len(one), k, len(other)))


def _first_of_each(features: Tensor, threshold: float) -> NDArray[np.int64]:
    """Indices of the vectors that have no earlier one nearer than the threshold, or equal to them."""
    centred = features - features.mean(dim=0)
    norms = (centred * centred).sum(dim=1)
    bound = max(threshold**2, PRODUCT_ROUNDING**2 * float(norms.mean(dtype=torch.float64)))
    kept = []
    for start in range(0, len(centred), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        earlier = centred[: start + BLOCK_ROWS]
        squares = torch.addmm(norms[: start + BLOCK_ROWS], centred[rows], earlier.T, alpha=-2) + norms[rows, None]
        kept.append(~(squares < bound).tril(diagonal=start - 1).any(dim=1))
    return torch.cat(kept).nonzero()[:, 0].numpy()


def _duplicates(samples: Tensor, held_out: Tensor, random: np.random.Generator) -> Duplicates:
    count = min(len(samples), len(held_out))
    chosen = [part[torch.from_numpy(spread(len(part), count))] for part in (samples, held_out)]
    one, other = (nearest(part).distances[:, 0] for part in chosen)
    below, k = _below(one / _usual(chosen[0]), other / _usual(chosen[1]), QUANTILES[0], random)
    # Two images are each other's nearest, mostly, so they count once: as pairs.
    p = _chance_of(below // 2, count // 2, -(-k // 2), count // 2)
    near = Share(below / count, k / (count + 1), p)
    equal = _equal_test(int((one == 0).sum()) // 2, count // 2, int((other == 0).sum()) // 2, count // 2)
    full = one if count == len(samples) else nearest(samples).distances[:, 0]
    return Duplicates(
        near=near,
        exact=int((full == 0).sum()),
        exact_held_out=int((other == 0).sum()),
        num_samples=len(samples),
        num_compared=count,
        num_nearest=k,
        duplicated=(p < FALSE_ALARMS and near.found >= 2 * near.expected) or equal.p < FALSE_ALARMS,
        threshold=float(np.sort(other)[k - 1]),
    )


def _usual(features: Tensor) -> NDArray[np.float64]:
    """What distance is usual around each vector of a set [N, D]: the tenth part of its distances to others is below.

    Of up to ``SCALE_OF`` others. It scales with the spread of the set around the vector, and a few repetitions do not
    move it. 1 where it is 0: then the set is all repetitions.
    """
    centred = features - features.mean(dim=0)
    others = centred[torch.from_numpy(spread(len(features), min(len(features), SCALE_OF)))]
    place = min(1 + math.ceil(SCALE_QUANTILE * len(others)), len(others))  # the nearest may be itself
    parts = [torch.cdist(rows, others).kthvalue(place, dim=1).values for rows in centred.split(BLOCK_ROWS)]
    usual = torch.cat(parts).double()
    return usual.where(usual > 0, 1.0).numpy()


def _ratios(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest over the k-th nearest, of distances [n, k] to the k nearest training images.

    They hardly know how dense the training images are around an image, which is what makes typical faces near.
    Carlini et al. 2023 (2301.13188) divide by the distances of the next ones too.
    """
    found: NDArray[np.float64] = distances[:, 0] / np.maximum(distances[:, -1], np.finfo(np.float64).tiny)
    return found


def _towards_training(
    samples: Tensor, training: Tensor, held_out: Tensor, near: int, random: np.random.Generator
) -> Share | None:
    """Of the ``near`` samples nearest to any real image, the share that is nearest to a training one, and its chance.

    Real images are as many training as held-out ones, drawn by lot: of many more training images, almost every sample
    would be near one, and nothing could be found. If the samples know nothing of which real images were trained
    on, then that a real image is a training one is drawn by lot among all of them, whatever the samples are. Samples
    with one nearest image share its lot. They are chosen by their distance to all real images: near training
    images alone, they would lean there.
    """
    if near == 0:
        return None
    each = min(len(training), len(held_out))
    to_training, to_held_out = (nearest(samples, _drawn(part, each, random)) for part in (training, held_out))
    distances, elsewhere = to_training.distances[:, 0], to_held_out.distances[:, 0]
    tie = random.random(len(distances))
    towards = (distances < elsewhere) | ((distances == elsewhere) & (tie < 0.5))
    images = np.where(towards, to_training.indices[:, 0], each + to_held_out.indices[:, 0])
    chosen = np.lexsort((tie, np.minimum(distances, elsewhere)))[:near]
    counts = np.unique(images[chosen], return_counts=True)[1].astype(np.float64)
    total = 2 * each
    variance = ((counts**2).sum() - near**2 / total) / 4 * total / (total - 1)
    found = float(towards[chosen].mean())
    z = float((found - 0.5) * near / math.sqrt(variance)) if variance > 0 else 0.0
    return Share(found, 0.5, math.erfc(z / math.sqrt(2)) / 2)


def _drawn(features: Tensor, count: int, random: np.random.Generator) -> Tensor:
    if count == len(features):
        return features
    return features[torch.from_numpy(np.sort(random.choice(len(features), count, replace=False)))]


def _equal_test(found: int, n: int, other: int, m: int) -> Share:
    """The share ``found`` of n, expected as ``other`` of m, with its chance by Fisher's exact test."""
    from scipy.stats import fisher_exact

    test = fisher_exact([[found, n - found], [other, m - other]], alternative="greater")
    return Share(found / n, other / m, float(test.pvalue))


def _below(
    one: NDArray[np.float64], other: NDArray[np.float64], quantile: float, random: np.random.Generator
) -> tuple[int, int]:
    """How many of ``one`` come before the k-th smallest of ``other``, equal values in random order; and k."""
    k = max(1, round(quantile * (len(other) + 1)))
    values = np.concatenate((one, other))
    order = np.lexsort((random.random(len(values)), values))
    place = np.flatnonzero(order >= len(one))[k - 1]  # of the k-th, before which k - 1 others are
    return int(place) - (k - 1), k


def _chance_of(below: int, n: int, k: int, m: int) -> float:
    """P(at least ``below`` of n come before the k-th of m others), all in random order: negative hypergeometric.

    They do if fewer than k of the first below + k - 1 are others. SciPy's ``hypergeom.cdf`` keeps the digits of a small
    chance, which its ``nhypergeom.sf`` takes from 1.
    """
    from scipy.stats import hypergeom

    return float(hypergeom.cdf(k - 1, n + m, m, below + k - 1))
