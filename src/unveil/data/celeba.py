"""CelebA's published layout: file names, checksums and the text formats of its annotations.

Every source of ``download`` writes this layout, and everything after it reads only this layout.
The set is that of Liu et al., "Deep Learning Face Attributes in the Wild", 1411.7766.
"""

import io
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from unveil.errors import UnveilError
from unveil.files import LONGEST_SHOWN, read_text, write_text
from unveil.parameter_file import package_data

ZIP_NAME = "img_align_celeba.zip"
IMAGE_FOLDER = "img_align_celeba"
ATTRIBUTES_FILE = "list_attr_celeba.txt"
PARTITION_FILE = "list_eval_partition.txt"
IDENTITY_FILE = "identity_CelebA.txt"
BOXES_FILE = "list_bbox_celeba.txt"
LANDMARKS_FILE = "list_landmarks_align_celeba.txt"

MOST_TABLE_BYTES = 1 << 30  # of an annotation file: about eight million images
MOST_DIGITS = 18  # of an image's number: all such fit into 64 bits
CANVAS = (178, 218)
"""Width and height of the aligned images, in pixels."""

LEFT_EYE = (69.5, 111.3)
RIGHT_EYE = (107.7, 111.3)
"""Mean position (x, y), to about half a pixel from the upper left corner, of the eyes on the left and on the
right of the aligned images. The alignment puts both on nearly the same place in every image."""

SPLITS = ("train", "valid", "test")
"""Names of the values 0, 1 and 2 in ``list_eval_partition.txt``."""


@dataclass(frozen=True)
class CelebAFile:
    """One file of the published set, and of annotations the text format: lines of a file name and a value a column.

    Attributes:
        md5: hexadecimal.
        bytes: its size.
        drive_id: its identifier on Google Drive.
        columns: their names, separated by spaces; empty for the archive.
        width: digits to which values are padded.
        heading: the line of names, which stands below one of the number of images; None if there are neither.
        pattern: regular expression of a value.
        expected: the same in words.
    """

    md5: str
    bytes: int
    drive_id: str
    columns: str = ""
    width: int = 1
    heading: str | None = None
    pattern: str = "[+-]?[0-9]{1,18}"
    expected: str = "whole numbers"


_FILES = package_data(__package__, "celeba.yaml")
PUBLISHED: Mapping[str, CelebAFile] = MappingProxyType({name: CelebAFile(**facts) for name, facts in _FILES.items()})
_TABLES = {name: file for name, file in PUBLISHED.items() if file.columns}
ANNOTATION_FILES = tuple(_TABLES)
ATTRIBUTES = tuple(PUBLISHED[ATTRIBUTES_FILE].columns.split())
PUBLISHED_IMAGES = 202_599
PUBLISHED_SPLITS = MappingProxyType({"train": 162_770, "valid": 19_867, "test": 19_962})


def image_names(count: int) -> list[str]:
    """CelebA's names of ``count`` images: 000001.jpg, 000002.jpg, ..."""
    return [f"{number:06d}.jpg" for number in range(1, count + 1)]


def image_number(name: str) -> int | None:
    """The number in an image's name, which is its id; None if it has none, or one of more than 18 digits."""
    stem = name.rpartition(".")[0]
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) <= MOST_DIGITS else None


def image_member(name: str) -> str:
    """Path of an image inside the zip."""
    return f"{IMAGE_FOLDER}/{name}"


def write_annotations(
    folder: Path,
    *,
    attributes: NDArray[np.bool_],
    partition: NDArray[np.integer],
    identities: NDArray[np.integer],
    boxes: NDArray[np.integer],
    landmarks: NDArray[np.integer],
    names: Sequence[str] | None = None,
) -> None:
    """Write the five annotation files of N images into ``folder``, in CelebA's text formats.

    Args:
        folder: an existing folder.
        attributes: bool [N, 40], in the order of ``ATTRIBUTES``.
        partition: int [N]: 0 train, 1 valid, 2 test.
        identities: int [N]: the same number for the same person.
        boxes: int [N, 4]: x, y, width, height of the face, in pixels of the original image.
        landmarks: int [N, 10]: x, y of the eyes, nose and corners of the mouth, in pixels of the aligned
            image.
        names: N file names without spaces; default ``image_names(N)``.
    """
    count = len(partition)
    names = image_names(count) if names is None else list(names)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{len(names)} names, {len(set(names))} of them distinct, for {count} images")
    if not np.isin(partition, range(len(SPLITS))).all():
        raise ValueError("partition has values other than 0, 1 and 2")
    signs = np.where(attributes, 1, -1)
    given = {"attributes": signs, "partition": partition, "identities": identities, "boxes": boxes}
    given["landmarks"] = landmarks
    for table, (key, values) in zip(_TABLES.values(), given.items(), strict=True):
        width = len(table.columns.split())
        shape = (count,) if width == 1 else (count, width)
        if values.shape != shape:
            raise ValueError(f"{key} has shape {values.shape}, expected {shape}")
    for (file, table), values in zip(_TABLES.items(), given.values(), strict=True):
        line = "%s" + f" %{table.width}d" * len(table.columns.split())
        rows = zip(names, values.reshape(count, -1).tolist(), strict=True)
        heading = [] if table.heading is None else [str(count), table.heading.format(columns=table.columns)]
        write_text(folder / file, "".join(f"{row}\n" for row in [*heading, *(line % (n, *v) for n, v in rows)]))


def read_annotations(*paths: Path) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Read annotation files of the same images: the N file names, and for each file int64 [N, its columns].

    Args:
        paths: named as published, which says what they hold: attributes (-1 or 1) in the order of ``ATTRIBUTES``,
            the split (0 train, 1 valid, 2 test), the number of the person, the box (x, y, width, height), or the
            landmarks (pairs of x and y).

    Raises:
        UnveilError: that names the file and line, or the first row in which a file differs from the first one.
    """
    (first, *others), tables = zip(*map(_read, paths), strict=True)
    for path, names in zip(paths[1:], others, strict=True):
        if names != first:
            pairs = enumerate(zip(names, first, strict=False), start=1)
            different = (f"row {row} is of {name}, expected {other}" for row, (name, other) in pairs if name != other)
            raise UnveilError(
                f"{path}: {next(different, f'found {len(names)} rows, expected {len(first)}')}; "
                f"the rows must be those of {paths[0].name}, in the same order; get both files from one place"
            )
    return first, list(tables)


def read_partition(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read ``list_eval_partition.txt``: the N file names and int64 [N]: 0 train, 1 valid, 2 test."""
    names, (values,) = read_annotations(folder / PARTITION_FILE)
    return names, values[:, 0]


def unknown_attribute(name: str) -> str:
    """The end of an error line about a name that is not one of ``ATTRIBUTES``: what was probably meant."""
    lowered = {known.lower(): known for known in ATTRIBUTES}
    near = get_close_matches(name.strip().lower(), lowered, n=1, cutoff=0.5)
    return f"did you mean {lowered[near[0]]!r}?" if near else "the 40 names are those of list_attr_celeba.txt"


def _read(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read one annotation file: N names and int64 [N, its columns].

    The published files mix line ends and widths of columns, so any white space separates fields.
    """
    try:
        text = io.StringIO(read_text(path, MOST_TABLE_BYTES), newline=None)
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there, expected CelebA's annotation file; run the download stage") from None
    table, lines = _TABLES[path.name], ((number, line) for number, line in enumerate(text, 1) if line.strip())
    columns = table.columns.split()
    count = None if table.heading is None else _read_heading(path, lines, columns)
    width = len(columns)
    what = f"{width} values, each {table.expected}" if width > 1 else f"one value, {table.expected}"
    row = re.compile(rf"\s*\S+(\s+{table.pattern}){{{width}}}\s*")
    names: dict[str, int] = {}  # and their lines
    values = array("q")
    for number, line in lines:
        name, *fields = line.split()
        if row.fullmatch(line) is None:
            raise _broken(path, number, line, f"a file name and {what}")
        if name in names:
            raise _broken(path, number, line, f"each name once, but line {names[name]} has {name} too")
        names[name] = number
        values.extend(map(int, fields))
    if count not in (None, len(names)):
        raise UnveilError(
            f"{path}, line 1: found the count {count}, expected {len(names)}, the number of rows below it; "
            "the file is cut off or was edited: put the complete one in its place"
        )
    if not names:
        raise UnveilError(f"{path}: found no rows, expected one for each image; put the complete file in its place")
    return list(names), np.array(values, np.int64).reshape(-1, width)


def _read_heading(path: Path, lines: Iterator[tuple[int, str]], columns: list[str]) -> int:
    """The count in the first line; the second must have the columns' names."""
    number, line = next(lines, (1, ""))
    if re.fullmatch("[0-9]{1,18}", line.strip()) is None:
        raise _broken(path, number, line, "the number of images alone")
    number, names = next(lines, (2, ""))
    found = names.removeprefix("image_id ").split()  # as the published boxes have it
    if found != columns:
        pairs = enumerate(zip(found, columns, strict=False), start=1)
        different = (f"{b!r} as name {n} of {len(columns)}, not {a!r}" for n, (a, b) in pairs if a != b)
        lacking = f"the {len(columns)} names of the columns, not {len(found)}"
        raise _broken(path, number, names, next(different, lacking))
    return int(line)


def _broken(path: Path, number: int, line: str, expected: str) -> UnveilError:
    found = line.strip()
    found = found if len(found) <= LONGEST_SHOWN else found[: LONGEST_SHOWN - 3] + "..."
    return UnveilError(
        f"{path}, line {number}: found {found!r}, expected {expected}; correct the line or get the file anew"
    )
