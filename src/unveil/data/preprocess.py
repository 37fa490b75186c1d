"""From the raw archive to shards: decode, crop, resize and pack, without unpacking the archive."""

import mmap
import struct
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from unveil.data.celeba import (
    ATTRIBUTES,
    ATTRIBUTES_FILE,
    MOST_DIGITS,
    PARTITION_FILE,
    SPLITS,
    ZIP_NAME,
    image_member,
    image_number,
    read_attributes,
    read_partition,
)
from unveil.data.compiled import compiled
from unveil.data.images import DAMAGE, MOST_BYTES, MOST_PIXELS, open_image, open_zip, read_member
from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.resampling import crop, resize
from unveil.data.shards import Shard, ShardIndex, read_shard, write_shard
from unveil.data.sources.facts import SourceRecord, worker_count
from unveil.errors import UnveilError
from unveil.files import LONGEST_SHOWN, atomic_directory, regular

IMAGES_PER_TASK = 128
SWITCH_SECONDS = 1e-3
PIXELS_AT_ONCE = 160_000  # through a resize: more do not fit into a core's cache
TASKS_AHEAD = 4  # for each worker
JPEG_MAGIC = b"\xff\xd8\xff"
_Corrupt = tuple[int, str]  # its position in the shard, and the reason


@dataclass(frozen=True)
class _Room:
    """A shard that is being filled, in place, by many threads: uint8 [n, 3, S, S] and the n rows in the annotations."""

    split: str
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    corrupt: list[int] = field(default_factory=list)  # positions of the unreadable ones


def decode(data: bytes, fast_dct: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG, or any image that Pillow reads, to RGB: uint8 [H, W, 3].

    JPEGs go through libjpeg-turbo directly: the same pixels as Pillow's, sooner, or with ``fast_dct`` TensorFlow's (but
    for rare kinds, which Pillow decodes). An EXIF rotation is not applied, as CelebA's readers do not. Damage is what
    Pillow refuses; a JPEG with a hole that libjpeg can pass over is an image.

    Raises:
        ValueError: if the bytes are not a whole image.
    """
    if data.startswith(JPEG_MAGIC):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if height * width <= MOST_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB", fastdct=fast_dct)
        except ValueError:
            pass  # Pillow decodes rare kinds too, or says better what is wrong
    with open_image(data) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow would make most of it white
            raise ValueError(f"found pixels of mode {image.mode}, expected 8 bits a colour")
        return np.array(image.convert("RGB"))


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

    Each image is decoded once, also where it belongs to two splits. A shard holds ``shard_size`` images of its split
    in the order of the annotations, less those that are unreadable.

    Args:
        raw: folder that download wrote.
        destination: folder for the shards and ``index.json``.
        protocol: name of the crop and resize.
        image_size: height and width of the results in pixels.
        shard_size: images a shard. One that is being filled and one that is being written are in memory.
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
    members = {split: _members(raw, partition, number, chosen) for number, split in enumerate(SPLITS)}
    with (
        _quick_switching(),
        atomic_directory(destination) as folder,
        _Archive(raw / ZIP_NAME) as archive,
        ThreadPoolExecutor(worker_count(workers)) as pool,
        ThreadPoolExecutor(1) as background,
    ):
        writer = _Writer(folder, attributes, ids, background)

        def work(room: _Room, part: slice) -> list[_Corrupt]:
            return _decode_some(archive, names, room, part, chosen)

        def written(split: str, images: int) -> None:
            say(f"{split}: {images} of {len(members[split])} images")

        decoded = ("train",) if chosen.images == "all" else SPLITS
        rooms = (room for split in decoded for room in _rooms(split, members[split], shard_size, image_size))
        for room, part, corrupt in _in_order(pool, work, _parts(rooms), TASKS_AHEAD * worker_count(workers)):
            if corrupt and on_corrupt == "error":
                position, reason = corrupt[0]
                raise UnveilError(
                    f"{raw / ZIP_NAME}: {names[room.rows[position]]} cannot be used ({reason}); "
                    "replace it, or set preprocess.on_corrupt to skip to leave out and list such images"
                )
            room.corrupt.extend(position for position, _ in corrupt)
            if part.stop == len(room.rows):
                written(room.split, writer.write(room))
        if chosen.images == "all":  # the others lie in train's shards already
            for split in SPLITS[1:]:
                for room in _rooms(split, members[split], shard_size, image_size):
                    writer.copy_from("train", room)
                    written(room.split, writer.write(room))
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
            corrupt=tuple(names[row] for row in sorted(writer.corrupt)),
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
    if (number := image_number(name)) is None:
        raise UnveilError(
            f"{raw / ATTRIBUTES_FILE}: found the image name {name[:LONGEST_SHOWN]}, expected a number of at most "
            f"{MOST_DIGITS} digits, such as 000001.jpg"
        )
    return number


def _members(raw: Path, partition: np.ndarray, number: int, protocol: Protocol) -> NDArray[np.int64]:
    """Rows of the images of a split, in order."""
    if not (partition == number).any():
        raise UnveilError(
            f"{raw / PARTITION_FILE}: no image is in split {SPLITS[number]!r}, at least one is needed; "
            "run the download stage again with more images or other shares"
        )
    if SPLITS[number] == "train" and protocol.images == "all":
        return np.arange(len(partition))
    return np.flatnonzero(partition == number)


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


@contextmanager
def _quick_switching() -> Iterator[None]:
    """Let threads that wait for Python's lock ask for it sooner: ours hold it for moments between long calls."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Archive:
    """The zip, for reading by many threads: ``zipfile`` has one lock for all, and more to do for each member."""

    def __init__(self, path: Path) -> None:
        self._zip = open_zip(path, "run the download stage")
        with regular(path).open("rb") as file:
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
        info = self._zip.NameToInfo.get(member)
        plain = info and not info.flag_bits & 1 and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not info or not plain or info.file_size > MOST_BYTES:
            return read_member(self._zip, member)
        try:
            # A local header: 30 bytes, the last four of which are the lengths of the name and of an extra field.
            start = info.header_offset + 30 + sum(struct.unpack_from("<HH", self._bytes, info.header_offset + 26))
            content = self._bytes[start : start + info.compress_size]
            if info.compress_type == zipfile.ZIP_DEFLATED:
                # A byte more than there should be, so that a longer one is found without inflating all of it.
                content = zlib_ng.decompressobj(-zlib_ng.MAX_WBITS).decompress(content, info.file_size + 1)
        except DAMAGE as error:
            raise ValueError(f"cannot be taken from the archive: {error}") from None
        if len(content) != info.file_size or zlib_ng.crc32(content) != info.CRC:
            raise ValueError("damaged in the archive: another checksum (CRC-32) than written there")
        return content


def _decode_some(archive: _Archive, names: list[str], room: _Room, part: slice, protocol: Protocol) -> list[_Corrupt]:
    """Fill a part of a shard."""
    corrupt: list[_Corrupt] = []
    positions: list[int] = []
    images: list[NDArray[np.uint8]] = []
    pixels = 0
    for position, row in enumerate(room.rows[part].tolist(), start=part.start):
        try:
            image = crop(decode(archive.read(image_member(names[row])), protocol.fast_dct), protocol)
        except ValueError as error:
            corrupt.append((position, str(error)))
            continue
        pixels += image.shape[0] * image.shape[1]
        if images and pixels > PIXELS_AT_ONCE:
            room.images[positions] = resize(images, room.images.shape[-1], protocol.resize)
            positions, images, pixels = [], [], image.shape[0] * image.shape[1]
        positions.append(position)
        images.append(image)
    if images:
        room.images[positions] = resize(images, room.images.shape[-1], protocol.resize)
    return corrupt


def _rooms(split: str, rows: NDArray[np.int64], shard_size: int, image_size: int) -> Iterator[_Room]:
    """Room for each shard of a split, made when it is asked for."""
    for start in range(0, len(rows), shard_size):
        some = rows[start : start + shard_size]
        yield _Room(split, some, np.empty((len(some), 3, image_size, image_size), np.uint8))


def _parts(rooms: Iterable[_Room]) -> Iterator[tuple[_Room, slice]]:
    for room in rooms:
        for start in range(0, len(room.rows), IMAGES_PER_TASK):
            yield room, slice(start, min(start + IMAGES_PER_TASK, len(room.rows)))


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[_Room, slice], list[_Corrupt]],
    parts: Iterator[tuple[_Room, slice]],
    ahead: int,
) -> Iterator[tuple[_Room, slice, list[_Corrupt]]]:
    """Parts in order, each when its work is done. Work goes at most ``ahead`` parts further."""
    pending = deque((*part, pool.submit(work, *part)) for part in islice(parts, ahead))
    try:
        while pending:
            room, part, future = pending.popleft()
            corrupt = future.result()
            pending.extend((*part, pool.submit(work, *part)) for part in islice(parts, 1))
            yield room, part, corrupt
    finally:
        for *_, future in pending:
            future.cancel()


class _Writer:
    """Writes shards in a thread, one at a time, while the next one is filled.

    Args:
        folder: where to.
        attributes: bool [N, 40], of all images.
        ids: int64 [N], of all images.
        thread: the one that writes.
    """

    def __init__(
        self, folder: Path, attributes: np.ndarray, ids: NDArray[np.int64], thread: ThreadPoolExecutor
    ) -> None:
        self.moments = _Moments()
        self.corrupt: set[int] = set()  # rows
        self._folder, self._attributes, self._ids, self._thread = folder, attributes, ids, thread
        self._shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        self._rows: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
        self._under_way: Future[None] | None = None

    def write(self, room: _Room) -> int:
        """Begin to write the next shard of a split. Returns how many images of the split there are by now."""
        self._wait()
        self.corrupt.update(room.rows[room.corrupt].tolist())
        rows = np.delete(room.rows, room.corrupt)
        images = np.delete(room.images, room.corrupt, axis=0) if room.corrupt else room.images
        if len(rows):
            self._under_way = self._thread.submit(self._write, room.split, len(self._rows[room.split]), images, rows)
            self._rows[room.split].append(rows)
        return sum(map(len, self._rows[room.split]))

    def copy_from(self, split: str, room: _Room) -> None:
        """Fill a shard with images that lie in the shards of another split."""
        self._wait()
        found = np.zeros(len(room.rows), dtype=bool)
        for shard, rows in zip(self._shards[split], self._rows[split], strict=True):
            here = np.isin(room.rows, rows)
            if here.any():
                positions = torch.from_numpy(np.searchsorted(rows, room.rows[here]))
                room.images[here] = read_shard(self._folder, shard, "images")[positions].numpy()
                found |= here
        room.corrupt.extend(np.flatnonzero(~found).tolist())

    def finish(self) -> dict[str, tuple[Shard, ...]]:
        """The shards of each split, when all are written."""
        self._wait()
        return {split: tuple(shards) for split, shards in self._shards.items()}

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()

    def _write(self, split: str, number: int, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        tensors = (torch.from_numpy(values) for values in (images, self._attributes[rows], self._ids[rows]))
        self._shards[split].append(write_shard(self._folder, split, number, *tensors))
        if split == "train":
            self.moments.add(images)
