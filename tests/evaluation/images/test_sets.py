"""The sets of images: the right ones, and one line for each thing that is wrong with a file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from unveil.data.shards import ShardIndex, write_shard
from unveil.errors import UnveilError
from unveil.evaluation.images.sets import (
    SetSizes,
    check_same_data,
    count_shared,
    load_real,
    load_samples,
    real_parts,
    set_sizes,
    uniform_noise,
)
from unveil.files import file_digest

FACTS = {
    "source": "cartoon",
    "protocol": "ddim",
    "image_size": 8,
    "shards": "abc",
    "steps": 18,
    "sampler": "heun",
}


def _images(ids: Tensor, size: int = 8) -> Tensor:
    """Images that are filled with their own id."""
    return ids.to(torch.uint8)[:, None, None, None].expand(-1, 3, size, size).contiguous()


def _save(path: Path, **changes: Any) -> Path:
    ids = torch.tensor([3, 0, 2, 1])
    tensors = {"images": _images(ids), "ids": ids} | changes
    metadata = {key: json.dumps(value) for key, value in FACTS.items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, path, metadata)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return _save(tmp_path / "samples.safetensors")


def _shards(folder: Path, sizes: dict[str, list[int]], first: dict[str, int] | None = None) -> ShardIndex:
    """Shards whose images is filled with their id; the ids of a split count on from ``first``."""
    folder.mkdir(exist_ok=True)
    splits = {}
    for split, parts in sizes.items():
        start = (first or {}).get(split, 0)
        shards = []
        for number, count in enumerate(parts):
            ids = torch.arange(start, start + count)
            shards.append(write_shard(folder, split, number, _images(ids), torch.zeros(count, 40).bool(), ids))
            start += count
        splits[split] = tuple(shards)
    index = ShardIndex.of(
        splits, (0.0,) * 3, (1.0,) * 3, source="cartoon", protocol="ddim", image_size=8, attributes=("Smiling",)
    )
    index.save(folder)
    return index


def test_takes_the_smallest_ids_in_order(samples: Path) -> None:
    found = load_samples(samples, 3)
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert found.images.shape == (3, 3, 8, 8) and found.images.dtype == torch.uint8
    assert (found.total, found.facts, found.sha256) == (4, FACTS, file_digest(samples))
    assert found.images_sha256 == hashlib.sha256(_images(torch.arange(3)).numpy().tobytes()).hexdigest()


def test_reads_metadata_as_one_object_or_one_value_a_key_in_a_stable_order(tmp_path: Path) -> None:
    """safetensors itself keeps no order of keys."""
    path = tmp_path / "samples.safetensors"
    for _ in range(5):
        assert list(load_samples(_save(path), 2).facts) == sorted(FACTS)
    ids = torch.arange(2)
    save_file({"images": _images(ids), "ids": ids}, path, {"facts": json.dumps(FACTS)})
    assert list(load_samples(path, 2).facts.items()) == list(FACTS.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": torch.zeros(4, 3, 8, 8)}, "images is float32 [4, 3, 8, 8], expected uint8"),
        (
            {"images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)},
            "images is uint8 [4, 1, 8, 8], expected uint8",
        ),
        (
            {"images": torch.zeros(4, 3, 8, 9, dtype=torch.uint8)},
            "images is uint8 [4, 3, 8, 9], expected uint8",
        ),
        ({"ids": torch.arange(3)}, "ids are int64 [3], expected int64 [4]"),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, "ids are 1 different, expected 4"),
        ({"ids": torch.arange(4.0)}, "ids are float32 [4]"),
        ({"ids": None}, "found ['images'], expected also ['ids']"),
    ],
)
def test_refuses_samples_that_are_none(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = _save(tmp_path / "samples.safetensors", **changes)
    with pytest.raises(UnveilError) as error:
        load_samples(path, 2)
    assert str(path) in str(error.value) and said in str(error.value) and "dvc repro sample" in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_a_missing_file_and_any_part_of_one(samples: Path) -> None:
    whole = samples.read_bytes()
    for kept in (0, 4, 60, len(whole) // 2, len(whole) - 1):
        samples.write_bytes(whole[:kept])
        with pytest.raises(UnveilError, match=r"damaged or not a safetensors file .*; run `dvc repro sample`"):
            load_samples(samples, 2)
    samples.unlink()
    with pytest.raises(UnveilError, match="no such file"):
        load_samples(samples, 2)


def test_refuses_too_few_samples(samples: Path) -> None:
    with pytest.raises(UnveilError, match=r"evaluate\.num_images: found 5, but .* holds 4 samples; .*num_samples"):
        load_samples(samples, 5)


def test_refuses_metadata_that_say_too_little(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    ids = torch.arange(2)
    save_file({"images": _images(ids), "ids": ids}, path, {"protocol": '"ddim"', "source": '"cartoon"'})
    with pytest.raises(UnveilError, match="metadata: image_size is missing"):
        load_samples(path, 2)
    save_file({"images": _images(ids), "ids": ids}, path, {"protocol": "ddim"})
    with pytest.raises(UnveilError, match="metadata: not valid JSON"):
        load_samples(path, 2)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("eta", "NaN", "not valid JSON"),
        ("eta", "-Infinity", "not valid JSON"),
        ("eta", "1e999", "found Infinity, expected a number"),
        ("eta", "9" * 400, "expected a number of at most 64 bits"),
        ("sampler", '"\\ud800"', "not valid JSON"),
        ("config", '"text"', 'config: found "text", expected an object'),
        ("model", "3", "model: found 3, expected a valid string"),
        ("image_size", "8.0", "image_size: found 8.0, expected a valid integer"),
        ("protocol", '"squish"', 'protocol: found "squish"'),
        ("images_from", '"elsewhere"', "images_from: found"),
        ("deep", "[" * 300 + "]" * 300, "not valid JSON (recursion limit"),
    ],
)
def test_facts_that_would_break_the_card_are_refused(samples: Path, key: str, value: str, said: str) -> None:
    ids = torch.arange(4)
    text = json.dumps(FACTS | {key: "@"}).replace('"@"', value)
    save_file({"images": _images(ids), "ids": ids}, samples, {"facts": text})
    with pytest.raises(UnveilError) as caught:
        load_samples(samples, 2)
    line = str(caught.value)
    assert line.startswith(f"{samples}: metadata: ") and said in line and line.endswith("; run `dvc repro sample`")
    assert line.isprintable()


def test_samples_and_shards_must_agree(samples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    index = _shards(folder, {"train": [4], "test": [4]})
    found = load_samples(samples, 2)
    with pytest.raises(UnveilError) as error:
        check_same_data(samples, found, folder, index)
    for word in ("shards is 'abc'", index.digest(), str(samples), "index.json", "dvc repro"):
        assert word in str(error.value)
    found.facts["shards"] = index.digest()
    assert check_same_data(samples, found, folder, index) == ()
    for key, other in (("protocol", "gan"), ("source", "celeba")):
        right, found.facts[key] = found.facts[key], other
        with pytest.raises(UnveilError, match=f"{key} is '{other}', but .* has '{right}'"):
            check_same_data(samples, found, folder, index)
        found.facts[key] = right
    found.facts["image_size"] = 16
    with pytest.raises(UnveilError, match="images of 8 pixels, but its metadata says 16"):
        check_same_data(samples, found, folder, index)


def _foreign(folder: Path, kind: str, images: Tensor) -> Path:
    """The images as somebody else's samples."""
    rows = images.permute(0, 2, 3, 1).contiguous()
    if kind == "folder":
        (folder / "peer").mkdir()
        for number, pixels in enumerate(rows.numpy()):
            Image.fromarray(pixels).save(folder / "peer" / f"{number}.png")
        return folder / "peer"
    path = folder / f"peer.{kind}"
    if kind == "npz":
        np.savez(path, rows.numpy())
    else:
        save_file({"x": rows}, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("kind", ["folder", "npz", "safetensors"])
def test_anybodys_samples_are_compared_as_far_as_they_say_what_they_are(tmp_path: Path, kind: str) -> None:
    shards = tmp_path / "shards"
    index = _shards(shards, {"train": [4], "test": [4]})
    images = _images(torch.arange(11))
    path = _foreign(tmp_path, kind, images)
    found = load_samples(path, 10)
    assert torch.equal(found.images, images[:10]) and found.total == 11 and found.foreign
    assert found.images_sha256 == hashlib.sha256(images[:10].numpy().tobytes()).hexdigest()
    assert found.facts["image_size"] == 8 and "lossy" not in found.facts
    assert {"source", "protocol", "shards", "model", "sampler"} <= set(found.unknown)
    assert check_same_data(path, found, shards, index) == ("source", "protocol", "shards")
    stated = load_samples(path, 10, protocol="ddim")
    assert check_same_data(path, stated, shards, index) == ("source", "shards") and "protocol" not in stated.unknown
    other = load_samples(path, 10, protocol="gan")
    with pytest.raises(UnveilError, match=r"protocol is 'gan', but .* has 'ddim'; .*; preprocess with that protocol"):
        check_same_data(path, other, shards, index)
    with pytest.raises(UnveilError, match=r"found 'ddmi', expected ddim \| score-sde"):
        load_samples(path, 10, protocol="ddmi")


def test_anybodys_samples_of_another_size_are_refused(tmp_path: Path) -> None:
    index = _shards(tmp_path / "shards", {"train": [4]})
    path = _foreign(tmp_path, "npz", _images(torch.arange(3), size=16))
    found = load_samples(path, 2)
    with pytest.raises(UnveilError, match=r"image_size is 16, but .* has 8; .*; preprocess with that image_size"):
        check_same_data(path, found, tmp_path / "shards", index)


def test_a_protocol_that_is_stated_for_a_file_that_says_its_own_must_be_that(samples: Path) -> None:
    assert not load_samples(samples, 2, protocol="ddim").foreign
    with pytest.raises(UnveilError, match="protocol is 'ddim', but 'gan' is stated"):
        load_samples(samples, 2, protocol="gan")


@pytest.mark.parametrize("suffix", [".npy", ".pkl", ".zip", ".pt"])
def test_other_kinds_of_files_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"samples{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(UnveilError, match=f"found a \\{suffix} file, expected .safetensors, .npz or a folder"):
        load_samples(path, 2)


@pytest.mark.parametrize("parts", [[12], [5, 4, 3], [1, 1, 10]])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_real_images_are_spread_over_all_shards(tmp_path: Path, parts: list[int], count: int) -> None:
    index = _shards(tmp_path / "shards", {"train": parts, "test": [20]})
    found = load_real(tmp_path / "shards", index, "train", count)
    assert found.shape == (count, 3, 8, 8) and found.dtype == torch.uint8
    assert found[:, 2, 7, 7].tolist() == [i * 12 // count for i in range(count)]
    in_parts = list(real_parts(tmp_path / "shards", index, "train", count))
    assert torch.equal(torch.cat(in_parts), found)
    assert len(in_parts) <= len(parts) and max(map(len, in_parts)) <= max(parts)


def test_refuses_a_split_that_is_too_small(tmp_path: Path) -> None:
    index = _shards(tmp_path / "shards", {"train": [6, 6], "test": [3], "valid": []})
    for split, total in (("train", 12), ("test", 3), ("valid", 0)):
        with pytest.raises(UnveilError, match=rf"the {split} split has {total} images, expected 13 or more"):
            load_real(tmp_path / "shards", index, split, 13)


@pytest.mark.parametrize(
    ("num_images", "reference_images", "expected"),
    [
        (3, 5, SetSizes(3, 5, 3)),
        (3, 12, SetSizes(3, 12, 3)),
        (3, 0, SetSizes(3, 12, 3)),  # 0 = all of the reference split
        (6, 6, SetSizes(6, 6, 6)),
        (7, 0, SetSizes(7, 12, 6)),  # the held-out split has no more
        (50_000, 2, SetSizes(50_000, 2, 6)),
    ],
)
def test_sizes_follow_the_parameters_and_the_splits(
    tmp_path: Path, num_images: int, reference_images: int, expected: SetSizes
) -> None:
    index = _shards(tmp_path / "shards", {"train": [6, 6], "test": [6]})
    found = set_sizes(tmp_path / "shards", index, ("train", "test"), num_images, reference_images, subset_size=2)
    assert found == expected


@pytest.mark.parametrize(
    ("splits", "reference_images", "subset_size", "said"),
    [
        (("train", "test"), 13, 2, "evaluate.reference_images: found 13, but the train split"),
        (("train", "test"), 0, 4, "evaluate.kid_subset_size: found 4, but the test split"),
        (("test", "train"), 0, 4, "evaluate.kid_subset_size: found 4, but the test split"),
        (("train", "test"), 5, 6, "evaluate.kid_subset_size: found 6, but the train split"),
        (("train", "valid"), 0, 2, "evaluate.held_out_split: the valid split"),
        (("valid", "train"), 0, 2, "evaluate.reference_split: the valid split"),
        (("train", "nothing"), 0, 2, "evaluate.held_out_split: the nothing split"),
    ],
)
def test_refuses_sizes_that_the_splits_do_not_have(
    tmp_path: Path, splits: tuple[str, str], reference_images: int, subset_size: int, said: str
) -> None:
    folder = tmp_path / "shards"
    index = _shards(folder, {"train": [6, 6], "test": [3], "valid": []})
    with pytest.raises(UnveilError) as error:
        set_sizes(folder, index, splits, 8, reference_images, subset_size)
    assert str(error.value).startswith(said) and str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_refuses_a_damaged_shard(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "shards"
    index = _shards(folder, {"train": [6, 6]})
    last = folder / index.shards("train")[1].file
    if damage == "half":
        last.write_bytes(last.read_bytes()[:500])
    else:
        last.unlink()
    with pytest.raises(UnveilError, match=f"{last.name}: (not there|damaged).*run the preprocess stage again"):
        load_real(folder, index, "train", 4)


def test_counts_images_that_are_in_both_sets(tmp_path: Path) -> None:
    """With ``train`` holding all 20 images, the held-out ones are 14 to 19."""
    index = _shards(tmp_path / "shards", {"train": [20], "test": [6]}, first={"test": 14})
    for held_out, reference in ((6, 6), (6, 9), (3, 6), (6, 20), (4, 20)):
        taken = {14 + i * 6 // held_out for i in range(held_out)} & {i * 20 // reference for i in range(reference)}
        found = count_shared(tmp_path / "shards", index, ("test", held_out), ("train", reference))
        assert found == len(taken)
        assert found == held_out or reference < 20
    apart = _shards(tmp_path / "shards", {"train": [14], "test": [6]}, first={"test": 14})
    assert count_shared(tmp_path / "shards", apart, ("test", 6), ("train", 14)) == 0


def test_noise_is_uniform_and_its_seed_decides() -> None:
    noise = uniform_noise(40, 32, seed=0)
    assert noise.shape == (40, 3, 32, 32) and noise.dtype == torch.uint8
    counts = torch.bincount(noise.flatten().int(), minlength=256).double()
    expected = noise.numel() / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5  # five standard deviations of chi^2 with 255 degrees
    assert torch.equal(noise, uniform_noise(40, 32, seed=0))
    assert not torch.equal(noise, uniform_noise(40, 32, seed=1))
