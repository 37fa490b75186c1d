"""The building blocks of the U-Net: tensors in, tensors out; no diffusion in here."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

MAX_GROUPS = 32
MIN_GROUP_CHANNELS = 2


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, as in DDPM's code, or with 2 channels a group where that makes fewer.

    The noise level enters a block as one constant a channel; in groups of one channel, normalisation removes it.
    """
    groups = max(1, min(MAX_GROUPS, channels // MIN_GROUP_CHANNELS))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def zero_init(conv: nn.Conv2d) -> nn.Conv2d:
    """Start a convolution at zero, so that its residual branch starts as the identity (as in DDPM's code)."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, plus the noise embedding, norm, SiLU, dropout, conv, plus the input (DDPM).

    [B, in_channels, H, W] and an embedding [B, E] give [B, out_channels, H, W]. With ``embedding_channels`` 0
    the block is not told the noise level.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_channels, out_channels) if embedding_channels else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform ``x`` [B, C, H, W], told the noise level by ``embedding`` [B, E] (already activated)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.embedding is not None:
            h = h + self.embedding(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return cast(Tensor, self.skip(x) + h)


class AttentionBlock(nn.Module):
    """Residual self-attention over the pixels (2006.11239, appendix B): [B, C, H, W] -> the same shape.

    Args:
        channels: C.
        head_channels: channels a head; 0 = one head.

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if head_channels and channels % head_channels:
            raise ValueError(f"{channels} channels cannot be divided into heads of {head_channels}")
        self.heads = channels // head_channels if head_channels else 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Let every pixel of ``x`` [B, C, H, W] look at every other."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, channels)
        return cast(Tensor, x + self.out(h.permute(0, 3, 1, 2)))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution, padded at the right and bottom as DDPM's is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
