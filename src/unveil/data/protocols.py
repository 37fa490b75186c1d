"""Protocols: how a face becomes a small square. Each published FID has one; numbers compare only within one.

============  ====================================  ==========================================  ================
protocol      crop of the 178 x 218 image           resize                                      images in train
============  ====================================  ==========================================  ================
ddim          128 x 128 at rows 57-185, cols 25-153  PIL bilinear (antialiased)                  train split
score-sde     central 140 x 140                     antialiased bilinear in float, rounded      train split
gan           central 148 x 148                     PIL bilinear (antialiased)                  train split
adm-ip        none: squashed to a square            OpenCV bilinear (not antialiased)           all images
squash        none: squashed to a square            PIL bilinear (antialiased)                  train split
============  ====================================  ==========================================  ================

Sources: DDIM (2010.02502) and Score SDE (2011.13456) by their published code, the GAN crop by the code of
the GAN and VAE literature, ADM-IP (2301.11706) by its published code, squash by torchvision's Resize((n, n)).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unveil.data.celeba import CANVAS

Resize = Literal["pil", "float", "aliased"]

# Images resized at once: few enough for a core's cache, enough to spread the cost of calls.
_AT_ONCE = 8


@dataclass(frozen=True)
class Protocol:
    """One way from a decoded image to a training image.

    Attributes:
        name: as in params.yaml.
        crop: (left, top, width, height) in pixels of the 178 x 218 canvas; None takes the whole image.
        resize: ``pil`` antialiased in 8 bit as Pillow's bilinear; ``float`` the same filter in float, rounded
            once at the end; ``aliased`` as OpenCV's bilinear in 8 bit, which skips pixels when it shrinks.
        images: whether ``train`` holds the train split or, as in ADM-IP's numbers, every image.
    """

    name: str
    crop: tuple[int, int, int, int] | None
    resize: Resize
    images: Literal["train", "all"] = "train"

    def describe(self) -> str:
        """One line for reports."""
        where = "the whole image" if self.crop is None else "{2} x {3} pixels at column {0}, row {1}".format(*self.crop)
        how = {
            "pil": "antialiased bilinear in 8 bit (Pillow)",
            "float": "antialiased bilinear in float",
            "aliased": "bilinear without antialiasing (OpenCV)",
        }[self.resize]
        which = "the train split" if self.images == "train" else "all images"
        return f"{where}, resized by {how}, train = {which}"


def _central(side: int) -> tuple[int, int, int, int]:
    width, height = CANVAS
    return (width - side) // 2, (height - side) // 2, side, side


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("ddim", (25, 57, 128, 128), "pil"),
        Protocol("score-sde", _central(140), "float"),
        Protocol("gan", _central(148), "pil"),
        Protocol("adm-ip", None, "aliased", images="all"),
        Protocol("squash", None, "pil"),
    )
}


def crop(image: Tensor, protocol: Protocol) -> Tensor:
    """The protocol's part of an image, as a view: uint8 [3, H, W] -> [3, h, w].

    Raises:
        ValueError: if the protocol crops CelebA's canvas and the image has another size.
    """
    if protocol.crop is None:
        return image
    width, height = CANVAS
    if image.shape[1] != height or image.shape[2] != width:
        whole = " and ".join(name for name, other in PROTOCOLS.items() if other.crop is None)
        raise ValueError(
            f"found {image.shape[2]} x {image.shape[1]} pixels, expected {width} x {height}, "
            f"of which protocol {protocol.name} takes a part; {whole} take any size"
        )
    left, top, crop_width, crop_height = protocol.crop
    return image[:, top : top + crop_height, left : left + crop_width]


def resize(images: Tensor, size: int, how: Resize) -> Tensor:
    """Resize a batch of one shape to squares: uint8 [N, 3, h, w] -> uint8 [N, 3, size, size].

    Each way gives its model's pixels: ``pil`` those of Pillow and ``aliased`` those of OpenCV to the last bit,
    ``float`` the exact sum to the nearest level. It is soonest with colours innermost in memory, as decoders write.
    """
    return resize_all(list(images), size, how)


def resize_all(images: list[Tensor], size: int, how: Resize) -> Tensor:
    """Resize images of any shapes to squares: uint8 [3, h, w] each -> uint8 [N, 3, size, size]."""
    resized = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    if how == "pil":
        for image, place in zip(images, resized, strict=True):
            # Pillow itself: PyTorch's 8-bit antialiased bilinear differs by one level in some pixels.
            smaller = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
            place.copy_(torch.from_numpy(np.array(smaller)).permute(2, 0, 1))
        return resized
    kernel = _resize_float if how == "float" else _resize_aliased
    start = 0
    while start < len(images):
        stop = start + 1
        while stop < min(start + _AT_ONCE, len(images)) and images[stop].shape == images[start].shape:
            stop += 1
        resized[start:stop] = kernel([image.permute(1, 2, 0) for image in images[start:stop]], size)
        start = stop
    return resized


def _resize_float(images: list[Tensor], size: int) -> Tensor:
    """Antialiased bilinear in float32: uint8 [h, w, 3] each -> uint8 view [N, 3, size, size]."""
    count, (height, width, _) = len(images), images[0].shape
    rows = torch.stack(images).view(count, height, width * 3).float()
    rows = _mix_rows(rows, *_triangles(height, size)).view(count, size, width, 3)
    rows = rows.permute(0, 3, 2, 1).reshape(count * 3, width, size)
    rows = _mix_rows(rows, *_triangles(width, size)).view(count, 3, size, size)
    return rows.round_().clamp_(0, 255).to(torch.uint8).transpose(2, 3)


def _mix_rows(rows: Tensor, taken: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: [N, length, r] -> [N, size, r]. Only few weights are not zero, so no matrix product."""
    count, length, _ = rows.shape
    taken = (taken + length * torch.arange(count)[:, None, None]).view(-1, taken.shape[1])
    sums = F.embedding_bag(taken, rows.flatten(0, 1), per_sample_weights=weights.repeat(count, 1), mode="sum")
    return sums.view(count, len(weights), -1)


@cache
def _triangles(length: int, size: int) -> tuple[Tensor, Tensor]:
    """Antialiased bilinear from ``length`` to ``size`` pixels: for each new pixel the old ones and their weights.

    The weight falls linearly with the distance between the centres of the pixels, to 0 at one old pixel, or, in
    shrinking, at one new pixel; pixels beyond the border have none, and each row of weights sums to 1.

    Returns:
        int64 [size, taps] and float32 [size, taps].
    """
    reach = max(length / size, 1.0)
    centre = (np.arange(size) + 0.5) * length / size
    first = np.floor(centre - reach).astype(np.int64)
    taken = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = (1 - np.abs(taken + 0.5 - centre[:, None]) / reach).clip(0)
    weights[(taken < 0) | (taken >= length)] = 0
    used = weights.any(axis=0)
    weights = weights[:, used] / weights.sum(axis=1, keepdims=True)
    taken = taken[:, used].clip(0, length - 1)
    return torch.from_numpy(np.ascontiguousarray(taken)), torch.from_numpy(weights.astype(np.float32, order="C"))


def _resize_aliased(images: list[Tensor], size: int) -> Tensor:
    """OpenCV's bilinear in its 8-bit arithmetic: uint8 [h, w, 3] each -> uint8 view [N, 3, size, size].

    OpenCV takes weights in 1/2048, drops 4 bits of each row's sum and 16 of each product with a column's weight,
    and rounds at the end: on average 1/8 of a level less than the exact sum.
    """
    height, width, _ = images[0].shape
    rows, down = _neighbours(height, size, clamp=False)
    columns, across = _neighbours(width, size, clamp=True)
    colours = (columns[:, :, None] * 3 + np.arange(3)).reshape(-1)
    pixels = np.stack(
        [image.numpy().reshape(height, width * 3).take(rows.reshape(-1), 0).take(colours, 1) for image in images]
    )
    left, right = torch.from_numpy(pixels).float().chunk(2, dim=2)
    left_weight, right_weight = torch.from_numpy(across / np.float32(16)).repeat_interleave(3, 1)
    sums = (left * left_weight).addcmul_(right, right_weight).to(torch.int32)  # exact in float32, then cut off
    upper, lower = sums.chunk(2, dim=1)
    upper_weight, lower_weight = torch.from_numpy(down.astype(np.int32))[:, :, None]
    mixed = ((upper * upper_weight >> 16) + (lower * lower_weight >> 16) + 2) >> 2
    return mixed.to(torch.uint8).view(-1, size, size, 3).permute(0, 3, 1, 2)


@cache
def _neighbours(length: int, size: int, clamp: bool) -> tuple[np.ndarray, np.ndarray]:
    """The two old pixels on either side of each new one, int64 [2, size], and their weights in 1/2048, float32.

    Beyond the border both are the outermost pixel; with ``clamp`` the first has the whole weight there. OpenCV
    clamps so along a row, but not from row to row.
    """
    place = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(place)
    part = place - first
    if clamp:
        part[(first < 0) | (first >= length - 1)] = 0
    weights = np.rint(np.stack([1 - part, part]) * np.float32(2048))
    return np.stack([first, first + 1]).astype(np.int64).clip(0, length - 1), weights
