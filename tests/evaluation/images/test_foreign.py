"""Anybody's samples: the same pixels from every kind of file, and one line for each thing that is wrong."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from unveil.errors import UnveilError
from unveil.evaluation.images import foreign
from unveil.evaluation.images.foreign import read_folder, read_npz, read_safetensors, sample_files
from unveil.files import file_digest

SIZE = 8


@pytest.fixture
def images() -> Tensor:
    """uint8 [12, 3, 8, 8]."""
    return torch.randint(0, 256, (12, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _array(images: Tensor) -> np.ndarray[Any, Any]:
    """[N, H, W, 3]."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _save(images: Tensor, folder: Path, suffix: str = ".png", **options: Any) -> list[Path]:
    """Files 0 ... 11, without zeros before their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{suffix}" for number in range(len(images))]
    for path, pixels in zip(paths, _array(images), strict=True):
        Image.fromarray(pixels).save(path, **options)
    return paths


def _refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UnveilError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- safetensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["images", "x"])
def test_any_safetensors_with_one_tensor_of_images(tmp_path: Path, images: Tensor, last: bool, name: str) -> None:
    path = tmp_path / "samples.safetensors"
    written = images.permute(0, 2, 3, 1).contiguous() if last else images
    save_file({name: written, "labels": torch.zeros(12)}, path)
    found = read_safetensors(path, 5)
    assert torch.equal(found.images, images[:5]) and found.images.is_contiguous()
    assert (found.total, found.sha256) == (12, file_digest(path))
    assert found.facts == {"images_from": f"a safetensors file, {name}", "image_size": SIZE}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"images": torch.zeros(4, 3, 8, 8)},
            "images is float32 [4, 3, 8, 8], expected uint8 [N, 3, size, size] or [N, size, size, 3]; save",
        ),
        ({"images": torch.zeros(4, 3, 8, 9, dtype=torch.uint8)}, "uint8 [4, 3, 8, 9]"),
        ({"images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, "uint8 [4, 1, 8, 8]"),
        ({"images": torch.zeros(4, dtype=torch.uint8)}, "images is uint8 [4]"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "evaluate.num_images: found 2, but"),
        ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "holds no images, expected 2"),
        ({"a": torch.zeros(4, 3, 8, 8)}, "found a (float32 [4, 3, 8, 8]), expected one array of images"),
        (
            {name: torch.zeros(4, 3, 8, 8, dtype=torch.uint8) for name in "ab"},
            "found a (uint8 [4, 3, 8, 8]), b (uint8 [4, 3, 8, 8]), expected one array of images",
        ),
    ],
)
def test_refuses_a_safetensors_without_images(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    path = tmp_path / "samples.safetensors"
    save_file(tensors, path)
    line = _refused(read_safetensors, path, 2)
    assert said in line and str(path) in line


# --- npz --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("first", [False, True])
def test_an_npz_of_adms_suite(
    tmp_path: Path, images: Tensor, save: Any, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "CHUNK_IMAGES", 4)
    path = tmp_path / "samples_12x8x8x3.npz"
    save(path, images.numpy() if first else _array(images), np.arange(12))
    for count in (1, 4, 5, 12):
        found = read_npz(path, count)
        assert torch.equal(found.images, images[:count])
    assert (found.total, found.sha256) == (12, file_digest(path))
    assert found.facts == {"images_from": "an .npz archive, arr_0", "image_size": SIZE}
    save(path, images=_array(images))
    assert torch.equal(read_npz(path, 12).images, images)


class _Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("place", [0, 1])
def test_an_archive_with_a_pickle_inside_is_refused_unread(tmp_path: Path, images: Tensor, place: int) -> None:
    witness, path = tmp_path / "witness", tmp_path / "trap.npz"
    trap = np.array([_Trap(witness)], dtype=object)
    np.savez(path, *((trap, _array(images)) if place == 0 else (_array(images), trap)), allow_pickle=True)
    line = _refused(read_npz, path, 2)
    assert f"{path}: arr_{place}.npy holds a pickle" in line and "not loaded" in line
    assert not witness.exists()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "arr_0 is float32 [4, 8, 8, 3], expected uint8 [N, 3, size, size]"),
        (np.zeros((4, 8, 9, 3), np.uint8), "arr_0 is uint8 [4, 8, 9, 3]"),
        (np.zeros((4, 8, 8), np.uint8), "arr_0 is uint8 [4, 8, 8]"),
        (np.zeros((1, 8, 8, 3), np.uint8), "evaluate.num_images: found 2, but"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no images"),
        (np.zeros((3, 8, 8, 4), np.uint8).T, "in Fortran's order"),
    ],
)
def test_refuses_an_npz_without_images(tmp_path: Path, array: np.ndarray[Any, Any], said: str) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, array)
    assert said in _refused(read_npz, path, 2)


def test_refuses_what_is_no_npz(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, _array(images))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "found a truncated zip, or none" in _refused(read_npz, path, 2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    assert "readme.txt is not an array of NumPy's" in _refused(read_npz, path, 2)
    with zipfile.ZipFile(path, "w") as archive:
        stream = io.BytesIO()
        np.save(stream, _array(images))
        archive.writestr("arr_0.npy", stream.getvalue()[:-100])
    assert "damaged (arr_0 holds 2,332 bytes, expected 2,432)" in _refused(read_npz, path, 12)
    zipfile.ZipFile(path, "w").close()
    assert "found nothing, expected one array of images" in _refused(read_npz, path, 2)


# --- folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options", "kind"),
    [
        (".png", {}, "PNG"),
        (".bmp", {}, "BMP"),
        (".tiff", {"compression": "tiff_lzw"}, "TIFF"),
        (".webp", {"lossless": True, "exact": True}, "WEBP"),
        (".ppm", {}, "PNM"),
    ],
)
def test_a_folder_gives_the_pixels_in_natural_order(
    tmp_path: Path, images: Tensor, suffix: str, options: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "FILES_AT_ONCE", 5)
    _save(images, tmp_path / "samples", suffix, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_folder(tmp_path / "samples", 11)
    assert torch.equal(found.images, images[:11]) and found.total == 12
    assert found.facts == {"images_from": f"a folder of images: 11 {kind}", "image_size": SIZE}


def test_folders_below_are_taken_and_other_files_are_named(tmp_path: Path, images: Tensor) -> None:
    folder = tmp_path / "samples"
    _save(images[:2], folder / "2")
    _save(images[2:4], folder / "10")
    _save(images[4:6], folder / ".hidden")
    _save(images[4:6], folder / "__MACOSX")
    (folder / "fid.txt").write_text("3.2")
    (folder / ".DS_Store").write_text("")
    found = read_folder(folder, 4)
    assert torch.equal(found.images, images[:4])
    assert found.facts["left_out"] == "1 .txt"


def test_the_digest_is_of_names_and_bytes(tmp_path: Path, images: Tensor) -> None:
    paths = _save(images, tmp_path / "samples")
    first = read_folder(tmp_path / "samples", 12).sha256
    assert read_folder(tmp_path / "samples", 12).sha256 == first != read_folder(tmp_path / "samples", 11).sha256
    content = paths[0].read_bytes()
    paths[0].write_bytes(paths[1].read_bytes())
    paths[1].write_bytes(content)
    assert read_folder(tmp_path / "samples", 12).sha256 != first


def test_files_that_are_compressed_with_loss_are_counted_whatever_their_names(tmp_path: Path, images: Tensor) -> None:
    folder = tmp_path / "samples"
    paths = _save(images, folder)
    Image.fromarray(_array(images)[0]).save(paths[0], "JPEG")  # called .png
    Image.fromarray(_array(images)[1]).save(folder / "1.jpg")
    Image.fromarray(_array(images)[2]).save(folder / "2.webp", quality=50)
    Image.fromarray(_array(images)[3]).save(folder / "3.webp", lossless=True)
    exif = Image.Exif()
    exif[0x010E] = "described"
    Image.fromarray(_array(images)[4]).save(folder / "4.webp", quality=50, exif=exif)  # its chunks begin with VP8X
    for number in range(1, 5):
        paths[number].unlink()
    found = read_folder(folder, 12)
    assert found.facts["lossy"] == "4 of 12 files are compressed with loss: 2 JPEG, 2 lossy WEBP"
    assert "7 PNG" in found.facts["images_from"] and "1 WEBP" in found.facts["images_from"]


def test_one_sees_rgb(tmp_path: Path) -> None:
    """Grey, palettes, opaque alpha, and rotation by EXIF."""
    folder = tmp_path / "samples"
    folder.mkdir()
    grey = torch.arange(64, dtype=torch.uint8).reshape(8, 8).numpy()
    Image.fromarray(grey).save(folder / "0.png")
    Image.fromarray(grey).convert("P").save(folder / "1.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "2.png")
    Image.fromarray(grey).convert("LA").save(folder / "3.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(grey).save(folder / "4.png", exif=exif)
    found = read_folder(folder, 5).images.numpy()
    for number in range(4):
        assert (found[number] == grey).all(), number
    assert (found[4] == np.rot90(grey, -1)).all()


def _deep_png(path: Path) -> None:
    """16-bit RGB, which Pillow reads as 8 bits without a word."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = (b"\0" + bytes(8 * 6)) * 8
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("alpha", "transparent pixels, expected 8-bit RGB without transparency"),
        ("key", "transparent pixels"),
        ("deep", "16 bits or more a channel"),
        ("grey16", "16 bits or more a channel"),
        ("tiff16", "16 bits or more a channel"),
        ("ppm16", "16 bits or more a channel"),
        ("float", "16 bits or more a channel"),
        ("cmyk", "colours of mode CMYK"),
        ("animation", "an animation of 2 frames"),
        ("half", "cannot be read"),
        ("text", "cannot be read"),
        ("wide", "9 x 8 pixels, expected a square image"),
        ("large", "9 x 9 pixels, but"),
    ],
)
def test_a_file_without_such_pixels_is_named(tmp_path: Path, images: Tensor, bad: str, said: str) -> None:
    folder = tmp_path / "samples"
    paths = _save(images[:3], folder)
    pixels = Image.fromarray(_array(images)[1])
    path = paths[1]
    if bad == "alpha":
        pixels.putalpha(254)
        pixels.save(path)
    elif bad == "key":
        pixels.save(path, transparency=pixels.getpixel((0, 0)))
    elif bad == "deep":
        _deep_png(path)
    elif bad == "grey16":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    elif bad == "tiff16":
        path.unlink()
        path = folder / "1.tif"
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    elif bad == "ppm16":
        path.unlink()
        path = folder / "1.ppm"
        path.write_bytes(b"P6\n# a comment\n8 8\n65535\n" + bytes(8 * 8 * 6))
    elif bad == "float":
        path.unlink()
        path = folder / "1.tif"
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    elif bad == "cmyk":
        path.unlink()
        path = folder / "1.jpg"
        pixels.convert("CMYK").save(path)
    elif bad == "animation":
        pixels.save(path, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    elif bad == "half":
        path.write_bytes(path.read_bytes()[:80])
    elif bad == "text":
        path.write_text("no image")
    else:
        pixels.resize((9, 8) if bad == "wide" else (9, 9)).save(path)
    line = _refused(read_folder, folder, 3)
    assert line.startswith(f"{path}: ") and said in line


def test_a_header_of_spaces_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "1.ppm"
    path.write_bytes(b"P6" + b" " * 60_000 + b"8 8\n# a comment\n255\n" + bytes(8 * 8 * 3))
    assert read_folder(tmp_path, 1).images.shape == (1, 3, 8, 8)


def test_a_folder_with_too_few_or_no_images_says_so(tmp_path: Path, images: Tensor) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    assert f"{folder}: found no images, expected .bmp, .jpeg" in _refused(read_folder, folder, 2)
    (folder / "a.txt").write_text("")
    (folder / "b.gif").write_text("")
    assert "found no images, only 1 .gif, 1 .txt, expected" in _refused(read_folder, folder, 2)
    _save(images[:3], folder)
    assert f"found 4, but {folder} holds 3 samples; lower it" in _refused(read_folder, folder, 4)
    files, others = sample_files(folder)
    assert len(files) == 3 and others == "1 .gif, 1 .txt"


def test_an_npz_whose_bytes_changed_is_refused_also_where_fewer_images_are_read(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=_array(images))
    content = bytearray(path.read_bytes())
    content[500] ^= 0xFF  # a pixel of an image that is read
    path.write_bytes(content)
    assert "damaged (Bad CRC-32" in _refused(read_npz, path, 3)


@pytest.mark.parametrize(
    "header",
    [
        "((((((",
        "'''abc",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-12, 8, 8, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 0, 0, 3)}",
    ],
)
def test_an_npz_with_a_header_that_means_nothing_is_one_line(tmp_path: Path, header: str) -> None:
    path = tmp_path / "samples.npz"
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(5000))
    assert str(path) in _refused(read_npz, path, 3)


@pytest.mark.parametrize("count", [11, 13, 10**9, 2**70])
def test_an_npz_that_does_not_hold_what_it_says_takes_no_memory(tmp_path: Path, images: Tensor, count: int) -> None:
    path = tmp_path / "samples.npz"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 8, 8, 3)}}\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + _array(images).tobytes()
        archive.writestr("arr_0.npy", content)
    line = _refused(read_npz, path, 3)
    assert line.startswith(f"{path}: damaged (arr_0 holds 2,3") and "write it again with numpy.savez" in line


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w") as stream,
    ):
        stream.write(b"\x93NUMPY\x02\x00" + (1_000_000_000).to_bytes(4, "little"))
        stream.write(bytes(1_000_000))
    assert "expected 1000000000 bytes got 65524" in _refused(read_npz, path, 3)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_a_compressed_npz_is_one_line(tmp_path: Path, images: Tensor, method: int) -> None:
    path = tmp_path / "samples.npz"
    stream = io.BytesIO()
    np.save(stream, _array(images))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("arr_0.npy", stream.getvalue())
    content = bytearray(path.read_bytes())
    content[50:90] = b"\xff" * 40
    path.write_bytes(content)
    assert _refused(read_npz, path, 3).startswith(f"{path}: ")
    content = bytearray(path.read_bytes())
    name = content.rindex(b"arr_0.npy")
    content[name] = 0xFF
    content[name - 46 + 9] |= 8  # names in UTF-8
    path.write_bytes(content)
    assert "damaged zip ('utf-8' codec can't decode" in _refused(read_npz, path, 3)
