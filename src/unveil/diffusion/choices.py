"""The names of the parts of a diffusion model, and which of them do not go together. Without PyTorch, for params.py."""

from typing import Literal, NamedTuple

PathName = Literal["vp-linear", "vp-cosine", "vp-sigmoid", "vp-sde", "sub-vp", "ve", "edm", "flow"]
ParameterizationName = Literal["eps", "v", "x0", "edm", "velocity"]
ObjectiveName = Literal["simple", "likelihood", "edm", "min-snr", "p2", "flow"]
FlowTimes = Literal["uniform", "logit-normal"]

SamplerName = Literal[
    "ddpm",
    "ddim",
    "euler",
    "heun",
    "euler-maruyama",
    "predictor-corrector",
    "dpmpp-2m",
    "dpmpp-2m-sde",
    "rk45",
]
GridName = Literal["karras", "log-linear", "uniform-t", "ddim-leading", "ddim-trailing", "ddim-linspace", "ddim-quad"]
Variance = Literal["small", "large"]
Threshold = Literal["none", "clip", "dynamic"]

DISCRETE_PATHS = ("vp-linear", "vp-cosine", "vp-sigmoid")
"""Paths of T timesteps; see :class:`unveil.diffusion.paths.DiscreteVP`."""

PRESERVING_PATHS = (*DISCRETE_PATHS, "vp-sde")
"""Paths with ``alpha^2 + s^2 = 1``, so that a step between any two noise levels has a beta."""

UNBOUNDED_PATHS = ("edm", "flow")
"""Paths on which no sigma is refused for lying outside those that training draws evenly from."""

NEEDS_ENDS = ("simple", "likelihood", "min-snr", "p2")
"""Objectives that draw times evenly between the ends of the path."""

FULL_NOISE = ("eps", "velocity")
"""Parameterizations whose network must give the whole noise back at every noise level: ``n`` and ``n - x0``."""


LEVEL_OUTPUT = ("x0",)
"""Parameterizations whose ``c_out`` does not fall with sigma: the error of D stays as large as that of the network."""

TINY = 1e-100  # whose square a float can hold
LEAST_LEVEL_SIGMA = 1e-3
"""Least sigma at which such an error may have the weight 1 / sigma^2: a million times that at sigma = 1."""


class Refusal(NamedTuple):
    """Why parts do not go together.

    Attributes:
        part: which to change: parameterization or objective.
        expected: what it could be, with the reason.
    """

    part: str
    expected: str


def refusal(
    path: str, objective: str, parameterization: str, least_sigma: float, p2: tuple[float, float] = (1.0, 1.0)
) -> Refusal | None:
    """Why a path, an objective and a parameterization do not go together, or None if they do.

    Every parameterization goes with every path: its coefficients hold at any sigma.

    Args:
        path: its name.
        objective: its name.
        parameterization: its name.
        least_sigma: of the path, with its numbers.
        p2: k and gamma of objective p2.
    """
    if path == "edm" and objective in NEEDS_ENDS:
        return Refusal(
            "objective", f"edm | flow on path edm, which has no ends between which {objective} could draw evenly"
        )
    growth = _growth(objective, least_sigma, *p2)
    if parameterization in LEVEL_OUTPUT and growth > LEAST_LEVEL_SIGMA**-2:
        return Refusal(
            "parameterization",
            f"eps | v | edm | velocity for objective {objective} on path {path}, whose sigma starts at "
            f"{least_sigma:.3g}: an error of {parameterization} does not fall with sigma, and its weight there is "
            f"{growth:.1g} times that at 1, so that a few draws would decide every step",
        )
    return None


def _growth(objective: str, sigma: float, k: float, gamma: float) -> float:
    """The objective's weight of the error of the image at sigma, by that at 1; of those whose weight has no limit."""
    snr = max(sigma, TINY) ** -2
    if objective in ("simple", "likelihood"):
        return snr
    return snr * ((k + 1) / (k + snr)) ** gamma if objective == "p2" else 1.0
