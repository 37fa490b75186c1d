"""Geometric augmentation that does not leak into samples (Karras et al., 2206.00364, appendix F.2).

Every image is transformed at random, and the network is told how by nine labels. Sampled with labels of zero, which
say that nothing was done, it draws images as they are. The transformations, in the order in which they act:

=============  =============================================================  ===========  ======================
name           what it does                                                   probability  labels
=============  =============================================================  ===========  ======================
x-flip         mirror left and right if a0 = 1, a0 ~ U{0, 1}                  1            a0
y-flip         mirror top and bottom if a1 = 1, a1 ~ U{0, 1}                  p            a1
scaling        magnify by 2^(0.2 a2), a2 ~ N(0, 1)                            p            a2
rotation       turn by a3, counter-clockwise as seen, a3 ~ U(-pi, pi)         p            cos a3 - 1, sin a3
anisotropy     stretch by 2^(0.2 a5) at the angle a4 and shrink by as much    p            a5 cos a4, a5 sin a4
               across it, a4 ~ U(-pi, pi) for half of the images and
               0 for the others, a5 ~ N(0, 1)
translation    move right by a6 / 8 of the width, down by a7 / 8 of the       p            a6, a7
               height, a6, a7 ~ N(0, 1)
=============  =============================================================  ===========  ======================

As in EDM's code, half of the images that are stretched are stretched along their sides. Its random numbers are others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9
LOG2_SCALE = 0.2  # standard deviation of the binary logarithm of scaling and of anisotropy
ANISOTROPY_TURNED = 0.5  # share of the images stretched at an angle, aniso_rotate_prob in EDM's code
TRANSLATION = 1 / 8  # standard deviation in units of the image's side
# Daubechies' least asymmetric wavelet of six vanishing moments (Ten Lectures on Wavelets, table 6.3), known as sym6.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
TAPS = len(SYM6)
CENTRE = sum(place * tap for place, tap in enumerate(SYM6)) / sum(SYM6)  # of the filter at low frequencies
REACH = TAPS // 4 + 1  # pixels from a place that the filter, or interpolation behind it, looks at


@dataclass(frozen=True)
class Transformations:
    """What is done to each of a batch of images; the module's table says what the numbers mean.

    Attributes:
        flips: bool [B, 2], a0 and a1.
        scaling: a2, float32 [B].
        rotation: a3 in radians, float32 [B].
        anisotropy: a4 in radians and a5, float32 [B, 2].
        translation: a6 and a7, float32 [B, 2].
    """

    flips: Tensor
    scaling: Tensor
    rotation: Tensor
    anisotropy: Tensor
    translation: Tensor

    @classmethod
    def draw(cls, count: int, probability: float, generator: torch.Generator) -> "Transformations":
        """Draw those of ``count`` images: each but the x-flip with ``probability``, in [0, 1], the x-flip by a coin.

        With probability 0 nothing is done, not even the x-flip.

        The generator is of the CPU, so that the same is drawn for every device, and no GPU is waited for.
        """
        done = torch.rand(5, count, generator=generator) < probability
        flips = torch.rand(2, count, generator=generator) < 0.5
        angles = (2 * torch.rand(2, count, generator=generator) - 1) * math.pi
        normal = torch.randn(4, count, generator=generator)
        turned = torch.rand(count, generator=generator) < ANISOTROPY_TURNED
        flipped = torch.stack([flips[0] & (probability > 0), flips[1] & done[0]], 1)
        return cls(
            flipped,
            normal[0] * done[1],
            angles[0] * done[2],
            torch.stack([angles[1] * turned, normal[1]], 1) * done[3, :, None],
            normal[2:].T * done[4, :, None],
        )

    def labels(self) -> Tensor:
        """What the network is told: float32 [B, 9], zeros for an image that nothing is done to."""
        angle, strength = self.anisotropy.T
        turn, stretch = (self.rotation.cos() - 1, self.rotation.sin()), (strength * angle.cos(), strength * angle.sin())
        return torch.stack([*self.flips.float().T, self.scaling, *turn, *stretch, *self.translation.T], 1)

    def matrices(self) -> Tensor:
        """Anisotropy, rotation and scaling together: float64 [B, 2, 2], on (right, down) from the image's centre."""
        angle, strength = self.anisotropy.double().T
        stretch = torch.exp2(LOG2_SCALE * strength)
        along = _turned(-angle) @ torch.diag_embed(torch.stack([stretch, 1 / stretch], 1)) @ _turned(angle)
        return along @ _turned(-self.rotation.double()) * torch.exp2(LOG2_SCALE * self.scaling.double())[:, None, None]

    def shifts(self, height: int, width: int) -> Tensor:
        """The translation in pixels, right and down: float64 [B, 2]."""
        return self.translation.double() * TRANSLATION * torch.tensor([width, height], dtype=torch.float64)


def augment(images: Tensor, transformations: Transformations, part: slice = slice(None)) -> Tensor:
    """Transform images, all at once but for the flips, which need no interpolation.

    The image continues beyond its edges as its reflection (the pixels at the edge stand once). It is upsampled by 2
    with the filter sym6, read there by bilinear interpolation, and downsampled with the same filter, which leaves
    out what would alias. As the filter is orthonormal, a translation by whole pixels gives their values, and an
    image that is only mirrored, or not touched, is exact. Different from the paper's code: there the flips pass
    through the filter too, the reflection ends after one width, and the filter counts as symmetric, which moves
    turned and scaled images by a fifth of a pixel.

    Args:
        images: float32 [B, C, H, W] in [-1, 1], on any device.
        transformations: of these images, or of a batch that they are a part of.
        part: which of the batch these images are; all of it decides how far the images are continued, and so they
            are the same to the last bit in whatever parts they come.

    Returns:
        float32 [B, C, H, W]; the filter may leave [-1, 1] a little at an edge.
    """
    flips = transformations.flips[part].to(images.device, non_blocking=True)[:, :, None, None, None]
    images = torch.where(flips[:, 0], images.flip(3), images)
    images = torch.where(flips[:, 1], images.flip(2), images)
    height, width = images.shape[2:]
    matrices, shifts = transformations.matrices(), transformations.shifts(height, width)
    margins = _margins(matrices, shifts, height, width)
    moved = ((matrices - torch.eye(2)).flatten(1).any(1) | shifts.any(1))[part].nonzero().flatten()
    if not len(moved):
        return images
    here = moved.to(images.device, non_blocking=True)
    resampled = _resample(images[here], matrices[part][moved], shifts[part][moved], *margins)
    return images.index_copy(0, here, resampled)


def _turned(angle: Tensor) -> Tensor:
    """Matrices [B, 2, 2] that turn (right, down) by ``angle``, clockwise as seen."""
    sine, cosine = angle.sin(), angle.cos()
    return torch.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)


def _margins(matrices: Tensor, shifts: Tensor, height: int, width: int) -> tuple[int, int]:
    """How many pixels beyond an image, across and down, are read for any of the images.

    The corners of an output, with what its filter looks at, show it.
    """
    size = torch.tensor([width, height], dtype=torch.float64)
    corners = (size / 2 + REACH) * torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    read = ((corners - shifts[:, None]) @ torch.linalg.inv(matrices).mT).abs().amax((0, 1))
    across, down = (read - size / 2).clamp_min(0).ceil().tolist()
    return int(across) + REACH, int(down) + REACH


def _resample(images: Tensor, matrices: Tensor, shifts: Tensor, across: int, down: int) -> Tensor:
    """Images in which what was at q from the centre is at ``matrices q + shifts``, read with these margins."""
    height, width = images.shape[2:]
    size = torch.tensor([width, height], dtype=torch.float64)
    inverse = torch.linalg.inv(matrices)
    columns, rows = (_reflected(side, by).to(images.device) for side, by in ((width, across), (height, down)))
    source = _upsample(_upsample(images[:, :, rows][..., columns]).mT).mT

    # Sample n of the source is (n + TAPS - 2 - CENTRE) / 2 pixels from the first one of the reflected image, sample m
    # of the target (m - CENTRE) / 2 pixels from the first one of the output: n = inverse m + first.
    moved = (inverse @ (size - 1 + CENTRE + 2 * shifts)[..., None])[..., 0]
    first = 2 * torch.tensor([across, down]) + size - 1 - (TAPS - 2) + CENTRE - moved
    unit = 2 / torch.tensor([source.shape[3], source.shape[2]], dtype=torch.float64)  # of grid_sample, in samples
    affine = torch.cat([inverse, first[..., None] + 0.5], 2) * unit[:, None]
    affine[..., 2] -= 1
    places = _places(affine.to(images.device, torch.float32), 2 * height + TAPS - 2, 2 * width + TAPS - 2)
    target = F.grid_sample(source, places, align_corners=False)
    return _downsample(_downsample(target).mT).mT


def _reflected(side: int, margin: int) -> Tensor:
    """Positions of the pixels from ``-margin`` to ``side + margin - 1`` in a row that goes on as its reflection."""
    period = 2 * (side - 1)
    places = torch.arange(-margin, side + margin) % period
    return torch.minimum(places, period - places)


def _places(affine: Tensor, rows: int, columns: int) -> Tensor:
    """``affine`` [B, 2, 3] of every (column, row, 1): [B, rows, columns, 2]; no matrix product, which may be TF32."""
    column = torch.arange(columns, device=affine.device)[:, None]
    row = torch.arange(rows, device=affine.device)[:, None, None]
    by_column, by_row, first = affine[:, None, None].unbind(-1)
    return by_column * column + by_row * row + first


def _upsample(x: Tensor) -> Tensor:
    """Twice as many samples along the last axis, where the filter has all it needs: W -> 2 W - TAPS + 2."""
    length = x.shape[-1] - TAPS // 2 + 1
    even, odd = (_filtered(x, SYM6[phase::2][::-1], length, 1) for phase in (0, 1))
    return torch.stack([even, odd], -1).flatten(-2)


def _downsample(x: Tensor) -> Tensor:
    """Half as many samples along the last axis, the transpose of upsampling: 2 W + TAPS - 2 -> W."""
    return _filtered(x, SYM6, x.shape[-1] - TAPS + 1, 2)


def _filtered(x: Tensor, taps: Sequence[float], length: int, stride: int) -> Tensor:
    """Weighted sum of shifted copies of ``x``, in float32 whatever PyTorch lets a convolution take."""
    total = taps[0] * x[..., :length:stride]
    for start, tap in enumerate(taps[1:], 1):
        total = total + tap * x[..., start : start + length : stride]
    return total
