"""Objectives: at which noise levels to train, and how much an error of the denoiser counts there.

Every one is ``E[ weight(sigma) |D(x0 + sigma n; sigma) - x0|^2 ]`` with its own density of sigma.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction, expand
from unveil.diffusion.paths import Flow, VPLinear


class Objective(Protocol):
    """A density of noise levels and a weight."""

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise levels: float32 [count], on the generator's device."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of D at sigma, of sigma's shape."""


@dataclass(frozen=True)
class Simple:
    """DDPM's L_simple (2006.11239, eq. 14): t uniform over the T steps, squared error of the noise.

    An error e of the predicted noise is an error ``-sigma e`` of D, hence the weight ``1 / sigma^2``.
    """

    path: VPLinear

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of uniform timesteps."""
        t = torch.randint(self.path.timesteps, (count,), generator=generator, device=generator.device)
        return self.path.sigmas.to(generator.device)[t].float()

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return sigma.square().reciprocal()


@dataclass(frozen=True)
class EDMObjective:
    """Karras et al.'s (2206.00364, table 1): ln(sigma) normal, and a unit weight on the network's own error."""

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Log-normal noise levels."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return (self.p_mean + self.p_std * normal).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + d^2) / (sigma d)^2 with d = sigma_data: the inverse square of c_out."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


@dataclass(frozen=True)
class FlowMatching:
    """Squared error of rectified flow's velocity ``n - x0`` (2210.02747; 2403.03206, sec. 3.1).

    An error e of D is an error ``-e / t`` of the velocity, hence the weight ``1 / t^2``, which is held
    below ``t_min`` as in 2511.13720. Times are logit-normal: ``t = sigmoid(logit_mean + logit_std n)``.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    t_min: float = 0.05

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of logit-normal times; ``sigma = t / (1 - t)`` is then log-normal."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return (self.logit_mean + self.logit_std * normal).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / max(t, t_min)^2."""
        return Flow().t(sigma).clamp_min(self.t_min).square().reciprocal()


def denoising_loss(
    denoiser: DenoiserFunction, objective: Objective, x0: Tensor, sigma: Tensor, noise: Tensor
) -> Tensor:
    """Weighted squared error of every image, averaged over its pixels.

    Args:
        denoiser: the denoiser to judge.
        objective: gives the weight.
        x0: images in [-1, 1], float32 [B, C, H, W].
        sigma: noise levels, float32 [B].
        noise: unit Gaussian noise of x0's shape.

    Returns:
        float32 [B].
    """
    error = denoiser(x0 + expand(sigma, x0) * noise, sigma) - x0
    return objective.weight(sigma) * error.square().flatten(1).mean(1)
