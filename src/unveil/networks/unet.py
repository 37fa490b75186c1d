"""The U-Net: DDPM's (2006.11239, appendix B), with an optional space-to-depth stem.

Ronneberger et al. (1505.04597) gave the shape: a path down that sees ever more of the image, a path up that
restores its detail, and copies of every resolution from one to the other. Diffusion added residual blocks,
normalisation, attention at low resolution and the noise level.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.networks.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, group_norm, zero_init
from unveil.networks.embedding import NoiseEmbedding


@dataclass(frozen=True)
class UNetConfig:
    """All that determines a U-Net.

    Attributes:
        image_size: height and width of the images in pixels.
        image_channels: 3 for RGB.
        stem: side p of the p x p space-to-depth stem, which trades resolution for channels; 1 = none.
        channels: width at the highest resolution.
        channel_multipliers: width of each resolution in units of ``channels``; one halving between neighbours.
        blocks: residual blocks a resolution on the way down (one more on the way up).
        attention_resolutions: side lengths, inside the network, that get attention after every block.
        attention_head_channels: channels a head; 0 = one head.
        middle_attention: whether the middle, at the lowest resolution, attends.
        noise_conditioning: which residual blocks are told the noise level: all, those of the middle, or none.
        dropout: inside the residual blocks.
    """

    image_size: int
    channels: int
    channel_multipliers: tuple[int, ...]
    blocks: int
    attention_resolutions: tuple[int, ...]
    attention_head_channels: int = 0
    dropout: float = 0.0
    stem: int = 1
    image_channels: int = 3
    middle_attention: bool = True
    noise_conditioning: Literal["all", "bottleneck", "none"] = "all"

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "attention_resolutions"):  # lists come in from JSON and YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def downsampling(self) -> int:
        """Image pixels along one side of the network's smallest feature map's pixel."""
        return int(self.stem * 2 ** (len(self.channel_multipliers) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class UNet(nn.Module):
    """A U-Net that maps images and noise levels to images.

    ``forward(x, c_noise)``: x float [B, C, H, W] of about unit scale, c_noise float [B]; returns float [B, C, H, W].

    Raises:
        ValueError: if the image size is not divisible by the total downsampling, or a width that attends not by
            the channels of a head.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if config.image_size % config.downsampling:
            raise ValueError(
                f"image_size {config.image_size} is not divisible by the downsampling {config.downsampling}"
            )
        self.config = config
        width = config.channels
        told = {"all": (True, True), "bottleneck": (False, True), "none": (False, False)}[config.noise_conditioning]
        embedding_channels, middle_embedding_channels = (4 * width * is_told for is_told in told)
        patch_channels = config.image_channels * config.stem**2
        self.embedding = NoiseEmbedding(width, 4 * width) if any(told) else None
        self.conv_in = nn.Conv2d(patch_channels, width, 3, padding=1)

        def stage(in_channels: Sequence[int], out_channels: int, side: int) -> nn.ModuleList:
            attends = side in config.attention_resolutions
            return nn.ModuleList(
                _Level(channels, out_channels, embedding_channels, attends, config) for channels in in_channels
            )

        # The way down. `skips` remembers the width of every feature map that the way up will see again.
        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        skips = [width]
        current = width
        side = config.image_size // config.stem
        widths = [width * multiplier for multiplier in config.channel_multipliers]
        for level, out_channels in enumerate(widths):
            self.down.append(stage([current] + [out_channels] * (config.blocks - 1), out_channels, side))
            current = out_channels
            skips += [out_channels] * config.blocks
            if level < len(widths) - 1:
                self.downsample.append(Downsample(current))
                skips.append(current)
                side //= 2

        self.middle1 = ResidualBlock(current, current, middle_embedding_channels, config.dropout)
        self.middle_attention = (
            AttentionBlock(current, config.attention_head_channels) if config.middle_attention else nn.Identity()
        )
        self.middle2 = ResidualBlock(current, current, middle_embedding_channels, config.dropout)

        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for level, out_channels in reversed(list(enumerate(widths))):
            inputs = [out_channels] * (config.blocks + 1)
            inputs[0] = current
            self.up.append(stage([a + skips.pop() for a in inputs], out_channels, side))
            current = out_channels
            if level > 0:
                self.upsample.append(Upsample(current))
                side *= 2

        self.norm_out = group_norm(current)
        self.conv_out = zero_init(nn.Conv2d(current, patch_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Apply the network to x [B, C, H, W] at noise levels c_noise [B]."""
        embedding = F.silu(self.embedding(c_noise)) if self.embedding is not None else None
        if self.config.stem > 1:
            x = F.pixel_unshuffle(x, self.config.stem)
        h = self.conv_in(x)
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in cast(nn.ModuleList, blocks):
                h = block(h, embedding)
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
                skips.append(h)
        h = self.middle2(self.middle_attention(self.middle1(h, embedding)), embedding)
        for level, blocks in enumerate(self.up):
            for block in cast(nn.ModuleList, blocks):
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if level < len(self.upsample):
                h = self.upsample[level](h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.config.stem) if self.config.stem > 1 else h


class _Level(nn.Module):
    """One residual block, followed by attention where the resolution has it."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, attends: bool, config: UNetConfig
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, embedding_channels, config.dropout)
        self.attention = AttentionBlock(out_channels, config.attention_head_channels) if attends else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.residual(x, embedding)
        return self.attention(h) if self.attention is not None else cast(Tensor, h)
