"""Do two training runs have the same loss curve, within noise?

A point of a curve is the mean loss over the images since the last point, which scatters with the images and the
noise that were drawn. Two runs of one seed on two engines share those draws and differ by rounding, little at first
and then more, until their networks are as different as those of two seeds; two seeds share nothing. Either way the
test asks the same: is the mean difference larger than what two seeds of one program would have? So it works for every
pair of runs, and its false alarms can be counted. Points of shared draws scatter less beside each other than alone,
but a test by that scatter takes the luck of one network for a difference of the programs.

For each stretch of the curves, with d the difference of the two log losses at the points that they share:

- noise of a point: from each curve alone, by how far points lie from the line through their neighbours
  (Gasser, Sroka and Jennen-Steinmetz, 1986), so neither a trend nor what the curves have in common counts;
- standard error of the mean of d: from that noise; or, where it is larger, from d itself, less its slow drift, with its
  autocorrelation (Newey and West, 1987);
- limit: Student's quantile for :data:`FALSE_ALARMS` over all stretches together, times the standard error, plus
  :data:`LUCK`.

The stretches are the whole, the second half, where what was won early no longer hides what was lost late, and the
last fifth, judged by the noise before it, so that a run that breaks at its end cannot excuse itself by its own
scatter. A spike that passes is in ``largest``, and in no verdict.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from unveil.errors import UnveilError
from unveil.files import read_text

FALSE_ALARMS = 1e-3
"""So many of the pairs of runs that differ in their seeds alone are found to differ, at most.

In 12,000 simulated pairs of 8, 16, 40, 100 and 400 points, normal or heavy-tailed, at most 0.9 in 1000. Points whose
neighbours correlate by 0.2 are found in up to 2 in 1000, by 0.4 in up to 11.
"""
LUCK = 0.002
"""Mean difference of the log losses that two seeds may have for good, however long they are compared: chosen."""
FEWEST_SHARED = 8
FEWEST_FOR_HALF = 16
FEWEST_FOR_END = 40
Verdict = Literal["identical", "agree", "differ"]
_Vector = NDArray[np.float64]


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run.

    Attributes:
        name: for messages: a file, a run.
        images: images seen at each point, rising.
        losses: mean over the images since the last point, finite and above 0.

    Raises:
        UnveilError: if they are not.
        ValueError: if there is not a loss for each.
    """

    name: str
    images: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        for (before, images), loss in zip(pairwise((0, *self.images)), self.losses, strict=True):
            if images <= before:
                raise UnveilError(
                    f"{self.name}: found {images} images after {before}, expected numbers of images that rise from "
                    "point to point; give the curve of one run as it was written"
                )
            if not (math.isfinite(loss) and loss > 0):
                raise UnveilError(
                    f"{self.name}: found a loss of {loss} at {images} images, expected a finite number above 0; "
                    "a run that broke cannot be compared"
                )

    @classmethod
    def of(cls, name: str, points: Iterable[tuple[int, float]]) -> "LossCurve":
        """From (images, loss); points of the same number of images, as rounding makes them, become their mean."""
        merged = [
            (images, fmean(loss for _, loss in group)) for images, group in groupby(points, key=lambda point: point[0])
        ]
        return cls(name, tuple(images for images, _ in merged), tuple(loss for _, loss in merged))


@dataclass(frozen=True)
class Stretch:
    """The mean difference over a part of the shared points.

    Attributes:
        name: which part.
        points: how many.
        mean: of log(loss of the second run / loss of the first); about the relative difference, + = second is worse.
        standard_error: of the mean.
        limit: largest absolute mean that is within noise.
    """

    name: str
    points: int
    mean: float
    standard_error: float
    limit: float

    @property
    def differs(self) -> bool:
        """Whether the difference is more than noise."""
        return abs(self.mean) > self.limit


@dataclass(frozen=True)
class CurveComparison:
    """Two loss curves beside each other.

    Attributes:
        points: that both have.
        images: of the first and the last of them.
        noise: standard deviation of a point of each curve over the second half, relative to its loss.
        parted_at: images at the first point whose losses are not the same bits, None if there is none.
        largest: largest relative difference of the losses at a point, with its sign: + = second is worse.
        largest_at: images at it.
        stretches: the whole first; parts only where they have points enough.
    """

    points: int
    images: tuple[int, int]
    noise: tuple[float, float]
    parted_at: int | None
    largest: float
    largest_at: int
    stretches: tuple[Stretch, ...]

    @property
    def verdict(self) -> Verdict:
        """``identical``: bit for bit; ``agree``: every stretch within noise; ``differ``: one is not."""
        if self.parted_at is None:
            return "identical"
        return "differ" if any(stretch.differs for stretch in self.stretches) else "agree"


def read_curve(path: Path) -> LossCurve:
    """The loss curve in a curves.csv of the train stage, with six digits a number as that has them.

    Raises:
        UnveilError: if it is no such file.
        OSError: if it cannot be read.
    """
    how = "expected a curves.csv of the train stage, with the columns images and loss"
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error:
        raise UnveilError(f"{path}: found something other than a table in text, {how}; give another file") from None
    if not rows:
        raise UnveilError(f"{path}: found no points, {how}; let training run to its end")
    if not {"images", "loss"} <= rows[0].keys():
        found = ", ".join(map(str, rows[0]))[:100]
        raise UnveilError(f"{path}: found the columns {found}, {how}; give another file")
    points = []
    for line, row in enumerate(rows, start=2):
        try:
            points.append((int(float(row["images"])), float(row["loss"])))
        except (TypeError, ValueError, OverflowError):  # a short line, a word, an infinity
            raise UnveilError(
                f"{path}, line {line}: found images {row['images']!r} and loss {row['loss']!r}, expected two numbers; "
                "write the file anew with `dvc repro train`"
            ) from None
    return LossCurve.of(str(path), points)


def compare(first: LossCurve, second: LossCurve) -> CurveComparison:
    """Compare two curves at the points that both have.

    Where one has points between two shared ones, its loss is the mean over all images from the one to the other, so
    that both losses are over the same images.

    Raises:
        UnveilError: if fewer than :data:`FEWEST_SHARED` points are shared.
    """
    one, other = (dict(zip(curve.images, curve.losses, strict=True)) for curve in (first, second))
    shared = sorted(one.keys() & other.keys())
    if len(shared) < FEWEST_SHARED:
        raise UnveilError(
            f"{first.name} and {second.name}: found {len(shared)} points at the same numbers of images "
            f"({len(first.images)} and {len(second.images)} in all), expected {FEWEST_SHARED} or more; train longer, "
            "or set train.batch_size and train.log_every_images so that points fall together"
        )
    a, b = (np.log(_means(curve, shared)) for curve in (first, second))
    relative = np.expm1(b - a)
    largest = int(np.argmax(np.abs(relative)))
    half = slice(len(shared) // 2 if len(shared) >= FEWEST_FOR_HALF else 0, None)
    x = np.asarray(shared, dtype=np.float64)
    return CurveComparison(
        points=len(shared),
        images=(shared[0], shared[-1]),
        noise=(_noise(x[half], a[half]), _noise(x[half], b[half])),
        parted_at=next((images for images in shared if one[images] != other[images]), None),
        largest=float(relative[largest]),
        largest_at=shared[largest],
        stretches=tuple(_stretches(x, a, b)),
    )


def _means(curve: LossCurve, ends: Sequence[int]) -> _Vector:
    """Mean loss over the images from each of the ends to the next: [len(ends)]."""
    images, losses = np.asarray(curve.images), np.asarray(curve.losses)
    weights = np.diff(images, prepend=0)
    starts = np.searchsorted(images, [0, *ends[:-1]], side="right")
    stops = np.searchsorted(images, ends, side="right")
    return np.asarray(
        [
            # A point alone stays as it is, to the bit.
            losses[start] if stop == start + 1 else np.average(losses[start:stop], weights=weights[start:stop])
            for start, stop in zip(starts, stops, strict=True)
        ]
    )


def _stretches(x: _Vector, a: _Vector, b: _Vector) -> Iterator[Stretch]:
    """The whole and its parts, each judged by the noise of some points; images and log losses, each [N]."""
    half, end, everything = len(x) // 2, len(x) - len(x) // 5, slice(None)
    parts = [
        ("whole", FEWEST_SHARED, everything, everything),
        ("second half", FEWEST_FOR_HALF, slice(half, None), slice(half, None)),
        ("last fifth", FEWEST_FOR_END, slice(end, None), slice(half, end)),
    ]
    long_enough = [part for part in parts if len(x) >= part[1]]
    for name, _, part, judge in long_enough:
        difference, judged = (b - a)[part], x[judge]
        variances = [_noise(judged, curve[judge]) ** 2 for curve in (a, b)]
        estimates = [
            (sum(variances), _freedom(variances, len(judged))),
            _long_run_variance(judged, (b - a)[judge]),
        ]
        errors = [(math.sqrt(variance / len(difference)), freedom) for variance, freedom in estimates]
        quantile = 1 - FALSE_ALARMS / len(long_enough) / 2
        limit = LUCK + max(error * float(stdtrit(freedom, quantile)) for error, freedom in errors)
        yield Stretch(name, len(difference), float(difference.mean()), max(error for error, _ in errors), limit)


def _noise(x: _Vector, y: _Vector) -> float:
    """Standard deviation of the scatter of a smooth curve: how far points lie from the line through their neighbours.

    Source: Gasser, Sroka and Jennen-Steinmetz, Residual variance and residual pattern in nonlinear regression,
    Biometrika 73 (1986).

    Args:
        x: abscissas, rising, [N >= 3].
        y: ordinates [N].
    """
    left = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    residuals = left * y[:-2] + (1 - left) * y[2:] - y[1:-1]
    return float(np.sqrt(np.mean(residuals**2 / (left**2 + (1 - left) ** 2 + 1))))


def _freedom(variances: Sequence[float], count: int) -> float:
    """Degrees of freedom of the sum of two variances, each by :func:`_noise` from ``count`` points.

    Neighbouring residuals of white noise correlate by -2/3 and 1/6, and so count for 1 / 1.94 each; unequal
    variances as Satterthwaite (1946) adds them.
    """
    one = (count - 2) / (1 + 2 * (4 / 9 + 1 / 36))
    squares = sum(variance**2 for variance in variances)
    return one * sum(variances) ** 2 / squares if squares else 2 * one


def _long_run_variance(x: _Vector, d: _Vector) -> tuple[float, float]:
    """Variance of the mean of ``d``, times N, with autocorrelation; and its degrees of freedom.

    Sources: Newey and West, A simple, positive semi-definite, heteroskedasticity and autocorrelation consistent
    covariance matrix, Econometrica 55 (1987), with the lags of their 1994 paper; degrees of freedom of Bartlett's
    window from Priestley, Spectral Analysis and Time Series (1981), table 6.2.

    Args:
        x: images, rising, [N].
        d: differences [N].
    """
    # Without its drift: that is what is looked for, and as noise it would hide itself.
    degree = 2 if len(d) >= FEWEST_FOR_HALF else 0
    powers = np.vander(np.log(x / x[-1]), degree + 1)
    rest = d - powers @ np.linalg.lstsq(powers, d, rcond=None)[0]
    count = len(d) - degree - 1
    lags = min(int(4 * (len(d) / 100) ** (2 / 9)), len(d) - 1)
    variance = float(rest @ rest) / count
    for lag in range(1, lags + 1):
        variance += 2 * (1 - lag / (lags + 1)) * float(rest[lag:] @ rest[:-lag]) / count
    return max(variance, 0.0), 1.5 * count / (lags + 1)
