"""From the raw archive to shards: decode, crop, resize and pack, without unpacking the archive."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from zipfile import ZipFile

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from unveil.data.celeba import (
    ATTRIBUTES,
    ATTRIBUTES_FILE,
    MOST_DIGITS,
    PARTITION_FILE,
    SPLITS,
    ZIP_NAME,
    image_member,
    image_number,
    read_annotations,
)
from unveil.data.images import MOST_PIXELS, open_image, open_zip, read_member
from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.resampling import crop, resize
from unveil.data.shards import Colour, Shard, ShardIndex, write_shard
from unveil.data.sources.facts import SourceRecord, worker_count
from unveil.errors import UnveilError
from unveil.files import LONGEST_SHOWN, atomic_directory
from unveil.progress import ProgressLine
from unveil.progress import images as in_words

JPEG_MAGIC = b"\xff\xd8\xff"


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

    A shard holds ``shard_size`` images of its split in the order of the annotations, less those that are unreadable.
    One shard at a time is in memory.

    Args:
        raw: folder that download wrote.
        destination: folder for the shards and ``index.json``.
        protocol: name of the crop and resize.
        image_size: height and width of the results in pixels.
        shard_size: images a shard.
        on_corrupt: ``error`` stops at the first unreadable image; ``skip`` leaves it out and lists it.
        workers: threads that decode, 0 = one for each core. The bytes written do not depend on it.
        say: receives lines of progress.

    Raises:
        UnveilError: if the raw folder is incomplete, an image is unreadable, or a split ends up empty.
    """
    record = SourceRecord.load(raw)
    chosen = PROTOCOLS[protocol]
    names, (signs, numbers) = read_annotations(raw / ATTRIBUTES_FILE, raw / PARTITION_FILE)
    attributes, partition = signs == 1, numbers[:, 0]
    ids = np.array([_image_id(raw, name) for name in names])
    members = {split: _members(raw, partition, number, chosen) for number, split in enumerate(SPLITS)}
    splits: dict[str, tuple[Shard, ...]] = {}
    corrupt: list[int] = []
    moments = np.zeros((3, 3), np.int64)
    with (
        atomic_directory(destination) as folder,
        open_zip(raw / ZIP_NAME, "run the download stage") as archive,
        ThreadPoolExecutor(worker_count(workers)) as pool,
    ):
        prepare = partial(_prepare, archive, Lock(), chosen, on_corrupt)
        for split, wanted in members.items():
            shards: list[Shard] = []
            progress = ProgressLine(split, len(wanted), say, describe=in_words)
            for start in range(0, len(wanted), shard_size):
                rows = wanted[start : start + shard_size]
                images = np.empty((len(rows), 3, image_size, image_size), np.uint8)
                good = np.ones(len(rows), dtype=bool)
                for place, usable in enumerate(pool.map(prepare, [names[row] for row in rows], images)):
                    good[place] = usable
                    progress.add(1)
                if not good.all():
                    corrupt += rows[~good].tolist()
                    rows, images = rows[good], images[good]
                if len(rows):
                    tensors = map(torch.from_numpy, (images, attributes[rows], ids[rows]))
                    shards.append(write_shard(folder, split, len(shards), *tensors))
                if split == "train":
                    moments += _power_sums(images)
                say(f"{split}: {sum(shard.images for shard in shards)} of {len(wanted)} images")
            if not shards:
                raise UnveilError(f"{raw / ZIP_NAME}: no image of split {split!r} is readable, at least one is needed")
            splits[split] = tuple(shards)
        index = ShardIndex.of(
            splits,
            *_mean_and_std(moments),
            source=record.source,
            protocol=protocol,
            image_size=image_size,
            train_holds=chosen.images,
            corrupt=tuple(names[row] for row in sorted({*corrupt})),
            attributes=ATTRIBUTES,
        )
        index.save(folder)
    return index


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


def _prepare(
    archive: ZipFile, reading: Lock, protocol: Protocol, on_corrupt: str, name: str, room: NDArray[np.uint8]
) -> bool:
    """Put one image into ``room``, uint8 [3, size, size]; one thread at a time reads, all decode.

    Returns:
        Whether it can be used; where it must be, UnveilError says why it cannot.
    """
    try:
        with reading:
            content = read_member(archive, image_member(name))
        image = crop(decode(content, protocol.fast_dct), protocol)
        room[:] = resize(image, room.shape[-1], protocol.resize)
    except ValueError as error:
        if on_corrupt == "error":
            raise UnveilError(
                f"{archive.filename}: {name} cannot be used ({error}); "
                "replace it, or set preprocess.on_corrupt to skip to leave out and list such images"
            ) from None
        return False
    return True


def _power_sums(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many levels each channel has, their sum and that of their squares: [n, 3, h, w] -> int64 [3, 3]."""
    count = images[:, 0].size
    squares = np.einsum("nchw,nchw->c", images, images, dtype=np.int64)
    return np.stack([np.full_like(squares, count), images.sum(axis=(0, 2, 3), dtype=np.int64), squares])


def _mean_and_std(sums: NDArray[np.int64]) -> tuple[Colour, Colour]:
    """Mean and standard deviation of each channel in [-1, 1], from ``_power_sums``."""
    count, total, squares = sums
    mean = total / count
    std = np.sqrt((squares / count - mean**2).clip(0))
    return _rounded(mean / 127.5 - 1), _rounded(std / 127.5)


def _rounded(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue
