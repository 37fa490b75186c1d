"""The source ``celeba``: CelebA itself, or an own set in its format.

In this order: a copy on disk (named by ``download.celeba.path`` or the environment variable CELEBA_ROOT), the
published files on Google Drive by torchvision's list, a mirror on Hugging Face. Whatever the network delivers
must have the published sizes and MD5s. A copy on disk must have them too if it says that it is the published
set, that is, if it holds the 202,599 names; any other set is taken as it is, and ``published`` is false.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from unveil.data import celeba as layout
from unveil.data.celeba import ANNOTATION_FILES, CANVAS, IMAGE_FOLDER, ZIP_NAME
from unveil.data.images import DAMAGE, MOST_BYTES, open_image, open_zip
from unveil.data.sources.archive import (
    archived_images,
    copy_file,
    is_image,
    refuse_page,
    require_space,
    write_stored_zip,
)
from unveil.data.sources.facts import SourceRecord
from unveil.data.sources.transfer import DRIVE, MIRROR, Host, HostFailed, fetch_file, partial_files
from unveil.errors import UnveilError
from unveil.files import expanded, file_digest, read_bytes, read_text, regular, write_text
from unveil.progress import ProgressLine, Say, images, megabytes

HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LICENCE = f"CelebA's agreement: non-commercial research only, no redistribution ({HOME})"
CREDIT = "Z. Liu, P. Luo, X. Wang, X. Tang: Deep Learning Face Attributes in the Wild, ICCV 2015 (arXiv:1411.7766)"
OWN_LICENCE = "unknown: an own set in CelebA's format; its owner knows"
OWN_CREDIT = "unknown: an own set in CelebA's format"
BY_HAND = f"get the files by hand from {HOME} and name their folder in download.celeba.path or CELEBA_ROOT"

ROOT_VARIABLE = "CELEBA_ROOT"
DOWNLOADS = Path(".unveil/downloads")

BASES = ("", "Img", "celeba", "celeba/Img", "CelebA", "CelebA/Img", IMAGE_FOLDER)
"""Where the zip or the folder of images lies below the folder that is named: as published, or as torchvision
and Kaggle unpack it."""
ANNOTATION_FOLDERS = ("", "Anno", "Eval")
HEAD_BYTES = 1 << 20  # of an image, in which its size stands


def write(
    destination: Path, *, path: Path | None, mirror: bool, say: Say = print, downloads: Path = DOWNLOADS
) -> SourceRecord:
    """Fill ``destination``, an empty folder, with CelebA, or with an own set in its format.

    The arguments are those of ``unveil.data.sources.fetch``.

    Raises:
        UnveilError: what is missing, damaged, changed or out of reach, with how to mend it.
    """
    if path is not None:
        return _write_local(destination, path, "download.celeba.path", say)
    if named := os.environ.get(ROOT_VARIABLE):
        return _write_local(destination, expanded(Path(named)), ROOT_VARIABLE, say)
    say(f"no copy on disk is named (download.celeba.path, {ROOT_VARIABLE}): asking the network")
    return _write_from_network(destination, mirror=mirror, say=say, downloads=downloads)


# --- a copy on disk ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Copy:
    """What was found on disk: ``images`` is the zip or the folder of unpacked images."""

    images: Path
    names: list[str]
    annotations: dict[str, Path]
    unpacked: bool = False


def _write_local(destination: Path, place: Path, key: str, say: Say) -> SourceRecord:
    copy = _find(place, key)
    count = len(copy.names)
    say(f"{key}: found {images(count)} in {copy.images}")
    for source in copy.annotations.values():
        refuse_page(source, "a table")
    published = count == layout.PUBLISHED_IMAGES and set(copy.names) == set(layout.image_names(count))
    (_check_published if published else _check_own)(copy, say)
    for name, source in copy.annotations.items():
        shutil.copyfile(regular(source), destination / name)
    if copy.unpacked:
        _pack(destination, copy, say)
    else:
        size = copy.images.stat().st_size
        say(f"copying {ZIP_NAME} ({megabytes(size)})")
        require_space(destination, size, ZIP_NAME)
        md5 = copy_file(copy.images, destination / ZIP_NAME, say)
        if published:
            _check(copy.images, ZIP_NAME, md5)
            return _record("CelebA's published files, from a copy on disk", count, published=True)
    canvas = _canvas(destination / ZIP_NAME, copy.names, say)
    if published:
        origin = "CelebA's published annotation files; images from an unpacked copy, which no checksum covers"
        return _record(origin, count, canvas)
    kind = "images from an unpacked folder" if copy.unpacked else "images in an archive"
    origin = f"an own set in CelebA's format, from a copy on disk, {kind}"
    return replace(_record(origin, count, canvas), licence=OWN_LICENCE, credit=OWN_CREDIT)


def _record(origin: str, count: int, canvas: tuple[int, int] | None = CANVAS, published: bool = False) -> SourceRecord:
    return SourceRecord("celeba", origin, LICENCE, CREDIT, count, {}, canvas, published)


def _find(place: Path, key: str) -> _Copy:
    if not place.exists():
        raise UnveilError(f"{key}: {place} does not exist; name the archive {ZIP_NAME} or the folder that holds it")
    bases = [place / base for base in BASES]
    archives = [base / ZIP_NAME for base in bases if (base / ZIP_NAME).exists()] if place.is_dir() else [place]
    if archives:
        return _Copy(archives[0], archived_images(archives[0]), _find_annotations(archives[0].parent, key))
    for folder in [*(base / IMAGE_FOLDER for base in reversed(bases)), place]:  # the deepest: Kaggle nests them
        entries = os.scandir(folder) if folder.is_dir() else ()
        if names := sorted(
            entry.name for entry in entries if is_image(PurePosixPath(entry.name)) and not entry.is_dir()
        ):
            holder = place if folder == place else folder.parent
            return _Copy(folder, names, _find_annotations(holder, key), unpacked=True)
    raise UnveilError(
        f"{key}: {place} holds neither {ZIP_NAME} nor a folder {IMAGE_FOLDER} with images; "
        f"name the folder that does, or {BY_HAND}"
    )


def _find_annotations(holder: Path, key: str) -> dict[str, Path]:
    holder = holder.absolute()
    places = [base / folder for base in (holder, holder.parent, holder.parent.parent) for folder in ANNOTATION_FOLDERS]
    there = {name: [place / name for place in places if (place / name).exists()] for name in ANNOTATION_FILES}
    if missing := [name for name, paths in there.items() if not paths]:
        tables = [place / Path(name).with_suffix(".csv") for name in missing for place in places]
        hint = next((f" ({path} is Kaggle's edition in another format)" for path in tables if path.is_file()), "")
        raise UnveilError(
            f"{key}: missing annotation file {', '.join(missing)}{hint}; expected beside the images in "
            f"{holder}, in the two folders above, or in their folders Anno and Eval; get the file from {HOME}"
        )
    return {name: paths[0] for name, paths in there.items()}


def _check_published(copy: _Copy, say: Say) -> None:
    """Of what has the names of the published set, every checksum must be the published one."""
    for name, source in copy.annotations.items():
        _check(source, name, file_digest(source, "md5"))
    if copy.unpacked:
        say(
            "the annotation files have the published checksums; the unpacked images have none, and are "
            f"packed into {ZIP_NAME} as they are"
        )
    elif copy.images.stat().st_size != layout.PUBLISHED[ZIP_NAME].bytes:
        _check(copy.images, ZIP_NAME, None)


def _check(path: Path, name: str, md5: str | None) -> None:
    """Compare a file with the published one; ``md5`` is None where its size says already that it differs."""
    published, size = layout.PUBLISHED[name], path.stat().st_size
    if md5 == published.md5 and size == published.bytes:
        return
    found = f"{size:,} bytes" if md5 is None else f"MD5 {md5} ({size:,} bytes)"
    raise UnveilError(
        f"{path}: changed checksum: found {found}, published is {published.md5} ({published.bytes:,} bytes); "
        "a set with the published 202,599 names must be the published one: get the file anew"
        + (", or name the folder of unpacked images" if name == ZIP_NAME else "")
    )


def _check_own(copy: _Copy, say: Say) -> None:
    """Of a set that is not the published one, the images must be exactly those of the annotation files."""
    say(
        f"this is not the published set of {layout.PUBLISHED_IMAGES:,} images: taken as an own set in "
        "CelebA's format, without published checksums"
    )
    rows, _ = layout.read_annotations(*copy.annotations.values())  # where they lie, so that an error names that place
    doubled, times = Counter(copy.names).most_common(1)[0]
    if times > 1:
        raise UnveilError(f"{copy.images}: found {doubled} twice, expected each image once; make the archive anew")
    table = copy.annotations[layout.ATTRIBUTES_FILE]
    if lacking := sorted(set(rows).difference(copy.names)):
        raise UnveilError(
            f"{copy.images}: lacks {len(lacking)} of the {len(rows)} images in {table.name} "
            f"({_some(lacking)}); add the images or take their rows out of the annotation files"
        )
    if extra := sorted(set(copy.names).difference(rows)):
        raise UnveilError(
            f"{table}: lacks rows for {len(extra)} of the {len(copy.names)} images in {copy.images.name} "
            f"({_some(extra)}); add the rows to the annotation files or take the images out"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _pack(destination: Path, copy: _Copy, say: Say) -> None:
    """Write the unpacked images into the stored zip, in the order of their names."""
    paths = [copy.images / name for name in copy.names]
    require_space(destination, sum(path.stat().st_size for path in paths), ZIP_NAME)
    progress = ProgressLine(ZIP_NAME, len(paths), say, describe=images)

    def contents() -> Iterator[tuple[str, bytes]]:
        for path in paths:
            yield path.name, read_bytes(path, MOST_BYTES)
            progress.add(1)

    write_stored_zip(destination / ZIP_NAME, contents())


def _canvas(path: Path, names: Sequence[str], say: Say) -> tuple[int, int] | None:
    """CelebA's canvas if all readable images of an archive have it."""
    progress = ProgressLine(f"{ZIP_NAME}: sizes", len(names), say, describe=images)
    sizes = set()
    with open_zip(path, "get the archive anew") as archive:
        for name in names:
            with suppress(*DAMAGE), archive.open(layout.image_member(name)) as stream:
                sizes.add(_size(stream.read(HEAD_BYTES)))
            progress.add(1)
    if sizes - {None} == {CANVAS}:
        return CANVAS
    say(f"not all images are {CANVAS[0]} x {CANVAS[1]} pixels: no protocol's crop applies as published")
    return None


def _size(head: bytes) -> tuple[int, int] | None:
    """Width and height from an image's header; None if it is none, which preprocess deals with."""
    with suppress(ValueError), open_image(head) as image:
        return image.size
    return None


# --- the network ------------------------------------------------------------------------------------------


def _write_from_network(destination: Path, *, mirror: bool, say: Say, downloads: Path) -> SourceRecord:
    """Gather the six published files in ``downloads`` and move them to ``destination`` once all are there."""
    downloads.mkdir(parents=True, exist_ok=True)
    names = sorted(layout.PUBLISHED, key=lambda name: layout.PUBLISHED[name].bytes)  # the zip comes last
    require_space(downloads, sum(_missing_bytes(downloads / name) for name in names), "CelebA")
    hosts = [DRIVE, MIRROR] if mirror else [DRIVE]
    failures: list[str] = []
    delivered: dict[str, list[str]] = {}
    for name in names:
        delivered.setdefault(_gather(name, downloads, hosts, failures, say), []).append(name)
    for name in names:
        shutil.move(downloads / name, destination / name)
    shutil.rmtree(downloads)
    parts = [f"from {host}: {', '.join(sorted(files))}" for host, files in sorted(delivered.items())]
    where = "; ".join(parts) if len(parts) > 1 else f"from {next(iter(delivered))}"
    return _record(f"CelebA's published files, {where}", layout.PUBLISHED_IMAGES, published=True)


def _missing_bytes(target: Path) -> int:
    there = [path.stat().st_size for path in (target, *partial_files(target)) if path.exists()]
    return max(0, layout.PUBLISHED[target.name].bytes - max(there, default=0))


def _gather(name: str, downloads: Path, hosts: list[Host], failures: list[str], say: Say) -> str:
    """Bring one file into ``downloads``; return which host did, also if that was in an earlier run.

    A host that fails is not asked again, and ``failures`` says why.
    """
    target, published, note = downloads / name, layout.PUBLISHED[name], downloads / f"{name}.origin"
    if target.exists():
        if file_digest(target, "md5") == published.md5:
            say(f"{name}: complete from an earlier run")
            return read_text(note) if note.exists() else "an earlier download"
        target.unlink()
    while hosts:
        host = hosts[0]
        say(f"{name}: {megabytes(published.bytes)} from {host.name}")
        try:
            fetch_file(host, target, published, say)
        except HostFailed as error:
            failures.append(str(error))
            hosts.pop(0)
            say(f"{error}; " + (f"turning to {hosts[0].name}" if hosts else "no other host is left"))
            continue
        write_text(note, host.name)
        return host.name
    raise UnveilError(f"CelebA: {'; '.join(failures)}; {BY_HAND}")
