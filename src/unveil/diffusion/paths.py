r"""Noise paths: how much of the image and how much noise stand in :math:`x_t` at time t.

Every Gaussian path is :math:`x_t = \alpha(t) x_0 + s(t) n` with :math:`n \sim N(0, I)`. Divided by
:math:`\alpha`, it becomes the common frame :math:`x = x_0 + \sigma n` with :math:`\sigma = s / \alpha`
(Karras et al., 2206.00364, sec. 2): there the paths differ only in how they name a noise level, so all
objectives, grids and samplers are written in terms of sigma.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from unveil.diffusion import levels


@dataclass(frozen=True)
class NoisePath(ABC):
    """A noise path. All methods but the ranges work elementwise on float tensors of any shape.

    Attributes:
        name: in ``train.diffusion.path``; the fields of a path are the values that :mod:`unveil.diffusion.levels` has.
    """

    name: ClassVar[str]

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time t."""

    @abstractmethod
    def t(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma; inverse of :meth:`sigma`."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """How the network is told the noise level."""

    @abstractmethod
    def t_range(self) -> tuple[float, float]:
        """The least and the greatest time that training visits, in the path's own time."""

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor of the image in the path's own frame, 1 by default; ``alpha x`` is what a network here sees."""
        return torch.ones_like(sigma)

    def start_scale(self, sigma: Tensor) -> Tensor:
        """Standard deviation of the noise that a sampler starts from at its largest sigma: sigma, if all is noise."""
        return sigma

    def sigma_range(self) -> tuple[float, float]:
        """The noise levels at the ends of :meth:`t_range`."""
        return levels.path_range(self.name, *astuple(self))


class VariancePreserving(NoisePath):
    """A path on which data of unit variance stay so: ``alpha^2 (1 + sigma^2) = 1``."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return (1 + sigma.square()).rsqrt()

    def start_scale(self, sigma: Tensor) -> Tensor:
        """DDPM and Score SDE start from N(0, I) in the path's own frame: 1 / alpha in the common one."""
        return 1 / self.alpha(sigma)


class DiscreteVP(VariancePreserving):
    r"""A variance-preserving path of T timesteps, as DDPM's (2006.11239, eq. 4).

    :math:`\alpha_t^2 = \bar\alpha_t = \prod_{i \le t} (1 - \beta_i)` and :math:`s_t^2 = 1 - \bar\alpha_t`.
    Time is the index 0 .. T - 1 as in DDPM's code. At whole t everything is the discrete process, exactly;
    between them ln(sigma) is interpolated, so that any sampler can visit any sigma. Times and noise levels outside
    the range get its ends.
    """

    timesteps: int

    def betas(self) -> list[float]:
        """Variance of every step, T numbers in (0, 1)."""
        return levels.BETAS[self.name](*astuple(self))

    @cached_property
    def sigmas(self) -> Tensor:
        """Noise level of every timestep: float64 [T], increasing."""
        return (
            torch.log1p(-torch.tensor(self.betas(), dtype=torch.float64)).cumsum(0).neg().expm1().sqrt()
        )  # (1 - alpha_bar) / alpha_bar, in full

    def sigma(self, t: Tensor) -> Tensor:
        log_sigmas = self.sigmas.log().to(t.device)
        position = t.double().clamp(0, self.timesteps - 1)
        low = position.floor().long().clamp(max=self.timesteps - 2)
        share = position - low
        return torch.lerp(log_sigmas[low], log_sigmas[low + 1], share).exp().to(_float_type(t))

    def t(self, sigma: Tensor) -> Tensor:
        log_sigmas = self.sigmas.log().to(sigma.device)
        target = sigma.double().log().clamp(log_sigmas[0], log_sigmas[-1])
        low = (torch.searchsorted(log_sigmas, target, right=True) - 1).clamp(0, self.timesteps - 2)
        share = (target - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
        return (low + share).to(_float_type(sigma))

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The timestep, as DDPM's network is told."""
        return self.t(sigma)

    def t_range(self) -> tuple[float, float]:
        return 0.0, float(self.timesteps - 1)


@dataclass(frozen=True)
class VPLinear(DiscreteVP):
    """DDPM's path: see :func:`unveil.diffusion.levels.linear_betas`."""

    name: ClassVar[str] = "vp-linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


@dataclass(frozen=True)
class VPCosine(DiscreteVP):
    """Improved DDPM's path: see :func:`unveil.diffusion.levels.cosine_betas`."""

    name: ClassVar[str] = "vp-cosine"
    timesteps: int = 1000
    offset: float = 0.008


@dataclass(frozen=True)
class VPSigmoid(DiscreteVP):
    """The path of Jabri et al., in T steps: see :func:`unveil.diffusion.levels.sigmoid_betas`."""

    name: ClassVar[str] = "vp-sigmoid"
    timesteps: int = 1000
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0


@dataclass(frozen=True)
class VPSDE(VariancePreserving):
    r"""Score SDE's VP path (2011.13456, eq. 11 and 29): the limit of DDPM's chain, in continuous time.

    :math:`\alpha(t) = e^{-B/2}` and :math:`s^2 = 1 - e^{-B}` with
    :math:`B(t) = \int_0^t \beta = \beta_{min} t + \frac{1}{2} (\beta_{max} - \beta_{min}) t^2`, t from 0 to 1. Hence
    :math:`\sigma^2 = e^B - 1`. The formulas hold, and are used, for any t and sigma >= 0. The chain of T = 1000
    reaches a sigma up to 3.4 timesteps sooner.
    """

    name: ClassVar[str] = "vp-sde"
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5  # of training, as in Score SDE's code

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(self._integral(t)).sqrt()

    def t(self, sigma: Tensor) -> Tensor:
        """The positive root of B(t) = ln(1 + sigma^2)."""
        return self._root(torch.log1p(sigma.square()))

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t.square() / 2

    def _root(self, integral: Tensor) -> Tensor:
        """The t >= 0 of a B(t)."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """999 t, as Score SDE's code tells its VP and sub-VP networks."""
        return 999 * self.t(sigma)

    def t_range(self) -> tuple[float, float]:
        return self.t_min, 1.0


@dataclass(frozen=True)
class SubVP(VPSDE):
    r"""Score SDE's sub-VP path (2011.13456, eq. 12 and 29): less noise than VP has at the same alpha.

    :math:`\alpha(t) = e^{-B/2}` as :class:`VPSDE`, and :math:`s = 1 - e^{-B} = 1 - \alpha^2`. Hence
    :math:`\sigma = e^{B/2} - e^{-B/2} = 2 \sinh(B/2)`.
    """

    name: ClassVar[str] = "sub-vp"

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * torch.sinh(self._integral(t) / 2)

    def t(self, sigma: Tensor) -> Tensor:
        """The positive root of B(t) = 2 asinh(sigma / 2)."""
        return self._root(2 * torch.asinh(sigma / 2))

    def alpha(self, sigma: Tensor) -> Tensor:
        """alpha = exp(-asinh(sigma / 2)): the solution of ``alpha sigma = 1 - alpha^2``."""
        return torch.exp(-torch.asinh(sigma / 2))


@dataclass(frozen=True)
class VE(NoisePath):
    """Score SDE's variance-exploding path (2011.13456, eq. 9 and app. C): alpha = 1, and sigma is geometric in t.

    ``sigma = sigma_min (sigma_max / sigma_min)^t``, t from 0 to 1. The formula holds, and is used, beyond them.
    Score SDE's 0.01 and 50 are for pixels in [0, 1]; in ours, [-1, 1], the same noise is twice as large.
    """

    name: ClassVar[str] = "ve"
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()

    def t(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma / 2) (2206.00364, table 1, column VE)."""
        return (sigma / 2).log()

    def t_range(self) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True)
class EDM(NoisePath):
    """The frame of Karras et al. itself (2206.00364): alpha = 1, and time is sigma, any positive number."""

    name: ClassVar[str] = "edm"

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def t(self, sigma: Tensor) -> Tensor:
        return sigma

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4 (2206.00364, table 1)."""
        return sigma.log() / 4

    def t_range(self) -> tuple[float, float]:
        """0.002 and 80 (2206.00364, table 1): where its samplers go. Its log-normal objective has no end."""
        return levels.EDM_RANGE


@dataclass(frozen=True)
class Flow(NoisePath):
    """Rectified flow (2209.03003, eq. 1; 2210.02747): ``x_t = (1 - t) x0 + t n``, t from 0 (image) to 1 (noise)."""

    name: ClassVar[str] = "flow"
    time_scale: ClassVar[float] = (
        1000.0  # of c_noise, so that the sinusoidal embedding resolves times as it does timesteps
    )
    t_min: float = 1e-3  # at t = 1 sigma is infinite: training keeps this far from both ends

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def t(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.time_scale * self.t(sigma)

    def t_range(self) -> tuple[float, float]:
        return self.t_min, 1 - self.t_min


def _float_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
