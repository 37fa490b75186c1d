"""The score view of a denoiser: reverse stochastic differential equation and Langevin dynamics (2011.13456).

The score of the noisy images, ``grad_x ln p(x; sigma)``, is the direction to the denoised image: ``(D - x) /
sigma^2`` (Tweedie; Vincent 2011). In the common frame with sigma as its time the noising process is
``dx = sqrt(2 sigma) dw``: no drift, and a variance of sigma^2 gathered until sigma.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction, expand

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy images [B, ...] and noise levels [B] to the gradient of their log density [B, ...]."""


def score(denoiser: DenoiserFunction) -> ScoreFunction:
    """The score function of a denoiser, ``(D(x; sigma) - x) / sigma^2``, for sigma above 0."""
    return lambda x, sigma: (denoiser(x, sigma) - x) / expand(sigma, x).square()


def langevin_step(x: Tensor, gradient: Tensor, noise: Tensor, snr: float, sigma: float) -> Tensor:
    """One step of Langevin dynamics at a constant noise level (2011.13456, algorithm 4): the corrector.

    ``x + e score + sqrt(2 e) z`` with the step size ``e = 2 (snr |z| / |score|)^2``, which makes ``snr`` the ratio
    of the norms of the two changes. Its norms are those of each image, as the algorithm says
    (the paper's code takes the mean over a batch, which ties an image to its neighbours). Algorithm 5, for VP, takes
    ``1 - beta_i`` times this size; at T = 1000 that is at most 2 % less, and is left out: no sampler here knows betas.

    Two bounds keep a step finite where the score is rounding noise, or 0. Pixels of [-1, 1] have at most the variance
    ``1 + sigma^2``, so the mean of ``|score|^2`` is at least ``|z|^2 / (1 + sigma^2)`` (Fisher information). An image
    is held to a tenth of that norm, which chance does not reach. And ``D - x`` is known to the rounding of x alone.

    Args:
        x: [B, ...].
        gradient: the score at x.
        noise: unit Gaussian, of x's shape.
        snr: r of the paper, 0.16 there on CIFAR-10.
        sigma: the noise level of x, above 0.
    """
    unit = _norm(noise)
    rounding = torch.finfo(x.dtype).eps / sigma**2 * _norm(x)
    ratio = unit / _norm(gradient).maximum(0.1 * unit / math.sqrt(1 + sigma**2)).maximum(rounding)
    size = expand(2 * (snr * ratio).square(), x)
    return x + size * gradient + (2 * size).sqrt() * noise


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image: [B, ...] to [B]."""
    return x.unsqueeze(-1).flatten(1).norm(dim=1)
