"""Embedding of the noise level."""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(positions: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines then cosines of ``positions`` at geometric frequencies (2006.11239, appendix B; 1706.03762, sec. 3.5).

    Args:
        positions: float [B], for example timesteps in 0..1000.
        dim: even width of the embedding.
        max_period: the slowest component's period is about ``2 pi max_period``.

    Returns:
        float32 [B, dim].
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / (half - 1)
    frequencies = torch.exp(-math.log(max_period) * exponents)
    angles = positions.float()[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """Sinusoids of ``c_noise`` through two linear layers: float [B] -> [B, width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed noise levels [B] as [B, width]."""
        embedded: Tensor = self.layers(sinusoidal_embedding(c_noise, self.channels))
        return embedded
