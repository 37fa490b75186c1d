"""Samples from anybody's model: a safetensors file, an ``.npz`` as the ADM suite writes it, a folder of images.

Every reader gives the first N images as one uint8 tensor and holds no image twice. Nothing is unpickled,
resized, cropped or rounded: what would need that is refused, because it would change the number.
"""

import hashlib
import io
import re
import struct
import tokenize
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unveil.data.images import DAMAGE, MOST_BYTES, find_images, open_image, open_zip
from unveil.data.sources.facts import worker_count
from unveil.errors import UnveilError
from unveil.files import file_digest, read_bytes
from unveil.tensors import open_tensors

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
CHUNK_IMAGES = 1024  # of an archive that are decompressed at once
CHUNK_BYTES = 2**24
FILES_AT_ONCE = 256  # of a folder
HEADER_BYTES = 1 << 16  # of an array
MOST_SIDE = 1024  # pixels, the greatest preprocess.image_size: larger samples fit no shards
KINDS = {
    "U8": "uint8",
    "I8": "int8",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
TO_UINT8 = "save (x * 127.5 + 127.5).round().clamp(0, 255) of x in [-1, 1] as uint8"


SHARED_FACTS = ("source", "protocol", "image_size", "shards")
"""Keys of the samples' metadata that must agree with the shards."""
MODEL_FACTS = ("model", "sampler", "steps", "nfe", "seed")
"""Keys of the samples' metadata that say how they were made."""


@dataclass(frozen=True)
class SampleFile:
    """Samples, and what their file says about itself."""

    images: Tensor
    """uint8 [N, 3, size, size]: of a file of the sample stage in the order of their ids, else the first."""
    total: int
    """Images in the file or folder."""
    sha256: str
    """Of the file; of a folder, over the names and bytes of the files that were read."""
    facts: dict[str, Any]
    """The file's metadata. Of another generator's samples ``images_from`` says in words what they were read from,
    ``lossy`` which files were compressed with loss, if any, and ``protocol`` is what the user states."""
    attributes: Tensor | None = None
    """What each was asked for, int8 [N, k] in {-1 no, 0 not told, 1 yes}, named by ``facts["attributes"]``."""

    @property
    def told(self) -> bool:
        """Whether anything was asked for."""
        return self.attributes is not None and bool(self.attributes.any())

    @property
    def foreign(self) -> bool:
        """Whether they are of another generator than the sample stage."""
        return "images_from" in self.facts

    @property
    def unknown(self) -> tuple[str, ...]:
        """Facts that a file of the sample stage has, and that are not known of these."""
        return tuple(key for key in (*SHARED_FACTS, *MODEL_FACTS) if self.foreign and key not in self.facts)

    @cached_property
    def images_sha256(self) -> str:
        """Of the bytes of ``images``."""
        return digest(self.images)


def digest(images: Tensor) -> str:
    """SHA-256 of the bytes of uint8 images."""
    return hashlib.sha256(images.contiguous().view(-1).numpy().data).hexdigest()


def check_images(path: Path, name: str, kind: str, shape: Sequence[int], mend: str = "", last: bool = False) -> None:
    """Raise UnveilError, before anything of it is read, unless an array is images that shards can have.

    ``kind`` is the type of its values, as NumPy names it. The shape has to be [N, 3, size, size], or with ``last`` may
    also be [N, size, size, 3]. ``mend`` says how to get a good one.
    """
    sides = shape[2:] if list(shape[1:2]) == [3] else shape[1:3] if last and list(shape[3:]) == [3] else ()
    if kind != "uint8" or len(shape) != 4 or len(set(sides)) != 1 or sides[0] == 0:
        expected = "uint8 [N, 3, size, size]" + (" or [N, size, size, 3]" if last else "")
        mend = mend or (TO_UINT8 if "float" in kind else "write square RGB images as uint8, in C order")
        raise UnveilError(f"{path}: {name} is {kind} {list(shape)}, expected {expected}; {mend}")
    _check_side(path, *sides)


def _check_side(path: Path, *sides: int) -> None:
    if max(sides) > MOST_SIDE:
        raise UnveilError(
            f"{path}: images of {max(sides):,} pixels a side, expected at most {MOST_SIDE:,}; shrink them"
        )


def stored_arrays(file: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type, as NumPy names it, and shape of each tensor of an open safetensors file."""
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
    kinds = {name: part.get_dtype() for name, part in parts.items()}
    return {name: (KINDS.get(kinds[name], kinds[name]), tuple(part.get_shape())) for name, part in parts.items()}


def check_count(path: Path, total: int, count: int, mend: str = "draw more samples") -> None:
    """Raise UnveilError if there are fewer images than are to be evaluated."""
    if total == 0:
        raise UnveilError(f"{path}: holds no images, expected {count}; name the samples of a model")
    if total < count:
        raise UnveilError(f"evaluate.num_images: found {count}, but {path} holds {total} samples; lower it, or {mend}")


def read_safetensors(path: Path, count: int) -> SampleFile:
    """The first ``count`` images of any safetensors file with one tensor of images.

    The tensor is ``images``, or the only one that can be images: uint8 [N, 3, H, W] or [N, H, W, 3].
    """
    with open_tensors(path, "write it again") as file:
        arrays = stored_arrays(file)
        name = _images_key(path, arrays)
        check_images(path, name, *arrays[name], last=True)
        check_count(path, total := arrays[name][1][0], count)
        rows = file.get_slice(name)[:count]
    if rows.shape[1] != 3:
        rows = rows.permute(0, 3, 1, 2).contiguous()
    facts = {"images_from": f"a safetensors file, {name}", "image_size": rows.shape[-1]}
    return SampleFile(rows, total, file_digest(path), facts)


def _images_key(path: Path, arrays: dict[str, tuple[str, tuple[int, ...]]], *first: str) -> str:
    """Name of the array that holds the images."""
    for name in (*first, "images"):
        if name in arrays:
            return name
    fitting = [name for name, (kind, shape) in arrays.items() if kind == "uint8" and len(shape) == 4]
    if len(fitting) != 1:
        first_few = [f"{name[:40]} ({kind} {list(shape)})" for name, (kind, shape) in sorted(arrays.items())[:4]]
        found = ", ".join(first_few) + (" and others" if len(arrays) > 4 else "") or "nothing"
        raise UnveilError(
            f"{path}: found {found}, expected one array of images, uint8 [N, 3, H, W] or [N, H, W, 3]; name it images"
        )
    return fitting[0]


def read_npz(path: Path, count: int) -> SampleFile:
    """The first ``count`` images of an archive of NumPy's, as ADM's suite writes it.

    The images are ``arr_0``, ``images``, or the only array that can be images: uint8 [N, H, W, 3] or [N, 3, H, W].
    Labels (``arr_1``) are not read. Arrays of objects, which only pickle can load, are refused unread.
    """
    mend = "write it again with numpy.savez"
    with open_zip(path, mend) as archive:
        try:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            headers = {name: _npy_header(path, archive, member) for name, member in members.items()}
            name = _images_key(path, {key: header[:2] for key, header in headers.items()}, "arr_0")
            kind, shape, start = headers[name]
            check_images(path, name, kind, shape, last=True)
            check_count(path, shape[0], count)
            if (size := members[name].file_size) != start + prod(shape):
                raise EOFError(f"{name} holds {size:,} bytes, expected {start + prod(shape):,}")
            with archive.open(members[name]) as stream:
                stream.read(start)
                images = _read_rows(stream, (count, *shape[1:]))
                while stream.read(CHUNK_BYTES):  # the archive's checksum is compared at the end of a member
                    pass
        except DAMAGE as error:
            raise UnveilError(f"{path}: damaged ({error}); {mend}") from None
    facts = {"images_from": f"an .npz archive, {name}", "image_size": images.shape[-1]}
    return SampleFile(images, shape[0], file_digest(path), facts)


def _npy_header(path: Path, archive: ZipFile, member: ZipInfo) -> tuple[str, tuple[int, ...], int]:
    """Type and shape of an array of an archive, and the bytes before its values."""
    name = member.filename
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(head)
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
        words = " ".join(str(error).split())[:100]
        raise UnveilError(f"{path}: {name} is not an array of NumPy's ({words}); write it with numpy.savez") from None
    if kind.hasobject:
        raise UnveilError(
            f"{path}: {name} holds a pickle, which could run code and is not loaded; expected an array of uint8; "
            "write plain arrays with numpy.savez"
        )
    return f"{kind} in Fortran's order" if fortran else str(kind), shape, head.tell()


def _read_rows(stream: IO[bytes], shape: tuple[int, ...]) -> Tensor:
    """The first images of an array of bytes, a chunk at a time: uint8 [N, 3, size, size]."""
    count, size = shape[0], prod(shape[1:])
    images = torch.empty((count, 3, shape[2], shape[2]), dtype=torch.uint8)
    for start in range(0, count, CHUNK_IMAGES):
        rows = min(CHUNK_IMAGES, count - start)
        content = stream.read(rows * size)
        if len(content) != rows * size:
            raise EOFError(f"ends after {start * size + len(content):,} bytes of {count * size:,}")
        part = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(rows, *shape[1:])
        images[start : start + rows] = part if shape[1] == 3 else part.permute(0, 3, 1, 2)
    return images


class _Decoded(NamedTuple):
    pixels: np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3]
    format: str
    lossy: bool
    digest: bytes


def read_folder(folder: Path, count: int) -> SampleFile:
    """The first ``count`` images of a folder and of those below it, in natural order: 2.png before 10.png.

    Pixels are what one sees: palettes and grey become RGB, rotation by EXIF is applied; colour profiles are not.
    What has no such pixels is refused by name: transparency, 16 bits, animations, images of several sizes. What a file
    is, its bytes say and not its name, so JPEGs are marked also where they are called ``.png``.
    """
    files, left_out = sample_files(folder)
    total = len(files)
    check_count(folder, total, count)
    files = files[:count]
    digest = hashlib.sha256()
    formats: Counter[str] = Counter()
    lossy: Counter[str] = Counter()
    images = torch.empty(0, dtype=torch.uint8)
    with ThreadPoolExecutor(worker_count(0)) as pool:
        for start in range(0, count, FILES_AT_ONCE):
            chunk = files[start : start + FILES_AT_ONCE]
            for place, (file, decoded) in enumerate(zip(chunk, pool.map(_decode, chunk), strict=True), start):
                height, width = decoded.pixels.shape[:2]
                if height != width:
                    raise UnveilError(
                        f"{file}: {width} x {height} pixels, expected a square image; crop it as the protocol of the "
                        "shards does"
                    )
                if place == 0:
                    images = torch.empty((count, 3, height, width), dtype=torch.uint8)
                if height != (expected := images.shape[-1]):
                    raise UnveilError(
                        f"{file}: {width} x {height} pixels, but {files[0]} has {expected} x {expected}, expected "
                        "images of one size; remove what is no sample"
                    )
                images[place] = torch.from_numpy(decoded.pixels).permute(2, 0, 1)
                formats[decoded.format] += 1
                lossy[decoded.format] += decoded.lossy
                digest.update(file.relative_to(folder).as_posix().encode("utf-8", "surrogateescape") + b"\0")
                digest.update(decoded.digest)
    kinds = ", ".join(f"{number:,} {name}" for name, number in sorted(formats.items()))
    facts: dict[str, Any] = {"images_from": f"a folder of images: {kinds}", "image_size": images.shape[-1]}
    if lossy.total():
        named = ", ".join(f"{number:,} {name}" for name, number in sorted(lossy.items()) if number)
        facts["lossy"] = f"{lossy.total():,} of {count:,} files are compressed with loss: {named}"
    if left_out:
        facts["left_out"] = left_out
    return SampleFile(images, total, digest.hexdigest(), facts)


def sample_files(folder: Path) -> tuple[list[Path], str]:
    """Image files of a folder in any depth, in natural order, and what else there is; see ``find_images``."""
    found, others = find_images(folder, IMAGE_SUFFIXES)
    if not found:
        kinds = f", only {others}" if others else ""
        raise UnveilError(
            f"{folder}: found no images{kinds}, expected {', '.join(sorted(IMAGE_SUFFIXES))} in any depth; "
            "name a folder of samples"
        )
    return sorted(found, key=lambda path: _natural(path.relative_to(folder).as_posix())), others


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that puts numbers in a name in the order of their values."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
    return parts, name


def _decode(path: Path) -> _Decoded:
    content = read_bytes(path, MOST_BYTES)
    try:
        with open_image(content) as image:
            _check_side(path, *image.size)
            problem = _problem(image, content)
            pixels = None if problem else np.array(_to_rgb(image))
            lossy = _is_lossy(image, content)
            kind = {"MPO": "JPEG", "PPM": "PNM"}.get(image.format or "", image.format or "unknown")
    except ValueError as error:
        raise UnveilError(f"{path}: cannot be read ({error}); repair or remove it") from None
    if pixels is None:
        raise UnveilError(f"{path}: {problem}, expected 8-bit RGB without transparency; write the samples as such")
    if kind == "WEBP" and lossy:
        kind = "lossy WEBP"
    return _Decoded(pixels, kind, lossy, hashlib.sha256(content).digest())


def _problem(image: Image.Image, content: bytes) -> str | None:
    """Why an image has no 8-bit RGB pixels of its own, in a few words."""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        return f"an animation of {getattr(image, 'n_frames', 1)} frames"
    if _bits(image, content) > 8:
        return "16 bits or more a channel"
    if image.has_transparency_data:
        low, _ = image.convert("RGBA").getchannel("A").getextrema()
        if int(low) < 255:  # type: ignore[arg-type]
            return "transparent pixels"
    if image.mode not in ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1"):
        return f"colours of mode {image.mode}"
    return None


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits a channel in the file: Pillow cuts 16-bit colour to 8 without a word."""
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, 8)  # type: ignore[attr-defined]
        return max(bits) if isinstance(bits, Sequence) else int(bits)
    if image.format == "PPM" and (header := re.match(rb"P[1-6](?:\s|#[^\n]*\n)*\d+\s+\d+\s+(\d+)", content)):
        return int(header[1]).bit_length()
    return 16 if image.mode in ("I", "F") or image.mode.startswith("I;16") else 8


def _to_rgb(image: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if turned.has_transparency_data:  # opaque everywhere
        turned = turned.convert("RGBA")
    return turned.convert("RGB")


def _is_lossy(image: Image.Image, content: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8 " in _webp_chunks(content)
    compression = str(image.info.get("compression", "")).lower()
    return image.format in ("JPEG", "MPO") or (image.format == "TIFF" and compression in ("jpeg", "tiff_jpeg", "webp"))


def _webp_chunks(content: bytes) -> list[bytes]:
    """Names of the chunks of a WebP: ``VP8`` and a space is the one that loses."""
    names, place = [], 12
    while place + 8 <= len(content):
        names.append(content[place : place + 4])
        place += 8 + (struct.unpack_from("<I", content, place + 4)[0] + 1) // 2 * 2
    return names
