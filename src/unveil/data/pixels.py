"""Pixels as whole numbers on disk and as floating-point numbers in the network."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Pixels 0 .. 255 as float32 -1 .. 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1], clipped and rounded to the nearest of 0 .. 255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
