"""The names of the parts of a diffusion model, and which of them do not go together. Without PyTorch, for params.py."""

from typing import Literal, NamedTuple

PathName = Literal["vp-linear", "vp-cosine", "vp-sigmoid", "sub-vp", "ve", "edm", "flow"]
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
GridName = Literal["karras", "log-linear", "uniform-t", "ddim-leading", "ddim-trailing", "ddim-linspace"]
Variance = Literal["small", "large"]
Threshold = Literal["none", "clip", "dynamic"]

DISCRETE_PATHS = ("vp-linear", "vp-cosine", "vp-sigmoid")
"""Paths of T timesteps; see :class:`unveil.diffusion.paths.DiscreteVP`."""

UNBOUNDED_PATHS = ("edm", "flow")
"""Paths that give a name to every sigma, so that a sampler may visit any."""

NEEDS_ENDS = ("simple", "likelihood", "min-snr", "p2")
"""Objectives that draw times evenly between the ends of the path."""

FULL_NOISE = ("eps", "velocity")
"""Parameterizations whose network must give the whole noise back at every noise level: ``n`` and ``n - x0``."""


class Refusal(NamedTuple):
    """Why parts do not go together.

    Attributes:
        part: which to change: path, parameterization or objective.
        expected: what it could be, with the reason.
    """

    part: str
    expected: str


def refusal(path: str, objective: str) -> Refusal | None:
    """Why a path and an objective do not go together, or None if they do.

    Every parameterization goes with every path: its coefficients hold at any sigma.
    """
    if path == "edm" and objective in NEEDS_ENDS:
        return Refusal(
            "objective", f"edm | flow on path edm, which has no ends between which {objective} could draw evenly"
        )
    return None
