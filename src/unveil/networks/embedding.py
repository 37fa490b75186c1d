"""Embeddings of the noise level."""

import math
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.networks.condition import AttributeEmbedding, AugmentationEmbedding, Condition, check_room

FOURIER_SCALE = 16.0  # standard deviation of the frequencies (2011.13456)


def sinusoidal_embedding(
    positions: Tensor, dim: int, max_period: float = 10_000.0, *, cosines_first: bool = False
) -> Tensor:
    """Sines and cosines of ``positions`` at geometric frequencies (1706.03762, sec. 3.5).

    Args:
        positions: [B], for example timesteps in 0..1000.
        dim: even width of the embedding.
        max_period: the slowest component's period is about ``2 pi max_period``.
        cosines_first: cosines then sines, and the slowest frequency one step short of ``1 / max_period``, as in
            ADM's code; DDPM's (2006.11239) has sines then cosines, and ends at ``1 / max_period``.

    Returns:
        float [B, dim]: float64 of float64, else float32.
    """
    half, dtype = dim // 2, torch.promote_types(positions.dtype, torch.float32)
    exponents = torch.arange(half, dtype=dtype, device=positions.device) / (half - (not cosines_first))
    frequencies = torch.exp(-math.log(max_period) * exponents)
    angles = positions.to(dtype)[:, None] * frequencies[None, :]
    waves = (angles.cos(), angles.sin()) if cosines_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=1)


class RandomFourier(nn.Module):
    """Sines and cosines at fixed random frequencies (2006.10739): float [B] -> [B, 2 x channels].

    For noise levels of about unit scale, such as ln(sigma) / 4. The frequencies are saved with the weights.
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(channels) * FOURIER_SCALE)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed noise levels [B]."""
        angles = 2 * math.pi * c_noise[:, None] * self.frequencies[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """Waves of ``c_noise``, in float32 at least, through two linear layers: float [B] -> [B, width].

    Args:
        channels: of the sinusoids; half of those of random frequencies.
        width: of the embedding.
        kind: ``ddpm`` or ``adm``, see :func:`sinusoidal_embedding`, or ``fourier``, see :class:`RandomFourier`.
        labels: numbers that tell how an image was augmented, see :class:`AugmentationEmbedding`. 0 = there are none.
        attributes: that it is told, see :class:`AttributeEmbedding`. 0 = there are none.
    """

    def __init__(self, channels: int, width: int, kind: str = "ddpm", labels: int = 0, attributes: int = 0) -> None:
        super().__init__()
        sinusoids = partial(sinusoidal_embedding, dim=channels, cosines_first=kind == "adm")
        self.waves = RandomFourier(channels) if kind == "fourier" else sinusoids
        channels *= 2 if kind == "fourier" else 1
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.augment = AugmentationEmbedding(labels, channels) if labels else None
        self.attributes = AttributeEmbedding(attributes, width) if attributes else None

    def forward(self, c_noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Embed noise levels [B], and what else is told, as [B, width]. Raises ValueError as ``check_room`` does."""
        dtype = cast(nn.Linear, self.layers[0]).weight.dtype
        waves = self.waves(c_noise.to(torch.promote_types(dtype, torch.float32))).to(dtype)
        check_room(
            condition,
            augmentation=self.augment.in_features if self.augment is not None else 0,
            attributes=self.attributes.in_features // 2 if self.attributes is not None else 0,
        )
        if self.augment is not None and condition is not None and condition.augmentation is not None:
            waves = waves + self.augment(condition.augmentation.to(dtype))
        embedded: Tensor = self.layers(waves)
        if self.attributes is not None and condition is not None and condition.attributes is not None:
            embedded = embedded + self.attributes(condition.attributes)
        return embedded


def embed(embedding: NoiseEmbedding | None, c_noise: Tensor, condition: Condition | None) -> Tensor | None:
    """What a network's blocks are told: float [B, width], activated; None if they are told nothing.

    Raises:
        ValueError: if the network has no room for something of the condition.
    """
    if embedding is not None:
        return F.silu(embedding(c_noise, condition))
    check_room(condition)
    return None
