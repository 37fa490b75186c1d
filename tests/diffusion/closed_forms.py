"""Denoisers that are known exactly, and what a sampler makes of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction
from unveil.diffusion.samplers import SamplerFunction, Step


def column(sigma: Tensor, like: Tensor) -> Tensor:
    """One value a sample, [B], as [B, 1, ...]."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def gaussian_denoiser(mean: float, std: float) -> DenoiserFunction:
    """E[x0 | x] for data N(mean, std^2): the two Gaussians weighted by their precisions."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        data, noise = 1 / std**2, 1 / column(sigma, x) ** 2
        return (data * mean + noise * x) / (data + noise)

    return denoise


def mixture_denoiser(weights: list[float], means: list[float], std: float) -> DenoiserFunction:
    """E[x0 | x] for a mixture of Gaussians of one standard deviation; x is [B]."""
    log_weights, centres = torch.tensor(weights).double().log(), torch.tensor(means).double()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        variance = std**2 + sigma[:, None] ** 2
        responsibilities = (log_weights - (x[:, None] - centres) ** 2 / (2 * variance)).softmax(1)
        parts = (std**2 * x[:, None] + sigma[:, None] ** 2 * centres) / variance
        return (responsibilities * parts).sum(1)

    return denoise


@dataclass(frozen=True)
class PlaneMixture:
    """A mixture of Gaussians with any covariances in the plane; x is [B, ..., 2], independent points of the plane."""

    weights: Tensor  # [K]
    means: Tensor  # [K, 2]
    covariances: Tensor  # [K, 2, 2]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]: ``mu_k + C_k (C_k + sigma^2)^-1 (x - mu_k)``, averaged with the probabilities of k given x."""
        noise = sigma.square()[:, None, None, None] * torch.eye(2, dtype=x.dtype)
        precision = torch.linalg.inv(self.covariances + noise)  # [B, K, 2, 2]
        offset = x[..., None, :] - self.means  # [B, ..., K, 2]
        whitened = torch.einsum("bkij,b...kj->b...ki", precision, offset)
        log_density = self.weights.log() + (torch.logdet(precision)[:, None] - (whitened * offset).sum(-1)) / 2
        parts = self.means + torch.einsum("kij,b...kj->b...ki", self.covariances, whitened)
        return (log_density.softmax(-1)[..., None] * parts).sum(-2)


class Mixture:
    """A mixture of isotropic Gaussians in any dimension, of which everything is known; all in float64.

    Args:
        weights: of the K components, sum 1.
        means: K x dim.
        stds: of the K components.
    """

    def __init__(self, weights: list[float], means: list[list[float]], stds: list[float]) -> None:
        self.weights, self.means, self.stds = (torch.tensor(part).double() for part in (weights, means, stds))
        self.dim = self.means.shape[1]

    def draw(self, count: int, seed: int) -> Tensor:
        """``count`` samples: [count, dim]."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds[chosen, None] * noise

    def log_density(self, x: Tensor, sigma: float) -> Tensor:
        """Of ``x0 + sigma n`` at x [B, dim]: [B]."""
        return self._log_joint(x, torch.full((len(x),), sigma, dtype=torch.float64)).logsumexp(1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for x [B, dim] and sigma [B]: the means given each component, by its probability given x."""
        gain = self.stds**2 / (self.stds**2 + sigma[:, None] ** 2)
        parts = self.means + gain[..., None] * (x[:, None] - self.means)
        return (self._log_joint(x, sigma).softmax(1)[..., None] * parts).sum(1)

    def _log_joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.stds**2 + sigma[:, None] ** 2
        squares = (x[:, None] - self.means).square().sum(-1) / variance
        return self.weights.log() - squares / 2 - self.dim / 2 * (2 * torch.pi * variance).log()


def last(steps: Iterator[Step]) -> Step:
    """The result of a sampler."""
    *_, step = steps
    return step


def exact_moments(
    sampler: SamplerFunction, denoiser: DenoiserFunction, sigmas: Tensor, start_mean: float, start_std: float
) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler draws with an affine denoiser, without drawing anything.

    With such a denoiser the result is affine in the start and in every draw of noise. Row 0 of the batch goes
    through with none of them, row 1 with the start alone, row 2 + k with the k-th draw alone.
    """
    draws = iter(range(len(sigmas)))

    def noise() -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(2 + next(draws)), rows).double()

    rows = 2 + len(sigmas)
    start = torch.full((rows,), start_mean, dtype=torch.float64)
    start[1] += start_std
    result = last(sampler(denoiser, sigmas, start, noise)).x
    return float(result[0]), float((result[1:] - result[0]).square().sum().sqrt())
