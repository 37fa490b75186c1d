"""Batches of a split that lies on the device as uint8: shuffling, flips and normalisation happen there."""

import numpy as np
import torch
from torch import Tensor


class DeviceBatches:
    """Draws training batches; batch k is a function of (seed, k) alone, so a run can be taken up anywhere.

    Args:
        images: uint8 [N, 3, H, W], on the device where the batches are wanted.
        batch_size: images a batch. Epochs run into one another: a batch may end one and begin the next.
        seed: of the order and of the flips.
        horizontal_flip: mirror each image with probability 1/2.
    """

    def __init__(self, images: Tensor, batch_size: int, seed: int, horizontal_flip: bool) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, number: int) -> Tensor:
        """Batch ``number``, from 0: float32 [batch_size, 3, H, W] in [-1, 1]."""
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, len(self.images))
        chosen = np.concatenate(
            [self._permutation(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        images = self.images[torch.from_numpy(chosen).to(self.images.device)]
        if self.horizontal_flip:
            coins = np.random.default_rng([self.seed, 1, number]).random(self.batch_size) < 0.5
            mirrored = torch.from_numpy(coins).to(images.device)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        return to_float(images)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.images))
        return self._order


def to_float(images: Tensor) -> Tensor:
    """Pixels 0 .. 255 as float32 -1 .. 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1], clipped and rounded to the nearest of 0 .. 255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
