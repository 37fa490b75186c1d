"""Shards: what is written is read, and damage is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.data.batches import Batches, StreamedSplit
from unveil.data.shards import Shard, ShardIndex, load_tensor, verify, write_shard
from unveil.errors import UnveilError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, list[Shard]] = {"train": [], "valid": [], "test": []}
    first = 1
    for split, sizes in (("train", (5, 5, 2)), ("valid", (1,)), ("test", (3,))):
        for number, size in enumerate(sizes):
            images = torch.randint(256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
            ids = torch.arange(first, first + size)
            first += size
            flags = torch.rand(size, 40, generator=generator) < 0.5
            shards[split].append(write_shard(tmp_path, split, number, images, flags, ids))
    ShardIndex.of(
        source="cartoon",
        protocol="ddim",
        image_size=8,
        attributes=("Smiling",),
        splits={name: tuple(rows) for name, rows in shards.items()},
        mean=(0.0, 0.1, 0.2),
        std=(1.0, 1.0, 1.0),
    ).save(tmp_path)
    return tmp_path


def test_the_index_comes_back_whole(folder: Path) -> None:
    index = ShardIndex.load(folder)
    assert (index.source, index.protocol, index.image_size) == ("cartoon", "ddim", 8)
    assert [index.num_images(split) for split in ("train", "valid", "test")] == [12, 1, 3]
    index.save(folder)
    assert ShardIndex.load(folder) == index


@pytest.mark.parametrize("limit", [1, 5, 6, 12, 50])
def test_a_limit_takes_the_first_images_across_shards(folder: Path, limit: int) -> None:
    whole = load_tensor(folder, "train")
    torch.testing.assert_close(load_tensor(folder, "train", limit=limit), whole[:limit])
    assert load_tensor(folder, "train", "ids", limit).tolist() == list(range(1, min(limit, 12) + 1))


def test_the_digest_depends_on_every_shard(folder: Path) -> None:
    before = ShardIndex.load(folder).digest()
    _edit(folder, "0" * 64, "splits", "valid", "shards", 0, "sha256")
    assert ShardIndex.load(folder).digest() != before


def test_a_changed_or_missing_shard_is_named(folder: Path) -> None:
    verify(folder, ["train", "valid", "test"])
    path = folder / "train-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    verify(folder, ["test"])
    with pytest.raises(UnveilError, match=r"train-00001\.safetensors"):
        verify(folder, ["train"])
    path.write_bytes(data[:100])
    with pytest.raises(UnveilError, match=r"train-00001\.safetensors: damaged"):
        load_tensor(folder, "train")
    path.unlink()
    with pytest.raises(UnveilError, match=r"train-00001\.safetensors"):
        load_tensor(folder, "train")


def _edit(folder: Path, value: object, *keys: str | int) -> None:
    """Put a value in the place of another in the index, or of all of it."""
    values = {"": json.loads((folder / "index.json").read_text())}
    *way, last = ("", *keys)
    at: Any = values
    for key in way:
        at = at[key]
    at[last] = value
    (folder / "index.json").write_text(json.dumps(values[""]))


FIRST = ("splits", "train", "shards", 0)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        ((*FIRST, "images"), "12", 'splits.train.shards.0.images: found "12", expected a valid integer'),
        ((*FIRST, "images"), 12.0, "splits.train.shards.0.images: found 12.0, expected a valid integer"),
        ((*FIRST, "images"), None, "splits.train.shards.0.images: found null, expected a valid integer"),
        ((*FIRST, "images"), -1, "splits.train.shards.0.images: found -1, expected greater than or equal to 1"),
        ((*FIRST, "images"), float("nan"), "not valid JSON"),
        ((*FIRST, "file"), 7, "splits.train.shards.0.file: found 7, expected a valid string"),
        ((*FIRST, "file"), "../../etc/passwd", "expected the name of a file in the same folder"),
        ((*FIRST, "file"), "a/b", "expected the name of a file in the same folder"),
        ((*FIRST, "file"), "\0", "expected the name of a file in the same folder"),
        ((*FIRST, "sha256"), "0" * 63, "expected 64 hexadecimal digits"),
        (("splits",), [], "splits: found [], expected an object"),
        (("splits", "train", "more"), 1, "splits.train.more: unknown key"),
        (("image_size",), 10**9, "image_size: found 1000000000, expected less than or equal to 4096"),
        (("protocol",), "squish", "protocol: found \"squish\", expected 'ddim'"),
        (("format",), 2, "format: found 2, expected 1"),
        ((), [], "found [], expected an object"),
        ((), {"format": 99}, "format: found 99, expected 1"),
        ((), {"format": 1}, "source is missing"),
    ],
)
def test_a_value_of_the_index_that_cannot_be_is_named(
    folder: Path, keys: tuple[str | int, ...], value: object, said: str
) -> None:
    _edit(folder, value, *keys)
    with pytest.raises(UnveilError) as caught:
        ShardIndex.load(folder)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'index.json'}: ") and said in line and line.isprintable()
    assert line.endswith("; run the preprocess stage again")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        '{"source": "café"}'.encode("latin-1"),
        '{"format": 1}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"format": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe\x00",
        b"\x00",
    ],
    ids=["empty", "words", "latin-1", "utf-16", "brackets", "digits", "noise", "zero"],
)
def test_an_index_that_is_no_json_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(UnveilError, match=r"index\.json: not valid JSON \(.*\); run the preprocess stage again$"):
        ShardIndex.load(folder)


def test_a_shard_that_is_not_what_the_index_says_is_seen_before_there_is_memory_for_it(folder: Path) -> None:
    _edit(folder, 10**15, *FIRST, "images")
    reads: tuple[Callable[[], object], ...] = (
        lambda: load_tensor(folder, "train"),
        lambda: Batches(StreamedSplit(folder, ShardIndex.load(folder).shards("train")), 2, 0, horizontal_flip=False),
    )
    for read in reads:
        with pytest.raises(UnveilError, match=r"images are U8 \[5, 3, 8, 8\], expected U8 of 1000000000000000 images"):
            read()
    _edit(folder, 5, *FIRST, "images")
    _edit(folder, 16, "image_size")
    with pytest.raises(UnveilError, match=r"train-00000\.safetensors: images of 3 x 8 x 8, but index\.json says 16"):
        verify(folder, ["train"])


def test_an_unknown_split_names_those_that_are_there(folder: Path) -> None:
    with pytest.raises(UnveilError, match="train, valid, test"):
        load_tensor(folder, "holdout")
