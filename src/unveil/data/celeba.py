"""CelebA's published layout: file names, checksums and the text formats of its annotations.

Every source of ``download`` writes this layout, and everything after it reads only this layout.
The set is that of Liu et al., "Deep Learning Face Attributes in the Wild", 1411.7766.
"""

import io
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from unveil.errors import UnveilError
from unveil.files import atomic_path, read_text

ZIP_NAME = "img_align_celeba.zip"
IMAGE_FOLDER = "img_align_celeba"
ATTRIBUTES_FILE = "list_attr_celeba.txt"
PARTITION_FILE = "list_eval_partition.txt"
IDENTITY_FILE = "identity_CelebA.txt"
BOXES_FILE = "list_bbox_celeba.txt"
LANDMARKS_FILE = "list_landmarks_align_celeba.txt"
ANNOTATION_FILES = (ATTRIBUTES_FILE, PARTITION_FILE, IDENTITY_FILE, BOXES_FILE, LANDMARKS_FILE)

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

ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)
BOX_COLUMNS = ("x_1", "y_1", "width", "height")
LANDMARK_COLUMNS = (
    "lefteye_x",
    "lefteye_y",
    "righteye_x",
    "righteye_y",
    "nose_x",
    "nose_y",
    "leftmouth_x",
    "leftmouth_y",
    "rightmouth_x",
    "rightmouth_y",
)


@dataclass(frozen=True)
class PublishedFile:
    """One file of the published set.

    The MD5s and Google Drive identifiers are those of ``torchvision.datasets.CelebA.file_list``, the sizes
    (bytes) those of TensorFlow Datasets' checksum list.
    """

    md5: str
    bytes: int
    drive_id: str


PUBLISHED: Mapping[str, PublishedFile] = MappingProxyType(
    {
        ZIP_NAME: PublishedFile("00d2c5bc6d35e252742224ab0c1e8fcb", 1_443_490_838, "0B7EVK8r0v71pZjFTYXZWM3FlRnM"),
        ATTRIBUTES_FILE: PublishedFile("75e246fa4810816ffd6ee81facbd244c", 26_721_026, "0B7EVK8r0v71pblRyaVFSWGxPY0U"),
        PARTITION_FILE: PublishedFile("d32c9cbf5e040fd4025c592c306e6668", 2_836_386, "0B7EVK8r0v71pY0NSMzRuSXJEVkk"),
        IDENTITY_FILE: PublishedFile(
            "32bd1bd63d3c78cd57e08160ec5ed1e2", 3_424_458, "1_ee_0u7vcNLOfNLegJRHmolfH5ICW-XS"
        ),
        BOXES_FILE: PublishedFile("00566efa6fedff7a56946cd1c10f1c16", 6_082_035, "0B7EVK8r0v71pbThiMVRxWXZ4dU0"),
        LANDMARKS_FILE: PublishedFile("cc24ecafdb5b50baae59b03474781f8c", 12_156_055, "0B7EVK8r0v71pd0FJY3Blby1HUTQ"),
    }
)
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
    shapes = {
        "attributes": (attributes, (count, len(ATTRIBUTES))),
        "identities": (identities, (count,)),
        "boxes": (boxes, (count, len(BOX_COLUMNS))),
        "landmarks": (landmarks, (count, len(LANDMARK_COLUMNS))),
    }
    for key, (values, shape) in shapes.items():
        if values.shape != shape:
            raise ValueError(f"{key} has shape {values.shape}, expected {shape}")
    if not np.isin(partition, range(len(SPLITS))).all():
        raise ValueError("partition has values other than 0, 1 and 2")

    signs = np.where(attributes, 1, -1)
    heading = [str(count), " ".join(ATTRIBUTES) + " "]
    _write_lines(folder / ATTRIBUTES_FILE, heading, _rows(names, signs, " %2d"))
    _write_lines(folder / PARTITION_FILE, [], _rows(names, partition[:, None], " %d"))
    _write_lines(folder / IDENTITY_FILE, [], _rows(names, identities[:, None], " %d"))
    heading = [str(count), " ".join(("image_id", *BOX_COLUMNS))]
    _write_lines(folder / BOXES_FILE, heading, _rows(names, boxes, " %3d"))
    heading = [str(count), " ".join(LANDMARK_COLUMNS)]
    _write_lines(folder / LANDMARKS_FILE, heading, _rows(names, landmarks, " %3d"))


def read_attributes(folder: Path) -> tuple[list[str], NDArray[np.bool_]]:
    """Read ``list_attr_celeba.txt``: the N file names and bool [N, 40], in the order of ``ATTRIBUTES``."""
    path = folder / ATTRIBUTES_FILE
    names, values = _read(path, ATTRIBUTES, heading=True, expected="-1 or 1", allowed={"-1": -1, "1": 1})
    return names, values == 1


def read_partition(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read ``list_eval_partition.txt``: the N file names and int64 [N]: 0 train, 1 valid, 2 test."""
    path = folder / PARTITION_FILE
    expected = "0 (train), 1 (valid) or 2 (test)"
    names, values = _read(path, ("split",), heading=False, expected=expected, allowed={"0": 0, "1": 1, "2": 2})
    return names, values[:, 0]


def read_identities(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read ``identity_CelebA.txt``: the N file names and int64 [N], the number of the person."""
    names, values = _read(folder / IDENTITY_FILE, ("identity",), heading=False)
    return names, values[:, 0]


def read_boxes(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read ``list_bbox_celeba.txt``: the N file names and int64 [N, 4]: x, y, width, height."""
    return _read(folder / BOXES_FILE, BOX_COLUMNS, heading=True)


def read_landmarks(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Read ``list_landmarks_align_celeba.txt``: the N file names and int64 [N, 10], pairs of x and y."""
    return _read(folder / LANDMARKS_FILE, LANDMARK_COLUMNS, heading=True)


def unknown_attribute(name: str) -> str:
    """The end of an error line about a name that is not one of ``ATTRIBUTES``: what was probably meant."""
    lowered = {known.lower(): known for known in ATTRIBUTES}
    near = get_close_matches(name.strip().lower(), lowered, n=1, cutoff=0.5)
    return f"did you mean {lowered[near[0]]!r}?" if near else "the 40 names are those of list_attr_celeba.txt"


def _rows(names: Sequence[str], values: NDArray[np.integer], field: str) -> Iterator[str]:
    template = "%s" + field * values.shape[1]
    for name, row in zip(names, values.tolist(), strict=True):
        yield template % (name, *row)


def _write_lines(path: Path, heading: Sequence[str], rows: Iterable[str]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for line in heading:
            stream.write(line + "\n")
        for line in rows:
            stream.write(line + "\n")


def _read(
    path: Path,
    columns: Sequence[str],
    *,
    heading: bool,
    expected: str = "whole numbers",
    allowed: Mapping[str, int] | None = None,
) -> tuple[list[str], NDArray[np.int64]]:
    """Read one annotation file: N names and int64 [N, len(columns)].

    The published files mix line ends and widths of columns, so any white space separates fields.
    """
    try:
        text = read_text(path, MOST_TABLE_BYTES)
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there, expected CelebA's annotation file; run the download stage") from None
    lines = _lines(text)
    count = _read_heading(path, lines, columns) if heading else None
    names, values = _read_rows(path, lines, columns, expected, allowed)
    if count is not None and count != len(names):
        raise UnveilError(
            f"{path}, line 1: found the count {count}, expected {len(names)}, the number of rows below it; "
            "the file is cut off or was edited: put the complete one in its place"
        )
    if not names:
        raise UnveilError(f"{path}: found no rows, expected one for each image; put the complete file in its place")
    return names, values


def _read_rows(
    path: Path,
    lines: Iterator[tuple[int, str]],
    columns: Sequence[str],
    expected: str,
    allowed: Mapping[str, int] | None,
) -> tuple[list[str], NDArray[np.int64]]:
    number_of = int if allowed is None else allowed.__getitem__
    names: list[str] = []
    values = array("q")
    seen: dict[str, int] = {}
    for number, line in lines:
        name, *fields = line.split()
        try:
            values.extend(map(number_of, fields))
            wrong = len(fields) != len(columns)
        except (ValueError, KeyError, OverflowError):
            wrong = True
        if wrong:
            what = f"{len(columns)} values, each {expected}" if len(columns) > 1 else f"one value, {expected}"
            raise _broken(path, number, line, f"a file name and {what}")
        if name in seen:
            raise _broken(path, number, line, f"each name once, but line {seen[name]} has {name} too")
        seen[name] = number
        names.append(name)
    return names, np.frombuffer(values, dtype=np.int64).reshape(len(names), len(columns))


def _read_heading(path: Path, lines: Iterator[tuple[int, str]], columns: Sequence[str]) -> int:
    number, line = next(lines, (1, ""))
    try:
        count = int(line)
    except ValueError:
        raise _broken(path, number, line, "the number of images alone") from None
    number, line = next(lines, (2, ""))
    names = line.split()
    if names[:1] == ["image_id"]:  # as the published boxes have it
        names = names[1:]
    if names != list(columns):
        raise _broken(path, number, line, _heading_difference(names, columns))
    return count


def _heading_difference(names: Sequence[str], columns: Sequence[str]) -> str:
    for position, (found, wanted) in enumerate(zip(names, columns, strict=False), start=1):
        if found != wanted:
            return f"{wanted!r} as name {position} of {len(columns)}, not {found!r}"
    return f"the {len(columns)} names of the columns, not {len(names)}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text that are not blank."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line


def _broken(path: Path, number: int, line: str, expected: str) -> UnveilError:
    found = line.strip()
    found = found if len(found) <= 60 else found[:57] + "..."
    return UnveilError(
        f"{path}, line {number}: found {found!r}, expected {expected}; correct the line or get the file anew"
    )
