"""Reconstructed averages: against integrals in closed form, quadrature, and averages that were really made."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from unveil import posthoc
from unveil.posthoc import (
    ExponentialProfile,
    PowerProfile,
    deviation,
    exponent,
    reconstruct,
    relative_deviation,
)
from unveil.training.ema import EMA, PowerAverage

END = 70_000.0
PROFILES = [
    PowerProfile(30_000, 2.0),
    PowerProfile(END, 17.0),
    PowerProfile(END, 0.0),
    ExponentialProfile(END, 5000, 0.09),
    ExponentialProfile(END, 20_000, 0.09),  # whose ramp never ends
    ExponentialProfile(END, 500, 0.5),
]


def stored(count: int, deviations: tuple[float, ...] = (0.05, 0.10), end: float = END) -> list[PowerProfile]:
    return [PowerProfile.of(s, end * (k + 1) / count) for k in range(count) for s in deviations]


def average(profile: PowerProfile, frequency: float) -> float:
    """Of weights ``w(t) = cos(frequency t)``, under a power function."""
    value, _ = quad(
        lambda t: float(profile.density(np.array(t))) * math.cos(frequency * t),
        0,
        profile.time,
        epsabs=1e-12,
        limit=500,
    )
    return float(value)


@given(st.floats(0.0, 1e4))
def test_an_exponent_and_its_relative_deviation(gamma: float) -> None:
    assert exponent(min(relative_deviation(gamma), 12**-0.5)) == pytest.approx(gamma, rel=1e-6, abs=1e-6)


def test_exponents_that_are_known() -> None:
    """EDM2's two, whose paper rounds them to 16.97 and 6.94, and a ramp without end."""
    assert exponent(0.05) == pytest.approx(16.9722, abs=1e-4)
    assert exponent(0.10) == pytest.approx(6.9372, abs=1e-4)
    assert exponent(12**-0.5) == pytest.approx(0, abs=1e-12)
    for wrong in (0.0, -0.1, 0.289):
        with pytest.raises(ValueError, match="expected a number in"):
            exponent(wrong)


def density(profile: PowerProfile | ExponentialProfile, time: float) -> float:
    """Weight of the weights at ``time``."""
    if isinstance(profile, PowerProfile):
        return float(profile.density(np.array(time)))
    if time > profile.ramp.time:
        return profile.rate * math.exp(profile.rate * (time - profile.time))
    return profile.left * float(profile.ramp.density(np.array(time)))


def moment(one: PowerProfile | ExponentialProfile, power: int, other: PowerProfile | None = None) -> float:
    """Integral of a density and a power of the time, or another density."""
    end = min(one.time, other.time if other else one.time)
    knots = [one.ramp.time] if isinstance(one, ExponentialProfile) and one.ramp.time < end else None

    def value(time: float) -> float:
        return density(one, time) * (time / END) ** power * (END * density(other, time) if other else 1)

    return float(quad(value, 0, end, points=knots, limit=500)[0])


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_a_profile_is_a_density(profile: PowerProfile | ExponentialProfile) -> None:
    assert moment(profile, 0) == pytest.approx(1, abs=1e-8)
    spread = math.sqrt(moment(profile, 2) - moment(profile, 1) ** 2) * END / profile.time
    assert deviation(profile) == pytest.approx(spread, rel=1e-5)


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_inner_products_are_integrals(profile: PowerProfile | ExponentialProfile) -> None:
    powers = [one for one in PROFILES if isinstance(one, PowerProfile)]
    found, squared = posthoc._products_with(profile, powers)
    assert found * END == pytest.approx([moment(profile, 0, power) for power in powers], rel=1e-7, abs=1e-9)
    if isinstance(profile, PowerProfile):
        assert squared * END == pytest.approx(moment(profile, 0, profile), rel=1e-7)
    else:
        half = quad(lambda t: END * density(profile, t) ** 2, 0, END, points=[min(profile.ramp.time, END / 2)])[0]
        assert squared * END == pytest.approx(half, rel=1e-7)


def test_a_stored_profile_is_its_own_reconstruction() -> None:
    profiles = stored(8)
    for place in (0, 7, 14, 15):
        found = reconstruct(profiles[place], profiles)
        wanted = np.eye(len(profiles))[place]
        assert found.coefficients == pytest.approx(wanted, abs=1e-6)
        assert found.error < 1e-6


@given(st.floats(0.01, 0.28), st.integers(1, 20))
def test_coefficients_sum_to_one(spread: float, count: int) -> None:
    """So that weights which never moved are given back."""
    found = reconstruct(PowerProfile.of(spread, END), stored(count))
    assert sum(found.coefficients) == pytest.approx(1, abs=1e-9)


def test_no_other_coefficients_come_nearer() -> None:
    target, profiles = PowerProfile.of(0.15, END), stored(3)
    times = (np.arange(200_000) + 0.5) * END / 200_000
    densities = np.stack([profile.density(times) for profile in profiles])

    def distance(coefficients: np.ndarray) -> float:
        return float(np.square(coefficients @ densities - target.density(times)).sum())

    best = np.array(reconstruct(target, profiles).coefficients)
    generator = np.random.default_rng(0)
    for _ in range(50):
        change = generator.normal(size=len(profiles)) * 1e-3
        assert distance(best) < distance(best + change - change.mean())
    norm = float(np.square(target.density(times)).sum())
    assert reconstruct(target, profiles).error == pytest.approx(math.sqrt(distance(best) / norm), rel=1e-3)


@pytest.mark.parametrize("spread", [0.035, 0.075, 0.15, 0.20])
@pytest.mark.parametrize("waves", [0.5, 2.0, 5.0])
def test_a_trajectory_of_weights_has_its_true_average(spread: float, waves: float) -> None:
    """Of weights that swing: 32 snapshots give the average of a profile that nobody stored."""
    frequency = 2 * math.pi * waves / END
    profiles, target = stored(32), PowerProfile.of(spread, END)
    coefficients = reconstruct(target, profiles).coefficients
    made = sum(c * average(profile, frequency) for c, profile in zip(coefficients, profiles, strict=True))
    assert made == pytest.approx(average(target, frequency), abs=2e-3)


@pytest.mark.parametrize("rounding", [2e-4, 2e-3])
def test_the_error_counts_the_rounding_and_is_the_least(rounding: float) -> None:
    target, profiles = PowerProfile.of(0.03, END), stored(16, (0.1, 0.2, 0.28))
    exact, found = reconstruct(target, profiles), reconstruct(target, profiles, rounding)
    size, least = (float(np.linalg.norm(result.coefficients)) for result in (exact, found))
    assert exact.error < found.error < math.hypot(exact.error, rounding * size)
    assert rounding * least < found.error and sum(found.coefficients) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("half_life", "end"), [(2.0, 60_000.0), (5000.0, 2e8), (1.0, 2e8), (300.0, 512.0)])
@pytest.mark.filterwarnings("error")
def test_short_half_lives_are_not_missed(half_life: float, end: float) -> None:
    """Of an exponential profile without its ramp, the standard deviation is half_life / ln 2."""
    target = ExponentialProfile(end, half_life, 0.09)
    if half_life < 0.01 * end:
        assert deviation(target) * end == pytest.approx(half_life / math.log(2), rel=1e-4)
    found = reconstruct(target, stored(32, (0.01, 0.1), end))
    assert math.isfinite(found.error) and sum(found.coefficients) == pytest.approx(1, abs=1e-6)
    assert found.error > 0.4 or half_life == 300  # all of the stored ones are far wider


def test_more_snapshots_are_nearer() -> None:
    errors = [reconstruct(PowerProfile.of(0.03, END), stored(count)).error for count in (1, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02 < 0.1 < errors[0]


def test_averages_that_were_made_in_steps() -> None:
    """Power functions and a ramped half-life, kept over a random walk, come from the snapshots of two others."""
    generator = torch.Generator().manual_seed(0)
    steps, batch, every = 2000, 32, 125
    weight = torch.zeros(500, dtype=torch.float64)
    kept = {s: PowerAverage([weight], s) for s in (0.05, 0.10)}
    wanted = {s: PowerAverage([weight], s) for s in (0.04, 0.075, 0.13)}
    half_life = EMA([weight], 5000, 0.09)
    profiles, snapshots = [], []
    for step in range(1, steps + 1):
        weight = weight + torch.randn(500, generator=generator, dtype=torch.float64)
        for item in (*kept.values(), *wanted.values(), half_life):
            item.update([weight], batch, step * batch)
        if step % every == 0:
            profiles += [PowerProfile.of(s, step * batch) for s in kept]
            snapshots += [item.parameters[0].clone() for item in kept.values()]
    end = float(steps * batch)
    targets: list[tuple[PowerProfile | ExponentialProfile, torch.Tensor]] = [
        (PowerProfile.of(s, end), item.parameters[0]) for s, item in wanted.items()
    ]
    targets.append((ExponentialProfile(end, 5000, 0.09), half_life.parameters[0]))
    for target, truth in targets:
        coefficients = reconstruct(target, profiles).coefficients
        made = sum(c * snapshot for c, snapshot in zip(coefficients, snapshots, strict=True))
        assert isinstance(made, torch.Tensor)
        assert (made - truth).norm() < 0.02 * (weight - truth).norm()


def test_profiles_that_cannot_be_told_apart_are_refused() -> None:
    target = PowerProfile.of(0.1, END)
    for wrong in ([], [target, target]):
        with pytest.raises(ValueError, match="all different"):
            reconstruct(target, wrong)
