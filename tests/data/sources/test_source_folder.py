"""The source ``folder``: every kind of image that people have, splits that stay, and attribute tables."""

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.data import celeba
from unveil.data.config import Download, Folder, Shares
from unveil.data.sources import SourceRecord, fetch, folder
from unveil.data.sources.folder import assign_splits, encode_image, image_paths, read_table
from unveil.errors import UnveilError

SPLIT = {"train": 0.6, "valid": 0.2, "test": 0.2}
SIZE = (40, 30)


def silent(line: str) -> None:
    """Say nothing."""


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth colours with an upper left corner that is not like the others."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image.paste((255, 0, 0), (0, 0, 5, 5))
    return image


def decoded(path: Path) -> np.ndarray:
    """What the source makes of a file that must become a PNG, as uint8 [H, W, 3]."""
    encoded = encode_image(path)
    assert encoded.problem == ""
    assert encoded.suffix == ".png"
    with Image.open(io.BytesIO(encoded.content)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert image.size == (encoded.width, encoded.height)
        assert not {"icc_profile", "exif", "gamma", "transparency"} & set(image.info)
        return np.asarray(image)


def get(place: Path, say: Callable[[str], None] = silent, **settings: Any) -> SourceRecord:
    """Fetch the folder ``in`` of a place into its folder ``raw``."""
    table = Folder(path=place / "in", attributes=settings.pop("attributes", None))
    download = Download(source="folder", folder=table, split=Shares(**SPLIT), workers=settings.pop("workers", 1))
    return fetch(settings.pop("raw", place / "raw"), download, say=say, **settings)


def many(place: Path, count: int) -> Path:
    """A folder of small JPEGs and PNGs, some of them deeper."""
    for number in range(count):
        parent = place / ("deep/er" if number % 3 == 0 else "")
        parent.mkdir(parents=True, exist_ok=True)
        picture(number, (20 + number % 5, 20)).save(parent / f"{number}.{'png' if number % 2 else 'jpg'}")
    return place


# --- images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
def test_a_plain_jpeg_keeps_its_bytes(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "a.jpeg"
    picture().save(path, "JPEG", quality=80, progressive=progressive, comment=b"mine")
    encoded = encode_image(path)
    assert (encoded.suffix, encoded.content) == (".jpg", path.read_bytes())
    assert (encoded.width, encoded.height) == SIZE


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_rotated_jpeg_stands_upright(tmp_path: Path, orientation: int) -> None:
    picture().save(tmp_path / "stored.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.jpg", quality=95, exif=exif)
    stored = np.asarray(Image.open(tmp_path / "stored.jpg"))
    # EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 are in what one sees.
    upright = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    np.testing.assert_array_equal(decoded(tmp_path / "a.jpg"), upright)


def _plain(path: Path) -> np.ndarray:
    picture().save(path, lossless=True)  # WebP asks for it, the others ignore it
    return np.asarray(picture())


def _misnamed(path: Path) -> np.ndarray:
    picture().save(path, "PNG")
    return np.asarray(picture())


def _grey(path: Path) -> np.ndarray:
    picture().convert("L").save(path, quality=95)
    with Image.open(path) as image:
        return np.stack([np.asarray(image)] * 3, axis=-1)


def _black_and_white(path: Path) -> np.ndarray:
    image = picture().convert("1")
    image.save(path)
    return np.stack([np.asarray(image) * 255] * 3, axis=-1)


def _transparent(path: Path) -> np.ndarray:
    alpha = np.broadcast_to(np.linspace(0, 255, SIZE[0]).round(), SIZE[::-1])
    Image.fromarray(np.dstack([np.asarray(picture()), alpha]).astype(np.uint8)).save(path)
    share = alpha[..., None] / 255
    return np.asarray(picture()) * share + 255 * (1 - share)


def _grey_and_transparent(path: Path) -> np.ndarray:
    pixels = np.zeros((3, 4, 2), np.uint8)
    pixels[1, :, 1] = 255
    Image.fromarray(pixels).save(path)
    return np.stack([255 - pixels[..., 1]] * 3, axis=-1)


def _transparent_colour_of_a_palette(path: Path) -> np.ndarray:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    image.save(path, transparency=0)
    return np.array([[[200, 100, 50], [255, 255, 255]]])


def _sixteen_bits(path: Path) -> np.ndarray:
    values = np.linspace(0, 65535, 40 * 30).round().astype(np.uint16).reshape(30, 40)
    Image.fromarray(values).save(path)
    return np.stack([values / 257.0] * 3, axis=-1)


def _floating_point(path: Path) -> np.ndarray:
    values = np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)
    Image.fromarray(values).save(path)
    return np.stack([values * 255] * 3, axis=-1)


def _cmyk(path: Path) -> np.ndarray:
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(path, quality=100)
    return np.full((*SIZE[::-1], 3), [255, 0, 0])


def _animation(path: Path) -> np.ndarray:
    frames = [Image.new("P", (6, 6), 0) for _ in range(3)]
    for frame, colour in zip(frames, ([255, 0, 0], [0, 255, 0], [0, 0, 255]), strict=True):
        frame.putpalette(colour * 256)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return np.full((6, 6, 3), [255, 0, 0])


@pytest.mark.parametrize(
    ("make", "suffix", "most"),
    [
        *((_plain, suffix, 0) for suffix in ("png", "bmp", "tiff", "webp")),
        (_misnamed, "jpg", 0),
        *((_grey, suffix, 0) for suffix in ("png", "jpg")),
        (_black_and_white, "png", 0),
        (_transparent, "png", 1.0),
        (_grey_and_transparent, "png", 0),
        (_transparent_colour_of_a_palette, "png", 0),
        *((_sixteen_bits, suffix, 0.5 + 1e-9) for suffix in ("png", "tiff")),
        (_floating_point, "tiff", 0.51),
        (_cmyk, "jpg", 3),
        (_animation, "gif", 0),
    ],
)
def test_every_kind_of_image_becomes_what_one_sees(
    tmp_path: Path, make: Callable[[Path], np.ndarray], suffix: str, most: float
) -> None:
    expected = make(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(decoded(tmp_path / f"a.{suffix}"), expected, rtol=0, atol=most)


def test_grey_values_beyond_their_range_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1000, 1200, dtype=np.float32).reshape(30, 40)).save(tmp_path / "a.tiff")
    assert "grey values from 0 to 1000" in encode_image(tmp_path / "a.tiff").problem


def truncated_jpeg(path: Path) -> None:
    picture(size=(200, 200)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def truncated_png(path: Path) -> None:
    picture(size=(200, 200)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:200])


def text(path: Path) -> None:
    path.write_text("<html>not an image</html>")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def bomb(path: Path) -> None:
    """A header of a hundred thousand pixels squared."""
    header = struct.pack("<IIIHHIIIIII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)[:40]
    path.write_bytes(b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + header + b"\0" * 900)


@pytest.mark.parametrize("damage", [truncated_jpeg, truncated_png, text, nothing, bomb])
def test_unreadable_images_are_counted_and_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    many(tmp_path / "in", 9)
    for name in ("5b.jpg", "7b.jpg"):
        damage(tmp_path / "in" / name)
    with pytest.raises(UnveilError) as caught:
        get(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'in'}: 2 of 11 images cannot be read: 5b.jpg (")
    assert "), 7b.jpg (" in line
    assert " at 0x" not in line
    assert "\n" not in line
    assert not (tmp_path / "raw").exists()


def test_unreadable_images_are_left_out_if_asked_and_the_others_stay_as_they_were(tmp_path: Path) -> None:
    place = many(tmp_path / "in", 40)
    settings: dict[str, Any] = {"attributes": tmp_path / "a.csv", "workers": 2}
    rows = {path: number % 2 for number, path in enumerate(image_paths(place, silent))}
    (tmp_path / "a.csv").write_text("file,Male\n" + "".join(f"{path},{sign}\n" for path, sign in rows.items()))
    whole = get(tmp_path, raw=tmp_path / "whole", **settings)
    broken = ["1.png", "4.jpg", "deep/er/0.jpg", "deep/er/9.png", "deep/er/12.jpg", "7.png", "38.jpg"]
    for number, name in enumerate(broken):
        (truncated_jpeg, truncated_png, text, nothing, bomb)[number % 5](place / name)
    (place / "10.jpg").unlink()
    os.mkfifo(place / "10.jpg")

    with pytest.raises(UnveilError, match=r"in: 8 of 40 images cannot be read: 1\.png \(") as caught:
        get(tmp_path, **settings)
    assert all(f"{name} (" in str(caught.value) for name in (*broken, "10.jpg"))
    assert not re.search("0x[0-9a-f]{6}", str(caught.value)) and "on_corrupt" in str(caught.value)

    said: list[str] = []
    record = get(tmp_path, said.append, on_corrupt="skip", **settings)
    assert any(line.startswith("left out, 8 of 40 images cannot be read: 1.png (") for line in said)
    assert (whole.images, record.images) == (40, 32)
    assert record.origin.endswith(", 8 unreadable ones left out") and "left out" not in whole.origin
    for file in celeba.ANNOTATION_FILES:
        whole_names, (whole_values,) = celeba.read_annotations(tmp_path / "whole" / file)
        before = dict(zip(whole_names, whole_values, strict=True))
        names, (values,) = celeba.read_annotations(tmp_path / "raw" / file)
        assert len(names) == 32
        for name, value in zip(names, values, strict=True):
            np.testing.assert_array_equal(value, before[name])
    with zipfile.ZipFile(tmp_path / "raw" / celeba.ZIP_NAME) as archive:
        assert archive.namelist() == [celeba.image_member(name) for name in names]


def test_many_unreadable_images_are_counted_and_some_are_named(tmp_path: Path) -> None:
    many(tmp_path / "in", 5)
    for number in range(12):
        text(tmp_path / "in" / f"b{number:02d}.jpg")
    with pytest.raises(UnveilError, match=r"12 of 17 images .* b09\.jpg \([^)]*\), \.\.\.; repair"):
        get(tmp_path)


def test_a_folder_of_nothing_readable_is_an_error_also_if_such_images_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        text(tmp_path / "in" / f"{number}.jpg")
    with pytest.raises(UnveilError, match="4 of 4 images cannot be read"):
        get(tmp_path, on_corrupt="skip")


def test_names_that_are_not_utf8_are_taken_and_can_be_told(tmp_path: Path) -> None:
    many(tmp_path / "in", 6)
    (tmp_path / "in" / os.fsdecode(b"\xff\xfe.png")).write_bytes((tmp_path / "in" / "1.png").read_bytes())
    assert get(tmp_path, workers=2).images == 7
    (tmp_path / "a.csv").write_text("file,Male\n" + "".join(f"{Path(name).name},1\n" for name in ("1.png", "2.jpg")))
    with pytest.raises(UnveilError, match="5 of 7 images have no row"):
        get(tmp_path, attributes=tmp_path / "a.csv", workers=2)
    text(tmp_path / "in" / os.fsdecode(b"\xff\xfe.png"))
    with pytest.raises(UnveilError, match=re.escape("1 of 7 images cannot be read: \udcff\udcfe.png")):
        get(tmp_path, workers=2)


# --- the folder as a whole --------------------------------------------------------------------------------


def test_a_folder_becomes_celebas_layout(tmp_path: Path) -> None:
    said: list[str] = []
    many(tmp_path / "in", 30)
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "phone.HEIC").write_text("x")
    (tmp_path / "in" / ".hidden.jpg").write_text("x")
    raw = tmp_path / "raw"
    record = get(tmp_path, said.append)

    found = image_paths(tmp_path / "in", silent)
    assert found == sorted(found)
    assert any("1 .heic, 1 .txt" in line for line in said)
    assert (record.images, record.canvas, record.published) == (30, None, False)
    names, (signs, _, _, boxes, _) = celeba.read_annotations(*(raw / file for file in celeba.ANNOTATION_FILES))
    assert names == [f"{i:06d}{Path(path).suffix}" for i, path in enumerate(found, start=1)]
    assert (signs == -1).all()
    with zipfile.ZipFile(raw / celeba.ZIP_NAME) as archive:
        assert archive.namelist() == [celeba.image_member(name) for name in names]
        for name, source, box in zip(names, found, boxes, strict=True):
            content = archive.read(celeba.image_member(name))
            with Image.open(io.BytesIO(content)) as image, Image.open(tmp_path / "in" / source) as original:
                np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
                assert box.tolist() == [0, 0, *image.size]


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    many(tmp_path / "in", 40)
    raws = [tmp_path / "one", tmp_path / "two"]
    for raw, workers in zip(raws, (1, 2), strict=True):
        get(tmp_path, raw=raw, workers=workers)
    first, second = ({path.name: path.read_bytes() for path in raw.iterdir()} for raw in raws)
    assert first == second


def test_composed_and_decomposed_names_are_the_same() -> None:
    pairs = [("ä.jpg", "a\u0308.jpg"), ("é/ö.png", "e\u0301/o\u0308.png")]
    for composed, decomposed in pairs:
        assert folder._place(composed) == folder._place(decomposed)


def test_no_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="does not exist"):
        image_paths(tmp_path / "no", silent)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnveilError, match="is a file"):
        image_paths(tmp_path / "file", silent)
    with pytest.raises(UnveilError, match="found no images"):
        image_paths(tmp_path, silent)


# --- splits -----------------------------------------------------------------------------------------------


@given(count=st.integers(3, 200), more=st.integers(0, 50), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_splits_are_never_empty_and_never_move(count: int, more: int, seed: int) -> None:
    names = [f"{seed}/{number}.jpg" for number in range(count + more)]
    said: list[str] = []
    few = assign_splits(names[:count], SPLIT, said.append)
    assert set(few) == {0, 1, 2}
    if not said:
        np.testing.assert_array_equal(few, assign_splits(names, SPLIT, silent)[:count])


def test_splits_do_not_depend_on_the_order() -> None:
    names = [f"{number}.jpg" for number in range(100)]
    shuffled = list(np.random.default_rng(0).permutation(names))
    straight = dict(zip(names, assign_splits(names, SPLIT, silent), strict=True))
    assert straight == dict(zip(shuffled, assign_splits(shuffled, SPLIT, silent), strict=True))


def test_splits_have_about_their_shares() -> None:
    partition = assign_splits([f"x/{number}.png" for number in range(20_000)], SPLIT, silent)
    shares = np.bincount(partition) / len(partition)
    # Five standard deviations of a binomial share.
    np.testing.assert_allclose(shares, list(SPLIT.values()), atol=5 * np.sqrt(0.24 / 20_000))


def test_a_split_without_a_share_stays_empty() -> None:
    split = {"train": 0.5, "valid": 0.0, "test": 0.5}
    partition = assign_splits([f"{number}.jpg" for number in range(50)], split, silent)
    assert set(partition) == {0, 2}
    assert set(assign_splits(["a", "b"], split, silent)) == {0, 2}


def test_too_few_images_are_named() -> None:
    with pytest.raises(UnveilError, match=r"found 2 images, expected at least 3.*train, valid, test"):
        assign_splits(["a.jpg", "b.jpg"], SPLIT, silent)


# --- attributes -------------------------------------------------------------------------------------------

NAMES = ["a.jpg", "deep/b.png", "deep/c.jpg", "other/c.jpg"]


def table(tmp_path: Path, content: str, say: Callable[[str], None] = silent) -> np.ndarray:
    path = tmp_path / "attributes.csv"
    path.write_text(content, encoding="utf-8")
    return read_table(path, NAMES, say)


def test_attributes_are_read_by_name(tmp_path: Path) -> None:
    said: list[str] = []
    rows = "deep/c.jpg, 1,0\na.jpg,1,-1\nb.png,0,1\n\nother/c.jpg,-1,1\nstranger.jpg,1,1\n"
    labels = table(tmp_path, "\ufefffile,Smiling, Male\n" + rows, said.append)
    assert labels[:, celeba.ATTRIBUTES.index("Smiling")].tolist() == [True, False, True, False]
    assert labels[:, celeba.ATTRIBUTES.index("Male")].tolist() == [False, True, False, True]
    assert labels.sum() == 4
    assert "stranger.jpg" in said[0]


ROWS = "a.jpg,1\ndeep/b.png,0\ndeep/c.jpg,1\nother/c.jpg,0\n"
WRONG = {
    "unknown column": ("name,Smilling\n" + ROWS, ["line 1", "'Smilling'", "did you mean 'Smiling'?"]),
    "column twice": ("name,Male,Male\n" + ROWS, ["line 1", "'Male' twice"]),
    "semicolons": ("name;Male\na.jpg;1\n", ["line 1", "';'", "commas"]),
    "only names": ("name\na.jpg\n", ["line 1", "1 columns"]),
    "empty": ("", ["line 1", "0 columns"]),
    "no row": ("name,Male\na.jpg,1\n", ["3 of 4 images have no row", "deep/b.png, deep/c.jpg, other/c.jpg"]),
    "misnamed row": (
        "name,Male\n" + ROWS.replace("a.jpg", "A.jpg"),
        ["1 of 4", "1 rows name no image", "A.jpg"],
    ),
    "name of several": ("name,Male\nc.jpg,1\n", ["line 2", "'c.jpg'", "several"]),
    "row twice": ("name,Male\n" + ROWS + "b.png,1\n", ["line 6", "line 3"]),
    "value": ("name,Male\n" + ROWS.replace("jpg,1", "jpg,yes", 1), ["line 2", "'yes'", "Male", "0, 1 or -1"]),
    "too many fields": ("name,Male\na.jpg,1,1\n", ["line 2", "3 fields, expected 2"]),
}


@pytest.mark.parametrize(("content", "words"), WRONG.values(), ids=[name.replace(" ", "-") for name in WRONG])
def test_a_table_that_does_not_fit_is_named(tmp_path: Path, content: str, words: list[str]) -> None:
    with pytest.raises(UnveilError) as caught:
        table(tmp_path, content)
    line = str(caught.value)
    assert "\n" not in line
    for word in [str(tmp_path / "attributes.csv"), *words]:
        assert word in line


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="does not exist"):
        read_table(tmp_path / "no.csv", NAMES, silent)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UnveilError, match="no text in UTF-8"):
        read_table(tmp_path / "a.csv", NAMES, silent)


def test_the_table_reaches_the_layout(tmp_path: Path) -> None:
    many(tmp_path / "in", 6)
    rows = [f"{Path(name).name},{i % 2}" for i, name in enumerate(image_paths(tmp_path / "in", silent))]
    (tmp_path / "a.csv").write_text("\n".join(["file,Eyeglasses", *rows]))
    get(tmp_path, attributes=tmp_path / "a.csv")
    _, (signs,) = celeba.read_annotations(tmp_path / "raw" / celeba.ATTRIBUTES_FILE)
    assert signs[:, celeba.ATTRIBUTES.index("Eyeglasses")].tolist() == [-1, 1] * 3
