"""Pixels as whole numbers on disk and as floating-point numbers in the network."""

import torch
from torch import Tensor

ROUNDING = "to the nearest level"
"""What :func:`to_uint8` does; guided-diffusion and Score SDE truncate, which is half a level darker."""


def to_float(images: Tensor) -> Tensor:
    """Pixels 0 .. 255 as float32 -1 .. 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1], clipped and rounded to the nearest of 0 .. 255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
