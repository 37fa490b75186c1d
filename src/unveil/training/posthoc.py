"""Averages of the weights chosen after training, from stored snapshots (EDM2, 2312.02696, section 3 and appendix C).

A power-function profile of exponent ``gamma`` at time ``t`` weighs the weights of time ``x`` by

    p(x) = (gamma + 1) x ** gamma / t ** (gamma + 1),    0 <= x <= t

with mean ``t (gamma + 1) / (gamma + 2)`` and standard deviation ``sigma_rel t``. Any other profile is approximated by
a sum of stored ones, whose coefficients minimise the integral of the squared difference: the same sum of the stored
averages is the average with the other profile. Times are in any unit, here in images.

Stored averages are rounded, and a sum of them is by as much as its coefficients are large: those of a narrow profile
from wide ones may be thousands that cancel. So the square of that error is minimised together with the profile's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEEPEST_RAMP = 0.69  # below ln 2, so that an exponential average's ramp is a power function of exponent >= 0
NODES = 16  # of the quadrature on each eighth of an interval where an exponential profile is smooth
TAIL = 12  # doublings of the half-life; 2 ** -64 of it is nothing already


def exponent(sigma_rel: float) -> float:
    """The ``gamma >= 0`` of a relative standard deviation in (0, 12 ** -0.5] (eq. 126).

    The largest root of ``(gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1``.

    Raises:
        ValueError: outside of that range.
    """
    if not 0 < sigma_rel <= 12**-0.5:
        raise ValueError(f"sigma_rel is {sigma_rel}; expected a number in (0, 0.2886]")
    inverse = sigma_rel**-2
    return max(float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()), 0.0)


def relative_deviation(gamma: float) -> float:
    """Standard deviation of the profile of exponent ``gamma`` at time 1 (eq. 123)."""
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


@dataclass(frozen=True)
class PowerProfile:
    """The profile of a power-function average at ``time`` > 0, of exponent ``gamma`` >= 0."""

    time: float
    gamma: float

    @classmethod
    def of(cls, sigma_rel: float, time: float) -> "PowerProfile":
        """With a relative standard deviation."""
        return cls(time, exponent(sigma_rel))

    def density(self, times: Floats) -> Floats:
        """Weight of the weights at ``times``."""
        share = np.clip(times / self.time, 0, 1)
        return np.where(times <= self.time, (self.gamma + 1) * share**self.gamma / self.time, 0.0)

    def product(self, other: "PowerProfile") -> float:
        """Integral of the product with another one (eq. 151)."""
        first, last = sorted((self, other), key=lambda profile: profile.time)
        ratio = (first.time / last.time) ** last.gamma
        return (self.gamma + 1) * (other.gamma + 1) * ratio / ((self.gamma + other.gamma + 1) * last.time)


@dataclass(frozen=True)
class ExponentialProfile:
    """The profile of an exponential average at ``time``, whose half-life is at most ``rampup`` of the time gone.

    While the ramp lasts, up to ``half_life / rampup``, the average is a power function's, of exponent
    ``ln 2 / rampup - 1``: ``d a / d t = (w - a) ln 2 / (rampup t)``.

    Args:
        time: > 0.
        half_life: > 0, in the unit of ``time``.
        rampup: in (0, 0.69]; without a ramp the average would keep the initial weights, which no snapshot holds.

    Raises:
        ValueError: for another ramp.
    """

    time: float
    half_life: float
    rampup: float

    def __post_init__(self) -> None:
        if not 0 < self.rampup <= STEEPEST_RAMP:
            raise ValueError(f"rampup is {self.rampup}; expected a number in (0, {STEEPEST_RAMP}]")

    @property
    def ramp_end(self) -> float:
        """Until when the half-life grows."""
        return min(self.half_life / self.rampup, self.time)

    def density(self, times: Floats) -> Floats:
        """Weight of the weights at ``times``."""
        rate, power = np.log(2) / self.half_life, np.log(2) / self.rampup
        end = self.ramp_end
        left = np.exp(-rate * (self.time - end))  # of the ramp's average, at last
        ramp = left * power * np.clip(times / end, 0, 1) ** (power - 1) / end
        tail = rate * np.exp(-rate * np.clip(self.time - times, 0, None))
        return np.where(times > self.time, 0.0, np.where(times < end, ramp, tail))


def deviation(profile: PowerProfile | ExponentialProfile) -> float:
    """Standard deviation of a profile, relative to its time."""
    if isinstance(profile, PowerProfile):
        return relative_deviation(profile.gamma)
    knots = _knots(profile)
    mean = _integral(lambda times: profile.density(times) * times, knots)
    return float(_integral(lambda times: profile.density(times) * (times - mean) ** 2, knots) ** 0.5 / profile.time)


@dataclass(frozen=True)
class Reconstruction:
    """A profile as a sum of stored ones.

    Attributes:
        coefficients: of the stored profiles, in their order; they sum to 1.
        error: root of the sum of two squares: the norm of the difference from the profile that was asked for,
            relative to that profile's norm; and what rounding adds, the coefficients' norm times ``rounding``.
    """

    coefficients: tuple[float, ...]
    error: float


def reconstruct(
    target: PowerProfile | ExponentialProfile, stored: Sequence[PowerProfile], rounding: float = 0.0
) -> Reconstruction:
    """The sum of ``stored`` profiles of the least error (algorithm 3, and a ridge against rounding).

    Unlike there, the coefficients are not divided by their sum: that it is 1 is a condition of the least squares, so
    that weights which never moved come out as they are. A profile that is stored is its own reconstruction.

    Args:
        target: the profile that is asked for.
        stored: what to make it from.
        rounding: standard deviation of the error of each stored average, in the unit of ``Reconstruction.error``.

    Raises:
        ValueError: if there are none, or two are equal.
    """
    if not stored or len(set(stored)) < len(stored):
        raise ValueError(
            f"stored has {len(stored)} profiles, {len(set(stored))} different; expected some, all different"
        )
    if target in stored:
        return Reconstruction(tuple(float(profile == target) for profile in stored), rounding)
    gram = _gram(stored)
    toward = np.array([_product(target, profile) for profile in stored])
    squared = _product(target, target)
    ridge = rounding**2 * squared * np.eye(len(stored))
    scale = np.diag(gram) ** -0.5  # of profiles of norm 1: without it late, narrow ones would outweigh the others
    matrix = (gram + ridge) * np.outer(scale, scale)
    nearest, sums = (
        np.linalg.lstsq(matrix, side * scale, rcond=1e-14)[0] * scale for side in (toward, np.ones(len(stored)))
    )
    found = nearest + sums * (1 - nearest.sum()) / sums.sum()
    difference = max(squared - 2 * found @ toward + found @ gram @ found, 0.0) / squared
    return Reconstruction(tuple(found.tolist()), float(np.sqrt(difference + rounding**2 * found @ found)))


def _gram(stored: Sequence[PowerProfile]) -> Floats:
    """All inner products of power-function profiles (eq. 151)."""
    time, gamma = (np.array([getattr(profile, name) for profile in stored]) for name in ("time", "gamma"))
    ratio = time[:, None] / time
    later = np.where(ratio < 1, np.minimum(ratio, 1) ** gamma, np.maximum(ratio, 1) ** -gamma[:, None])
    return np.outer(gamma + 1, gamma + 1) * later / ((gamma[:, None] + gamma + 1) * np.maximum(time[:, None], time))


def _product(target: PowerProfile | ExponentialProfile, other: PowerProfile | ExponentialProfile) -> float:
    if isinstance(target, PowerProfile) and isinstance(other, PowerProfile):
        return target.product(other)
    return _integral(lambda times: target.density(times) * other.density(times), _knots(target, other))


def _knots(*profiles: PowerProfile | ExponentialProfile) -> list[float]:
    """Where one of the profiles is not smooth, up to where the first of them ends, and steps into its tail.

    An exponential tail may be a millionth as long as what it is integrated over: 1, 2, 4, ... half-lives before the
    end, so that the quadrature sees it.
    """
    end = min(profile.time for profile in profiles)
    knots = {0.0, end}
    for profile in profiles:
        if isinstance(profile, ExponentialProfile):
            tail = (end - profile.half_life * 2**place for place in range(TAIL))
            knots.update(time for time in (profile.ramp_end, *tail) if 0 < time < end)
    return sorted(knots)


def _integral(function: Callable[[Floats], Floats], knots: Sequence[float]) -> float:
    """Gauss-Legendre quadrature between neighbouring knots, in eight pieces each."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    total = 0.0
    for start, end in pairwise(knots):
        pieces = np.linspace(start, end, 9)
        for low, high in pairwise(pieces):
            half = (high - low) / 2
            total += half * float(weights @ function(low + half * (nodes + 1)))
    return total
