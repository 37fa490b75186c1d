"""The plain U-Net: Ronneberger et al.'s (1505.04597), told the noise level, as the baseline of the others."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.networks.condition import Condition
from unveil.networks.config import UNetConfig
from unveil.networks.embedding import NoiseEmbedding, embed


class PlainUNet(nn.Module):
    """Two convolutions a resolution, max-pooling, up-convolutions, one copy a resolution; nothing else.

    No residuals, no normalisation, no attention. Unlike the original its convolutions are padded, so that nothing
    is cropped, and the noise level is added after the first convolution of each pair.
    ``forward(x, c_noise)``: as :class:`unveil.networks.unet.UNet`.

    Raises:
        ValueError: if the image size is not divisible by the total downsampling.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, widths = config.channels, config.widths
        told = {"all": (True, True), "bottleneck": (False, True), "none": (False, False)}[config.noise_conditioning]
        embedding_channels, lowest_embedding_channels = (4 * width * is_told for is_told in told)
        kind = config.noise_embedding
        self.embedding = NoiseEmbedding(width, 4 * width, kind, *config.told) if any(told) else None
        inputs = (config.patch_channels, *widths[:-1])
        self.down = nn.ModuleList(
            ConvPair(a, b, embedding_channels) for a, b in zip(inputs[:-1], widths[:-1], strict=True)
        )
        self.lowest = ConvPair(inputs[-1], widths[-1], lowest_embedding_channels)
        rising = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in rising)
        self.up = nn.ModuleList(ConvPair(2 * b, b, embedding_channels) for _, b in rising)
        self.conv_out = nn.Conv2d(widths[0], config.patch_channels, 1)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Apply the network to x [B, C, H, W] at noise levels c_noise [B], told ``condition``."""
        embedding = embed(self.embedding, c_noise, condition)
        h = F.pixel_unshuffle(x, self.config.stem) if self.config.stem > 1 else x
        skips = []
        for pair in self.down:
            h = pair(h, embedding)
            skips.append(h)
            h = F.max_pool2d(h, 2)
        h = self.lowest(h, embedding)
        for upsample, pair in zip(self.upsample, self.up, strict=True):
            h = pair(torch.cat([skips.pop(), upsample(h)], dim=1), embedding)
        h = self.conv_out(h)
        return F.pixel_shuffle(h, self.config.stem) if self.config.stem > 1 else cast(Tensor, h)


class ConvPair(nn.Module):
    """Conv, ReLU, conv, ReLU: [B, in_channels, H, W] -> [B, out_channels, H, W]; 0 embedding_channels = not told."""

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_channels, out_channels) if embedding_channels else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Convolve ``x``, told the noise level by ``embedding`` [B, E] (already activated)."""
        h = self.conv1(x)
        if self.embedding is not None:
            h = h + self.embedding(embedding)[:, :, None, None]
        return F.relu(self.conv2(F.relu(h)))
