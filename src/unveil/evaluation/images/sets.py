"""The four sets of images that an evaluation compares: samples, reference, held-out images, noise."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor

from unveil.data.config import ProtocolName, SourceName
from unveil.data.order import spread
from unveil.data.protocols import PROTOCOLS
from unveil.data.shards import ShardIndex, open_shard
from unveil.errors import UnveilError
from unveil.evaluation.images.foreign import (
    IMAGE_SUFFIXES,
    SHARED_FACTS,
    SampleFile,
    check_count,
    check_images,
    read_folder,
    read_npz,
    read_safetensors,
    stored_arrays,
)
from unveil.files import file_digest, parse_json, regular
from unveil.section import Key, Side
from unveil.tensors import open_tensors

MEND = "run `dvc repro sample`"


class _Metadata(BaseModel):
    """What must be right in the metadata of the sample stage's file; what else it says goes into the card."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
    source: SourceName
    protocol: ProtocolName
    image_size: Side
    shards: Key
    model: Key | None = None
    config: dict[str, JsonValue] | None = None
    weights: Key = "ema"
    attributes: tuple[Key, ...] = ()
    images_from: None = None  # which only samples of others say


def load_samples(path: Path, count: int, protocol: str | None = None) -> SampleFile:
    """``count`` samples of the sample stage or of anybody's generator.

    Of the sample stage's file those with the smallest ids: sample i depends on (seed, i) alone, so these are the same
    images for any longer run. Of other files, and of a folder in natural order, the first; see
    :mod:`unveil.evaluation.images.foreign`.

    ``path`` is a safetensors file, an ``.npz``, or a folder of images, ``protocol`` what the user states for samples
    that do not say it themselves.

    Raises UnveilError for what is missing, damaged, of another type or shape, too short, or says another protocol.
    """
    if path.is_dir():
        return _foreign(path, read_folder(path, count), protocol)
    if not path.exists():
        raise UnveilError(f"{path}: no such file, expected the samples; {MEND}")
    if regular(path).suffix.lower() == ".npz":
        return _foreign(path, read_npz(path, count), protocol)
    image = path.suffix.lower() in IMAGE_SUFFIXES
    if image or path.suffix.lower() in (".npy", ".pkl", ".pickle", ".pt", ".pth", ".zip", ".tar", ".gz"):
        found, mend = ("one image", "name its folder") if image else (f"a {path.suffix} file", "write one of them")
        raise UnveilError(f"{path}: found {found}, expected .safetensors, .npz or a folder of images; {mend}")
    with open_tensors(path, MEND) as file:
        metadata: dict[str, str] = file.metadata() or {}
    if not metadata.keys() & {"facts", *SHARED_FACTS} - {"source"}:  # which others write, too
        return _foreign(path, read_safetensors(path, count), protocol)
    samples = _own_samples(path, count, metadata)
    if protocol is not None and samples.facts["protocol"] != protocol:
        raise UnveilError(
            f"{path}: protocol is {samples.facts['protocol']!r}, but {protocol!r} is stated; state none, "
            "the file says it"
        )
    return samples


def _own_samples(path: Path, count: int, metadata: dict[str, str]) -> SampleFile:
    with open_tensors(path, MEND) as file:
        arrays = stored_arrays(file)
        if missing := {"images", "ids"} - arrays.keys():
            raise UnveilError(f"{path}: found {sorted(arrays)[:4]}, expected also {sorted(missing)}; {MEND}")
        check_images(path, "images", *arrays["images"], MEND)
        total = arrays["images"][1][0]
        if arrays["ids"] != ("int64", (total,)):
            kind, shape = arrays["ids"]
            raise UnveilError(f"{path}: ids are {kind} {list(shape)}, expected int64 [{total}]; {MEND}")
        images, ids = file.get_tensor("images"), file.get_tensor("ids")
        told = file.get_tensor("attributes") if "attributes" in arrays else None
    if (different := len(ids.unique())) != total:
        raise UnveilError(f"{path}: ids are {different} different, expected {total}; {MEND}")
    check_count(path, total, count, "raise sample.num_samples")
    facts, order = _facts(path, metadata), ids.argsort()[:count]
    expected = None if told is None else ("int8", (total, len(facts.get("attributes", ()))))
    if told is not None and arrays["attributes"] != expected:
        kind, shape = arrays["attributes"]
        raise UnveilError(f"{path}: attributes are {kind} {list(shape)}, expected int8 of {total} images; {MEND}")
    # In their order already, as the sample stage writes them: then none is copied.
    used = images[:count] if torch.equal(order, torch.arange(count)) else images[order]
    return SampleFile(used, total, file_digest(path), facts, None if told is None else told[order])


def _foreign(path: Path, found: SampleFile, protocol: str | None) -> SampleFile:
    if protocol is None:
        return found
    if protocol not in PROTOCOLS:
        raise UnveilError(f"protocol of {path}: found {protocol!r}, expected {' | '.join(PROTOCOLS)}")
    return replace(found, facts=found.facts | {"protocol": protocol})


def _facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata with its values decoded from JSON: one object under one key, or one value a key.

    Sorted in the second case, because safetensors keeps no order of keys.
    """
    pairs = ", ".join(f"{json.dumps(key)}: {metadata[key]}" for key in sorted(metadata))
    text = metadata["facts"] if metadata.keys() == {"facts"} else f"{{{pairs}}}"
    parse_json(text, _Metadata, f"{path}: metadata", MEND)
    facts: dict[str, Any] = json.loads(text)
    return facts


def check_same_data(path: Path, samples: SampleFile, folder: Path, index: ShardIndex) -> tuple[str, ...]:
    """Compare all that the samples say with these shards; what they do not say, they cannot be asked.

    Returns:
        The facts that could not be compared, none for the sample stage's file: of another generator's samples nobody
        knows whether its training images were cropped and resized as these.

    Raises UnveilError if the samples are of another size, or say that their model was trained on other images.
    """
    shards = {key: index.digest() if key == "shards" else getattr(index, key) for key in SHARED_FACTS}
    size = samples.images.shape[-1]
    if size != samples.facts["image_size"]:
        raise UnveilError(
            f"{path}: images of {size} pixels, but its metadata says {samples.facts['image_size']}; "
            f"run `dvc repro sample`"
        )
    for key, expected in shards.items():
        if key in samples.facts and samples.facts[key] != expected:
            mend = f"preprocess with that {key}" if samples.foreign else "run `dvc repro`"
            raise UnveilError(
                f"{path}: {key} is {samples.facts[key]!r}, but {folder / 'index.json'} has {expected!r}; "
                f"a distance between the two means nothing; {mend}"
            )
    return tuple(key for key in shards if key not in samples.facts)


@dataclass(frozen=True)
class SetSizes:
    """Images of each set; the noise has as many as the samples."""

    samples: int
    reference: int
    held_out: int


def set_sizes(
    folder: Path,
    index: ShardIndex,
    splits: tuple[str, str],
    num_images: int,
    reference_images: int,
    subset_size: int,
    least: int = 2,
) -> SetSizes:
    """How many images each set of an evaluation has, with what these shards hold.

    ``splits`` are of the reference and of the held-out images. ``num_images`` is N, the samples; the held-out set has
    as many, or all of its split if that has fewer. ``reference_images`` may be 0, for all. No set may fall short of
    ``subset_size``, KID's, or of ``least``, for what is measured on it.

    Raises UnveilError if a split has too few images.
    """
    reference, held_out = (index.num_images(split) for split in splits)
    if reference_images > reference:
        raise UnveilError(
            f"evaluate.reference_images: found {reference_images}, but the {splits[0]} split of {folder} has "
            f"{reference} images; lower it to {reference} or less, or set 0 for all"
        )
    sizes = SetSizes(num_images, reference_images or reference, min(num_images, held_out))
    keys = ("evaluate.reference_split", "evaluate.held_out_split")
    for key, split, count in zip(keys, splits, (sizes.reference, sizes.held_out), strict=True):
        if count < least:
            raise UnveilError(f"{key}: the {split} split of {folder} gives {count} images, expected {least} or more")
        if count < subset_size:
            raise UnveilError(
                f"evaluate.kid_subset_size: found {subset_size}, but the {split} split of {folder} gives "
                f"{count} images; lower it to {count} or less"
            )
    return sizes


def load_real(folder: Path, index: ShardIndex, split: str, count: int) -> Tensor:
    """``count`` images of a split, spread evenly over it in id order: uint8 [count, 3, size, size].

    Reads only these images. Raises UnveilError if the split has fewer, or a shard cannot be read.
    """
    return torch.cat(list(real_parts(folder, index, split, count)))


def load_ids(folder: Path, index: ShardIndex, split: str, count: int) -> Tensor:
    """The ids of the images of ``load_real``: int64 [count]."""
    return torch.cat(list(real_parts(folder, index, split, count, "ids")))


def count_shared(folder: Path, index: ShardIndex, one: tuple[str, int], other: tuple[str, int]) -> int:
    """How many of the images that ``load_real`` takes from one split it also takes from the other.

    Each of the two is the name of a split and the images that are taken from it. More than none are
    shared where ``train`` holds all images, as in the protocol adm-ip.
    """
    ids, others = (load_ids(folder, index, split, count) for split, count in (one, other))
    return int(torch.isin(ids, others).sum())


def real_parts(folder: Path, index: ShardIndex, split: str, count: int, name: str = "images") -> Iterator[Tensor]:
    """The images of ``load_real``, or their ids, a shard at a time: a whole split need not fit into memory."""
    if (total := index.num_images(split)) < count:
        raise UnveilError(f"{folder}: the {split} split has {total} images, expected {count} or more")
    places = spread(total, count)
    start = 0
    for shard in index.shards(split):
        rows = places[(places >= start) & (places < start + shard.images)] - start
        start += shard.images
        if len(rows):
            with open_shard(folder, shard, name) as tensor:
                whole = len(rows) == shard.images
                yield tensor[:] if whole else torch.cat([tensor[row : row + 1] for row in rows.tolist()])


def uniform_noise(count: int, image_size: int, seed: int) -> Tensor:
    """Images whose values are independent and uniform in 0..255: uint8 [count, 3, size, size]."""
    shape = (count, 3, image_size, image_size)
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8))
