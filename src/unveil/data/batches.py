"""Training batches: batch k is a function of (seed, k) alone, so a run can be taken up anywhere.

The split lies on the device as uint8, or streams from the shards on disk; the batches are the same. Flips and
normalisation happen on the device.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.config import Loader
from unveil.data.pixels import to_float
from unveil.data.shards import Shard, ShardIndex, ShardRows, load_tensor
from unveil.seeds import batch_seed

BATCHES_AHEAD = 3
SHARE_OF_MEMORY = 0.4  # of what is free: a split that takes more is streamed


@dataclass(frozen=True)
class Batch:
    """Images and what is known of them; ``batch[here]`` are some of them.

    Attributes:
        images: [n, C, H, W], uint8 as they lie in the shards, or float32 in [-1, 1] as a network takes them.
        attributes: int8 [n, k], 1 where the image has the attribute and -1 where not; None = they were not read.
    """

    images: Tensor
    attributes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, here: slice | Tensor) -> "Batch":
        return Batch(self.images[here], None if self.attributes is None else self.attributes[here])

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device; a GPU is not waited for where the memory is pinned."""
        attributes = None if self.attributes is None else self.attributes.to(device, non_blocking=True)
        return Batch(self.images.to(device, non_blocking=True), attributes)


def signed(attributes: Tensor) -> Tensor:
    """Attributes as shards hold them, bool or 0 and 1, as those of a :class:`Batch`: int8, -1 and 1."""
    return attributes.to(torch.int8) * 2 - 1


def load_split(folder: Path, split: str, limit: int | None = None, attributes: Sequence[str] = ()) -> Batch:
    """A split in memory, uint8, in order of the ids; the first ``limit`` images, and these of their attributes.

    Raises as ``load_tensor`` and ``ShardIndex.columns`` do.
    """
    told = load_attributes(folder, split, attributes, limit) if attributes else None
    return Batch(load_tensor(folder, split, "images", limit), told)


def load_attributes(folder: Path, split: str, names: Sequence[str], limit: int | None = None) -> Tensor:
    """Some attributes of a split's images: int8 [n, k], -1 and 1. Raises as ``load_split`` does."""
    columns = ShardIndex.load(folder).columns(names)
    return signed(load_tensor(folder, split, "attributes", limit))[:, columns]


class StreamedSplit:
    """A split that stays on disk: ``split[positions]`` reads those images, and no others are in memory.

    Args:
        folder: of the shards.
        shards: of the split, in order.
        attributes: columns of the images' attributes that are read too.
        device: where they will go; those for a GPU are read into pinned memory.

    Raises:
        UnveilError: if a shard is missing or damaged, or becomes shorter while it is read.
        OSError: with the path, if the system refuses to open it, such as one more file.
    """

    def __init__(
        self, folder: Path, shards: Sequence[Shard], attributes: Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._columns = list(attributes)
        self._names = ("images", "attributes") if attributes else ("images",)
        self._files = [ShardRows(folder, shard, self._names) for shard in shards]
        self._starts = np.cumsum([0, *(shard.images for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, positions: NDArray[np.int64]) -> Batch:
        files = np.searchsorted(self._starts, positions, side="right") - 1
        places = list(zip(files.tolist(), (positions - self._starts[files]).tolist(), strict=True))
        read: list[Tensor] = []
        for name in self._names:
            shape, pin = (len(places), *self._files[0].shapes[name]), self.device.type == "cuda"
            read.append(torch.empty(shape, dtype=torch.uint8, pin_memory=pin))
            for target, (file, row) in zip(read[-1].numpy(), places, strict=True):
                target[...] = self._files[file].read(row, name)
        return Batch(read[0], *(signed(rows)[:, self._columns] for rows in read[1:]))


class Batches:
    """What training draws from: the order of the images, and which of them are mirrored.

    Of a split on disk a thread reads a few batches ahead; memory holds those and the order of an epoch (8 bytes an
    image), however large the split is, and a batch is fast if asked for in turn.

    >>> batches = Batches(Batch(torch.zeros(10, 3, 8, 8, dtype=torch.uint8)), 4, seed=0, horizontal_flip=True)
    >>> batches.batch(0).images.shape, batches.batch(0).images.max()
    (torch.Size([4, 3, 8, 8]), tensor(-1.))

    Args:
        split: uint8 images [N, C, H, W] on the device where the batches are wanted, or a split on disk.
        batch_size: images a batch. Epochs run into one another: a batch may end one and begin the next.
        seed: of the permutation of every epoch and of the flips.
        horizontal_flip: mirror each image with probability 1/2.
        part: what of every batch is wanted here; by default all of it.
        among: places of the images that are drawn; None = all.
    """

    def __init__(
        self,
        split: Batch | StreamedSplit,
        batch_size: int,
        seed: int,
        horizontal_flip: bool,
        part: slice = slice(None),
        among: NDArray[np.int64] | None = None,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.part = part
        self.among = among
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, number: int) -> Batch:
        """Batch ``number``, from 0, or the part of it, on the device, its images float32 [n, C, H, W] in [-1, 1]."""
        batch = self._rows(number)
        images = batch.images
        if self.horizontal_flip:
            generator = np.random.default_rng(batch_seed("flips", self.seed, number))
            coins = generator.random(self.batch_size)[self.part] < 0.5
            mirrored = torch.from_numpy(coins).to(images.device)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        return Batch(to_float(images), batch.attributes)

    def _rows(self, number: int) -> Batch:
        """The images of batch ``number`` on the device, uint8 and not mirrored."""
        split = self.split
        if isinstance(split, Batch):
            return split[torch.from_numpy(self._positions(number)).to(split.images.device)]
        self._ahead = {
            key: self._ahead.get(key) or self._thread.submit(lambda number: split[self._positions(number)], key)
            for key in range(number, number + BATCHES_AHEAD)
        }
        return self._ahead.pop(number).result().to(split.device)

    def _positions(self, number: int) -> NDArray[np.int64]:
        """Positions in the split of the images of batch ``number``: int64 [n]."""
        drawn = np.arange(number * self.batch_size, (number + 1) * self.batch_size)[self.part]
        count = len(self.split) if self.among is None else len(self.among)
        epochs, offsets = np.divmod(drawn, count)
        orders = (_order(self.seed, epoch, count)[offsets[epochs == epoch]] for epoch in np.unique(epochs))
        places = np.concatenate([*orders])
        return places if self.among is None else self.among[places]


@lru_cache(1)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(batch_seed("order", seed, int(epoch))).permutation(count)


def open_batches(
    folder: Path,
    split: str,
    loader: Loader,
    batch_size: int,
    seed: int,
    horizontal_flip: bool,
    device: torch.device,
    part: slice = slice(None),
    attributes: Sequence[str] = (),
    among: NDArray[np.int64] | None = None,
) -> Batches:
    """Batches of a split, by the loader that is asked for; ``auto`` streams what the device has no room for.

    Raises:
        UnveilError: if a shard is missing or damaged, or an attribute is none of the data set's.
    """
    index = ShardIndex.load(folder)
    size = index.num_images(split) * 3 * index.image_size**2
    rows: Batch | StreamedSplit
    if loader == "stream" or (loader == "auto" and size > SHARE_OF_MEMORY * _free_memory(device)):
        rows = StreamedSplit(folder, index.shards(split), index.columns(attributes), device)
    else:
        rows = load_split(folder, split, attributes=attributes).to(device)
    return Batches(rows, batch_size, seed, horizontal_flip, part, among)


def _free_memory(device: torch.device) -> int:
    """Bytes that this process may take, on its way through the machine's memory too, which several share."""
    import psutil

    host = int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return min(host, int(torch.cuda.mem_get_info(device)[0])) if device.type == "cuda" else host
