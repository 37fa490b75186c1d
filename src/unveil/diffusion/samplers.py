"""Samplers: from noise to images with any denoiser and any grid, in the common frame ``x = x0 + sigma n``.

All have one signature: ``sampler(denoiser, sigmas, x, noise, ...)``, and yield a :class:`Step` after every
interval of the grid; the last one's ``x`` is the result. Memory and arithmetic are those of ``x``'s dtype.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction

NoiseSource = Callable[[], Tensor]
"""Gives fresh unit Gaussian noise of x's shape at every call."""


@dataclass(frozen=True)
class Step:
    """State of a sampler after one interval of its grid.

    Attributes:
        x: the images, at noise level ``sigma``.
        denoised: the denoiser's estimate of the clean images, from the interval's start.
        sigma: the noise level reached.
        nfe: network evaluations so far, for each image.
    """

    x: Tensor
    denoised: Tensor
    sigma: float
    nfe: int


def ddim(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource, eta: float = 0.0) -> Iterator[Step]:
    """DDIM (2010.02502, eq. 12 and 16): keep a part of the noise that was found, draw the rest anew.

    In the common frame eq. 16 is ``sigma_up^2 = eta^2 sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2``.
    With eta = 0 it is Euler's method on the probability-flow ODE; with eta = 1 it is DDPM.
    """
    for nfe, (sigma, sigma_next) in enumerate(_intervals(sigmas), start=1):
        denoised = denoiser(x, _levels(x, sigma))
        sigma_up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        x = denoised + (sigma_down / sigma) * (x - denoised)
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield Step(x, denoised, sigma_next, nfe)


def ddpm(
    denoiser: DenoiserFunction,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    variance: Literal["small", "large"] = "small",
) -> Iterator[Step]:
    """DDPM's ancestral sampling (2006.11239, algorithm 2 and sec. 3.2), between any two noise levels.

    The mean is the posterior's, ``D + (sigma_next / sigma)^2 (x - D)``. The variance is the posterior's
    (``small``), or that of the forward step, beta (``large``, which needs a variance-preserving path).
    """
    for nfe, (sigma, sigma_next) in enumerate(_intervals(sigmas), start=1):
        denoised = denoiser(x, _levels(x, sigma))
        ratio = (sigma_next / sigma) ** 2
        x = denoised + ratio * (x - denoised)
        if sigma_next > 0:
            posterior = sigma_next**2 * (1 - ratio)
            # beta = 1 - alpha_t^2 / alpha_next^2, seen in the frame that is divided by alpha_next.
            forward = (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)
            x = x + (posterior if variance == "small" else forward) ** 0.5 * noise()
        yield Step(x, denoised, sigma_next, nfe)


def heun(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource) -> Iterator[Step]:
    """Heun's second-order method on the probability-flow ODE (2206.00364, algorithm 1); noise is not used.

    ``dx/dsigma = (x - D) / sigma``. The last interval, to 0, is an Euler step: 2 steps - 1 evaluations.
    """
    nfe = 0
    for sigma, sigma_next in _intervals(sigmas):
        denoised = denoiser(x, _levels(x, sigma))
        slope = (x - denoised) / sigma
        euler = x + (sigma_next - sigma) * slope
        nfe += 1
        if sigma_next > 0:
            slope_next = (euler - denoiser(euler, _levels(x, sigma_next))) / sigma_next
            x = x + (sigma_next - sigma) * (slope + slope_next) / 2
            nfe += 1
        else:
            x = euler
        yield Step(x, denoised, sigma_next, nfe)


def clipped(denoiser: DenoiserFunction) -> DenoiserFunction:
    """A denoiser whose estimates are clipped to [-1, 1], as DDPM's code does in every step."""
    return lambda x, sigma: denoiser(x, sigma).clamp(-1, 1)


def _intervals(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    return pairwise(sigmas.tolist())


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
