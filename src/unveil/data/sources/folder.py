"""The source ``folder``: any images, put into CelebA's layout.

A JPEG that is plain RGB and not rotated keeps its bytes. Everything else becomes a PNG of what one sees:
transparency on white, rotation by EXIF applied, 16 bits cut down to 8, the first frame of an animation.
Nothing is compressed with loss a second time. Colour profiles are not applied.
"""

import csv
import hashlib
import io
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unveil.data.celeba import ATTRIBUTES, MOST_TABLE_BYTES, SPLITS, ZIP_NAME, unknown_attribute, write_annotations
from unveil.data.images import MOST_BYTES, find_images, open_image
from unveil.data.sources.archive import IMAGE_SUFFIXES, write_stored_zip
from unveil.data.sources.facts import SourceRecord, in_processes
from unveil.errors import UnveilError, line_for_user
from unveil.files import read_bytes, read_text
from unveil.progress import ProgressLine, Say, images

IMAGES_PER_PROCESS = 16  # at least: fewer are not worth its start
MOST_NAMED = 10  # of unreadable images
TRUE = {"1", "+1"}
SIGNS = TRUE | {"0", "+0", "-1"}


@dataclass(frozen=True)
class EncodedImage:
    """An image as it goes into the archive: a JPEG or PNG, its size in pixels after rotation, or why it is none."""

    suffix: str = ""
    content: bytes = b""
    width: int = 0
    height: int = 0
    problem: str = ""


def write(
    destination: Path,
    *,
    path: Path,
    attributes: Path | None,
    split: Mapping[str, float],
    workers: int,
    on_corrupt: str = "error",
    say: Say = print,
) -> SourceRecord:
    """Fill ``destination``, an empty folder, with the images of a folder, in CelebA's layout.

    Images are numbered in the order of their relative paths, whatever the machine or the number of workers. The
    arguments are those of ``unveil.data.sources.fetch``.

    Raises:
        UnveilError: no images, too few for the splits, unreadable ones, or a CSV that does not fit.
        OSError: with the path, if a folder cannot be read.
    """
    found = image_paths(path, say)
    partition = assign_splits(found, split, say)
    labels = np.zeros((len(found), len(ATTRIBUTES)), dtype=np.bool_)
    if attributes is not None:
        labels = read_table(attributes, found, say)
    encoded = in_processes(encode_image, [path / name for name in found], workers, IMAGES_PER_PROCESS)
    progress = ProgressLine(ZIP_NAME, len(found), say, describe=images)

    kept: list[tuple[int, str, int, int]] = []  # row, name, width, height
    problems: list[str] = []

    def contents() -> Iterator[tuple[str, bytes]]:
        for row, (source, image) in enumerate(zip(found, encoded, strict=True)):
            progress.add(1)
            if image.problem:
                problems.append(f"{source} ({image.problem})")
                continue
            kept.append((row, f"{row + 1:06d}{image.suffix}", image.width, image.height))
            yield kept[-1][1], image.content

    write_stored_zip(destination / ZIP_NAME, contents())
    if problems:
        some = ", ".join([*problems[:MOST_NAMED], *(["..."] if len(problems) > MOST_NAMED else [])])
        line = f"{len(problems)} of {len(found)} images cannot be read: {some}"
        if on_corrupt == "error" or not kept:
            raise UnveilError(f"{path}: {line}; repair or remove them, or set preprocess.on_corrupt to skip")
        say(f"left out, {line}")
    rows = [row for row, *_ in kept]
    names = [name for _, name, *_ in kept]
    write_annotations(
        destination,
        attributes=labels[rows],
        partition=partition[rows],
        identities=np.array(rows) + 1,
        boxes=np.array([(0, 0, width, height) for *_, width, height in kept]),
        landmarks=np.zeros((len(rows), 10), dtype=np.int64),
        names=names,
    )
    jpegs = sum(name.endswith(".jpg") for name in names)
    left_out = f", {len(problems)} unreadable ones left out" if problems else ""
    return SourceRecord(
        source="folder",
        origin=f"a folder of {len(found)} images, {jpegs} of them JPEGs kept as they were, the others as PNG{left_out}",
        licence="unknown: that of the images in the folder; its owner knows",
        credit="unknown: whoever made the images in the folder",
        images=len(names),
        files={},
        canvas=None,
        published=False,
    )


def image_paths(folder: Path, say: Say) -> list[str]:
    """Relative paths (with slashes) of the images in any depth below ``folder``, in a fixed order.

    See ``find_images``. What is left out is said, except hidden files.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UnveilError(f"download.folder.path: {folder} {what}; name a folder of images")
    found, others = find_images(folder, IMAGE_SUFFIXES)
    if others:
        say(f"left out: {others}")
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UnveilError(f"download.folder.path: found no images in {folder}, expected {suffixes} in any depth")
    return sorted((path.relative_to(folder).as_posix() for path in found), key=_normal_form)


def _normal_form(name: str) -> str:
    """Name in Unicode's composed form: file systems differ in how they write an umlaut."""
    return unicodedata.normalize("NFC", name)


# --- splits -----------------------------------------------------------------------------------------------


def assign_splits(names: Sequence[str], split: Mapping[str, float], say: Say) -> NDArray[np.int64]:
    """Split of each image, int64 [N]: 0 train, 1 valid, 2 test.

    A hash of the name is a fixed number in [0, 1), and the shares cut [0, 1) into three intervals. So the
    counts meet the shares only about, but images that are added later move no others. An interval that stays
    empty takes the image next to it; that can happen in small folders only, and is said.
    """
    shares = np.array([split[name] for name in SPLITS])
    wanted = [index for index in range(len(SPLITS)) if shares[index] > 0]
    if len(names) < len(wanted):
        raise UnveilError(
            f"download.folder.path: found {len(names)} images, expected at least {len(wanted)}, one for each "
            f"split with a share ({', '.join(SPLITS[index] for index in wanted)})"
        )
    edges = np.concatenate([[0.0], np.cumsum(shares) / shares.sum()])
    places = np.array([_place(name) for name in names])
    partition = (np.searchsorted(edges, places, side="right") - 1).clip(wanted[0], wanted[-1])
    partition = partition.astype(np.int64)
    for index in wanted:
        if not (partition == index).any():
            nearest = _nearest(places, partition, edges[index], edges[index + 1])
            partition[nearest] = index
            say(f"split {SPLITS[index]}: {len(names)} images left it empty; it takes {names[nearest]}")
    return partition


def _place(name: str) -> float:
    digest = hashlib.sha256(_normal_form(name).encode("utf-8", errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _nearest(places: NDArray[np.float64], partition: NDArray[np.int64], low: float, high: float) -> int:
    """Image nearest to an interval, among those whose split can spare one."""
    spare = np.bincount(partition, minlength=len(SPLITS))[partition] > 1
    distance = np.maximum(low - places, places - high)
    return int(np.argmin(np.where(spare, distance, math.inf)))


# --- attributes -------------------------------------------------------------------------------------------


def read_table(path: Path, names: Sequence[str], say: Say) -> NDArray[np.bool_]:
    """Attributes of the images ``names`` from a CSV: bool [N, 40]; columns that it lacks are false."""
    try:
        rows = csv.reader(io.StringIO(read_text(path, MOST_TABLE_BYTES), newline=""))
        table = [(rows.line_num, [field.strip() for field in row]) for row in rows]
    except FileNotFoundError:
        raise UnveilError(f"download.folder.attributes: {path} does not exist; name a CSV or null") from None
    except csv.Error as error:
        raise UnveilError(f"{path}: not a table ({error}); save it as one") from None
    columns = _columns(path, table[0][1] if table else [])
    places = [ATTRIBUTES.index(name) for name in columns]
    index = _row_index(names)
    labels = np.zeros((len(names), len(ATTRIBUTES)), dtype=np.bool_)
    lines: dict[int, int] = {}  # of the images
    strangers = []
    for line, (name, *signs) in ((line, row) for line, row in table[1:] if any(row)):
        if len(signs) != len(columns):
            found, expected = len(signs) + 1, len(columns) + 1
            raise UnveilError(f"{path}, line {line}: found {found} fields, expected {expected}; correct the line")
        image = index.get(_normal_form(PurePosixPath(name).as_posix()))
        if image is None:
            strangers.append(name)
            continue
        if image < 0:
            raise UnveilError(f"{path}, line {line}: {name!r} names several images; write their paths in the folder")
        if image in lines:
            raise UnveilError(f"{path}, line {line}: {name!r} has a row in line {lines[image]} already; keep one")
        for sign, column in zip(signs, columns, strict=True):
            if sign not in SIGNS:
                raise UnveilError(f"{path}, line {line}: found {sign!r} for {column}, expected 0, 1 or -1")
        lines[image] = line
        labels[image, places] = [sign in TRUE for sign in signs]
    stray = f"{len(strangers)} rows name no image" + (f", the first {strangers[0]!r}" if strangers else "")
    if without := [name for row, name in enumerate(names) if row not in lines]:
        some, hint = ", ".join(without[:3]), f"; {stray}" if strangers else ""
        head = f"{path}: {len(without)} of {len(names)} images have no row"
        raise UnveilError(f"{head} (first: {some}){hint}; add the rows")
    if strangers:
        say(f"{path}: {stray.replace('image', 'image in the folder')}")
    return labels


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """The attributes in the columns after the first."""
    if len(header) < 2:
        other = next((mark for mark in (";", "\t") if header and mark in header[0]), None)
        found = f"columns separated by {other!r}" if other else f"{len(header)} columns"
        raise UnveilError(f"{path}, line 1: found {found}, expected the file name and attributes, separated by commas")
    columns = [*header[1:]]
    for name, times in Counter(columns).items():
        if name not in ATTRIBUTES:
            raise UnveilError(
                f"{path}, line 1: found the column {name!r}, expected an attribute of CelebA; {unknown_attribute(name)}"
            )
        if times > 1:
            raise UnveilError(f"{path}, line 1: found the column {name!r} twice; keep one")
    return columns


def _row_index(names: Sequence[str]) -> dict[str, int]:
    """Position of each image by its relative path, and by its bare name; -1 where several share that."""
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        short = _normal_form(PurePosixPath(name).name)
        index[short] = -1 if short in index else position
    return index | {_normal_form(name): position for position, name in enumerate(names)}


# --- images -----------------------------------------------------------------------------------------------


def encode_image(path: Path) -> EncodedImage:
    """Read one image and encode it for the archive; a broken one is returned with ``problem``."""
    try:
        content = read_bytes(path, MOST_BYTES)
        with open_image(content) as image:
            if _is_plain_jpeg(image):
                image.load()
                return EncodedImage(".jpg", content, *image.size)
            seen = to_rgb(image)
    except (ValueError, UnveilError, OSError) as error:
        return EncodedImage(problem=(line_for_user(error) or str(error)).removeprefix(f"{path}: "))
    buffer = io.BytesIO()
    seen.save(buffer, "PNG")
    return EncodedImage(".png", buffer.getvalue(), *seen.size)


def _is_plain_jpeg(image: Image.Image) -> bool:
    orientation = image.getexif().get(0x0112, 1)
    return image.format in ("JPEG", "MPO") and image.mode == "RGB" and orientation in (0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """What one sees of an image, as 8-bit RGB without metadata.

    The first frame; rotated by EXIF; transparency on white; 16-bit grey scaled and rounded (of 16-bit colour
    Pillow gives the upper 8 bits); floating point numbers in [0, 1] scaled by 255.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        grey = _eight_bits(np.asarray(image), image.mode)
        return Image.fromarray(np.stack([grey] * 3, axis=-1))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        image = Image.alpha_composite(white, seen)
    rgb = image.convert("RGB")
    return Image.fromarray(np.asarray(rgb))  # a new image has no profile, gamma or text


def _eight_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Grey values of 16 or 32 bits as uint8 [H, W]."""
    numbers = values.astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    largest = 1.0 if mode == "F" else 65535.0
    if not (low >= 0 and high <= largest):  # also if one is not a number
        raise ValueError(f"grey values from {low:g} to {high:g}, expected 0 to {largest:g}")
    return np.rint(numbers * (255.0 / largest)).astype(np.uint8)
