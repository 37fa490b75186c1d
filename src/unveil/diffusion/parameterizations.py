"""Parameterizations: what the network F predicts, and how the denoiser D is made of it.

``D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)`` (Karras et al., 2206.00364, eq. 7), in the common frame.
Every one goes with every path. What F is asked for follows from ``F = (x0 - c_skip x) / c_out``.
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
    """F predicts the noise n (DDPM, 2006.11239, eq. 11): ``D = x - sigma F``.

    The network sees the path's own ``x_t = alpha x``: of unit scale on the vp paths, unscaled on ve and edm, as in
    Score SDE (2011.13456; 2206.00364, table 1: c_in is 1 for VE).
    """

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """1, -sigma, alpha of the path."""
        return Coefficients(torch.ones_like(sigma), -sigma, path.alpha(sigma))


@dataclass(frozen=True)
class V:
    """F predicts ``v = (n - sigma x0) / sqrt(1 + sigma^2)`` (Salimans and Ho, 2202.00512, sec. 4 and app. D).

    On a vp path this is the paper's ``v = alpha n - s x0``, and the network sees ``x_t``. On any other path it is
    the same function of x0, n and sigma, seen in the vp frame: with the angle ``tan(phi) = sigma``,
    ``v = cos(phi) n - sin(phi) x0`` is at a right angle to the input ``cos(phi) x0 + sin(phi) n``.
    """

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """1 / u, -sigma / sqrt(u), 1 / sqrt(u) with u = 1 + sigma^2: EDM's with sigma_data = 1, up to F's sign."""
        u = 1 + sigma.square()
        return Coefficients(1 / u, -sigma * u.rsqrt(), u.rsqrt())


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


@dataclass(frozen=True)
class Velocity:
    """F predicts rectified flow's velocity ``n - x0`` (2209.03003; 2210.02747), and sees its ``x_t = x / (1 + sigma)``.

    ``D = x_t - t F`` with ``t = sigma / (1 + sigma)``. On another path than flow only ``c_noise`` differs.
    """

    def coefficients(self, sigma: Tensor, path: NoisePath) -> Coefficients:
        """1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)."""
        scale = 1 / (1 + sigma)
        return Coefficients(scale, -sigma * scale, scale)
