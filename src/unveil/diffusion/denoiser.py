"""The one object that all Gaussian diffusion shares: ``D(x; sigma) = E[x0 | x]`` with ``x = x0 + sigma n``."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from unveil.diffusion.parameterizations import Parameterization
from unveil.diffusion.paths import NoisePath

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]
"""Anything that maps noisy images [B, ...] and noise levels [B] to estimates of the clean images [B, ...]."""


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Append axes of length 1, so that one value a sample broadcasts over its pixels: [B] -> [B, 1, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


class Denoiser(nn.Module):
    """A network made into a denoiser by a parameterization on a noise path.

    >>> import torch
    >>> from unveil.diffusion.parameterizations import X0
    >>> from unveil.diffusion.paths import Flow
    >>> denoiser = Denoiser(lambda x, c_noise: torch.zeros_like(x), Flow(), X0())
    >>> denoiser(torch.randn(2, 3, 8, 8), torch.tensor([0.5, 80.0])).shape
    torch.Size([2, 3, 8, 8])

    Args:
        network: maps (float [B, C, H, W], c_noise float [B]) to float [B, C, H, W].
        path: names the noise levels.
        parameterization: what the network predicts.
    """

    def __init__(self, network: nn.Module, path: NoisePath, parameterization: Parameterization) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.parameterization = parameterization

    def forward(self, x: Tensor, sigma: Tensor, condition: Any | None = None) -> Tensor:
        """Estimate the clean images.

        Args:
            x: float32 [B, C, H, W], images in [-1, 1] plus sigma times unit noise; B may be 0.
            sigma: float [B], positive.
            condition: what the network is told of the images, its third argument, such as
                :class:`unveil.networks.condition.Condition`. None = nothing: the network gets two.

        Returns:
            float32 [B, C, H, W]. The network may compute in another precision; the sum is made in float32.
        """
        if not len(x):  # of which PyTorch's pixel_unshuffle makes the wrong shape
            return x
        c_skip, c_out, c_in = (expand(c, x) for c in self.parameterization.coefficients(sigma, self.path))
        told = () if condition is None else (condition,)
        predicted = self.network(c_in * x, self.path.c_noise(sigma), *told)
        return c_skip * x + c_out * predicted.to(x.dtype)
