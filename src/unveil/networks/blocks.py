"""The building blocks of the U-Nets: tensors in, tensors out; no diffusion in here."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_GROUP_CHANNELS = 2
MAX_PLAIN_PIXELS = 1024
BOX = (1.0, 1.0)
BINOMIAL = (1.0, 3.0, 3.0, 1.0)


def group_norm(channels: int, groups: int = 32, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation with 32 groups, as in DDPM's code, or with 2 channels a group where that makes fewer.

    The noise level enters a block as one constant a channel; in groups of one channel, normalisation removes it.
    """
    return nn.GroupNorm(max(1, min(groups, channels // MIN_GROUP_CHANNELS)), channels, eps=eps)


def zero_init(conv: nn.Conv2d) -> nn.Conv2d:
    """Start a convolution at zero, so that its residual branch starts as the identity (as in DDPM's code)."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class Filter(nn.Module):
    """Halve or double height and width by a separable low-pass filter: [B, C, H, W] -> [B, C, H/2, W/2] or back.

    Args:
        taps: (1, 1) halves by the mean of 2 x 2 pixels and doubles by repeating; (1, 3, 3, 1) is smoother
            (2011.13456, appendix H; 1904.11486).
        up: double instead of halve.
        padded: with zeros around the image, as many as keep the size an exact half or double.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], up: bool, padded: bool = True) -> None:
        super().__init__()
        self.up = up
        self.is_box = tuple(taps) == BOX
        row = torch.tensor(taps) / sum(taps)
        self.register_buffer("kernel", torch.outer(row, row)[None, None] * (4 if up else 1), persistent=False)
        self.padding = (len(taps) - 1) // 2 if padded else 0

    def forward(self, x: Tensor) -> Tensor:
        """Filter every channel by itself."""
        if self.is_box:  # the same as below, and faster
            return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=channels)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, plus the noise embedding, norm, SiLU, dropout, conv, plus the input (DDPM).

    [B, in_channels, H, W] and an embedding [B, E] give [B, out_channels, H, W], or H and W as ``resample`` makes
    them.

    Args:
        embedding_channels: E; 0 = the block is not told the noise level.
        dropout: before the last convolution.
        scale_shift: the embedding scales and shifts the second norm's output (ADM, 2105.05233, sec. 3) instead of
            being added before it.
        resample: applied to the input and, after the first norm, to the branch (BigGAN's block, 1809.11096).
        project: a 1 x 1 convolution on the way around, which is always there if the width changes.
        skip_scale: the sum is multiplied by it (2011.13456, appendix H: 1 / sqrt 2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        *,
        scale_shift: bool = False,
        resample: nn.Module | None = None,
        project: bool = False,
        skip_scale: float = 1.0,
        norm: Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        told = out_channels * (2 if scale_shift else 1)
        self.embedding = nn.Linear(embedding_channels, told) if embedding_channels else None
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        projected = project or in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if projected else nn.Identity()
        self.scale_shift = scale_shift
        self.resample = resample if resample is not None else nn.Identity()
        self.skip_scale = skip_scale

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Transform ``x`` [B, C, H, W], told the noise level by ``embedding`` [B, E] (already activated)."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        told = self.embedding(embedding)[:, :, None, None] if self.embedding is not None else None
        if told is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + told)
        h = self.skip(self.resample(x)) + self.conv2(self.dropout(F.silu(h)))
        return h if self.skip_scale == 1.0 else h * self.skip_scale


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention (1706.03762, eq. 1): [B, heads, pixels, channels] each, and so the result.

    PyTorch's own on a CPU is made for long sequences and computes bfloat16 as float32; two products of matrices are
    two to four times as fast there, up to the 1024 pixels of a 32 x 32 image.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MAX_PLAIN_PIXELS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return cast(Tensor, scores.softmax(-1).to(q.dtype) @ v)
    return F.scaled_dot_product_attention(q, k, v)


class AttentionBlock(nn.Module):
    """Residual self-attention over the pixels (2006.11239, appendix B): [B, C, H, W] -> the same shape.

    Args:
        head_channels: channels a head; 0 = one head.
        heads: how many instead (improved DDPM's 64 x 64 network: 4); 0 = as ``head_channels`` says.
        skip_scale: the sum is multiplied by it.

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        head_channels: int,
        *,
        heads: int = 0,
        skip_scale: float = 1.0,
        norm: Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        if channels % (heads or head_channels or 1):
            parts = f"{heads} heads" if heads else f"heads of {head_channels}"
            raise ValueError(f"{channels} channels cannot be divided into {parts}")
        self.heads = heads or (channels // head_channels if head_channels else 1)
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))
        self.skip_scale = skip_scale

    def forward(self, x: Tensor) -> Tensor:
        """Let every pixel of ``x`` [B, C, H, W] look at every other."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        # Linear layers, not convolutions: their output has the order in memory that fast attention asks for.
        qkv = F.linear(pixels, self.qkv.weight.flatten(1), self.qkv.bias).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = attend(q, k, v).transpose(1, 2).flatten(2)
        h = F.linear(h, self.out.weight.flatten(1), self.out.bias)
        h = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
        return h if self.skip_scale == 1.0 else h * self.skip_scale


class Downsample(nn.Module):
    """Halve height and width by a strided convolution.

    One row and column of zeros is at the right and bottom (DDPM) or, if ``symmetric``, on every side (2102.09672).
    """

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.padding = (1, 1, 1, 1) if symmetric else (0, 1, 0, 1)

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2], at any noise level."""
        return cast(Tensor, self.conv(F.pad(x, self.padding)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3 x 3 convolution, as one transposed convolution.

    Four equal pixels under a 3 x 3 kernel see only sums of its weights: a 4 x 4 kernel with stride 2 gives the same
    (to rounding) from the small image, with 4 instead of 9 products a pixel.
    """

    spread: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        pair = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])  # weight i lies under pixels i and i + 1
        self.register_buffer("spread", torch.kron(pair, pair), persistent=False)

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W], at any noise level."""
        weight = self.conv.weight.flip(2, 3).flatten(2) @ self.spread
        kernel = weight.unflatten(2, (4, 4)).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class ProgressiveInput(nn.Module):
    """A convolution and a halving of the image, to be added to the features there (2011.13456, appendix H).

    [B, in_channels, H, W] -> [B, out_channels, H/2, W/2].
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.filter = Filter(taps, up=False, padded=False)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1 + (len(taps) - 1) // 2)

    def forward(self, image: Tensor) -> Tensor:
        """Convolve, then filter; all padding is the convolution's."""
        return cast(Tensor, self.filter(self.conv(image)))


class Refinement(nn.Module):
    """A small last step at full resolution, for a network with a p x p space-to-depth stem (1: without one).

    Behind a stem each of the p^2 pixels of a patch is a linear map of its own of the same features. On a flat
    surface all of them must agree, which they learn late: a faint texture with the period of the stem stays. Two
    convolutions that see the pixels, of the patches' image, of the network's input and of features of their own, treat
    all pixels alike.

    Args:
        channels: of the network's last features.
        stem: p.
        width: features of each pixel.
    """

    def __init__(self, channels: int, stem: int, width: int, image_channels: int) -> None:
        super().__init__()
        self.stem = stem
        self.features = nn.Conv2d(channels, width * stem**2, 3, padding=1)
        self.mix = nn.Conv2d(width + 2 * image_channels, 2 * width, 3, padding=1)
        self.out = zero_init(nn.Conv2d(2 * width, image_channels, 3, padding=1))

    def forward(self, image: Tensor, h: Tensor, x: Tensor) -> Tensor:
        """Refine an image [B, C, H, W] from features h [B, channels, H/p, W/p] and the network's input x like it."""
        features = F.pixel_shuffle(self.features(h), self.stem)
        seen = torch.cat([features, x.to(features.dtype), image.to(features.dtype)], dim=1)
        return image + cast(Tensor, self.out(F.silu(self.mix(seen))))
