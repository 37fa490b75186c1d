"""Parameterizations: what the network F predicts, and how the denoiser D is made of it.

``D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)`` (Karras et al., 2206.00364, eq. 7), in the common frame.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.diffusion.paths import NoisePath


class Coefficients(NamedTuple):
    """``c_skip``, ``c_out`` and ``c_in``, each of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Parameterization(Protocol):
    """Gives the coefficients at sigma on a path."""

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """The coefficients at noise levels ``sigma`` (any shape)."""


@dataclass(frozen=True)
class Eps:
    """F predicts the noise n (DDPM, 2006.11239, eq. 11): ``D = x - sigma F``."""

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """1, -sigma, alpha: the network sees ``x_t = alpha x``."""
        return Coefficients(torch.ones_like(sigma), -sigma, path.alpha(sigma))


@dataclass(frozen=True)
class X0:
    """F predicts the image itself (2511.13720): ``D = F``, seen at unit scale whatever sigma is."""

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """0, 1, (1 + sigma^2)^-1/2."""
        return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma.square()).rsqrt())


@dataclass(frozen=True)
class EDMPreconditioning:
    """F's input and target have unit variance and its errors count least (2206.00364, appendix B.6).

    Attributes:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = 0.5

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """d^2/(sigma^2+d^2), sigma d/sqrt(sigma^2+d^2), 1/sqrt(sigma^2+d^2) with d = sigma_data."""
        total = sigma.square() + self.sigma_data**2
        return Coefficients(self.sigma_data**2 / total, sigma * self.sigma_data * total.rsqrt(), total.rsqrt())
