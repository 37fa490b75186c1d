"""The controls: each does what its name says to every image, and the archive is the one of the shards."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.archives import make_celeba
from torch import Tensor

from unveil.data.config import Celeba, Download, Folder
from unveil.data.preprocess import preprocess
from unveil.data.protocols import PROTOCOLS
from unveil.data.shards import ShardIndex, load_tensor
from unveil.data.sources import fetch
from unveil.errors import UnveilError
from unveil.evaluation.images.controls import (
    CONTROLS,
    blur,
    check_archive,
    jpeg,
    mistake_of,
    noise,
    other_protocol,
    png,
    reread,
)

SIZE = 16


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    celeba = make_celeba(root / "celeba", num_images=30)
    fetch(root / "raw", Download(source="celeba", celeba=Celeba(path=celeba)), say=lambda line: None)
    return root


@pytest.fixture(scope="module")
def shards(archive: Path) -> dict[str, Path]:
    """Shards of the same archive by every protocol."""
    folders = {name: archive / "shards" / name for name in PROTOCOLS}
    for name, folder in folders.items():
        preprocess(
            archive / "raw",
            folder,
            protocol=name,
            image_size=SIZE,
            shard_size=100,
            on_corrupt="error",
            workers=1,
        )
    return folders


@pytest.fixture
def raw(archive: Path, tmp_path: Path) -> Path:
    """A copy of the archive to break."""
    return Path(shutil.copytree(archive / "raw", tmp_path / "raw"))


def random_images(count: int = 5, height: int = 24, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def smooth_images(count: int = 4, size: int = 32) -> Tensor:
    return blur(random_images(count, size, size), 3.0)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_changes_every_image_and_not_its_input(name: str) -> None:
    images = random_images()
    before = images.clone()
    found = CONTROLS[name].make(images, 0)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert torch.equal(images, before)
    assert (found != images).flatten(1).any(dim=1).all()
    assert torch.equal(found, CONTROLS[name].make(images, 0))
    assert CONTROLS[name].mistake.endswith(".")


def test_jpeg_is_what_a_file_gives(tmp_path: Path) -> None:
    images = random_images()
    for row, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{row}.jpg", quality=75)
        again = np.asarray(Image.open(tmp_path / f"{row}.jpg"))
        assert np.array_equal(jpeg(images, 75)[row].permute(1, 2, 0).numpy(), again)


def test_quality_75_halves_the_tables_of_quality_50() -> None:
    def tables(quality: int) -> dict[int, list[int]]:
        file = io.BytesIO()
        Image.fromarray(random_images()[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        with Image.open(file) as picture:
            found: dict[int, list[int]] = picture.quantization  # type: ignore[attr-defined]
            return found

    for table, half in zip(tables(50).values(), tables(75).values(), strict=True):
        assert np.abs(np.array(table) / 2 - np.array(half)).max() <= 0.5


def test_lower_quality_is_farther_and_png_is_nothing() -> None:
    images = smooth_images()
    errors = [(jpeg(images, quality).float() - images.float()).square().mean().item() for quality in (95, 75, 50)]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert torch.equal(png(images), images)


def test_the_blur_keeps_flat_images_and_does_not_depend_on_the_others() -> None:
    flat = torch.full((2, 3, 8, 8), 201, dtype=torch.uint8)
    assert torch.equal(blur(flat, 2.0), flat)
    images = random_images(300, 8, 8)
    assert torch.equal(blur(images)[290:], blur(images[290:]))
    point = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    point[..., 4, 4] = 255
    assert blur(point)[0, 0, 4, 4] == round(255 / (2 * torch.pi))  # the density of a normal distribution in the plane


def test_the_noise_has_its_strength_and_is_a_function_of_seed_and_place() -> None:
    grey = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    added = noise(grey, 25.0, seed=3).double() - 128
    assert added.mean().abs() < 5 * 25 / added.numel() ** 0.5
    assert added.std().item() == pytest.approx(25, rel=0.03)
    assert torch.equal(noise(grey, 25.0, seed=3)[:3], noise(grey[:3], 25.0, seed=3))
    assert not torch.equal(noise(grey, 25.0, seed=4), noise(grey, 25.0, seed=3))
    assert not torch.equal(noise(grey, 25.0, seed=3)[0], noise(grey, 25.0, seed=3)[1])
    assert torch.equal(noise(grey, 0.0), grey)
    assert noise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).max() < 150  # clipped at 0, not wrapped round


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jpeg(random_images(), 0), "quality is 0"),
        (lambda: blur(random_images(), 0.0), "sigma is 0"),
        (lambda: noise(random_images(), -1.0), "sigma is -1"),
    ],
)
def test_values_without_a_meaning_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_read_again_is_the_preprocess_stages(archive: Path, shards: dict[str, Path], protocol: str) -> None:
    index = ShardIndex.load(shards["score-sde"])
    ids = load_tensor(shards[protocol], "test", "ids").flip(0)  # another order than the archive's
    expected = load_tensor(shards[protocol], "test").flip(0)
    assert torch.equal(reread(archive / "raw", index, ids, protocol), expected)


def test_the_archive_is_recognised(archive: Path, shards: dict[str, Path], tmp_path: Path) -> None:
    index, folder = ShardIndex.load(shards["gan"]), shards["gan"]
    images, ids = load_tensor(folder, "test"), load_tensor(folder, "test", "ids")
    check_archive(archive / "raw", index, ids, images)
    celeba = make_celeba(tmp_path / "celeba", num_images=30, seed=1)
    fetch(tmp_path / "raw", Download(source="celeba", celeba=Celeba(path=celeba)), say=lambda line: None)
    with pytest.raises(UnveilError, match=f"image {int(ids[0])} is not the one in the shards"):
        check_archive(tmp_path / "raw", index, ids, images)


def _remove_archive(raw: Path) -> None:
    (raw / "img_align_celeba.zip").unlink()


def _cut_archive(raw: Path) -> None:
    (raw / "img_align_celeba.zip").write_bytes(b"PK")


def _damage_images(raw: Path) -> None:
    path = raw / "img_align_celeba.zip"
    data = bytearray(path.read_bytes())
    for place in range(200, len(data) * 9 // 10, 97):
        data[place] ^= 0xFF
    path.write_bytes(data)


def _other_source(raw: Path) -> None:
    record = json.loads((raw / "source.json").read_text())
    (raw / "source.json").write_text(json.dumps({**record, "source": "folder"}))


def _fewer(raw: Path) -> None:
    lines = (raw / "list_eval_partition.txt").read_text().splitlines()
    (raw / "list_eval_partition.txt").write_text("\n".join(lines[:20]) + "\n")


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (shutil.rmtree, "source.json: not there"),
        (_remove_archive, "img_align_celeba.zip: not there"),
        (_cut_archive, "img_align_celeba.zip: found a truncated zip"),
        (_damage_images, r"img_align_celeba.zip: \d+.jpg cannot be used"),
        (_other_source, "source is 'folder', but the shards are of 'celeba'"),
        (_fewer, "list_eval_partition.txt: has no image 25"),
    ],
)
def test_an_archive_that_cannot_be_used_is_one_line(raw: Path, shards: dict[str, Path], breaking, words: str) -> None:
    index = ShardIndex.load(shards["score-sde"])
    ids = load_tensor(shards["score-sde"], "test", "ids")
    breaking(raw)
    with pytest.raises(UnveilError, match=words) as caught:
        reread(raw, index, ids, "squash")
    assert "\n" not in str(caught.value)


def test_images_that_a_protocol_cannot_crop_are_one_line(tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(6):
        Image.fromarray(random_images(6, 40, 30)[number].permute(1, 2, 0).numpy()).save(faces / f"{number}.png")
    raw, folder = tmp_path / "raw", tmp_path / "shards"
    fetch(raw, Download(source="folder", folder=Folder(path=faces)), say=lambda line: None)
    settings = {"image_size": 16, "shard_size": 9, "on_corrupt": "error", "workers": 1}
    index = preprocess(raw, folder, protocol="squash", **settings)  # type: ignore[arg-type]
    ids = load_tensor(folder, "test", "ids")
    with pytest.raises(UnveilError, match="found 30 x 40 pixels, expected 178 x 218"):
        reread(raw, index, ids, "ddim")
    other = other_protocol("squash", None)
    assert reread(raw, index, ids, other).shape == (len(ids), 3, 16, 16)


def test_the_other_protocol_is_another_one() -> None:
    assert {name: other_protocol(name) for name in PROTOCOLS} == {
        "ddim": "squash",
        "score-sde": "squash",
        "score-sde-tf": "squash",
        "gan": "squash",
        "adm-ip": "squash",
        "squash": "ddim",
    }
    assert "squash in the place of gan" in mistake_of("gan", other_protocol("gan"))
