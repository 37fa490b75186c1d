"""Archives: writing the stored zip of a raw folder, and telling what a file really is that should be one."""

import hashlib
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from unveil.data.celeba import image_member
from unveil.data.images import is_hidden, open_zip
from unveil.errors import UnveilError
from unveil.files import CHUNK_BYTES, regular
from unveil.progress import ProgressLine, Say, megabytes

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
"""Suffixes, in lower case, of the files that are taken for images."""

FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest time stamp that a zip can hold; with it an archive does not depend on when it was made."""

HEAD_BYTES = 1 << 16
MAGIC = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for",
}
FREE_SPACE_MARGIN = 64_000_000


def write_stored_zip(path: Path, images: Iterable[tuple[str, bytes]], permissions: int = 0o644) -> None:
    """Write (name, bytes) pairs uncompressed under ``img_align_celeba/``, in the order given.

    Dates, ``permissions`` and the named system are fixed: equal images give equal bytes on every machine.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in images:
            member = zipfile.ZipInfo(image_member(name), FIRST_DATE)
            member.create_system = 3  # Unix, also where it is not
            member.external_attr = permissions << 16
            archive.writestr(member, content)


def archived_images(path: Path) -> list[str]:
    """Names of the images in an archive of CelebA's layout, in the archive's order.

    Raises:
        UnveilError: the file is a web page, cut off, another kind of file, or a zip with other contents.
    """
    refuse_page(path, "a zip archive")
    head = _head(path)
    if not head.startswith(b"PK"):
        kinds = (name for magic, name in MAGIC.items() if head.startswith(magic))
        found = next(kinds, f"a file that starts with {head[:4]!r}") if head else "an empty file"
        raise UnveilError(f"{path}: found {found}, expected a zip archive; name the right file")
    with open_zip(path, "get the archive anew") as archive:
        members = [member.filename for member in archive.infolist() if not member.is_dir()]
    images = [member for member in members if is_image(PurePosixPath(member))]
    expected = f"expected {image_member('000001.jpg')} and so on"
    if not images:
        first = f", first {members[0]!r}" if members else ""
        raise UnveilError(f"{path}: found no images among {len(members)} files{first}, {expected}; wrong archive?")
    for image in images:
        if image != image_member(PurePosixPath(image).name):  # readers look for this very name
            raise UnveilError(
                f"{path}: found {image!r} among {len(images)} images, {expected}; "
                "unpack the archive and name the folder instead, or get the published archive"
            )
    return [PurePosixPath(image).name for image in images]


def is_image(path: PurePosixPath) -> bool:
    """Whether a path looks like an image and not like what macOS and others leave beside images."""
    return not any(map(is_hidden, path.parts)) and path.suffix.lower() in IMAGE_SUFFIXES


def refuse_page(path: Path, expected: str) -> None:
    """Raise UnveilError if a file that should hold something else holds a web page."""
    if page := describe_page(_head(path)):
        raise UnveilError(f"{path}: found {page}, expected {expected}; delete it and get the file anew")


def describe_page(head: bytes) -> str | None:
    """Say which web page the first bytes of a file are; None if they are none.

    Google Drive answers with a page and not with an error when a file was fetched too often.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text.startswith((b"<!doctype html", b"<html", b"<head")):
        return None
    if b"quota exceeded" in text or b"too many users have viewed or downloaded" in text:
        return 'Google Drive\'s page "Quota exceeded" (too many downloads of this file today; try tomorrow)'
    if b"virus scan warning" in text or b"can't scan this file for viruses" in text:
        return "Google Drive's page about its virus scan (the download was not confirmed)"
    if b"accounts.google.com" in text or b"sign in" in text or b"log in" in text:
        return "a web page that asks to sign in"
    return "a web page"


def copy_file(source: Path, target: Path, say: Say) -> str:
    """Copy a file and return the MD5 of its bytes, in one pass."""
    digest = hashlib.md5(usedforsecurity=False)
    progress = ProgressLine(target.name, source.stat().st_size, say, describe=megabytes)
    with regular(source).open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            progress.add(len(chunk))
    return digest.hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise UnveilError if the disk of ``folder`` has no room for ``needed`` bytes (and a small margin)."""
    free = shutil.disk_usage(folder).free
    if free < needed + FREE_SPACE_MARGIN:
        raise UnveilError(
            f"{folder}: disk full: found {megabytes(free)} free, {what} needs "
            f"{megabytes(needed + FREE_SPACE_MARGIN)}; free some space or work on another disk"
        )


def _head(path: Path) -> bytes:
    with regular(path).open("rb") as stream:
        return stream.read(HEAD_BYTES)
