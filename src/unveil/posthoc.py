"""Averages of the weights chosen after training, from stored snapshots (EDM2, 2312.02696, section 3 and appendix C).

A power-function profile of exponent ``gamma`` at time ``t`` weighs the weights of time ``x`` by

    p(x) = (gamma + 1) x ** gamma / t ** (gamma + 1),    0 <= x <= t

with mean ``t (gamma + 1) / (gamma + 2)`` and standard deviation ``sigma_rel t``. Any other profile is approximated by
a sum of stored ones, whose coefficients minimise the integral of the squared difference: the same sum of the stored
averages is the average with the other profile. Times are in any unit, here in images.

Stored averages are rounded, and a sum of them is by as much as its coefficients are large: those of a narrow profile
from wide ones may be thousands that cancel. So the square of that error is minimised together with the profile's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEEPEST_RAMP = 0.69  # below ln 2, so that an exponential average's ramp is a power function of exponent >= 0


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
    def rate(self) -> float:
        """By which the weight falls per unit of time gone, once the half-life is whole."""
        return float(np.log(2) / self.half_life)

    @property
    def ramp(self) -> PowerProfile:
        """The average's own profile at the end of the ramp."""
        return PowerProfile(min(self.half_life / self.rampup, self.time), float(np.log(2) / self.rampup) - 1)

    @property
    def left(self) -> float:
        """Share that the average at the end of the ramp has at last."""
        return float(np.exp(-self.rate * (self.time - self.ramp.time)))


def deviation(profile: PowerProfile | ExponentialProfile) -> float:
    """Standard deviation of a profile, relative to its time."""
    if isinstance(profile, PowerProfile):
        return relative_deviation(profile.gamma)
    ramp, left, length = profile.ramp, profile.left, profile.time - profile.ramp.time
    tail = (1 - left) / profile.rate - length * left  # mean of the time since, after the ramp; below, of its square
    tail_square = 2 * tail / profile.rate - length**2 * left
    since = profile.time - ramp.time * (ramp.gamma + 1) / (ramp.gamma + 2)  # mean of it within the ramp
    mean = left * since + tail
    square = left * (since**2 + (relative_deviation(ramp.gamma) * ramp.time) ** 2) + tail_square
    return float((square - mean**2) ** 0.5 / profile.time)


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

    ``rounding`` is the standard deviation of the error of each stored average, in the unit of ``Reconstruction.error``.

    Raises:
        ValueError: if there are none, or two are equal.
    """
    if not stored or len(set(stored)) < len(stored):
        raise ValueError(
            f"stored has {len(stored)} profiles, {len(set(stored))} different; expected some, all different"
        )
    if target in stored:
        return Reconstruction(tuple(float(profile == target) for profile in stored), rounding)
    gram, toward, squared = products(stored, stored), *_products_with(target, stored)
    ridge = rounding**2 * squared * np.eye(len(stored))
    scale = np.diag(gram) ** -0.5  # of profiles of norm 1: without it late, narrow ones would outweigh the others
    matrix = (gram + ridge) * np.outer(scale, scale)
    nearest, sums = (
        np.linalg.lstsq(matrix, side * scale, rcond=1e-14)[0] * scale for side in (toward, np.ones(len(stored)))
    )
    found = nearest + sums * (1 - nearest.sum()) / sums.sum()
    difference = max(squared - 2 * found @ toward + found @ gram @ found, 0.0) / squared
    return Reconstruction(tuple(found.tolist()), float(np.sqrt(difference + rounding**2 * found @ found)))


def products(rows: Sequence[PowerProfile], columns: Sequence[PowerProfile]) -> Floats:
    """Integrals of the products of power-function profiles (eq. 151): float64 [rows, columns]."""
    time, gamma = (np.array([[getattr(profile, name)] for profile in rows]) for name in ("time", "gamma"))
    times, gammas = (np.array([getattr(profile, name) for profile in columns]) for name in ("time", "gamma"))
    ratio = time / times
    later = np.where(ratio < 1, np.minimum(ratio, 1) ** gammas, np.maximum(ratio, 1) ** -gamma)
    found: Floats = (gamma + 1) * (gammas + 1) * later / ((gamma + gammas + 1) * np.maximum(time, times))
    return found


def _products_with(target: PowerProfile | ExponentialProfile, stored: Sequence[PowerProfile]) -> tuple[Floats, float]:
    """Integrals of the products of a profile with each of the stored ones, and with itself."""
    if isinstance(target, PowerProfile):
        return products([target], stored)[0], products([target], [target]).item()
    ramp, left = target.ramp, target.left
    tails = np.array([_tail(target, profile) for profile in stored])
    return left * products([ramp], stored)[0] + tails, left**2 * products([ramp], [ramp]).item() + target.rate / 2 * (
        1 - left**2
    )


def _tail(target: ExponentialProfile, other: PowerProfile) -> float:
    """Integral of the product after the ramp, over ``u = exp(rate (t - time))``, in which there is no narrow peak."""
    from scipy.integrate import quad  # takes a part of a second

    end = float(np.exp(target.rate * (min(other.time, target.time) - target.time)))
    if end <= target.left:
        return 0.0

    def scaled(u: float) -> float:
        return other.time * float(other.density(np.asarray(target.time + np.log(u) / target.rate)))

    return float(quad(scaled, target.left, end, epsabs=1e-10, epsrel=1e-8, limit=200)[0]) / other.time
