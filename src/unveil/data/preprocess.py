"""From the raw archive to shards: decode, crop, resize and pack, without unpacking the archive."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from unveil.data import protocols
from unveil.data.celeba import ATTRIBUTES, IMAGE_FOLDER, SPLITS, ZIP_NAME, read_attributes, read_partition
from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.shards import Shard, ShardIndex, write_shard
from unveil.data.sources.facts import SourceRecord, worker_count
from unveil.errors import UnveilError
from unveil.files import atomic_directory

IMAGES_PER_TASK = 64
JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True)
class _Batch:
    """Some images of a split: uint8 [n, 3, S, S], their rows in the annotations, and what could not be read."""

    images: Tensor
    rows: list[int]
    corrupt: list[tuple[str, str]]


def decode(data: bytes) -> Tensor:
    """Decode a JPEG, or any image that Pillow reads, to RGB: uint8 [3, H, W].

    JPEGs go through libjpeg-turbo into a tensor directly: the same pixels as Pillow's, sooner.

    Raises:
        ValueError: if the bytes are not a whole image.
    """
    try:
        if data.startswith(JPEG_MAGIC):
            # decode_jpeg reads only, but PyTorch wants to hear that the buffer is not writable.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                encoded = torch.frombuffer(data, dtype=torch.uint8)
            return decode_jpeg(encoded, ImageReadMode.RGB)
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (RuntimeError, OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else "not an image") from None


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

    Args:
        raw: folder that download wrote.
        destination: folder for the shards and ``index.json``.
        protocol: name of the crop and resize.
        image_size: height and width of the results in pixels.
        shard_size: images a shard; memory is about one shard's.
        on_corrupt: ``error`` stops at the first unreadable image; ``skip`` leaves it out and lists it.
        workers: threads that decode, 0 = one for each core. The bytes written do not depend on it.
        say: receives lines of progress.

    Raises:
        UnveilError: if the raw folder is incomplete, an image is unreadable, or a split ends up empty.
    """
    record = SourceRecord.load(raw)
    chosen = PROTOCOLS[protocol]
    names, attributes = read_attributes(raw)
    partition_names, partition = read_partition(raw)
    if names != partition_names:
        raise UnveilError(f"{raw}: the attribute and partition files list different images; run download again")
    flags = torch.from_numpy(attributes)
    splits: dict[str, tuple[Shard, ...]] = {}
    corrupt: list[str] = []
    moments = _Moments()
    with (
        atomic_directory(destination) as folder,
        _open_archive(raw / ZIP_NAME) as archive,
        ThreadPoolExecutor(worker_count(workers), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for number, split in enumerate(SPLITS):
            everything = split == "train" and chosen.images == "all"
            rows = np.arange(len(names)) if everything else np.flatnonzero(partition == number)
            batches = _decode_all(pool, worker_count(workers), archive, names, rows, chosen, image_size)
            shards: list[Shard] = []
            for kept, lost in _gather(batches, shard_size, on_corrupt, raw / ZIP_NAME):
                corrupt += lost
                if len(kept.rows):
                    ids = torch.tensor([_image_id(names[row]) for row in kept.rows])
                    shards.append(write_shard(folder, split, len(shards), kept.images, flags[kept.rows], ids))
                    if split == "train":
                        moments.add(kept.images)
                    say(f"{split}: {sum(shard.images for shard in shards)} of {len(rows)} images")
            if not shards:
                raise UnveilError(f"{raw}: no readable image in split {split!r}; at least one is needed")
            splits[split] = tuple(shards)
        mean, std = moments.mean_and_std()
        index = ShardIndex(
            source=record.source,
            protocol=protocol,
            image_size=image_size,
            attributes=ATTRIBUTES,
            splits=splits,
            mean=mean,
            std=std,
            corrupt=tuple(dict.fromkeys(corrupt)),  # with `all`, an image is met twice
            train_holds=chosen.images,
        )
        index.save(folder)
    return index


class _Moments:
    """Mean and standard deviation of each channel in [-1, 1], from exact integer sums."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros(3, dtype=torch.int64)
        self.squares = torch.zeros(3, dtype=torch.int64)

    def add(self, images: Tensor) -> None:
        for part in images.split(1024):  # int64 is eight times the size
            wide = part.to(torch.int64)
            self.total += wide.sum((0, 2, 3))
            self.squares += wide.square().sum((0, 2, 3))
        self.count += images[:, 0].numel()

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean = self.total.double() / self.count
        std = (self.squares.double() / self.count - mean.square()).clamp_min(0).sqrt()
        return tuple(round(x / 127.5 - 1, 6) for x in mean.tolist()), tuple(round(x / 127.5, 6) for x in std.tolist())


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there, expected CelebA's archive; run the download stage") from None
    except zipfile.BadZipFile:
        raise UnveilError(f"{path}: not a whole zip archive; run the download stage again") from None


def _image_id(name: str) -> int:
    return int(Path(name).stem)


def _decode_all(
    pool: ThreadPoolExecutor,
    workers: int,
    archive: zipfile.ZipFile,
    names: list[str],
    rows: np.ndarray,
    protocol: Protocol,
    image_size: int,
) -> Iterator[_Batch]:
    """Decoded batches in order. Only a few are under way at once, so memory does not grow with the data set."""

    def work(part: np.ndarray) -> _Batch:
        images, kept, corrupt = [], [], []
        for row in part.tolist():
            try:
                data = archive.read(f"{IMAGE_FOLDER}/{names[row]}")
                images.append(protocols.crop(decode(data), protocol))
                kept.append(row)
            except (ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
                corrupt.append((names[row], str(error).strip("'\"")))
        resized = protocols.resize_all(images, image_size, protocol.resize)
        return _Batch(resized, kept, corrupt)

    tasks = iter(np.array_split(rows, max(1, -(-len(rows) // IMAGES_PER_TASK))))
    pending = [pool.submit(work, part) for part in islice(tasks, 4 * workers)]
    while pending:
        batch = pending.pop(0).result()
        pending += [pool.submit(work, part) for part in islice(tasks, 1)]
        yield batch


def _gather(
    batches: Iterator[_Batch], shard_size: int, on_corrupt: str, archive: Path
) -> Iterator[tuple[_Batch, list[str]]]:
    """Regroup batches into shards of ``shard_size`` images, with the names of those left out since the last."""
    images: list[Tensor] = []
    rows: list[int] = []
    lost: list[str] = []
    for batch in batches:
        if batch.corrupt and on_corrupt == "error":
            name, reason = batch.corrupt[0]
            raise UnveilError(
                f"{archive}: {name} cannot be used ({reason}); "
                "replace it, or set preprocess.on_corrupt to skip to leave out and list such images"
            )
        lost += [name for name, _ in batch.corrupt]
        images.append(batch.images)
        rows += batch.rows
        while len(rows) >= shard_size:
            together = torch.cat(images)
            yield _Batch(together[:shard_size], rows[:shard_size], []), lost
            images, rows, lost = [together[shard_size:]], rows[shard_size:], []
    if rows or lost:
        yield _Batch(torch.cat(images), rows, []), lost
