"""The U-Nets of diffusion: DDPM's (2006.11239), ADM's (2105.05233), DDPM++ and NCSN++ (2011.13456, 2206.00364).

Ronneberger et al. (1505.04597) gave the shape: a path down that sees ever more of the image, a path up that
restores its detail, and copies of every resolution from one to the other. Diffusion added residual blocks,
normalisation, attention at low resolution and the noise level; the families differ in the settings of
:class:`UNetConfig`. An optional space-to-depth stem trades resolution for channels.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.networks.blocks import (
    BINOMIAL,
    BOX,
    AttentionBlock,
    Downsample,
    Filter,
    ProgressiveInput,
    Refinement,
    ResidualBlock,
    Upsample,
    group_norm,
    zero_init,
)
from unveil.networks.condition import Condition
from unveil.networks.config import UNetConfig
from unveil.networks.embedding import NoiseEmbedding, embed

__all__ = ["UNet", "UNetConfig"]


class UNet(nn.Module):
    """A U-Net that maps images and noise levels to images.

    >>> small = UNetConfig(image_size=8, channels=32, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(4,))
    >>> network = UNet(small)
    >>> network(torch.randn(2, 3, 8, 8), torch.tensor([0.0, 999.0])).shape
    torch.Size([2, 3, 8, 8])

    ``forward(x, c_noise)``: x float [B, C, H, W] of about unit scale, c_noise float [B]; returns float [B, C, H, W].
    A :class:`Condition` is the third argument; without one nothing was done to the images.

    Raises:
        ValueError: if the image size is not divisible by the total downsampling, or a width that attends not by
            the heads or their channels.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        parts = _Parts(config)
        width = config.channels
        told, kind = config.noise_conditioning != "none", config.noise_embedding
        self.embedding = NoiseEmbedding(width, 4 * width, kind, *config.told) if told else None
        self.conv_in = nn.Conv2d(config.patch_channels, width, 3, padding=1)

        # The way down. `skips` remembers the width of every feature map that the way up will see again.
        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        self.progressive_input = nn.ModuleList()
        skips = [width]
        current = width
        side = config.image_size // config.stem
        for level, out_channels in enumerate(config.widths):
            attends = [side in config.attention_resolutions] * config.blocks
            self.down.append(parts.level([current] + [out_channels] * (config.blocks - 1), out_channels, attends))
            image_channels = current if level else config.patch_channels
            current = out_channels
            skips += [out_channels] * config.blocks
            if level < len(config.widths) - 1:
                self.downsample.append(parts.downsample(current))
                if config.progressive_input:
                    self.progressive_input.append(ProgressiveInput(image_channels, current, parts.taps))
                skips.append(current)
                side //= 2

        self.middle1 = parts.residual(current, current, middle=True)
        self.middle_attention = parts.attention(current) if config.middle_attention else nn.Identity()
        self.middle2 = parts.residual(current, current, middle=True)

        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for level, out_channels in reversed(list(enumerate(config.widths))):
            inputs = [current] + [out_channels] * config.blocks
            attends = [side in config.attention_resolutions] * len(inputs)
            if config.decoder_attention == "last":
                attends[:-1] = [False] * config.blocks
            self.up.append(parts.level([a + skips.pop() for a in inputs], out_channels, attends))
            current = out_channels
            if level > 0:
                self.upsample.append(parts.upsample(current))
                side *= 2

        self.norm_out = parts.norm(current)
        self.conv_out = zero_init(nn.Conv2d(current, config.patch_channels, 3, padding=1))
        refined = config.refinement_channels
        self.refinement = Refinement(current, config.stem, refined, config.image_channels) if refined else None

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Apply the network to x [B, C, H, W] at noise levels c_noise [B], told ``condition``."""
        embedding = embed(self.embedding, c_noise, condition)
        image = F.pixel_unshuffle(x, self.config.stem) if self.config.stem > 1 else x
        h = self.conv_in(image)
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in cast(nn.ModuleList, blocks):
                h = block(h, embedding)
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h, embedding)
                if self.progressive_input:
                    h = image = (h + self.progressive_input[level](image)) * _skip_scale(self.config)
                skips.append(h)
        h = self.middle2(self.middle_attention(self.middle1(h, embedding)), embedding)
        for level, blocks in enumerate(self.up):
            for block in cast(nn.ModuleList, blocks):
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if level < len(self.upsample):
                h = self.upsample[level](h, embedding)
        h = F.silu(self.norm_out(h))
        out = self.conv_out(h)
        if self.config.stem > 1:
            out = F.pixel_shuffle(out, self.config.stem)
        return out if self.refinement is None else self.refinement(out, h, x)


class _Parts:
    """Makes the blocks that a configuration asks for."""

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.norm = partial(group_norm, groups=config.norm_groups, eps=config.norm_eps)
        self.attention = partial(
            AttentionBlock,
            head_channels=config.attention_head_channels,
            heads=config.attention_heads,
            skip_scale=_skip_scale(config),
            norm=self.norm,
        )
        self.taps = {"box": BOX, "binomial": BINOMIAL}[config.resampling_filter]

    def residual(
        self, in_channels: int, out_channels: int, *, middle: bool = False, resample: Filter | None = None
    ) -> ResidualBlock:
        config = self.config
        is_told = config.noise_conditioning == "all" or (middle and config.noise_conditioning == "bottleneck")
        return ResidualBlock(
            in_channels,
            out_channels,
            4 * config.channels * is_told,
            config.dropout,
            scale_shift=config.scale_shift_norm,
            resample=resample,
            project=resample is not None and config.resampling == "residual-project",
            skip_scale=_skip_scale(config),
            norm=self.norm,
        )

    def level(self, in_channels: Sequence[int], out_channels: int, attends: Sequence[bool]) -> nn.ModuleList:
        """The residual blocks of one resolution, followed by attention where ``attends`` says so."""
        return nn.ModuleList(
            _Block(self.residual(channels, out_channels), self.attention(out_channels) if attend else None)
            for channels, attend in zip(in_channels, attends, strict=True)
        )

    def downsample(self, channels: int) -> nn.Module:
        if self.config.resampling.startswith("residual"):
            return self.residual(channels, channels, resample=Filter(self.taps, up=False))
        return Downsample(channels, symmetric=self.config.resampling == "conv-symmetric")

    def upsample(self, channels: int) -> nn.Module:
        if self.config.resampling.startswith("residual"):
            return self.residual(channels, channels, resample=Filter(self.taps, up=True))
        return Upsample(channels)


class _Block(nn.Module):
    """A residual block, and attention after it where the resolution has it."""

    def __init__(self, residual: ResidualBlock, attention: AttentionBlock | None) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.residual(x, embedding)
        return self.attention(h) if self.attention is not None else cast(Tensor, h)


def _skip_scale(config: UNetConfig) -> float:
    return math.sqrt(0.5) if config.skip_rescale else 1.0
