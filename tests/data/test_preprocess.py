"""From an archive in CelebA's format to shards: same bytes, nothing silent, nothing lost."""

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.archives import face, make_celeba

from unveil.data import preprocess as module
from unveil.data.celeba import ATTRIBUTES_FILE, PARTITION_FILE, read_annotations
from unveil.data.config import Celeba, Download
from unveil.data.preprocess import decode, preprocess
from unveil.data.shards import ShardIndex, load_tensor, write_shard
from unveil.data.sources import fetch
from unveil.errors import UnveilError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    celeba = make_celeba(tmp_path / "celeba", num_images=30)
    fetch(folder, Download(source="celeba", celeba=Celeba(path=celeba)), say=lambda line: None)
    return folder


def run(raw: Path, **changes: Any) -> ShardIndex:
    settings: dict[str, Any] = {
        "protocol": "ddim",
        "image_size": 16,
        "shard_size": 100,
        "on_corrupt": "error",
        "workers": 1,
    }
    return preprocess(raw, raw.parent / "shards", **(settings | changes))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def rewrite(raw: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Replace members of the archive; None leaves one out."""
    path = raw / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if (new := change(name, data)) is not None:
                archive.writestr(name, new)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_number_of_workers_and_of_runs_changes_no_byte(raw: Path) -> None:
    found = []
    for workers in (1, 2, 5, 1):
        run(raw, workers=workers)
        found.append(hashes(raw.parent / "shards"))
    assert all(one == found[0] for one in found)


def test_rows_stay_together(raw: Path) -> None:
    run(raw, shard_size=4)
    folder = raw.parent / "shards"
    names, (signs, numbers) = read_annotations(raw / ATTRIBUTES_FILE, raw / PARTITION_FILE)
    attributes, partition = signs == 1, numbers[:, 0]
    with zipfile.ZipFile(raw / "img_align_celeba.zip") as archive:
        for number, split in enumerate(("train", "valid", "test")):
            rows = np.flatnonzero(partition == number)
            assert load_tensor(folder, split, "ids").tolist() == [int(names[row][:6]) for row in rows]
            assert (load_tensor(folder, split, "attributes").numpy() == attributes[rows]).all()
            for row, image in zip(rows, load_tensor(folder, split), strict=True):
                with Image.open(io.BytesIO(archive.read(f"img_align_celeba/{names[row]}"))) as original:
                    theirs = original.crop((25, 57, 153, 185)).resize((16, 16), Image.Resampling.BILINEAR)
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(theirs))


@pytest.mark.parametrize("shard_size", [1, 6, 18, 100])
def test_shards_have_the_size_asked_for(raw: Path, shard_size: int) -> None:
    index = run(raw, shard_size=shard_size)
    for split in index.splits:
        sizes = [shard.images for shard in index.shards(split)]
        assert sum(sizes) == index.num_images(split)
        assert all(size == shard_size for size in sizes[:-1])
        assert 0 < sizes[-1] <= shard_size
    whole = load_tensor(raw.parent / "shards", "train")
    torch.testing.assert_close(load_tensor(raw.parent / "shards", "train", limit=7), whole[:7])


def test_the_moments_are_those_of_the_train_split(raw: Path) -> None:
    index = run(raw)
    pixels = load_tensor(raw.parent / "shards", "train").numpy() / 127.5 - 1
    np.testing.assert_allclose(index.moments.mean, pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(index.moments.std, pixels.std((0, 2, 3)), atol=1e-6)


def test_adm_ip_trains_on_all_images(raw: Path) -> None:
    index = run(raw, protocol="adm-ip")
    assert index.num_images("train") == 30
    assert index.train_holds == "all"
    held_out = set(load_tensor(raw.parent / "shards", "test", "ids").tolist())
    assert held_out < set(load_tensor(raw.parent / "shards", "train", "ids").tolist())


def test_the_digest_names_pixels_and_protocol(raw: Path) -> None:
    digests = {run(raw, protocol=name, image_size=size).digest() for name in ("ddim", "gan") for size in (16, 32)}
    assert len(digests) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 92, "subsampling": 0},
        {"quality": 92, "subsampling": 2},
        {"quality": 80, "progressive": True},
        {"quality": 80, "optimize": True},
    ],
)
def test_decodes_jpegs_as_pillow_does(options: dict[str, Any]) -> None:
    data = encoded(face(np.random.default_rng(1)), **options)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data), np.asarray(image))


FAST = [{"quality": 92, "subsampling": 0}, {"quality": 75, "progressive": True}]


@pytest.mark.parametrize("options", FAST)
def test_the_fast_dct_is_one_to_two_levels_from_the_accurate_one(options: dict[str, Any]) -> None:
    data = encoded(face(np.random.default_rng(1)), **options)
    apart = np.abs(decode(data, fast_dct=True).astype(int) - decode(data))
    assert 0.1 < apart.mean() < 3 and apart.max() < 30
    png = encoded(face(np.random.default_rng(1)), "PNG")
    np.testing.assert_array_equal(decode(png, fast_dct=True), decode(png))


@pytest.mark.parametrize("options", FAST)
def test_the_fast_dct_is_tensorflows(options: dict[str, Any]) -> None:
    """To the bit, where TensorFlow is installed: 2.21 was, when this was written."""
    tensorflow = pytest.importorskip("tensorflow")
    data = encoded(face(np.random.default_rng(1)), **options)
    np.testing.assert_array_equal(decode(data, fast_dct=True), tensorflow.io.decode_jpeg(data).numpy())


def test_shards_of_the_fast_dct_hold_the_same_faces_in_other_pixels(raw: Path) -> None:
    images = []
    for name in ("score-sde", "score-sde-tf"):
        run(raw, protocol=name)
        images.append(load_tensor(raw.parent / "shards", "train").int())
    apart = (images[0] - images[1]).abs()
    assert 0 < apart.float().mean() < 2 and apart.max() < 20


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("L", "BMP")]
)
def test_decodes_other_kinds_to_rgb(mode: str, kind: str) -> None:
    data = encoded(face(np.random.default_rng(2)).convert(mode), kind)
    found = decode(data)
    assert found.shape == (218, 178, 3)
    with Image.open(io.BytesIO(data)) as image:
        theirs = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(found - theirs).max() <= 1


BROKEN: dict[str, Callable[[bytes], bytes | None]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "cut near the end": lambda data: data[:-200],
    "empty": lambda data: b"",
    "a web page": lambda data: b"<html>quota exceeded</html>",
    "another size": lambda data: encoded(Image.new("RGB", (64, 64))),
    "missing": lambda data: None,
    "too large to decode": lambda data: (
        data[: data.index(b"\xff\xc0") + 5] + b"\xff\xdc\xff\xdc" + data[data.index(b"\xff\xc0") + 9 :]
    ),
    "16 bits": lambda data: encoded(Image.fromarray(np.zeros((218, 178), np.uint16)), "PNG"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_corrupt_image_is_named_and_nothing_lost_or_left_out_and_listed_if_asked(raw: Path, damage: str) -> None:
    whole = run(raw)
    before = hashes(raw.parent / "shards")
    rewrite(raw, lambda name, data: BROKEN[damage](data) if "000005" in name else data)
    with pytest.raises(UnveilError, match=r"img_align_celeba\.zip: 000005\.jpg cannot be used .*on_corrupt") as caught:
        run(raw, protocol="gan")
    assert "\n" not in str(caught.value)
    assert hashes(raw.parent / "shards") == before
    assert {path.name for path in raw.parent.iterdir()} == {"raw", "celeba", "shards"}
    index = run(raw, on_corrupt="skip")
    assert index.corrupt == ("000005.jpg",)
    assert json.loads((raw.parent / "shards" / "index.json").read_text())["corrupt"] == ["000005.jpg"]
    assert index.num_images("train") == whole.num_images("train") - 1
    assert 5 not in load_tensor(raw.parent / "shards", "train", "ids")


def test_damage_inside_the_archive_is_found(raw: Path) -> None:
    path = raw / "img_align_celeba.zip"
    rewrite(raw, lambda name, data: data)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("img_align_celeba/000007.jpg").header_offset
    data[offset + 2000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UnveilError, match=r"000007\.jpg cannot be used"):
        run(raw)


def test_an_archive_of_nothing_readable_is_an_error_even_if_skipping(raw: Path) -> None:
    rewrite(raw, lambda name, data: b"no image")
    with pytest.raises(UnveilError, match="split 'train'"):
        run(raw, on_corrupt="skip")
    assert not (raw.parent / "shards").exists()


@pytest.mark.parametrize(
    "name", ["img_align_celeba.zip", "source.json", "list_attr_celeba.txt", "list_eval_partition.txt"]
)
def test_a_missing_file_is_named(raw: Path, name: str) -> None:
    (raw / name).unlink()
    with pytest.raises(UnveilError, match=name):
        run(raw)


@pytest.mark.parametrize("protocol", ["ddim", "adm-ip"])
@pytest.mark.parametrize("workers", [1, 3])
def test_holes_at_the_ends_of_shards_leave_the_rest_in_its_place(raw: Path, protocol: str, workers: int) -> None:
    whole = run(raw, protocol=protocol, shard_size=7)
    folder = raw.parent / "shards"
    before = {split: (load_tensor(folder, split, "ids"), load_tensor(folder, split)) for split in whole.splits}
    broken = {1, 4, 7, 8, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 28, 29}
    rewrite(raw, lambda name, data: b"" if Path(name).stem in {f"{number:06d}" for number in broken} else data)
    index = run(raw, protocol=protocol, shard_size=7, workers=workers, on_corrupt="skip")
    assert index.corrupt == tuple(f"{number:06d}.jpg" for number in sorted(broken))
    for split, (ids, images) in before.items():
        kept = torch.tensor([int(number) not in broken for number in ids])
        assert torch.equal(load_tensor(folder, split, "ids"), ids[kept])
        assert torch.equal(load_tensor(folder, split), images[kept])


def test_one_shard_at_a_time_is_in_memory(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded and not yet written is bounded by the shard, not by the data set."""
    decoded, ahead = 0, []

    def counting(data: bytes, fast_dct: bool) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(data, fast_dct)

    def write(*arguments: Any) -> Any:
        nonlocal decoded
        ahead.append(decoded)
        decoded = 0
        return write_shard(*arguments)

    monkeypatch.setattr(module, "decode", counting)
    monkeypatch.setattr(module, "write_shard", write)
    index = run(raw, shard_size=4)
    assert ahead == [shard.images for split in index.splits for shard in index.shards(split)]


def test_after_the_first_unreadable_image_the_rest_is_not_decoded(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(data: bytes, fast_dct: bool) -> Any:
        tried.append(data)
        if len(tried) > 1:
            time.sleep(0.2)
        raise ValueError("broken")

    monkeypatch.setattr(module, "decode", refuse)
    with pytest.raises(UnveilError, match="000001"):
        run(raw)
    assert len(tried) < 10


@pytest.mark.parametrize("number", ["9" * 25, "9" * 5000, "portrait"])
def test_a_name_that_is_no_number_of_64_bits_is_named(raw: Path, number: str) -> None:
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (raw / name).write_text((raw / name).read_text().replace("000007.jpg", f"{number}.jpg"))
    with pytest.raises(
        UnveilError, match=rf"found the image name {number[:60]}.*expected a number of at most 18"
    ) as caught:
        run(raw)
    assert len(str(caught.value)) < 400
