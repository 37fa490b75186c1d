"""From a decoded image to a training image: a protocol's crop and its resize."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.celeba import CANVAS
from unveil.data.protocols import PROTOCOLS, Protocol, Resize


def crop(image: NDArray[np.uint8], protocol: Protocol) -> NDArray[np.uint8]:
    """The protocol's part of an image, as a view: uint8 [H, W, 3] -> uint8 [h, w, 3].

    Raises:
        ValueError: if the protocol crops CelebA's canvas and the image has another size.
    """
    if protocol.crop is None:
        return image
    width, height = CANVAS
    if image.shape[:2] != (height, width):
        whole = " and ".join(name for name, other in PROTOCOLS.items() if other.crop is None)
        raise ValueError(
            f"found {image.shape[1]} x {image.shape[0]} pixels, expected {width} x {height}, "
            f"of which protocol {protocol.name} takes a part; {whole} take any size"
        )
    left, top, crop_width, crop_height = protocol.crop
    return image[top : top + crop_height, left : left + crop_width]


def resize(image: NDArray[np.uint8], size: int, how: Resize) -> NDArray[np.uint8]:
    """Resize an image to a square: uint8 [h, w, 3] -> uint8 [3, size, size].

    ``pil`` gives Pillow's pixels and ``aliased`` OpenCV's. ``float`` is Pillow's filter, rounded once at the end.
    """
    if how == "pil":
        small = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    elif how == "aliased":
        small = np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
    else:
        low = _mix(image, size)
        small = np.rint(_mix(low.swapaxes(0, 1), size).swapaxes(0, 1)).astype(np.uint8)
    return small.transpose(2, 0, 1)


def _mix(rows: NDArray[np.uint8] | NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The antialiased filter along the first axis: [h, w, 3] -> float32 [size, w, 3].

    Pillow's mode F and torch's ``interpolate`` have the same filter, but sum otherwise. So a few pixels in a million,
    which lie next to half a level, are rounded the other way. The order here is that of all shards so far: four
    products at a time, then one at a time.
    """
    first, weights = _triangles(len(rows), size)
    taps = weights.shape[1]

    def product(k: int) -> NDArray[np.float32]:
        return rows[first + k] * weights[:, k, None, None]

    total = np.zeros((size, *rows.shape[1:]), np.float32)
    for k in range(0, taps - 3, 4):
        total += product(k) + product(k + 1) + product(k + 2) + product(k + 3)
    for k in range(taps - taps % 4, taps):
        total += product(k)
    return total


@lru_cache(256)
def _triangles(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Antialiased bilinear from ``length`` to ``size`` pixels: the first old pixel of each new one, and the weights.

    The weight falls linearly with the distance between the centres of the pixels, to 0 at one old pixel, or, in
    shrinking, at one new pixel; pixels beyond the border have none, and each row of weights sums to 1.

    Returns:
        int64 [size] and float32 [size, taps].
    """
    reach = max(length / size, 1.0)
    centre = (np.arange(size) + 0.5) * length / size
    first = (centre - reach + 0.5).astype(np.int64).clip(0)
    last = (centre + reach + 0.5).astype(np.int64).clip(max=length)
    taps = int((last - first).max())
    first = first.clip(max=length - taps)  # all rows have as many weights, some of them zero
    weights = (1 - np.abs(first[:, None] + np.arange(taps) + 0.5 - centre[:, None]) / reach).clip(0)
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
