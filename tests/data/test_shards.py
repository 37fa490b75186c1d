"""Shards: what is written is read, and damage is named."""

import json
from pathlib import Path

import pytest
import torch

from unveil.data.shards import Shard, ShardIndex, load_images, load_tensor, verify, write_shard
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
    ShardIndex(
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
    whole = load_images(folder, "train")
    torch.testing.assert_close(load_images(folder, "train", limit), whole[:limit])
    assert load_tensor(folder, "train", "ids", limit).tolist() == list(range(1, min(limit, 12) + 1))


def test_the_digest_depends_on_every_shard(folder: Path) -> None:
    before = ShardIndex.load(folder).digest()
    values = json.loads((folder / "index.json").read_text())
    values["splits"]["valid"]["shards"][0]["sha256"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(values))
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
        load_images(folder, "train")
    path.unlink()
    with pytest.raises(UnveilError, match=r"train-00001\.safetensors"):
        load_images(folder, "train")


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_index_is_one_line(folder: Path, text: str) -> None:
    (folder / "index.json").write_text(text)
    with pytest.raises(UnveilError, match=r"index\.json") as caught:
        ShardIndex.load(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_names_those_that_are_there(folder: Path) -> None:
    with pytest.raises(UnveilError, match="train, valid, test"):
        load_images(folder, "holdout")
