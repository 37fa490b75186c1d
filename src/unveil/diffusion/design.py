"""From a configuration to the parts of a diffusion model."""

from typing import Any

from torch import nn

from unveil.diffusion.config import Diffusion
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.levels import PATH_VALUES
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps, Parameterization, V, Velocity
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid

PATHS = {path.name: path for path in (VPLinear, VPCosine, VPSigmoid, VPSDE, SubVP, VE, EDM, Flow)}
PARAMETERIZATIONS: dict[str, type[Parameterization]] = {"eps": Eps, "v": V, "x0": X0, "velocity": Velocity}


def denoiser_values(config: Diffusion) -> dict[str, Any]:
    """The values by which a denoiser is what it is: its path, its parameterization, and what these two read."""
    read = PATH_VALUES[config.path] + (("sigma_data",) if config.parameterization == "edm" else ())
    return {name: getattr(config, name) for name in ("path", "parameterization", *read)}


def build_path(config: Diffusion) -> NoisePath:
    """The noise path that ``config`` names."""
    path: NoisePath = PATHS[config.path](*(getattr(config, name) for name in PATH_VALUES[config.path]))
    return path


def build_parameterization(config: Diffusion) -> Parameterization:
    """The parameterization that ``config`` names."""
    if config.parameterization == "edm":
        return EDMPreconditioning(config.sigma_data)
    return PARAMETERIZATIONS[config.parameterization]()


def build_denoiser(network: nn.Module, config: Diffusion) -> Denoiser:
    """A denoiser of ``network`` with the path and the parameterization that ``config`` names."""
    return Denoiser(network, build_path(config), build_parameterization(config))
