"""Does a model return its training images, or the same image again and again?

Near and far are Euclidean (L2) distances between features: two pictures with almost the same features look much
the same, but they need not be the same pixels. Real sets hold near-duplicates of their own, so no distance is called
small by itself: each share is compared with that of held-out real images, and has an expected value.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.evaluation.images.sets import spread
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

MEMORIZED_RULE = (
    f"memorized (p < {FALSE_ALARMS} after Bonferroni): samples equal a training image more often than held-out images "
    f"do; or at least {STANDING_OUT} times as many as expected have a training image that is much nearer than the next "
    f"ones; or samples are nearer to the training images than held-out images are (by the rank test or a share), and "
    f"those nearest to any real image are nearest to a training one more often than to one of as many held-out ones "
    f"(p < {SIDE_ALARMS}), which typical faces are not"
)
DUPLICATED_RULE = (
    f"duplicated (p < {FALSE_ALARMS}, counted in pairs): at least twice as many samples as expected have another "
    f"sample nearer, against the distances usual around them, than the nearest 1 % of held-out images have another "
    f"held-out image; or samples equal each other more often than held-out images do"
)


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
    z: float | None = None
    """Only of tests that are normal in the limit."""


@dataclass(frozen=True)
class Memorization:
    """Whether samples are nearer to the training images than held-out images are."""

    nearer: Share
    """P(a sample is nearer to the training images than a held-out image is); ties count half."""
    nearest: dict[float, Share]
    """Per quantile q: the share of samples nearer than the nearest q of held-out images."""
    towards_training: Share | None
    """As many samples as are nearer than the nearest 5 %, those nearest to any of M held-out and M training images:
    how many of them are nearest to a training one. None if there are none."""
    equal: Share
    """Samples that equal a training image within rounding; expected is the share of held-out images that do."""
    standing_out: Share
    """Samples whose nearest training image is nearer, against the fifth, than for 1 % of held-out images."""
    num_samples: int
    """Different ones: of duplicates, one counts."""
    num_held_out: int
    num_training: int
    """Training images that were searched."""
    training_total: int
    """Images that the model was trained on."""
    memorized: bool | None
    """None where it cannot be said."""
    verdict: str
    """The same in words, with the reason."""
    notes: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The result and what it rests on, in words."""
        found = [
            self.verdict,
            f"searched {self.num_training:,} of {self.training_total:,} training images",
            f"{self.equal.found:.2%} of samples equal a training image within rounding ({self.equal.expected:.2%} of "
            f"held-out images do, {_chance(self.equal.p)})",
            f"{self.standing_out.found:.2%} have a training image that is nearer, against the next ones, than that of "
            f"the first 1 % of held-out images (expected {self.standing_out.expected:.2%}, "
            f"{_chance(self.standing_out.p)})",
            f"{self.nearer.found:.1%} of samples are nearer to the training images than a held-out image is "
            f"(expected {self.nearer.expected:.0%}, {_chance(self.nearer.p)})",
        ]
        for quantile, share in self.nearest.items():
            found.append(
                f"{share.found:.2%} are nearer than the nearest {quantile:.0%} of held-out images "
                f"(expected {share.expected:.2%}, {_chance(share.p)})"
            )
        if self.towards_training is not None:
            share = self.towards_training
            found.append(
                f"of as many, those nearest to any of a lot of training and as many held-out images, {share.found:.1%} "
                f"are nearest to a training one (expected {share.expected:.1%}, {_chance(share.p)})"
            )
        return (*found, *self.notes)


@dataclass(frozen=True)
class Duplicates:
    """Whether samples repeat each other more than held-out images do."""

    near: Share
    """Samples whose nearest other sample is nearer than the nearest 1 % of held-out images' nearest other, each
    against a tenth of the distances around it in its own set: a set of less spread is not a set of duplicates."""
    exact: int
    """Samples of all that have an equal one, within rounding."""
    exact_held_out: int
    """The same of the held-out images."""
    num_samples: int
    num_compared: int
    """Of either set; as many of one as of the other, since more images are nearer to each other."""
    duplicated: bool
    notes: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The result and what it rests on, in words."""
        return (
            "duplicated: samples repeat each other"
            if self.duplicated
            else "not duplicated: samples do not repeat each other more than held-out images do",
            f"{self.near.found:.2%} of samples have another one nearer, against the distances usual around them, than "
            f"the nearest 1 % of held-out images have "
            f"(expected {self.near.expected:.2%}, {_chance(self.near.p)}; {self.num_compared:,} of each)",
            f"{self.exact:,} of {self.num_samples:,} samples have an exact duplicate ({self.exact_held_out:,} of the "
            f"held-out images have one)",
            *self.notes,
        )


@dataclass(frozen=True)
class Copies:
    """Both questions, and the nearest training images of every sample."""

    memorization: Memorization
    duplicates: Duplicates
    neighbours: Neighbours


@dataclass(frozen=True)
class Shown:
    """Places of the samples that a picture shows."""

    nearest: NDArray[np.int64]
    """Nearest to training images first."""
    even: NDArray[np.int64]
    """Drawn evenly over all samples."""


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
    within = _within(samples, held_out, random)
    ours, theirs = (_first_of_each(part, within.threshold) for part in (samples, held_out))
    neighbours = nearest(samples, training, SHOWN_NEIGHBOURS)
    to_training = neighbours.distances[ours], nearest(held_out[torch.from_numpy(theirs)], training, SHOWN_NEIGHBOURS)
    nearness = _nearness(to_training[0], to_training[1].distances, random)
    towards = _towards_training(samples[torch.from_numpy(ours)], training, held_out, nearness.near, random)
    searched = _Searched(len(training), max(training_total or 0, len(training)), len(held_out), shared)
    return Copies(_memorization(nearness, towards, searched), within.duplicates, neighbours)


def nearest(queries: Tensor, targets: Tensor, k: int = 1) -> Neighbours:
    """The k nearest targets [T, D] of each query [N, D], by L2 distance; fewer than k where T is smaller.

    Candidates come from products in float32, their distances from differences in float64. A distance within
    rounding of zero is 0, so that equal images tie.
    """
    return _nearest(queries, targets, k, others=False)


def nearest_others(features: Tensor, k: int = 1) -> Neighbours:
    """The k nearest other vectors of each of a set [N, D], as ``nearest``; an equal vector counts as another."""
    return _nearest(features, features, k, others=True)


def to_show(neighbours: Neighbours, count: int) -> Shown:
    """Which samples a picture shows: the ``count`` nearest to training images, and as many drawn evenly."""
    count = min(count, len(neighbours.distances))
    order = np.argsort(neighbours.distances[:, 0], kind="stable")
    return Shown(order[:count], spread(len(order), count))


def rank_test(one: NDArray[np.float64], other: NDArray[np.float64]) -> Share:
    """P(one < other), ties counted half, by Mann and Whitney 1947; p is one-sided, that one is smaller.

    The data-copying test of Meehan et al. 2020 (2004.05675), where these are distances to the training images of
    samples and of held-out images; there it is done in cells of the space, here over all of it.
    """
    n, m = len(one), len(other)
    _, place, counts = np.unique(np.concatenate((one, other)), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]  # of a tie, the mean
    found = 1 - (float(ranks[:n].sum()) - n * (n + 1) / 2) / (n * m)
    total = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (total * (total - 1))
    variance = (total + 1 - ties) / (12 * n * m)
    z = (found - 0.5) / math.sqrt(variance) if variance > 0 else 0.0
    return Share(found, 0.5, _above(z), z)


def quantile_test(
    one: NDArray[np.float64], other: NDArray[np.float64], quantile: float, random: np.random.Generator
) -> Share:
    """The share of ``one`` that is below the ``quantile`` of ``other``, with its exact chance; ties fall at random.

    The bound is the k-th smallest of the m of ``other``, k the nearest to quantile (m + 1), at least 1. If all are
    drawn alike, the expected share is k / (m + 1), and the number below the bound is negative hypergeometric. A
    binomial would take the bound as known, and cry wolf.
    """
    k = _rank(quantile, len(other))
    below = int(_below(one, other, k, random).sum())
    return Share(below / len(one), k / (len(other) + 1), _chance_of(below, len(one), k, len(other)))


@dataclass(frozen=True)
class _Searched:
    """How many images there were to find."""

    training: int
    training_total: int
    held_out: int
    shared: int


@dataclass(frozen=True)
class _Nearness:
    """The tests of distances to training images: of samples against held-out images."""

    nearer: Share
    nearest: dict[float, Share]
    equal: Share
    standing_out: Share
    num_samples: int
    num_held_out: int
    equal_held_out: int

    @property
    def near(self) -> int:
        """Samples that are nearer than the nearest 5 % of held-out images."""
        return round(self.nearest[QUANTILES[-1]].found * self.num_samples)


@dataclass(frozen=True)
class _Within:
    duplicates: Duplicates
    threshold: float  # nearer than this, two images are duplicates


def _nearest(queries: Tensor, targets: Tensor, k: int, others: bool) -> Neighbours:
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


def _within(samples: Tensor, held_out: Tensor, random: np.random.Generator) -> _Within:
    count = min(len(samples), len(held_out))
    chosen = [part[torch.from_numpy(spread(len(part), count))] for part in (samples, held_out)]
    one, other = (nearest_others(part).distances[:, 0] for part in chosen)
    k = _rank(QUANTILES[0], count)
    below = int(_below(one / _usual(chosen[0]), other / _usual(chosen[1]), k, random).sum())
    # Two images are each other's nearest, mostly, so they count once: as pairs.
    p = _chance_of(below // 2, count // 2, -(-k // 2), count // 2)
    near = Share(below / count, k / (count + 1), p)
    equal = _fisher(int((one == 0).sum()) // 2, count // 2, int((other == 0).sum()) // 2, count // 2)
    full = one if count == len(samples) else nearest_others(samples).distances[:, 0]
    notes = [f"the nearest 1 % of {count:,} images is a single one, so this test is weak"] if k == 1 else []
    duplicates = Duplicates(
        near=near,
        exact=int((full == 0).sum()),
        exact_held_out=int((other == 0).sum()),
        num_samples=len(samples),
        num_compared=count,
        duplicated=(p < FALSE_ALARMS and near.found >= 2 * near.expected) or equal < FALSE_ALARMS,
        notes=tuple(notes),
    )
    return _Within(duplicates, float(np.sort(other)[k - 1]))


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


def _nearness(samples: NDArray[np.float64], held_out: NDArray[np.float64], random: np.random.Generator) -> _Nearness:
    """The tests, from distances [n, k] and [m, k] to the k nearest training images.

    The nearest over the k-th nearest hardly knows how dense the training images are around an image, which is
    what makes typical faces near. Carlini et al. 2023 (2301.13188) divide by the distances of the next ones too.
    """
    one, other = samples[:, 0], held_out[:, 0]
    copies, theirs = int((one == 0).sum()), int((other == 0).sum())
    ratios = [part[:, 0] / np.maximum(part[:, -1], np.finfo(np.float64).tiny) for part in (samples, held_out)]
    return _Nearness(
        nearer=rank_test(one, other),
        nearest={quantile: quantile_test(one, other, quantile, random) for quantile in QUANTILES},
        equal=Share(copies / len(one), theirs / len(other), _fisher(copies, len(one), theirs, len(other))),
        standing_out=quantile_test(ratios[0], ratios[1], QUANTILES[0], random),
        num_samples=len(one),
        num_held_out=len(other),
        equal_held_out=theirs,
    )


def _memorization(tests: _Nearness, towards: Share | None, searched: _Searched) -> Memorization:
    limit = FALSE_ALARMS / TESTS
    nearer = min(tests.nearer.p, *(share.p for share in tests.nearest.values())) < limit
    out = tests.standing_out
    memorized: bool | None = (
        tests.equal.p < limit
        or (out.p < limit and out.found >= STANDING_OUT * out.expected)
        or (nearer and towards is not None and towards.p < SIDE_ALARMS)
    )
    if memorized:
        verdict = "memorized: samples are copies of training images more often than chance allows"
    elif searched.training < PART_TO_SEARCH * searched.training_total:
        memorized = None
        verdict = (
            f"memorization: cannot be said: nothing was found, but only {searched.training:,} of "
            f"{searched.training_total:,} training images were searched (evaluate.reference_images: 0 takes all)"
        )
    elif nearer:
        verdict = (
            "not called memorized: samples are nearer to training images than held-out ones, but not more than to "
            "unseen faces: typical faces, or too few held-out images to tell"
        )
    elif tests.equal.found:
        verdict = "not called memorized: some samples equal training images, but not more than chance allows"
    else:
        verdict = "not memorized: no sign of copies of training images"
    if searched.shared:
        memorized, verdict = None, "memorization: cannot be said"
    return Memorization(
        nearer=tests.nearer,
        nearest=tests.nearest,
        towards_training=towards,
        equal=tests.equal,
        standing_out=tests.standing_out,
        num_samples=tests.num_samples,
        num_held_out=tests.num_held_out,
        num_training=searched.training,
        training_total=searched.training_total,
        memorized=memorized,
        verdict=verdict,
        notes=_notes(tests, searched),
    )


def _notes(tests: _Nearness, searched: _Searched) -> tuple[str, ...]:
    notes = []
    if searched.shared:
        notes.append(
            f"{searched.shared:,} of the {searched.held_out:,} held-out images are training images, so they say "
            f"nothing of how near an unseen face is: take images that the model has not seen"
        )
    if zeros := tests.equal_held_out:
        notes.append(
            f"{zeros:,} held-out images equal a training image within rounding: equal distances are ordered at random"
        )
    if searched.held_out < tests.num_samples:
        notes.append(
            f"only {searched.held_out:,} held-out images for {tests.num_samples:,} samples: the bounds are less certain"
        )
    return tuple(notes)


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
    return Share(found, 0.5, _above(z), z)


def _drawn(features: Tensor, count: int, random: np.random.Generator) -> Tensor:
    if count == len(features):
        return features
    return features[torch.from_numpy(np.sort(random.choice(len(features), count, replace=False)))]


def _fisher(found: int, n: int, other: int, m: int) -> float:
    """P(at least ``found`` of n, where found + other of n + m are so and lie at random): Fisher's exact test."""
    total = found + other
    if found == 0:
        return 1.0
    ours = torch.arange(found, min(n, total) + 1, dtype=torch.float64)
    logs = _log_choose(n, ours) + _log_choose(m, total - ours)
    return min(float((logs - _log_choose(n + m, torch.tensor([total], dtype=torch.float64))).exp().sum()), 1.0)


def _rank(quantile: float, count: int) -> int:
    return max(1, round(quantile * (count + 1)))


def _below(
    one: NDArray[np.float64], other: NDArray[np.float64], k: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Which of ``one`` come before the k-th smallest of ``other``, equal values in random order."""
    values = np.concatenate((one, other))
    order = np.lexsort((random.random(len(values)), values))
    places = np.empty(len(values), dtype=np.int64)
    places[order] = np.arange(len(values))
    below: NDArray[np.bool_] = places[: len(one)] < np.sort(places[len(one) :])[k - 1]
    return below


def _chance_of(below: int, n: int, k: int, m: int) -> float:
    """P(at least ``below`` of n come before the k-th of m others), all in random order.

    They do if fewer than k of the first below + k - 1 are others: a sum of hypergeometric terms.
    """
    if below == 0:
        return 1.0
    drawn = below + k - 1
    others = torch.arange(max(0, drawn - n), k, dtype=torch.float64)
    logs = _log_choose(m, others) + _log_choose(n, drawn - others)
    whole = _log_choose(n + m, torch.tensor([drawn], dtype=torch.float64))
    return min(float((logs - whole).exp().sum()), 1.0)


def _log_choose(n: int, k: Tensor) -> Tensor:
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _above(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def _chance(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
