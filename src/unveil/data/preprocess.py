"""From the raw archive to shards: decode, crop, resize and pack, without unpacking the archive."""

import io
import os
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from unveil.data import protocols
from unveil.data.celeba import (
    ATTRIBUTES,
    ATTRIBUTES_FILE,
    PARTITION_FILE,
    SPLITS,
    ZIP_NAME,
    image_member,
    read_attributes,
    read_partition,
)
from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.shards import Shard, ShardIndex, write_shard
from unveil.data.sources.facts import SourceRecord, worker_count
from unveil.errors import UnveilError
from unveil.files import atomic_directory

IMAGES_PER_TASK = 16
TASKS_AHEAD = 4  # for each worker
JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True)
class _Batch:
    """Some images: uint8 [n, 3, S, S], their rows in the annotations, and (row, reason) of the unreadable ones."""

    images: Tensor
    rows: np.ndarray
    corrupt: list[tuple[int, str]]


def decode(data: bytes) -> Tensor:
    """Decode a JPEG, or any image that Pillow reads, to RGB: uint8 [3, H, W].

    JPEGs go through libjpeg-turbo into a tensor directly: the same pixels as Pillow's, sooner. An EXIF rotation
    is not applied, as CelebA's readers do not. Damage is what Pillow refuses; a JPEG with a hole that libjpeg can
    pass over is an image to both.

    Raises:
        ValueError: if the bytes are not a whole image.
    """
    if data.startswith(JPEG_MAGIC):
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError:
            pass  # Pillow decodes rare kinds too, or says better what is wrong
    if not data:
        raise ValueError("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except UnidentifiedImageError:  # its message is an address in memory
        raise ValueError(f"not an image, it begins with {data[:16]!r}") from None
    except Exception as error:  # noqa: BLE001 - decoders raise all kinds at what is broken
        raise ValueError(str(error) or type(error).__name__) from None


def preprocess(
    raw: Path,
    destination: Path,
    *,
    protocol: str,
    image_size: int,
    shard_size: int,
    on_corrupt: str,
    workers: int,
    say: Callable[[str], None] = lambda line: None,
) -> ShardIndex:
    """Turn CelebA's layout in ``raw`` into shards in ``destination``, which is replaced when all is done.

    Each image is decoded once, in the order of the annotations, also where it belongs to two splits.

    Args:
        raw: folder that download wrote.
        destination: folder for the shards and ``index.json``.
        protocol: name of the crop and resize.
        image_size: height and width of the results in pixels.
        shard_size: images a shard. The shards that are being filled and one that is being written are in memory:
            two with CelebA's order of splits, at most four.
        on_corrupt: ``error`` stops at the first unreadable image; ``skip`` leaves it out and lists it.
        workers: threads that decode, 0 = one for each core. The bytes written do not depend on it.
        say: receives lines of progress.

    Raises:
        UnveilError: if the raw folder is incomplete, an image is unreadable, or a split ends up empty.
    """
    record = SourceRecord.load(raw)
    chosen = PROTOCOLS[protocol]
    names, attributes, partition = _read_annotations(raw)
    ids = torch.tensor([_image_id(raw, name) for name in names])
    packers = [
        _Packer(split, _members(raw, partition, number, chosen), shard_size, image_size)
        for number, split in enumerate(SPLITS)
    ]
    corrupt: list[str] = []
    with (
        atomic_directory(destination) as folder,
        _Archive(raw / ZIP_NAME) as archive,
        _threads(worker_count(workers)) as pool,
        _threads(1) as background,
    ):
        writer = _Writer(folder, torch.from_numpy(attributes), ids, background)

        def work(rows: np.ndarray) -> _Batch:
            return _decode_some(archive, names, rows, chosen, image_size)

        for batch in _in_order(pool, work, len(names), TASKS_AHEAD * worker_count(workers)):
            if batch.corrupt and on_corrupt == "error":
                row, reason = batch.corrupt[0]
                raise UnveilError(
                    f"{raw / ZIP_NAME}: {names[row]} cannot be used ({reason}); "
                    "replace it, or set preprocess.on_corrupt to skip to leave out and list such images"
                )
            corrupt += [names[row] for row, _ in batch.corrupt]
            for packer in packers:
                for images, rows in packer.add(batch):
                    writer.write(packer.split, images, rows)
                    say(f"{packer.split}: {packer.packed} of {packer.member.sum()} images")
        splits = writer.finish()
        for split in SPLITS:
            if not splits[split]:
                raise UnveilError(f"{raw / ZIP_NAME}: no image of split {split!r} is readable, at least one is needed")
        mean, std = writer.moments.mean_and_std()
        index = ShardIndex(
            source=record.source,
            protocol=protocol,
            image_size=image_size,
            attributes=ATTRIBUTES,
            splits=splits,
            mean=mean,
            std=std,
            corrupt=tuple(corrupt),
            train_holds=chosen.images,
        )
        index.save(folder)
    return index


def _threads(count: int) -> ThreadPoolExecutor:
    # Each thread works on images of its own; PyTorch must not split its work once more.
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def _read_annotations(raw: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, attributes (bool [N, 40]) and partition (int64 [N]) of all images."""
    names, attributes = read_attributes(raw)
    others, partition = read_partition(raw)
    if names != others:
        pairs = zip(names, others, strict=False)
        differences = (f"image {n} is {a} and {b}" for n, (a, b) in enumerate(pairs, start=1) if a != b)
        difference = next(differences, f"{len(names)} and {len(others)} images")
        raise UnveilError(
            f"{raw}: {ATTRIBUTES_FILE} and {PARTITION_FILE} list different images ({difference}); "
            "get both from one place and run the download stage again"
        )
    return names, attributes, partition


def _image_id(raw: Path, name: str) -> int:
    stem = Path(name).stem
    if not (stem.isascii() and stem.isdigit()):
        raise UnveilError(f"{raw / ATTRIBUTES_FILE}: found the image name {name}, expected a number such as 000001.jpg")
    return int(stem)


def _members(raw: Path, partition: np.ndarray, number: int, protocol: Protocol) -> np.ndarray:
    """Which images are in a split: bool [N]."""
    if not (partition == number).any():
        raise UnveilError(
            f"{raw / PARTITION_FILE}: no image is in split {SPLITS[number]!r}, at least one is needed; "
            "run the download stage again with more images or other shares"
        )
    if SPLITS[number] == "train" and protocol.images == "all":
        return np.ones(len(partition), dtype=bool)
    return partition == number


class _Moments:
    """Mean and standard deviation of each channel in [-1, 1], from the exact counts of the 256 levels."""

    def __init__(self) -> None:
        self.counts = torch.zeros(3, 256, dtype=torch.int64)

    def add(self, images: Tensor) -> None:
        for part in images.split(64):  # counting copies what it counts
            for channel, counts in enumerate(self.counts):
                counts += torch.bincount(part[:, channel].flatten(), minlength=256)

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        level = torch.arange(256)
        total = self.counts.sum(1)
        mean = (self.counts * level).sum(1).double() / total
        square = (self.counts * level**2).sum(1).double() / total
        std = (square - mean.square()).clamp_min(0).sqrt()
        return tuple(round(x / 127.5 - 1, 6) for x in mean.tolist()), tuple(round(x / 127.5, 6) for x in std.tolist())


class _Archive:
    """The zip, for reading by many threads: ``zipfile`` has one lock for all, and more to do for each member."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise UnveilError(f"{path}: not there, expected CelebA's archive; run the download stage") from None
        except zipfile.BadZipFile:
            raise UnveilError(f"{path}: not a whole zip archive; run the download stage again") from None
        self._file = path.open("rb")

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._zip.close()

    def read(self, member: str) -> bytes:
        """The content of a member.

        Raises:
            ValueError: if it is not there, or not whole.
        """
        try:
            info = self._zip.getinfo(member)
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                return self._zip.read(info)
            # A local header: 30 bytes, the last four of which are the lengths of the name and of an extra field.
            header = os.pread(self._file.fileno(), 30, info.header_offset)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
            content = os.pread(self._file.fileno(), info.compress_size, start)
            if info.compress_type == zipfile.ZIP_DEFLATED:
                content = zlib.decompress(content, -zlib.MAX_WBITS, max(1, info.file_size))
        except KeyError:
            raise ValueError("not in the archive") from None
        except (zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, EOFError) as error:
            raise ValueError(f"cannot be taken from the archive: {error}") from None
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise ValueError("damaged in the archive: another checksum (CRC-32) than written there")
        return content


def _decode_some(archive: _Archive, names: list[str], rows: np.ndarray, protocol: Protocol, image_size: int) -> _Batch:
    images: list[Tensor] = []
    kept: list[int] = []
    corrupt: list[tuple[int, str]] = []
    for row in rows.tolist():
        try:
            images.append(protocols.crop(decode(archive.read(image_member(names[row]))), protocol))
            kept.append(row)
        except ValueError as error:
            corrupt.append((row, str(error)))
    resized = protocols.resize_all(images, image_size, protocol.resize)
    return _Batch(resized, np.array(kept, dtype=np.int64), corrupt)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[np.ndarray], _Batch], count: int, ahead: int
) -> Iterator[_Batch]:
    """Batches of ``count`` images in order. At most ``ahead`` wait, so memory does not grow with the data set."""
    tasks = (np.arange(start, min(start + IMAGES_PER_TASK, count)) for start in range(0, count, IMAGES_PER_TASK))
    pending = deque(pool.submit(work, rows) for rows in islice(tasks, ahead))
    try:
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(work, rows) for rows in islice(tasks, 1))
            yield batch
    finally:
        for future in pending:
            future.cancel()


class _Packer:
    """Gathers the images of one split until they fill a shard.

    Args:
        split: train, valid or test.
        member: bool [N], which of all images belong to the split.
        shard_size: images a shard.
        image_size: height and width of the images.
    """

    def __init__(self, split: str, member: np.ndarray, shard_size: int, image_size: int) -> None:
        self.split = split
        self.member = member
        self.packed = 0
        self._shape = (shard_size, 3, image_size, image_size)
        self._to_come = int(member.sum())
        self._images = self._room(self._to_come)
        self._rows: list[int] = []

    def _room(self, count: int) -> Tensor:
        return torch.empty(min(self._shape[0], count), *self._shape[1:], dtype=torch.uint8)

    def add(self, batch: _Batch) -> Iterator[tuple[Tensor, list[int]]]:
        """Take what belongs to the split; give back each full shard, and what there is after the last image."""
        mine = self.member[batch.rows]
        images, rows = batch.images[torch.from_numpy(mine)], batch.rows[mine].tolist()
        self._to_come -= len(rows) + int(self.member[[row for row, _ in batch.corrupt]].sum())
        while rows:
            start = len(self._rows)
            taken = min(len(rows), len(self._images) - start)
            self._images[start : start + taken] = images[:taken]
            self._rows += rows[:taken]
            images, rows = images[taken:], rows[taken:]
            if len(self._rows) == len(self._images):
                yield self._flush(len(rows))
        if self._rows and not self._to_come:
            yield self._flush(0)

    def _flush(self, left: int) -> tuple[Tensor, list[int]]:
        full = self._images[: len(self._rows)], self._rows
        self.packed += len(self._rows)
        self._images, self._rows = self._room(left + self._to_come), []
        return full


class _Writer:
    """Writes shards in a thread, one at a time, while the next one is filled.

    Args:
        folder: where to.
        attributes: bool [N, 40], of all images.
        ids: int64 [N], of all images.
        thread: the one that writes.
    """

    def __init__(self, folder: Path, attributes: Tensor, ids: Tensor, thread: ThreadPoolExecutor) -> None:
        self.moments = _Moments()
        self._folder, self._attributes, self._ids, self._thread = folder, attributes, ids, thread
        self._shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        self._under_way: Future[None] | None = None

    def write(self, split: str, images: Tensor, rows: list[int]) -> None:
        """Begin to write the next shard of a split: uint8 [n, 3, S, S] and their rows in the annotations."""
        self._wait()
        self._under_way = self._thread.submit(self._write, split, images, rows)

    def finish(self) -> dict[str, tuple[Shard, ...]]:
        """The shards of each split, when all are written."""
        self._wait()
        return {split: tuple(shards) for split, shards in self._shards.items()}

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()

    def _write(self, split: str, images: Tensor, rows: list[int]) -> None:
        shards = self._shards[split]
        shards.append(write_shard(self._folder, split, len(shards), images, self._attributes[rows], self._ids[rows]))
        if split == "train":
            self.moments.add(images)
