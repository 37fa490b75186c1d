"""Encoded images: found in folders, taken from archives, and opened within bounds of memory."""

import io
import lzma
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from unveil.errors import UnveilError
from unveil.files import regular

MOST_BYTES = 1 << 28  # of an encoded image, in a file or an archive
MOST_PIXELS = 89_478_484  # of an image: 9,459 x 9,459
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OverflowError, ValueError)
DAMAGE = (*BROKEN, RuntimeError, OSError)  # what reading an archive may raise: it is encrypted, or a place is not there

Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many, in frames and tiles too, before it decodes
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, which is not used, and of half as many pixels


@contextmanager
def open_image(content: bytes) -> Iterator[Image.Image]:
    """Open an encoded image of at most ``MOST_PIXELS``. Only its header is read before the block asks for pixels.

    Raises:
        ValueError: in a few words, if the bytes are not a whole image; also if that is seen within the block.
    """
    if not content:
        raise ValueError("an empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except UnveilError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).partition(',')[0]}; make it smaller") from None
    except UnidentifiedImageError:  # its message is an address in memory
        raise ValueError(f"not an image, it begins with {content[:16]!r}") from None
    except Exception as error:  # noqa: BLE001 - decoders raise all kinds at what is broken
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def find_images(folder: Path, suffixes: Set[str]) -> tuple[list[Path], str]:
    """Image files of a folder in any depth, in no order, and in words what else there is, but for hidden files.

    Links are followed. A folder is entered once, by its own name rather than by a link. Suffixes are in lower case.

    Raises:
        OSError: with the path, if a folder cannot be read.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    entered: set[Path] = set()
    waiting = deque([folder])  # links last
    while waiting:
        place = waiting.popleft()
        if (real := place.resolve()) in entered:
            others["taken already (linked folders)"] += 1
            continue
        entered.add(real)
        with os.scandir(place) as entries:
            inside = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in inside:
            path = place / entry.name
            if entry.is_dir():
                (waiting.append if entry.is_symlink() else waiting.appendleft)(path)
            elif path.suffix.lower() in suffixes:
                found.append(path)
            else:
                others[path.suffix.lower() or "without a suffix"] += 1
    words = ", ".join(f"{number:,} {kind}" for kind, number in sorted(others.items()))
    return found, words.encode("utf-8", "backslashreplace").decode()  # for records in JSON, whatever a name holds


def is_hidden(name: str) -> bool:
    """Whether a name is one of those that macOS and others leave beside images."""
    return name.startswith(".") or name == "__MACOSX"


def open_zip(path: Path, mend: str) -> zipfile.ZipFile:
    """Open a zip archive for reading; ``mend`` says how to get a good one, and ends each message.

    Raises:
        UnveilError: if it is not there, no regular file, or no whole zip.
        OSError: with the path, if the system refuses.
    """
    try:
        return zipfile.ZipFile(regular(path))
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there, expected a zip archive; {mend}") from None
    except (*BROKEN, RuntimeError) as error:
        found = f"a damaged zip ({error})"
    if not zipfile.is_zipfile(path):
        found = f"a truncated zip, or none: {path.stat().st_size:,} bytes without a table of contents at the end"
    raise UnveilError(f"{path}: found {found}; {mend}")


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member, at most ``MOST_BYTES``.

    Raises:
        ValueError: in a few words, if it is not there, too long, encrypted or damaged.
    """
    try:
        member = archive.getinfo(name)
        if member.file_size > MOST_BYTES:
            raise ValueError(f"found {member.file_size:,} bytes, expected at most {MOST_BYTES:,}")
        return archive.read(member)
    except KeyError:
        raise ValueError("not in the archive") from None
    except DAMAGE as error:
        raise ValueError(f"cannot be taken from the archive: {error}") from None
