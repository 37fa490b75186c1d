"""From names, as they stand in params.yaml and config.json, to the parts of a diffusion model."""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch import nn

from unveil import ranges
from unveil.diffusion.choices import FlowTimes, ObjectiveName, ParameterizationName, PathName, refusal
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.objectives import P2, EDMObjective, FlowMatching, Likelihood, MinSNR, Objective, Simple
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps, Parameterization, V, Velocity
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid


@dataclass(frozen=True)
class Diffusion:
    """Names and numbers of a path, a parameterization and an objective; see params.yaml for each."""

    __pydantic_config__ = ranges.NO_OTHERS
    path: PathName
    parameterization: ParameterizationName
    objective: ObjectiveName
    timesteps: ranges.Timesteps = 1000
    beta_start: ranges.OpenShare = 1e-4
    beta_end: ranges.OpenShare = 0.02
    cosine_offset: ranges.CosineOffset = 0.008
    sigmoid_start: ranges.LogisticEnd = -3.0
    sigmoid_end: ranges.LogisticEnd = 3.0
    sigmoid_tau: ranges.LogisticTau = 1.0
    beta_min: ranges.BetaMin = 0.1
    beta_max: ranges.BetaMax = 20.0
    sigma_min: ranges.SigmaMin = 0.02
    sigma_max: ranges.SigmaMax = 100.0
    sigma_data: ranges.SigmaData = 0.5
    p_mean: ranges.Mean = -1.2
    p_std: ranges.Deviation = 1.2
    flow_times: FlowTimes = "logit-normal"
    logit_mean: ranges.Mean = 0.0
    logit_std: ranges.Deviation = 1.0
    t_min: ranges.OpenShare = 0.05
    min_snr_gamma: ranges.Positive = 5.0
    p2_k: ranges.Positive = 1.0
    p2_gamma: ranges.P2Gamma = 1.0
    huber_scale: ranges.UpTo100 = 0.0
    difference_weight: ranges.UpTo100 = 0.0
    noise_candidates: ranges.Candidates = 1
    input_perturbation: ranges.HalfOpenShare = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


PATH_VALUES: dict[PathName, tuple[str, ...]] = {
    "vp-linear": ("timesteps", "beta_start", "beta_end"),
    "vp-cosine": ("timesteps", "cosine_offset"),
    "vp-sigmoid": ("timesteps", "sigmoid_start", "sigmoid_end", "sigmoid_tau"),
    "vp-sde": ("beta_min", "beta_max"),
    "sub-vp": ("beta_min", "beta_max"),
    "ve": ("sigma_min", "sigma_max"),
    "edm": (),
    "flow": (),
}
"""The values that each path reads."""


def denoiser_values(config: Diffusion) -> dict[str, Any]:
    """The values by which a denoiser is what it is: its path, its parameterization, and what these two read."""
    read = PATH_VALUES[config.path] + (("sigma_data",) if config.parameterization == "edm" else ())
    return {name: getattr(config, name) for name in ("path", "parameterization", *read)}


def build_path(config: Diffusion) -> NoisePath:
    """The noise path that ``config`` names.

    Raises:
        ValueError: if there is none of that name.
    """
    match config.path:
        case "vp-linear":
            return VPLinear(config.timesteps, config.beta_start, config.beta_end)
        case "vp-cosine":
            return VPCosine(config.timesteps, config.cosine_offset)
        case "vp-sigmoid":
            return VPSigmoid(config.timesteps, config.sigmoid_start, config.sigmoid_end, config.sigmoid_tau)
        case "vp-sde":
            return VPSDE(config.beta_min, config.beta_max)
        case "sub-vp":
            return SubVP(config.beta_min, config.beta_max)
        case "ve":
            return VE(config.sigma_min, config.sigma_max)
        case "edm":
            return EDM()
        case "flow":
            return Flow()
    raise _unknown("path", config.path, PathName)


def build_parameterization(config: Diffusion) -> Parameterization:
    """The parameterization that ``config`` names.

    Raises:
        ValueError: if there is none of that name.
    """
    match config.parameterization:
        case "eps":
            return Eps()
        case "v":
            return V()
        case "x0":
            return X0()
        case "edm":
            return EDMPreconditioning(config.sigma_data)
        case "velocity":
            return Velocity()
    raise _unknown("parameterization", config.parameterization, ParameterizationName)


def build_objective(config: Diffusion) -> Objective:
    """The objective that ``config`` names, on its path.

    Raises:
        ValueError: if there is none of that name, or if it does not go with the path.
    """
    path = build_path(config)
    least, _ = path.sigma_range()
    refused = refusal(config.path, config.objective, config.parameterization, least, (config.p2_k, config.p2_gamma))
    if refused is not None:
        raise ValueError(f"{refused.part} is {getattr(config, refused.part)!r}, expected {refused.expected}")
    ends = None if isinstance(path, EDM) else path.sigma_range()
    match config.objective:
        case "simple":
            return Simple(path)
        case "likelihood":
            return Likelihood(path)
        case "min-snr":
            return MinSNR(path, config.min_snr_gamma)
        case "p2":
            return P2(path, config.p2_k, config.p2_gamma)
        case "edm":
            return EDMObjective(config.p_mean, config.p_std, config.sigma_data, ends)
        case "flow":
            return FlowMatching(config.logit_mean, config.logit_std, config.t_min, config.flow_times, ends)
    raise _unknown("objective", config.objective, ObjectiveName)


def build_denoiser(network: nn.Module, config: Diffusion) -> Denoiser:
    """A denoiser of ``network`` with the path and the parameterization that ``config`` names."""
    return Denoiser(network, build_path(config), build_parameterization(config))


def _unknown(part: str, found: str, names: Any) -> ValueError:
    return ValueError(f"{part} is {found!r}, expected {' | '.join(get_args(names))}")
