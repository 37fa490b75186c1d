"""Objectives: at which noise levels to train, and how much an error of the denoiser counts there.

Every one is ``E[ weight(sigma) |D(x0 + sigma n; sigma) - x0|^2 ]`` with its own density of sigma. SNR is the
signal-to-noise ratio ``alpha^2 / s^2 = 1 / sigma^2``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from unveil.diffusion.config import Diffusion, FlowTimes
from unveil.diffusion.design import build_path
from unveil.diffusion.paths import EDM, DiscreteVP, Flow, NoisePath

Ends = tuple[float, float]
"""The least and the greatest noise level of a path; what is drawn beyond them is moved to them."""


class Objective(ABC):
    """A density of noise levels and a weight."""

    @abstractmethod
    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise levels: float32 [count], on the generator's device."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of D at sigma, of sigma's shape: by default 1 / sigma^2, on which others build.

        An error e of the predicted noise is an error ``-sigma e`` of D, so this is the squared error of the noise.
        """
        return sigma.square().reciprocal()


@dataclass(frozen=True)
class Simple(Objective):
    """DDPM's L_simple (2006.11239, eq. 14): times of the path uniform, squared error of the noise.

    On a discrete path they are whole timesteps. On a continuous one this is Score SDE's loss with lambda = s^2
    (2011.13456, eq. 7).
    """

    path: NoisePath

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        if isinstance(self.path, DiscreteVP):
            t = torch.randint(self.path.timesteps, (count,), generator=generator, device=device)
            return self.path.sigmas.to(device)[t].float()
        least, greatest = self.path.t_range()
        share = torch.rand(count, generator=generator, device=device)
        return self.path.sigma(least + (greatest - least) * share.double()).float()


@dataclass(frozen=True)
class MinSNR(Simple):
    """Min-SNR-gamma (Hang et al., 2303.09556, sec. 3.4): as Simple, but small sigma counts no more than 1 / gamma^1/2.

    Attributes:
        gamma: greatest weight of the squared error of D; the paper takes 5.
    """

    gamma: float = 5.0

    def weight(self, sigma: Tensor) -> Tensor:
        """min(SNR, gamma): the paper's weight of the error of x0, which is the error of D."""
        return super().weight(sigma).clamp_max(self.gamma)


@dataclass(frozen=True)
class P2(Simple):
    """Perception-prioritised weighting (Choi et al., 2204.00227): less weight where only details are lost.

    Attributes:
        k: keeps the weight finite at small SNR; the paper takes 1.
        gamma: strength; 0 is Simple, the paper takes 0.5 or 1.
    """

    k: float = 1.0
    gamma: float = 1.0

    def weight(self, sigma: Tensor) -> Tensor:
        """SNR / (k + SNR)^gamma: the paper's factor on Simple's weight."""
        ratio = super().weight(sigma)
        return ratio / (self.k + ratio).pow(self.gamma)


@dataclass(frozen=True)
class Likelihood(Objective):
    """The likelihood bound itself (Song et al., 2101.09258, theorem 1), importance-sampled.

    In the common frame their weight g(t)^2 makes the bound ``integral of E|D - x0|^2 / sigma^2 d ln(sigma)`` on every
    path, and their importance sampling (density of t as g^2 / s^2) draws ln(sigma) uniformly. The loss is
    the mean over ln(sigma), so the bound, in nats, is the loss times the pixels times ``ln(greatest / least)``.
    """

    path: NoisePath

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        least, greatest = self.path.sigma_range()
        share = torch.rand(count, generator=generator, device=generator.device)
        return (log(least) + log(greatest / least) * share.double()).exp().float()


@dataclass(frozen=True)
class EDMObjective(Objective):
    """Karras et al.'s (2206.00364, table 1): ln(sigma) normal, and a unit weight on the network's own error.

    Attributes:
        p_mean, p_std: of ln(sigma).
        sigma_data: standard deviation of the data.
        ends: of the path; None = no ends.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    ends: Ends | None = None

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        return _log_normal(self.p_mean, self.p_std, count, generator, self.ends)

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + d^2) / (sigma d)^2 with d = sigma_data: the inverse square of c_out."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Squared error of rectified flow's velocity ``n - x0`` (2210.02747; 2403.03206, sec. 3.1).

    An error e of D is an error ``-e / t`` of the velocity, hence the weight ``1 / t^2``, which is held
    below ``t_min`` as in 2511.13720. Here t is always rectified flow's ``sigma / (1 + sigma)``, whatever the path.

    Attributes:
        logit_mean, logit_std: ``t = sigmoid(logit_mean + logit_std n)``, if times are logit-normal.
        t_min: below it the weight stays as at t_min.
        times: density of t; uniform ones keep to ``Flow().t_range()``.
        ends: of the path; None = no ends.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    t_min: float = 0.05
    times: FlowTimes = "logit-normal"
    ends: Ends | None = None

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of the times; of logit-normal ones, ``sigma = t / (1 - t)`` is log-normal."""
        if self.times == "logit-normal":
            return _log_normal(self.logit_mean, self.logit_std, count, generator, self.ends)
        return _within(Simple(Flow()).sample_sigma(count, generator), self.ends)

    def weight(self, sigma: Tensor) -> Tensor:
        return Flow().t(sigma).clamp_min(self.t_min).square().reciprocal()


def _log_normal(mean: float, std: float, count: int, generator: torch.Generator, ends: Ends | None) -> Tensor:
    normal = torch.randn(count, generator=generator, device=generator.device)
    return _within((mean + std * normal).exp(), ends)


def _within(sigma: Tensor, ends: Ends | None) -> Tensor:
    return sigma if ends is None else sigma.clamp(*ends)


def build_objective(config: Diffusion) -> Objective:
    """The objective that ``config`` names, on its path."""
    path = build_path(config)
    ends = None if isinstance(path, EDM) else path.sigma_range()
    match config.objective:
        case "edm":
            return EDMObjective(config.p_mean, config.p_std, config.sigma_data, ends)
        case "flow":
            return FlowMatching(config.logit_mean, config.logit_std, config.t_min, config.flow_times, ends)
        case "min-snr":
            return MinSNR(path, config.min_snr_gamma)
        case "p2":
            return P2(path, config.p2_k, config.p2_gamma)
    return Simple(path) if config.objective == "simple" else Likelihood(path)
