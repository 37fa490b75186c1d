"""From a decoded image to a training image: a protocol's crop and its resize.

Antialiased bilinear is written here, as Pillow's, bit for bit, and as the same filter in float. Both mix rows: a new
row is a sum of a few old ones. Columns are mixed as the rows of the transposed image, so that every inner loop runs
over neighbours in memory. The loops are compiled (numba) and hold no lock of Python's.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.celeba import CANVAS
from unveil.data.compiled import compiled
from unveil.data.protocols import PROTOCOLS, Protocol, Resize

PRECISION = 22
"""Bits behind the point of Pillow's 8-bit weights: 32 less 8 for the level and 2 to spare."""


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


def resize(images: Sequence[NDArray[np.uint8]], size: int, how: Resize) -> NDArray[np.uint8]:
    """Resize images to squares: n times uint8 [h, w, 3] -> uint8 [n, 3, size, size].

    ``pil`` gives Pillow's pixels and ``aliased`` OpenCV's, ``float`` the exact sum to the nearest level. Several of
    one height and width at once are faster: threads that do this meet at Python's lock less often.
    """
    if how == "aliased":
        small = [cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR) for image in images]
        return np.asarray(small, np.uint8).transpose(0, 3, 1, 2)
    resample = resample_8bit if how == "pil" else resample_float
    groups = [resample(list(group), size) for _, group in groupby(images, key=lambda image: image.shape)]
    return groups[0] if len(groups) == 1 else np.concatenate(groups)


def resample_8bit(images: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """Pillow's ``resize((size, size), Resampling.BILINEAR)``: n times uint8 [h, w, 3] -> uint8 view [n, 3, size, size].

    Columns are mixed first, and rounded to 8 bits, then rows; weights are whole numbers of ``2^-22``. Of tall images
    Pillow mixes the rows first, where that is less work; these it resizes itself.
    """
    count, (height, width, _) = len(images), images[0].shape
    if height > width and not (height <= 1.25 * width and width >= 2 * size):
        smaller = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
        return np.stack([np.asarray(image).transpose(2, 0, 1) for image in smaller])
    turned = np.empty((count, width * 3, height), np.uint8)  # a row for each colour of a column
    for image, room in zip(images, turned, strict=True):
        cv2.transpose(image.reshape(height, width * 3), dst=room)
    narrow = _mix_8bit(turned.reshape(count, width, 3 * height), *_weights_8bit(width, size))
    upright = _transpose(narrow.reshape(count * size * 3, height))
    small = _mix_8bit(upright.reshape(1, height, -1), *_weights_8bit(height, size))
    return small.reshape(size, count, size, 3).transpose(1, 3, 0, 2)


def resample_float(images: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """The filter in float32, rounded once at the end: n times uint8 [h, w, 3] -> uint8 view [n, 3, size, size]."""
    count, (height, width, _) = len(images), images[0].shape
    low = _mix_float(np.stack(images).reshape(count, height, width * 3), *_weights_float(height, size))
    turned = _transpose(low.reshape(count * size, width * 3))
    small = _mix_float(turned.reshape(1, width, -1), *_weights_float(width, size))
    return _transpose(_round(small[0])).reshape(3, count, size, size).transpose(1, 0, 2, 3)


def _transpose(image: Any) -> NDArray[Any]:
    """[h, w] -> [w, h], contiguous."""
    return cv2.transpose(image)


@lru_cache(256)
def _triangles(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Antialiased bilinear from ``length`` to ``size`` pixels: the first old pixel of each new one, and the weights.

    The weight falls linearly with the distance between the centres of the pixels, to 0 at one old pixel, or, in
    shrinking, at one new pixel; pixels beyond the border have none, and each row of weights sums to 1.

    Returns:
        int64 [size] and float64 [size, taps].
    """
    reach = max(length / size, 1.0)
    centre = (np.arange(size) + 0.5) * length / size
    first = (centre - reach + 0.5).astype(np.int64).clip(0)
    last = (centre + reach + 0.5).astype(np.int64).clip(max=length)
    taps = int((last - first).max())
    first = first.clip(max=length - taps)  # all rows have as many weights, some of them zero
    weights = (1 - np.abs(first[:, None] + np.arange(taps) + 0.5 - centre[:, None]) / reach).clip(0)
    return first, weights / weights.sum(axis=1, keepdims=True)


@lru_cache(256)
def _weights_8bit(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    first, weights = _triangles(length, size)
    return first, (weights * (1 << PRECISION) + 0.5).astype(np.int32)


@lru_cache(256)
def _weights_float(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    first, weights = _triangles(length, size)
    return first, weights.astype(np.float32)


@compiled
def _mix_8bit(stack: Any, first: NDArray[np.int64], weights: NDArray[np.int32]) -> Any:  # pragma: no cover - compiled
    """uint8 [m, h, n] -> uint8 [m, size, n]: ``round(sum_k weights[i, k] rows[first[i] + k])``, in whole numbers."""
    taps = weights.shape[1]
    mixed = np.empty((len(stack), len(first), stack.shape[2]), np.uint8)
    total = np.empty(stack.shape[2], np.int32)
    for m in range(len(stack)):
        for i in range(len(first)):
            total[:] = 1 << (PRECISION - 1)
            some, weight = stack[m, first[i] : first[i] + taps], weights[i]
            for k in range(0, taps - 3, 4):  # four at once, so that a sum is loaded and stored less often
                a, b, c, d = some[k], some[k + 1], some[k + 2], some[k + 3]
                for j in range(len(total)):
                    total[j] += (
                        weight[k] * np.int32(a[j])
                        + weight[k + 1] * np.int32(b[j])
                        + weight[k + 2] * np.int32(c[j])
                        + weight[k + 3] * np.int32(d[j])
                    )
            for k in range(taps - taps % 4, taps):
                row = some[k]
                for j in range(len(total)):
                    total[j] += weight[k] * np.int32(row[j])
            for j in range(len(total)):
                mixed[m, i, j] = total[j] >> PRECISION
    return mixed


@compiled
def _mix_float(
    stack: Any, first: NDArray[np.int64], weights: NDArray[np.float32]
) -> Any:  # pragma: no cover - compiled
    """[m, h, n] of any type -> float32 [m, size, n]: ``sum_k weights[i, k] rows[first[i] + k]``."""
    taps = weights.shape[1]
    mixed = np.empty((len(stack), len(first), stack.shape[2]), np.float32)
    total = np.empty(stack.shape[2], np.float32)
    for m in range(len(stack)):
        for i in range(len(first)):
            total[:] = 0
            some, weight = stack[m, first[i] : first[i] + taps], weights[i]
            for k in range(0, taps - 3, 4):  # four at once, so that a sum is loaded and stored less often
                a, b, c, d = some[k], some[k + 1], some[k + 2], some[k + 3]
                for j in range(len(total)):
                    total[j] += (
                        weight[k] * np.float32(a[j])
                        + weight[k + 1] * np.float32(b[j])
                        + weight[k + 2] * np.float32(c[j])
                        + weight[k + 3] * np.float32(d[j])
                    )
            for k in range(taps - taps % 4, taps):
                row = some[k]
                for j in range(len(total)):
                    total[j] += weight[k] * np.float32(row[j])
            for j in range(len(total)):
                mixed[m, i, j] = total[j]
    return mixed


@compiled
def _round(values: NDArray[np.float32]) -> NDArray[np.uint8]:  # pragma: no cover - compiled
    """To the nearest level, halves to even; the filter has no weight below zero, so none lies outside [0, 255]."""
    levels = np.empty(values.shape, np.uint8)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            levels[i, j] = np.uint8(np.rint(values[i, j]))
    return levels
