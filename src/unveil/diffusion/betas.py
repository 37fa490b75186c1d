"""Variances of the steps of DDPM's chain, by schedule: plain numbers, so that params.py needs no PyTorch for them."""

from itertools import pairwise
from math import cos, cosh, pi, sinh

GREATEST_BETA = 0.999  # where the last would be 1, and sigma infinite (2102.09672, sec. 3.2)


def linear(timesteps: int, start: float, end: float) -> list[float]:
    """DDPM's (2006.11239, sec. 4): evenly spaced from ``start`` to ``end``."""
    return [start + (end - start) * i / (timesteps - 1) for i in range(timesteps)]


def cosine(timesteps: int, offset: float) -> list[float]:
    """Nichol and Dhariwal's (2102.09672, eq. 17): alpha_bar_t = f(t) / f(0), t = 1 .. T.

    ``f(t) = cos^2((t/T + offset) / (1 + offset) pi/2)``; the offset keeps the first betas from vanishing.
    """
    return _from_alpha_bar([cos((i / timesteps + offset) / (1 + offset) * pi / 2) ** 2 for i in range(timesteps + 1)])


def sigmoid(timesteps: int, start: float, end: float, tau: float) -> list[float]:
    """Jabri et al.'s (2212.11972; code in 2301.10972, alg. 1): alpha_bar falls as a piece of the logistic function S.

    ``alpha_bar_t`` is proportional to ``S(end/tau) - S(x_t/tau)``, x_t evenly from ``start`` to ``end``, t = 1 .. T.
    """
    places = [(start + (end - start) * i / timesteps) / tau for i in range(timesteps + 1)]
    # S(e) - S(x) = sinh((e - x) / 2) / (2 cosh(e / 2) cosh(x / 2)): the difference would lose its digits near e.
    return _from_alpha_bar([sinh((places[-1] - place) / 2) / cosh(place / 2) for place in places])


def _from_alpha_bar(values: list[float]) -> list[float]:
    """``1 - alpha_bar_t / alpha_bar_{t-1}`` of T + 1 values, to a common factor, clipped below 1."""
    return [min(1 - after / before, GREATEST_BETA) for before, after in pairwise(values)]
