"""Noise levels of each path, and which parts go together, in plain numbers: for the rules and for the paths."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from unveil.section import Problem

GREATEST_BETA = 0.999  # where the last would be 1, and sigma infinite (2102.09672, sec. 3.2)


def linear_betas(timesteps: int, start: float, end: float) -> list[float]:
    """DDPM's (2006.11239, sec. 4): evenly spaced from ``start`` to ``end``."""
    return [start + (end - start) * i / (timesteps - 1) for i in range(timesteps)]


def cosine_betas(timesteps: int, offset: float) -> list[float]:
    """Nichol and Dhariwal's (2102.09672, eq. 17): alpha_bar_t = f(t) / f(0), t = 1 .. T.

    ``f(t) = cos^2((t/T + offset) / (1 + offset) pi/2)``; the offset keeps the first betas from vanishing.
    """
    return _from_alpha_bar(
        [math.cos((i / timesteps + offset) / (1 + offset) * math.pi / 2) ** 2 for i in range(timesteps + 1)]
    )


def sigmoid_betas(timesteps: int, start: float, end: float, tau: float) -> list[float]:
    """Jabri et al.'s (2212.11972; code in 2301.10972, alg. 1): alpha_bar falls as a piece of the logistic function S.

    ``alpha_bar_t`` is proportional to ``S(end/tau) - S(x_t/tau)``, x_t evenly from ``start`` to ``end``, t = 1 .. T.
    """
    places = [(start + (end - start) * i / timesteps) / tau for i in range(timesteps + 1)]
    # S(e) - S(x) = sinh((e - x) / 2) / (2 cosh(e / 2) cosh(x / 2)): the difference would lose its digits near e.
    return _from_alpha_bar([math.sinh((places[-1] - place) / 2) / math.cosh(place / 2) for place in places])


def _from_alpha_bar(values: list[float]) -> list[float]:
    """``1 - alpha_bar_t / alpha_bar_{t-1}`` of T + 1 values, to a common factor, clipped below 1."""
    return [min(1 - after / before, GREATEST_BETA) for before, after in pairwise(values)]


BETAS: dict[str, Callable[..., list[float]]] = {
    "vp-linear": linear_betas,
    "vp-cosine": cosine_betas,
    "vp-sigmoid": sigmoid_betas,
}
DISCRETE_PATHS = tuple(BETAS)
"""Paths of T timesteps; see :class:`unveil.diffusion.paths.DiscreteVP`."""

PRESERVING_PATHS = (*DISCRETE_PATHS, "vp-sde")
"""Paths with ``alpha^2 + s^2 = 1``, so that a step between any two noise levels has a beta."""

UNBOUNDED_PATHS = ("edm", "flow")
"""Paths on which no sigma is refused for lying outside those that training draws evenly from."""

FULL_NOISE = ("eps", "velocity")
"""Parameterizations whose network must give the whole noise back at every noise level: ``n`` and ``n - x0``."""

PATH_VALUES: dict[str, tuple[str, ...]] = {
    "vp-linear": ("timesteps", "beta_start", "beta_end"),
    "vp-cosine": ("timesteps", "cosine_offset"),
    "vp-sigmoid": ("timesteps", "sigmoid_start", "sigmoid_end", "sigmoid_tau"),
    "vp-sde": ("beta_min", "beta_max"),
    "sub-vp": ("beta_min", "beta_max"),
    "ve": ("sigma_min", "sigma_max"),
    "edm": (),
    "flow": (),
}
"""The settings that each path reads."""

OBJECTIVE_VALUES: dict[str, tuple[str, ...]] = {
    "simple": (),
    "likelihood": (),
    "edm": ("sigma_data", "p_mean", "p_std"),
    "min-snr": ("min_snr_gamma",),
    "p2": ("p2_k", "p2_gamma"),
    "flow": ("flow_times", "logit_mean", "logit_std", "t_min"),
}
"""The settings that each objective reads."""

DECIDING_VALUES: dict[str, tuple[str, str]] = {
    "vp-linear": ("beta_start", "beta_end"),
    "vp-cosine": ("cosine_offset", "cosine_offset"),
    "vp-sigmoid": ("sigmoid_tau", "sigmoid_tau"),
    "vp-sde": ("beta_min", "beta_max"),
    "sub-vp": ("beta_min", "beta_max"),
    "ve": ("sigma_min", "sigma_max"),
    "edm": ("path", "path"),
    "flow": ("path", "path"),
}
"""The settings that decide a path's least sigma, and its greatest one."""

EDM_RANGE = (0.002, 80.0)
TINY = 1e-100  # whose square a float can hold
LEAST_LEVEL_SIGMA = 1e-3
"""Least sigma at which such an error may have the weight 1 / sigma^2: a million times that at sigma = 1."""


def sigma_range(diffusion: Any) -> tuple[float, float]:
    """The least and the greatest sigma that training visits, of a :class:`unveil.diffusion.config.Diffusion`."""
    return path_range(diffusion.path, *(getattr(diffusion, name) for name in PATH_VALUES[diffusion.path]))


def path_range(name: str, *values: Any) -> tuple[float, float]:
    """The same of a path by its name and values."""
    if name in BETAS:
        return chain_range(BETAS[name](*values))
    return RANGES[name](*values)


def chain_range(variances: Sequence[float]) -> tuple[float, float]:
    """The first and the last sigma of a chain with these betas."""
    log_alpha_bar = math.fsum(math.log1p(-beta) for beta in variances)
    first = max(variances[0], 0.0)  # a difference that rounding may put below 0
    least = math.sqrt(first / (1 - first))
    return least, math.exp(min(0.5 * _log_expm1(-log_alpha_bar), 700))


def vp_sde_range(beta_min: float, beta_max: float, t_min: float = 1e-5) -> tuple[float, float]:
    """``sqrt(exp(B(t)) - 1)`` at t_min and 1, with B the integral of beta."""
    least, greatest = (math.sqrt(math.expm1(_integral(beta_min, beta_max, t))) for t in (t_min, 1.0))
    return least, greatest


def sub_vp_range(beta_min: float, beta_max: float, t_min: float = 1e-5) -> tuple[float, float]:
    """``2 sinh(B(t) / 2)`` at t_min and 1."""
    least, greatest = (2 * math.sinh(_integral(beta_min, beta_max, t) / 2) for t in (t_min, 1.0))
    return least, greatest


def flow_range(t_min: float = 1e-3) -> tuple[float, float]:
    """``t / (1 - t)`` at t_min and 1 - t_min."""
    least, greatest = (t / (1 - t) for t in (t_min, 1 - t_min))
    return least, greatest


def _integral(beta_min: float, beta_max: float, t: float) -> float:
    return beta_min * t + (beta_max - beta_min) * t**2 / 2


def _log_expm1(x: float) -> float:
    """ln(e^x - 1) for x > 0, without overflow."""
    return x + math.log1p(-math.exp(-x)) if x > 1 else math.log(math.expm1(x))


RANGES: dict[str, Callable[..., tuple[float, float]]] = {
    "vp-sde": vp_sde_range,
    "sub-vp": sub_vp_range,
    "ve": lambda least, greatest: (least, greatest),
    "edm": lambda: EDM_RANGE,
    "flow": flow_range,
}


def refusal(diffusion: Any) -> Problem | None:
    """Why a diffusion's path, objective and parameterization do not go together, or None if they do.

    Every parameterization goes with every path: its coefficients hold at any sigma.
    """
    path, objective, parameterization = diffusion.path, diffusion.objective, diffusion.parameterization
    if path == "edm" and objective not in ("edm", "flow"):
        return Problem(
            "objective", f"edm | flow on path edm, which has no ends between which {objective} could draw evenly"
        )
    least, _ = sigma_range(diffusion)
    snr, k = max(least, TINY) ** -2, diffusion.p2_k
    growth = (
        1.0  # of the weight of an error of the image, from sigma = 1 to the least; of these objectives without limit
    )
    if objective in ("simple", "likelihood"):
        growth = snr
    elif objective == "p2":
        growth = snr * ((k + 1) / (k + snr)) ** diffusion.p2_gamma
    # The c_out of x0 alone does not fall with sigma: the error of D stays as large as that of the network.
    if parameterization == "x0" and growth > LEAST_LEVEL_SIGMA**-2:
        return Problem(
            "parameterization",
            f"eps | v | edm | velocity for objective {objective} on path {path}, whose sigma starts at "
            f"{least:.3g}: an error of {parameterization} does not fall with sigma, and its weight there is "
            f"{growth:.1g} times that at 1, so that a few draws would decide every step",
        )
    return None
