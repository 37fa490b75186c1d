"""From the raw archive to shards: decode, crop, resize and pack, without unpacking the archive."""

import io
import mmap
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
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

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
from unveil.data.compiled import compiled
from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.resampling import crop, resize
from unveil.data.shards import Shard, ShardIndex, write_shard
from unveil.data.sources.facts import SourceRecord, worker_count
from unveil.errors import UnveilError
from unveil.files import atomic_directory

IMAGES_PER_TASK = 32
TASKS_AHEAD = 4  # for each worker
JPEG_MAGIC = b"\xff\xd8\xff"
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb


@dataclass(frozen=True)
class _Batch:
    """Some images: uint8 [n, 3, S, S], their rows in the annotations, and (row, reason) of the unreadable ones."""

    images: NDArray[np.uint8]
    rows: np.ndarray
    corrupt: list[tuple[int, str]]


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG, or any image that Pillow reads, to RGB: uint8 [H, W, 3].

    JPEGs go through libjpeg-turbo directly: the same pixels as Pillow's, sooner. An EXIF rotation is not applied, as
    CelebA's readers do not. Damage is what Pillow refuses; a JPEG with a hole that libjpeg can pass over is an image.

    Raises:
        ValueError: if the bytes are not a whole image.
    """
    if data.startswith(JPEG_MAGIC):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # Pillow decodes rare kinds too, or says better what is wrong
    if not data:
        raise ValueError("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"found {image.width} x {image.height} pixels, expected at most {MAX_PIXELS:,}")
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow would make most of it white
                raise ValueError(f"found pixels of mode {image.mode}, expected 8 bits a colour")
            return np.array(image.convert("RGB"))
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
    ids = np.array([_image_id(raw, name) for name in names])
    packers = [
        _Packer(split, _members(raw, partition, number, chosen), shard_size, image_size)
        for number, split in enumerate(SPLITS)
    ]
    corrupt: list[str] = []
    with (
        atomic_directory(destination) as folder,
        _Archive(raw / ZIP_NAME) as archive,
        ThreadPoolExecutor(worker_count(workers)) as pool,
        ThreadPoolExecutor(1) as background,
    ):
        writer = _Writer(folder, attributes, ids, background)

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
    stem = name.rpartition(".")[0]
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
    """Mean and standard deviation of each channel in [-1, 1], from exact sums."""

    def __init__(self) -> None:
        self.sums = np.zeros((3, 3), np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        self.sums += _power_sums(images)

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        count, total, squares = self.sums
        mean = total / count
        std = np.sqrt((squares / count - mean**2).clip(0))
        return tuple(round(x / 127.5 - 1, 6) for x in mean.tolist()), tuple(round(x / 127.5, 6) for x in std.tolist())


@compiled
def _power_sums(images: NDArray[np.uint8]) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Of the levels of each channel, how many there are, their sum and that of their squares: int64 [3, channels]."""
    sums = np.zeros((3, images.shape[1]), np.int64)
    for image in images:
        for channel in range(len(image)):
            for row in image[channel]:
                total, squares = np.uint32(0), np.uint32(0)
                for level in row:
                    total += np.uint32(level)
                    squares += np.uint32(level) * np.uint32(level)
                sums[0, channel] += len(row)
                sums[1, channel] += total
                sums[2, channel] += squares
    return sums


class _Archive:
    """The zip, for reading by many threads: ``zipfile`` has one lock for all, and more to do for each member."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise UnveilError(f"{path}: not there, expected CelebA's archive; run the download stage") from None
        except zipfile.BadZipFile:
            raise UnveilError(f"{path}: not a whole zip archive; run the download stage again") from None
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bytes.close()
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
            start = info.header_offset + 30 + sum(struct.unpack_from("<HH", self._bytes, info.header_offset + 26))
            content = self._bytes[start : start + info.compress_size]
            if info.compress_type == zipfile.ZIP_DEFLATED:
                # A byte more than there should be, so that a longer one is found without inflating all of it.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, info.file_size + 1)
        except KeyError:
            raise ValueError("not in the archive") from None
        except (zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, EOFError, OverflowError) as error:
            raise ValueError(f"cannot be taken from the archive: {error}") from None
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise ValueError("damaged in the archive: another checksum (CRC-32) than written there")
        return content


def _decode_some(archive: _Archive, names: list[str], rows: np.ndarray, protocol: Protocol, image_size: int) -> _Batch:
    images = np.empty((len(rows), 3, image_size, image_size), np.uint8)
    kept: list[int] = []
    corrupt: list[tuple[int, str]] = []
    for row in rows.tolist():
        try:
            image = crop(decode(archive.read(image_member(names[row]))), protocol)
        except ValueError as error:
            corrupt.append((row, str(error)))
            continue
        images[len(kept)] = resize(image, image_size, protocol.resize)
        kept.append(row)
    return _Batch(images[: len(kept)], np.array(kept, dtype=np.int64), corrupt)


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

    def _room(self, count: int) -> NDArray[np.uint8]:
        return np.empty((min(self._shape[0], count), *self._shape[1:]), np.uint8)

    def add(self, batch: _Batch) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
        """Take what belongs to the split; give back each full shard, and what there is after the last image."""
        mine = self.member[batch.rows]
        if not mine.any() and not batch.corrupt:
            return
        images, rows = batch.images[mine], batch.rows[mine].tolist()
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

    def _flush(self, left: int) -> tuple[NDArray[np.uint8], list[int]]:
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

    def __init__(self, folder: Path, attributes: np.ndarray, ids: np.ndarray, thread: ThreadPoolExecutor) -> None:
        self.moments = _Moments()
        self._folder, self._attributes, self._ids, self._thread = folder, attributes, ids, thread
        self._shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        self._under_way: Future[None] | None = None

    def write(self, split: str, images: NDArray[np.uint8], rows: list[int]) -> None:
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

    def _write(self, split: str, images: NDArray[np.uint8], rows: list[int]) -> None:
        shards = self._shards[split]
        tensors = (torch.from_numpy(values) for values in (images, self._attributes[rows], self._ids[rows]))
        shards.append(write_shard(self._folder, split, len(shards), *tensors))
        if split == "train":
            self.moments.add(images)
