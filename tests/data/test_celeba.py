"""CelebA's names, checksums and text formats, against torchvision and against published rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import CelebA

from unveil.data import celeba
from unveil.errors import UnveilError

HEADING = " ".join(celeba.ATTRIBUTES)
SIGNS = (
    "-1  1  1 -1 -1 -1 -1 -1 -1 -1 -1  1 -1 -1 -1 -1 -1 -1  1  1 "
    "-1  1 -1 -1  1 -1 -1  1 -1 -1 -1  1  1 -1  1 -1  1 -1 -1  1"
)


def example(count: int, seed: int = 0) -> dict[str, Any]:
    """Random annotations in the ranges of the real ones."""
    rng = np.random.default_rng(seed)
    return {
        "attributes": rng.random((count, 40)) < 0.3,
        "partition": rng.integers(0, 3, count),
        "identities": rng.integers(1, 10_178, count),
        "boxes": rng.integers(-5, 2000, (count, 4)),
        "landmarks": rng.integers(-20, 230, (count, 10)),
    }


def test_attribute_names_are_celebas() -> None:
    assert len(set(celeba.ATTRIBUTES)) == 40
    assert sorted(celeba.ATTRIBUTES) == list(celeba.ATTRIBUTES)  # the published order is that of ASCII
    known = {"5_o_Clock_Shadow": 0, "Blond_Hair": 9, "Eyeglasses": 15, "Male": 20, "Smiling": 31, "Young": 39}
    assert {name: celeba.ATTRIBUTES.index(name) for name in known} == known


def test_published_files_are_torchvisions() -> None:
    ours = {(file.drive_id, file.md5, name) for name, file in celeba.PUBLISHED.items()}
    assert ours == set(CelebA.file_list)


def test_published_numbers_fit_each_other() -> None:
    assert sum(celeba.PUBLISHED_SPLITS.values()) == celeba.PUBLISHED_IMAGES
    assert tuple(celeba.PUBLISHED_SPLITS) == celeba.SPLITS
    # The published partition has CRLF line ends.
    assert celeba.PUBLISHED[celeba.PARTITION_FILE].bytes == celeba.PUBLISHED_IMAGES * len("000001.jpg 0\r\n")


@given(count=st.integers(1, 30), seed=st.integers(0, 1000), named=st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, named: bool) -> None:
    folder = tmp_path_factory.mktemp("raw")
    values = example(count, seed)
    names = [f"{number:06d}.png" for number in range(1, count + 1)] if named else None
    celeba.write_annotations(folder, **values, names=names)
    found_names, tables = celeba.read_annotations(*(folder / file for file in celeba.ANNOTATION_FILES))
    assert found_names == (names or celeba.image_names(count))
    values["attributes"] = np.where(values["attributes"], 1, -1)
    for found, wanted in zip(tables, values.values(), strict=True):
        np.testing.assert_array_equal(found, wanted.reshape(count, -1))
    np.testing.assert_array_equal(celeba.read_partition(folder)[1], values["partition"])


def test_torchvision_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    values = example(50)
    (tmp_path / "celeba").mkdir()
    celeba.write_annotations(tmp_path / "celeba", **values)
    for number, split in enumerate(celeba.SPLITS):
        mask = values["partition"] == number
        theirs = CelebA(str(tmp_path), split=split)
        assert list(theirs.filename) == [name for name, keep in zip(celeba.image_names(50), mask, strict=True) if keep]
        assert [name for name in theirs.attr_names if name] == list(celeba.ATTRIBUTES)
        np.testing.assert_array_equal(theirs.attr.numpy().astype(bool), values["attributes"][mask])
        np.testing.assert_array_equal(theirs.identity.numpy()[:, 0], values["identities"][mask])
        np.testing.assert_array_equal(theirs.bbox.numpy(), values["boxes"][mask])
        np.testing.assert_array_equal(theirs.landmarks_align.numpy(), values["landmarks"][mask])


def test_published_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / celeba.ATTRIBUTES_FILE).write_bytes(f"1\n{HEADING} \r\n000001.jpg {SIGNS}\n".encode())
    names, (signs,) = celeba.read_annotations(tmp_path / celeba.ATTRIBUTES_FILE)
    assert names == ["000001.jpg"]
    true = {name for name, sign in zip(celeba.ATTRIBUTES, signs[0], strict=True) if sign == 1}
    assert {"Arched_Eyebrows", "Brown_Hair", "Smiling", "Young", "No_Beard"} <= true
    assert not {"Male", "Bald", "Eyeglasses", "Blond_Hair"} & true

    (tmp_path / celeba.BOXES_FILE).write_text("1\nimage_id x_1 y_1 width height\n000001.jpg    95  71 226 313\n")
    assert celeba.read_annotations(tmp_path / celeba.BOXES_FILE)[1][0].tolist() == [[95, 71, 226, 313]]

    row = "000001.jpg 69  109  106  113   77  142   73  152  108  154"
    (tmp_path / celeba.LANDMARKS_FILE).write_text(f"1\n{celeba.PUBLISHED[celeba.LANDMARKS_FILE].columns}\n{row}\n")
    expected = [[69, 109, 106, 113, 77, 142, 73, 152, 108, 154]]
    assert celeba.read_annotations(tmp_path / celeba.LANDMARKS_FILE)[1][0].tolist() == expected


def test_equal_annotations_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        celeba.write_annotations(tmp_path / name, **example(20))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(celeba.ANNOTATION_FILES)
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes()
        assert b"\r" not in content


@pytest.mark.parametrize("key", ["attributes", "identities", "boxes", "landmarks"])
def test_wrong_shapes_are_refused(tmp_path: Path, key: str) -> None:
    values = example(5)
    values[key] = values[key][:-1]
    with pytest.raises(ValueError, match=key):
        celeba.write_annotations(tmp_path, **values)
    assert not list(tmp_path.iterdir())


def test_wrong_splits_and_names_are_refused(tmp_path: Path) -> None:
    values = example(3)
    with pytest.raises(ValueError, match="distinct"):
        celeba.write_annotations(tmp_path, **values, names=["a.jpg", "b.jpg", "a.jpg"])
    values["partition"] = np.array([0, 1, 3])
    with pytest.raises(ValueError, match="partition"):
        celeba.write_annotations(tmp_path, **values)


BROKEN: list[tuple[str, str, str, list[str]]] = [
    ("a letter", celeba.PARTITION_FILE, "a.jpg 0\nb.jpg x\n", ["line 2", "'b.jpg x'"]),
    ("a split 3", celeba.PARTITION_FILE, "a.jpg 0\n\nb.jpg 3\n", ["line 3", "valid"]),
    ("a value too many", celeba.IDENTITY_FILE, "a.jpg 1 2\nb.jpg 1\n", ["line 1", "'a.jpg 1 2'", "one value"]),
    ("no value", celeba.IDENTITY_FILE, "a.jpg\n", ["line 1", "one value"]),
    ("a name twice", celeba.IDENTITY_FILE, "a.jpg 1\na.jpg 2\n", ["line 2", "line 1"]),
    ("no rows", celeba.IDENTITY_FILE, "\n", ["no rows"]),
    ("nothing", celeba.PARTITION_FILE, "", ["no rows"]),
    (
        "an attribute of 0",
        celeba.ATTRIBUTES_FILE,
        f"1\n{HEADING}\na.jpg {SIGNS.replace('-1', '0', 1)}\n",
        ["line 3", "-1 or 1"],
    ),
    (
        "a name misspelt",
        celeba.ATTRIBUTES_FILE,
        f"1\n{HEADING.replace('Smiling', 'Smile')}\na.jpg {SIGNS}\n",
        ["line 2", "'Smiling'", "name 32 of 40", "'Smile'"],
    ),
    (
        "39 names",
        celeba.ATTRIBUTES_FILE,
        f"1\n{HEADING.removesuffix(' Young')}\na.jpg {SIGNS}\n",
        ["line 2", "40 names", "not 39"],
    ),
    (
        "cut off",
        celeba.BOXES_FILE,
        "3\nimage_id x_1 y_1 width height\na.jpg 1 2 3 4\n",
        ["line 1", "count 3", "expected 1"],
    ),
    ("no count", celeba.BOXES_FILE, "image_id x_1 y_1 width height\na.jpg 1 2 3 4\n", ["line 1", "number of images"]),
    ("a value too few", celeba.BOXES_FILE, "1\nx_1 y_1 width height\na.jpg 1 2 3\n", ["line 3", "4 values"]),
]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [case[1:] for case in BROKEN],
    ids=[case[0].replace(" ", "-") for case in BROKEN],
)
def test_what_is_broken_is_named(tmp_path: Path, file: str, content: str, words: list[str]) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UnveilError) as caught:
        celeba.read_annotations(tmp_path / file)
    line = str(caught.value)
    assert "\n" not in line
    for word in [str(tmp_path / file), *words]:
        assert word in line


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("text", ["-", "+", "9" * 19, "9" * 5000, "1.0", "0x1", ""])
def test_what_is_no_number_is_found_in_any_row(tmp_path: Path, text: str, place: int) -> None:
    values = ["0", "1", "2"]
    values[place] = text
    lines = [f"{number}.jpg {value}" for number, value in enumerate(values)]
    for file in (celeba.PARTITION_FILE, celeba.IDENTITY_FILE):
        (tmp_path / file).write_text("\n".join(lines))
        with pytest.raises(UnveilError, match=f"{file}, line {place + 1}: found '{place}.jpg"):
            celeba.read_annotations(tmp_path / file)


def test_a_missing_file_and_a_file_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=f"{celeba.PARTITION_FILE}: not there"):
        celeba.read_partition(tmp_path)
    (tmp_path / celeba.PARTITION_FILE).write_bytes(b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(UnveilError, match="no text"):
        celeba.read_partition(tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"), [("smiling", "Smiling"), ("Blonde_Hair", "Blond_Hair"), ("EyeGlasses", "Eyeglasses")]
)
def test_the_nearest_attribute_is_named(name: str, meant: str) -> None:
    assert repr(meant) in celeba.unknown_attribute(name)
    assert "did you mean" not in celeba.unknown_attribute("xyzzy")


@pytest.mark.parametrize(
    "spoil", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n"), bytes.rstrip]
)
def test_what_editors_leave_in_tables_changes_nothing(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """A byte order mark, line ends of another system, and none at the end."""
    celeba.write_annotations(tmp_path, **example(20))
    paths = [tmp_path / name for name in celeba.ANNOTATION_FILES]
    names, before = celeba.read_annotations(*paths)
    for path in paths:
        path.write_bytes(spoil(path.read_bytes()))
    names_after, after = celeba.read_annotations(*paths)
    assert names_after == names
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_are_numbered_within_64_bits() -> None:
    assert celeba.image_number("000123.jpg") == 123
    assert celeba.image_number(f"{'9' * 18}.png") == 10**18 - 1 < 2**63
    for name in (f"{'9' * 19}.png", f"{'9' * 5000}.png", "a1.jpg", "1", "-1.jpg", "\u0661.jpg", ".jpg", "1_0.jpg"):
        assert celeba.image_number(name) is None
