"""Tensor shards: what preprocess writes and every later stage reads."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.config import ProtocolName, SourceName, SplitName
from unveil.errors import UnveilError
from unveil.files import file_digest, read_json, regular, write_json
from unveil.messages import chosen
from unveil.section import NO_OTHERS, Amount, Count, FileName, Sha256, Side
from unveil.tensors import open_tensors, save_tensors

INDEX_FILE = "index.json"
DTYPES = {"images": ("U8", torch.uint8), "attributes": ("BOOL", torch.bool), "ids": ("I64", torch.int64)}
Colour = tuple[float, float, float]  # a value for each of R, G and B
MEND = "run the preprocess stage again"


@dataclass(frozen=True)
class Shard:
    """One file of a split: its name, number of images and SHA-256."""

    __pydantic_config__ = NO_OTHERS
    file: FileName
    images: Count
    sha256: Sha256


@dataclass(frozen=True)
class ShardedSplit:
    """The shards of a split, and how many images they hold."""

    __pydantic_config__ = NO_OTHERS
    images: Amount
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per channel, over the train split, of pixels in [-1, 1]."""

    __pydantic_config__ = NO_OTHERS
    mean: Colour
    std: Colour


@dataclass(frozen=True)
class ShardIndex:
    """What ``index.json`` says of the shards beside it, in the order of its keys.

    Attributes:
        protocol: name of the crop and resize, see :mod:`unveil.data.protocols`.
        image_size: height and width in pixels.
        images: in all splits.
        train_holds: ``train``, or ``all`` if the protocol trains on every image, held-out ones included.
        corrupt: names of the images that were left out.
        attributes: names of the columns of ``attributes``.
    """

    __pydantic_config__ = NO_OTHERS
    format: Literal[1]
    source: SourceName
    protocol: ProtocolName
    image_size: Side
    images: Amount
    train_holds: Literal["train", "all"]
    splits: Mapping[SplitName, ShardedSplit]
    moments: Moments
    corrupt: tuple[str, ...]
    attributes: tuple[str, ...]

    @classmethod
    def of(cls, splits: Mapping[Any, tuple[Shard, ...]], mean: Colour, std: Colour, **facts: Any) -> "ShardIndex":
        """The index of these shards of each split; ``facts`` are the attributes that they do not tell."""
        held = {name: ShardedSplit(sum(shard.images for shard in shards), shards) for name, shards in splits.items()}
        total = sum(split.images for split in held.values())
        facts = {"train_holds": "train", "corrupt": (), **facts}
        return cls(1, images=total, splits=held, moments=Moments(mean, std), **facts)

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in order; none if there is no such split."""
        return next((held.shards for name, held in self.splits.items() if name == split), ())

    def num_images(self, split: str) -> int:
        """Number of images in a split; 0 if there is no such split."""
        return sum(shard.images for shard in self.shards(split))

    def columns(self, names: Sequence[str]) -> list[int]:
        """The columns of ``attributes`` that have these names. Raises UnveilError for a name that is none's."""
        try:
            return chosen(names, self.attributes)
        except ValueError as error:
            raise UnveilError(f"train.attributes: {error}; the data set's own names are in {INDEX_FILE}") from None

    def digest(self) -> str:
        """SHA-256 over the hashes of all shards and the protocol: the identity of the data set."""
        hashes = [shard.sha256 for name in sorted(self.splits) for shard in self.shards(name)]
        facts = json.dumps([self.protocol, self.image_size, hashes])
        return hashlib.sha256(facts.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``index.json``."""
        write_json(folder / INDEX_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Read ``index.json`` in ``folder``. Raises UnveilError if it is missing, damaged or of another format."""
        return read_json(folder / INDEX_FILE, cls, MEND)


def write_shard(folder: Path, split: str, number: int, images: Tensor, attributes: Tensor, ids: Tensor) -> Shard:
    """Write ``<split>-<number>.safetensors``.

    Args:
        folder: where to.
        split: train, valid or test.
        number: position of the shard in its split, from 0.
        images: uint8 [N, 3, H, W].
        attributes: bool [N, 40].
        ids: int64 [N], the number in each image's file name.

    Raises:
        OSError: with the path, if the disk is full or refuses.
    """
    path = folder / f"{split}-{number:05d}.safetensors"
    save_tensors(path, {"images": images, "attributes": attributes, "ids": ids})
    return Shard(path.name, len(ids), file_digest(path))


def load_tensor(folder: Path, split: str, name: str = "images", limit: int | None = None) -> Tensor:
    """One tensor of a split, all shards concatenated, in order of the ids.

    Args:
        folder: of the shards.
        split: train, valid or test.
        name: ``images`` (uint8 [N, 3, H, W]), ``attributes`` (bool [N, 40]) or ``ids`` (int64 [N]).
        limit: at most so many images, the first.

    Raises:
        UnveilError: if the split is unknown or empty, or a shard is missing or damaged.
    """
    index = ShardIndex.load(folder)
    shards = index.shards(split)
    if not shards:
        known = ", ".join(name for name in index.splits if index.shards(name))
        raise UnveilError(f"{folder / INDEX_FILE}: no images in split {split!r}, expected one of: {known}")
    wanted = index.num_images(split) if limit is None else min(limit, index.num_images(split))
    for shard in shards:  # before there is memory for all that the index tells of
        with open_shard(folder, shard, name) as rows:
            shape = rows.get_shape()[1:]
    result = torch.empty(wanted if len(shards) > 1 else 0, *shape, dtype=DTYPES[name][1])
    filled = 0
    for shard in shards:
        with open_shard(folder, shard, name) as rows:
            part: Tensor = rows[: wanted - filled]
        if len(shards) == 1:  # so that a split is in memory once and not twice
            return part
        result[filled : filled + len(part)] = part
        filled += len(part)
    return result


@contextmanager
def open_shard(folder: Path, shard: Shard, name: str) -> Iterator[Any]:
    """Yield one tensor of a shard, as safetensors' slice: it has a shape, and reads what is asked for.

    Raises:
        UnveilError: if the shard is missing or damaged, or has another number of images than its index says.
    """
    path = folder / shard.file
    with open_tensors(path, MEND) as file:
        rows = file.get_slice(name)
        found, shape = rows.get_dtype(), rows.get_shape()
        if (
            found != (wanted := DTYPES[name][0])
            or shape[:1] != [shard.images]
            or (name == "images") != (len(shape) == 4)
        ):
            raise UnveilError(
                f"{path}: {name} are {found} {shape}, expected {wanted} of {shard.images} images, "
                f"as {INDEX_FILE} says; {MEND}"
            )
        yield rows


class ShardRows:
    """Rows of some tensors of a shard, read one at a time, so that no more than those are in memory.

    Args:
        folder: of the shards.
        shard: which one.
        names: of tensors of one byte an element, ``images`` and ``attributes``.

    Raises:
        UnveilError: if the shard is missing or damaged.
        OSError: with the path, if the system refuses to open it, such as one more file.
    """

    def __init__(self, folder: Path, shard: Shard, names: Sequence[str] = ("images",)) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            with open_shard(folder, shard, name) as rows:
                self.shapes[name] = tuple(rows.get_shape()[1:])
        self._file = regular(folder / shard.file).open("rb", buffering=0)
        # safetensors: the header's length in 8 bytes, the header in JSON, then the tensors.
        length = int.from_bytes(self._file.read(8), "little")
        header = json.loads(self._file.read(length))
        self._starts = {name: 8 + length + header[name]["data_offsets"][0] for name in names}

    def read(self, row: int, name: str = "images") -> NDArray[np.uint8]:
        """One row of a tensor, as bytes: uint8. Threads may read at once.

        Raises:
            UnveilError: if the file has become shorter.
        """
        size = prod(self.shapes[name])
        data = os.pread(self._file.fileno(), size, self._starts[name] + row * size)
        if len(data) != size:
            raise UnveilError(f"{self._file.name}: became shorter while it was read; {MEND}")
        return np.frombuffer(data, np.uint8).reshape(self.shapes[name])


def verify(folder: Path, splits: Sequence[str]) -> None:
    """Compare the shards of some splits with their hashes in ``index.json``, and their images with its size.

    Raises:
        UnveilError: that names the first shard that differs.
    """
    index = ShardIndex.load(folder)
    for split in splits:
        for shard in index.shards(split):
            path = folder / shard.file
            if not path.exists() or file_digest(path) != shard.sha256:
                raise UnveilError(f"{path}: missing or not what {INDEX_FILE} says; {MEND}")
            with open_shard(folder, shard, "images") as rows:
                if rows.get_shape()[1:] != [3, index.image_size, index.image_size]:
                    size = " x ".join(map(str, rows.get_shape()[1:]))
                    raise UnveilError(f"{path}: images of {size}, but {INDEX_FILE} says {index.image_size}; {MEND}")
