r"""Noise paths: how much of the image and how much noise stand in :math:`x_t` at time t.

Every Gaussian path is :math:`x_t = \alpha(t) x_0 + s(t) n` with :math:`n \sim N(0, I)`. Divided by
:math:`\alpha`, it becomes the common frame :math:`x = x_0 + \sigma n` with :math:`\sigma = s / \alpha`
(Karras et al., 2206.00364, sec. 2): there the paths differ only in how they name a noise level, so all
objectives, grids and samplers are written in terms of sigma.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class NoisePath(Protocol):
    """A noise path. All methods work elementwise on float tensors of any shape."""

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time t."""

    def t(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma; inverse of :meth:`sigma`."""

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor of the image in the path's own frame; ``alpha * x`` is what a network on this path sees."""

    def c_noise(self, sigma: Tensor) -> Tensor:
        """How the network is told the noise level."""

    def start_scale(self, sigma: Tensor) -> Tensor:
        """Standard deviation of the noise that a sampler starts from at its largest sigma."""


@dataclass(frozen=True)
class VPLinear:
    r"""DDPM's path (2006.11239, eq. 4): T steps of variance ``beta`` that rises linearly.

    :math:`\alpha_t^2 = \bar\alpha_t = \prod_{i \le t} (1 - \beta_i)` and :math:`s_t^2 = 1 - \bar\alpha_t`.
    Time is the index 0 .. T - 1 as in DDPM's code. At whole t everything is the discrete process, exactly;
    between them ln(sigma) is interpolated, so that any sampler can visit any sigma.
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    @cached_property
    def sigmas(self) -> Tensor:
        """Noise level of every timestep: float64 [T], increasing."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=torch.float64)
        alphas_bar = torch.cumprod(1 - betas, 0)
        return ((1 - alphas_bar) / alphas_bar).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at t in [0, T - 1]."""
        log_sigmas = self.sigmas.log().to(t.device)
        position = t.double().clamp(0, self.timesteps - 1)
        low = position.floor().long().clamp(max=self.timesteps - 2)
        share = position - low
        return torch.lerp(log_sigmas[low], log_sigmas[low + 1], share).exp().to(_float_type(t))

    def t(self, sigma: Tensor) -> Tensor:
        """Time in [0, T - 1]; noise levels outside the path's range get its ends."""
        log_sigmas = self.sigmas.log().to(sigma.device)
        target = sigma.double().log().clamp(log_sigmas[0], log_sigmas[-1])
        low = (torch.searchsorted(log_sigmas, target, right=True) - 1).clamp(0, self.timesteps - 2)
        share = (target - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
        return (low + share).to(_float_type(sigma))

    def alpha(self, sigma: Tensor) -> Tensor:
        """Variance preserving: ``alpha^2 (1 + sigma^2) = 1``."""
        return (1 + sigma.square()).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The timestep, as DDPM's network is told."""
        return self.t(sigma)

    def start_scale(self, sigma: Tensor) -> Tensor:
        """DDPM starts from ``x_T = n``, of unit variance in its own frame: 1 / alpha in the common one."""
        return 1 / self.alpha(sigma)


@dataclass(frozen=True)
class EDM:
    """The frame of Karras et al. itself (2206.00364): alpha = 1, and time is sigma."""

    def sigma(self, t: Tensor) -> Tensor:
        """sigma(t) = t."""
        return t

    def t(self, sigma: Tensor) -> Tensor:
        """t(sigma) = sigma."""
        return sigma

    def alpha(self, sigma: Tensor) -> Tensor:
        """The image is not scaled."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4 (2206.00364, table 1)."""
        return sigma.log() / 4

    def start_scale(self, sigma: Tensor) -> Tensor:
        """sigma: the image is lost in the noise (2206.00364, algorithm 1)."""
        return sigma


@dataclass(frozen=True)
class Flow:
    """Rectified flow (2209.03003, eq. 1; 2210.02747): ``x_t = (1 - t) x0 + t n``, t from 0 (image) to 1 (noise)."""

    time_scale: float = 1000.0  # of c_noise, so that the sinusoidal embedding resolves times as it does timesteps

    def sigma(self, t: Tensor) -> Tensor:
        """sigma = t / (1 - t)."""
        return t / (1 - t)

    def t(self, sigma: Tensor) -> Tensor:
        """t = sigma / (1 + sigma)."""
        return sigma / (1 + sigma)

    def alpha(self, sigma: Tensor) -> Tensor:
        """alpha = 1 - t = 1 / (1 + sigma)."""
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Time in thousandths."""
        return self.time_scale * self.t(sigma)

    def start_scale(self, sigma: Tensor) -> Tensor:
        """sigma, as on every path that ends in pure noise."""
        return sigma


def final_signal_to_noise(path: VPLinear) -> float:
    """Signal-to-noise ratio (of variances, for data of unit variance) at the last timestep.

    Near zero, sampling may start from pure noise; where it is not, the start is one that training never saw.
    """
    return 1 / math.pow(float(path.sigmas[-1]), 2)


def _float_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
