"""From names, as they stand in params.yaml and config.json, to the parts of a diffusion model."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.objectives import EDMObjective, FlowMatching, Objective, Simple
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps, Parameterization
from unveil.diffusion.paths import EDM, Flow, NoisePath, VPLinear


@dataclass(frozen=True)
class DiffusionConfig:
    """Names and numbers of a path, a parameterization and an objective; see params.yaml for each."""

    path: Literal["vp-linear", "edm", "flow"]
    parameterization: Literal["eps", "edm", "x0"]
    objective: Literal["simple", "edm", "flow"]
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    logit_mean: float = 0.0
    logit_std: float = 1.0
    t_min: float = 0.05

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def build_path(config: DiffusionConfig) -> NoisePath:
    """The noise path that ``config`` names.

    Raises:
        ValueError: if there is none of that name.
    """
    if config.path == "vp-linear":
        return VPLinear(config.timesteps, config.beta_start, config.beta_end)
    if config.path == "flow":
        return Flow()
    if config.path == "edm":
        return EDM()
    raise ValueError(f"path is {config.path!r}, expected vp-linear, edm or flow")


def build_parameterization(config: DiffusionConfig) -> Parameterization:
    """The parameterization that ``config`` names.

    Raises:
        ValueError: if there is none of that name.
    """
    if config.parameterization == "edm":
        return EDMPreconditioning(config.sigma_data)
    if config.parameterization == "eps":
        return Eps()
    if config.parameterization == "x0":
        return X0()
    raise ValueError(f"parameterization is {config.parameterization!r}, expected eps, edm or x0")


def build_objective(config: DiffusionConfig) -> Objective:
    """The objective that ``config`` names.

    Raises:
        ValueError: if there is none of that name, or if it needs another path.
    """
    path = build_path(config)
    if config.objective == "simple":
        if not isinstance(path, VPLinear):
            raise ValueError(f"objective simple draws the timesteps of path vp-linear; the path is {config.path}")
        return Simple(path)
    if config.objective == "flow":
        return FlowMatching(config.logit_mean, config.logit_std, config.t_min)
    if config.objective == "edm":
        return EDMObjective(config.p_mean, config.p_std, config.sigma_data)
    raise ValueError(f"objective is {config.objective!r}, expected simple, edm or flow")


def build_denoiser(network: nn.Module, config: DiffusionConfig) -> Denoiser:
    """A denoiser of ``network`` with the path and the parameterization that ``config`` names."""
    return Denoiser(network, build_path(config), build_parameterization(config))
