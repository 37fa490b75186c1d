"""Training batches: batch k is a function of (seed, k) alone, so a run can be taken up anywhere.

The split lies on the device as uint8, or streams from the shards on disk; the batches are the same. Flips and
normalisation happen on the device.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.choices import Loader
from unveil.data.pixels import to_float
from unveil.data.shards import Shard, ShardIndex, ShardRows, load_images

BATCHES_AHEAD = 3
SHARE_OF_MEMORY = 0.4  # of what is free: a split that takes more is streamed


class Batches(Protocol):
    """What training draws from."""

    batch_size: int

    def batch(self, number: int) -> Tensor:
        """Batch ``number``, from 0, or this process's part of it: float32 [n, C, H, W] in [-1, 1], on the device."""


class Order:
    """Which images a batch holds, and which of them are mirrored.

    Args:
        count: images of the split.
        batch_size: images a batch. Epochs run into one another: a batch may end one and begin the next.
        seed: of the permutation of every epoch and of the flips.
        horizontal_flip: mirror each image with probability 1/2.
        part: what of every batch is wanted here; by default all of it.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, horizontal_flip: bool, part: slice = slice(None)
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.part = part
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def positions(self, number: int) -> NDArray[np.int64]:
        """Positions in the split of the images of batch ``number``: int64 [n]."""
        drawn = np.arange(number * self.batch_size, (number + 1) * self.batch_size)[self.part]
        epochs, offsets = np.divmod(drawn, self.count)
        return np.concatenate([self._of_epoch(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def flip(self, images: Tensor, number: int) -> Tensor:
        """Mirror the images of batch ``number`` that are to be mirrored."""
        if not self.horizontal_flip:
            return images
        coins = np.random.default_rng([self.seed, 1, number]).random(self.batch_size)[self.part] < 0.5
        mirrored = torch.from_numpy(coins).to(images.device)[:, None, None, None]
        return torch.where(mirrored, images.flip(3), images)

    def _of_epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
        return self._permutation


class DeviceBatches:
    """Batches of a split that lies on the device.

    Args:
        images: uint8 [N, C, H, W], on the device where the batches are wanted.
        batch_size, seed, horizontal_flip, part: see :class:`Order`.
    """

    def __init__(
        self, images: Tensor, batch_size: int, seed: int, horizontal_flip: bool, part: slice = slice(None)
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self._order = Order(len(images), batch_size, seed, horizontal_flip, part)

    def batch(self, number: int) -> Tensor:
        """Batch ``number``, from 0: float32 [n, C, H, W] in [-1, 1]."""
        chosen = torch.from_numpy(self._order.positions(number)).to(self.images.device)
        return to_float(self._order.flip(self.images[chosen], number))


class StreamBatches:
    """Batches of a split that stays on disk: rows are read one by one, a few batches ahead, by a thread.

    Memory holds those few batches and the order of an epoch (8 bytes an image), however large the split is.

    Args:
        folder: of the shards.
        shards: of the split, in order.
        batch_size, seed, horizontal_flip, part: see :class:`Order`.
        device: where the batches are wanted; a GPU gets them from pinned memory.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        batch_size: int,
        seed: int,
        horizontal_flip: bool,
        device: torch.device | str = "cpu",
        part: slice = slice(None),
    ) -> None:
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._files = [ShardRows(folder, shard, "images") for shard in shards]
        self._starts = np.cumsum([0, *(shard.images for shard in shards)])
        self._order = Order(int(self._starts[-1]), batch_size, seed, horizontal_flip, part)
        self._thread = ThreadPoolExecutor(1)
        self._ahead: OrderedDict[int, Future[Tensor]] = OrderedDict()

    def batch(self, number: int) -> Tensor:
        """Batch ``number``, from 0: float32 [n, C, H, W] in [-1, 1]; fast if asked for in turn."""
        wanted = range(number, number + BATCHES_AHEAD)
        for other in [key for key in self._ahead if key not in wanted]:
            self._ahead.pop(other).cancel()
        for key in wanted:
            if key not in self._ahead:
                self._ahead[key] = self._thread.submit(self._read, key)
        images = self._ahead.pop(number).result().to(self.device, non_blocking=True)
        return to_float(self._order.flip(images, number))

    def _read(self, number: int) -> Tensor:
        positions = self._order.positions(number)
        images = torch.empty(
            len(positions), *self._files[0].shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        rows = images.numpy()
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for place, (file, position) in enumerate(zip(numbers.tolist(), positions.tolist(), strict=True)):
            rows[place] = self._files[file].read(position - int(self._starts[file]))
        return images


def open_batches(
    folder: Path,
    split: str,
    loader: Loader,
    batch_size: int,
    seed: int,
    horizontal_flip: bool,
    device: torch.device,
    part: slice = slice(None),
) -> DeviceBatches | StreamBatches:
    """Batches of a split, by the loader that is asked for; ``auto`` streams what the device has no room for.

    Raises:
        UnveilError: if a shard is missing or damaged.
    """
    index = ShardIndex.load(folder)
    size = index.num_images(split) * 3 * index.image_size**2
    if loader == "stream" or (loader == "auto" and size > SHARE_OF_MEMORY * _free_memory(device)):
        return StreamBatches(folder, index.splits[split], batch_size, seed, horizontal_flip, device, part)
    return DeviceBatches(load_images(folder, split).to(device), batch_size, seed, horizontal_flip, part)


def _free_memory(device: torch.device) -> int:
    """Bytes that this process may take, on its way through the machine's memory too, which several share."""
    import psutil

    host = int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return min(host, int(torch.cuda.mem_get_info(device)[0])) if device.type == "cuda" else host
