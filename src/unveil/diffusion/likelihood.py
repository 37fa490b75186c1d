r"""Likelihood of images under the probability-flow ODE, in bits per dimension.

The ODE ``dx/d(ln sigma) = x - D(x; sigma)`` carries the density of the data at the smallest sigma into that of pure
noise at the largest, which is known. Along it (2011.13456, sec. 4.3 and app. D.2, after 1810.01367),

.. math:: \ln p(x; \sigma_{min}) = \ln p_{prior}(x_{max}) + \int \nabla \cdot (x - D) \; d \ln \sigma .

The divergence is ``dim - tr(dD/dx)``; the trace is ``E[v^T (dD/dx) v]`` for probes v of unit covariance (Skilling
1989, Hutchinson 1990), one product of a vector and a Jacobian each.

Two ends are cut off. At ``sigma_max`` the prior is Gaussian noise without the data in it: the value of an image is
off by about ``|x0| / sigma_max`` nats, in either direction, and the mean by at most ``E|x0|^2 / (2 sigma_max^2)``. At
``sigma_min`` the value is the density of the data with that much noise, read off at the image, as in Score SDE: the
noise should be small against the width of a grey level, 1 / 127.5.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction
from unveil.diffusion.ode import rk45
from unveil.diffusion.paths import NoisePath
from unveil.seeds import image_seed

LEVEL = 1 / 127.5  # distance of two grey levels in images of [-1, 1]

Probe = Literal["rademacher", "gaussian", "exact"]


@dataclass(frozen=True)
class LikelihoodConfig:
    """How to measure likelihoods.

    Attributes:
        seed: of dequantization and probes; those of image i are functions of (seed, i) alone.
        probes: vectors that estimate the trace; each costs a backward pass in every evaluation.
        probe: their distribution: signs (least variance), unit Gaussian, or the unit vectors, for the ``exact``
            trace of few dimensions.
        dequantization: ``uniform`` spreads a grey level evenly over its cell; ``none`` takes the level itself.
        rtol, atol: tolerances of the ODE; Score SDE has 1e-5 for both.
    """

    seed: int = 0
    probes: int = 1
    probe: Probe = "rademacher"
    dequantization: Literal["uniform", "none"] = "uniform"
    rtol: float = 1e-5
    atol: float = 1e-5


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of images; lower is better.

    Attributes:
        values: of each image, float64 [N].
        nfe: evaluations of the denoiser for each image, int64 [N].
    """

    values: Tensor
    nfe: Tensor

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return float(self.values.mean())

    @property
    def stderr(self) -> float:
        """Standard error of the mean: of the choice of images, of dequantization and of the probes together."""
        return float(self.values.std()) / math.sqrt(len(self.values))


def log_density(
    denoiser: DenoiserFunction,
    x: Tensor,
    sigma_range: tuple[float, float],
    prior_std: float,
    probes: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Logarithm of the density of ``x`` at the smallest noise level.

    Args:
        denoiser: differentiable in x; it is called in x's dtype.
        x: float [B, ...].
        sigma_range: the least and the greatest noise level, positive.
        prior_std: standard deviation of the Gaussian at the greatest.
        probes: vectors of unit covariance, of x's dtype, [P, B, ...]. The trace is their mean.
        rtol: relative tolerance of the ODE, whose state is float64: x, and the integral in nats per dimension.
        atol: absolute tolerance of the same.

    Returns:
        the logarithms in nats, float64 [B]; and for each row the evaluations of the denoiser, each with its backward
        passes, int64 [B].

    Raises:
        ArithmeticError: if the ODE cannot be solved, as when the denoiser is not finite.
    """
    rows, dim = len(x), math.prod(x.shape[1:])

    def slope(log_sigma: Tensor, state: Tensor) -> Tensor:
        at = state[:, :dim].to(x.dtype).reshape(x.shape)
        denoised, trace = _denoised_and_trace(denoiser, at, log_sigma.exp().to(x.dtype), probes)
        drift = (at - denoised).double().flatten(1)
        return torch.cat([drift, 1 - trace[:, None] / dim], 1)

    start = torch.cat([x.double().flatten(1), torch.zeros(rows, 1, dtype=torch.float64, device=x.device)], 1)
    least, greatest = sigma_range
    solution = rk45(slope, start, math.log(least), math.log(greatest), rtol, atol)
    end, integral = solution.y[:, :dim], dim * solution.y[:, dim]
    prior = -end.square().sum(1) / (2 * prior_std**2) - dim * math.log(prior_std * math.sqrt(2 * math.pi))
    return prior + integral, solution.nfe


def bits_per_dim(
    denoiser: DenoiserFunction,
    path: NoisePath,
    images: Tensor,
    config: LikelihoodConfig,
    first: int = 0,
    device: torch.device | str = "cpu",
) -> BitsPerDim:
    """Bits per dimension of images, between the ends of the path.

    With uniform dequantization the mean is an upper bound of the code length of the grey levels (1511.01844):
    ``-log2 p(x + u) - log2(1 / 127.5)``, with u uniform in a cell of that width around each level, as training
    scales them. (Score SDE's code lays cells of 1 / 128 side by side in [-1, 1] instead.)

    Args:
        denoiser: of float32 images in [-1, 1], differentiable in x.
        path: its ends are the ends of the ODE, and its ``start_scale`` is the prior's standard deviation.
        images: uint8 [B, C, H, W].
        config: how to measure.
        first: number of the first image; images in several batches have the same values as in one, but for rounding.
        device: the denoiser's.

    Raises:
        ArithmeticError: if the ODE cannot be solved.
    """
    shape = tuple(images.shape[1:])
    if not len(images):
        return BitsPerDim(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    generators = [np.random.default_rng(image_seed("likelihood", config.seed, first + i)) for i in range(len(images))]
    x = images.float() / 127.5 - 1
    if config.dequantization == "uniform":
        shifts = np.stack([generator.random(shape, np.float32) for generator in generators])
        x = x + LEVEL * (torch.from_numpy(shifts) - 0.5)
    probes = torch.from_numpy(np.stack([_draw_probes(config, shape, generator) for generator in generators], 1))
    ends = path.sigma_range()
    prior_std = float(path.start_scale(torch.tensor(ends[1], dtype=torch.float64)))
    nats, nfe = log_density(denoiser, x.to(device), ends, prior_std, probes.to(device), config.rtol, config.atol)
    return BitsPerDim((-nats.cpu() / x[0].numel() - math.log(LEVEL)) / math.log(2), nfe.cpu())


def _denoised_and_trace(denoiser: DenoiserFunction, x: Tensor, sigma: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """D at x [B, ...], and the estimated trace of its Jacobian: float64 [B]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoiser(x, sigma)
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for number, probe in enumerate(probes):
            more = number + 1 < len(probes)
            (product,) = torch.autograd.grad(denoised, x, probe, retain_graph=more)
            trace += (product * probe).double().flatten(1).sum(1)
    return denoised.detach(), trace / len(probes)


def _draw_probes(config: LikelihoodConfig, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Probes of one image: float32 [P, *shape]."""
    if config.probe == "exact":
        dim = math.prod(shape)  # unit vectors of unit covariance
        return (math.sqrt(dim) * np.eye(dim, dtype=np.float32)).reshape(dim, *shape)
    if config.probe == "gaussian":
        return generator.standard_normal((config.probes, *shape), np.float32)
    return (2 * generator.integers(0, 2, (config.probes, *shape)) - 1).astype(np.float32)
