"""Reading regular files only, and writing so that a reader never sees half of a file or folder."""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from unveil.errors import UnveilError

CHUNK_BYTES = 1 << 20
MACHINE = platform.node().partition(".")[0] or "localhost"
MOST_TEXT_BYTES = 1 << 26  # of a text or JSON file: CelebA's largest table has 27 MB
FOREIGN_SECONDS = 24 * 3600  # after which what a process of another machine left is taken for left
LONGEST_SHOWN = 60  # characters of a wrong value
GREATEST_INTEGER, GREATEST = 2**63, 1e100  # of the numbers in JSON
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
Record = TypeVar("Record")


# --- reading ----------------------------------------------------------------------------------------------


def expanded(path: Path) -> Path:
    """The path with the home folder in the place of ``~``. Raises UnveilError if there is no such user, or path."""
    if "\0" in str(path):
        raise UnveilError(f"{str(path)!r}: found a character that no path has; remove it")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UnveilError(f"{path}: {error}; write the whole path") from None


def regular(path: Path) -> Path:
    """The path, if it is of a regular file or of a link to one. Everything that is read goes through here.

    Raises:
        UnveilError: if it is a pipe, a device or a folder, which would hang, never end or fail obscurely.
        OSError: FileNotFoundError if nothing is there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise UnveilError(f"{path}: found {kind}, expected a regular file; put the file there, or name another")
    return path


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        UnveilError: if it is longer, or no regular file.
        OSError: if it is not there or not readable.
    """
    size = regular(path).stat().st_size
    if most is not None and size > most:
        raise UnveilError(f"{path}: found {size:,} bytes, expected at most {most:,}; put the right file there")
    return path.read_bytes()


def read_text(path: Path, most: int = MOST_TEXT_BYTES) -> str:
    """The text of a regular file in UTF-8 of at most ``most`` bytes, without a byte order mark.

    Raises:
        UnveilError: if it is no such text, longer, or no regular file.
        OSError: if it is not there or not readable.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnveilError(f"{path}: found no text in UTF-8 ({error}); save it as UTF-8") from None


def read_json(path: Path, kind: type[Record], mend: str, finite: bool = True) -> Record:
    """Read a JSON file as a pydantic model or dataclass, each value of exactly the type that is declared.

    Args:
        path: of the file.
        kind: what it holds.
        mend: how to get a good one, which ends each message.
        finite: whether numbers must be finite and no larger than anything here could be.

    Raises:
        UnveilError: that names the file, the key, what was found and what was expected.
    """
    try:
        return parse_json(read_bytes(path, MOST_TEXT_BYTES), kind, str(path), mend, finite)
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there; {mend}") from None


def parse_json(content: bytes | str, kind: type[Record], name: str, mend: str, finite: bool = True) -> Record:
    """``read_json`` of a text that was read already, which messages call ``name``."""
    try:
        values = from_json(content, allow_inf_nan=not finite)
        if finite and (wrong := excessive_number(values)):  # also where any value may stand
            raise UnveilError(f"{name}: {wrong}; {mend}")
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise UnveilError(f"{name}: {_first_problem(error)}; {mend}") from None
    except ValueError as error:
        raise UnveilError(f"{name}: not valid JSON ({error}); {mend}") from None


def excessive_number(value: Any, key: str = "") -> str | None:
    """What is wrong with the first number that is infinite, as 1e999 is, or that overflows where it is squared."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = (excessive_number(item, f"{key}.{name}" if key else str(name)) for name, item in items)
        return next(filter(None, found), None)
    if isinstance(value, int | float) and abs(value) >= (GREATEST_INTEGER if isinstance(value, int) else GREATEST):
        return f"{shortened(key)}: found {_shown(value)}, expected a number of at most 64 bits, and below {GREATEST:g}"
    return None


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's problems, the format's before others: key, what was found, what was expected."""
    first = min(error.errors(include_url=False), key=lambda problem: problem["loc"] != ("format",))
    parts = (part if re.fullmatch(r"[\w.-]+", part) else json.dumps(part) for part in map(str, first["loc"]))
    key, value = shortened(".".join(parts)), first["input"]
    place = f"{key}: " if key else ""
    message = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ", 1)
    match first["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{key}: unknown key"
        case "combination":  # of a section
            wrong = first["ctx"]["problems"][0]
            key = ".".join(filter(None, (key, wrong.key)))
            return f"{key}: found {_shown(value.get(wrong.key))}, expected {wrong.expected}"
        case "value_error" if isinstance(value, dict):
            return f"{place}{message}"
    return f"{place}found {_shown(value)}, {message}"


def _shown(value: object) -> str:
    return shortened(json.dumps(value, default=str))


def shortened(text: str) -> str:
    """The text, or its beginning where it is longer than messages show."""
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


# --- writing ----------------------------------------------------------------------------------------------


def destination(path: Path, folder: bool = False) -> Path:
    """Where writing to a file, or to a ``folder``, ends up behind its links; what killed processes left is removed.

    Raises:
        UnveilError: if a link on the way leads nowhere, such as to a disk that is not mounted, or a file stands where
            a folder belongs, or a folder where a file does.
    """
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise UnveilError(
                f"{place}: a link to {place.readlink()}, which is not there; mount that disk, or remove the link"
            )
        wanted = folder or place != path
        if place.exists() and place.is_dir() != wanted:
            found = KINDS.get(stat.S_IFMT(place.stat().st_mode), "a file")
            raise UnveilError(f"{place}: found {found}, expected a {'folder' if wanted else 'file'}; name another")
    path = path.resolve()
    _sweep(path)
    return path


def _temporary(path: Path, ending: str = "tmp") -> Path:
    """A hidden name beside ``path`` that no other process takes, on this machine or another with the same disk."""
    return path.with_name(f".{path.name}.{MACHINE}-{os.getpid()}.{ending}")


def _sweep(path: Path) -> None:
    """Remove what processes that are gone left of writing ``path``; put back what one had moved aside."""
    for left in path.parent.glob(".*"):
        match = re.fullmatch(rf"\.{re.escape(path.name)}\.([^.]+)-(\d{{1,7}})\.(tmp|old)", left.name)
        if match is None:
            continue
        with suppress(OSError):  # another process may be at it too
            if match[1] == MACHINE:
                in_use = _is_alive(int(match[2]))
            else:  # nobody can ask another machine
                in_use = time.time() - left.stat().st_mtime < FOREIGN_SECONDS
            if not in_use and match[3] == "old" and not path.exists():
                os.replace(left, path)
            elif not in_use:
                _remove(left)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path, folder: bool) -> Iterator[tuple[Path, Path]]:
    """Yield where ``path`` ends up and a temporary name beside it, which is free before and after.

    A refusal names the former, also one without a path, such as of a full disk; never the temporary one.
    """
    path = destination(path, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _remove(temporary)
    try:
        yield path, temporary
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(str(temporary), str(path))
        elif error.errno not in (None, errno.EIO):  # which may be of a file that is read
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` if the block succeeds.

    What ``path`` held before stays untouched until the rename, and for ever if the block raises. Links are written
    through. Raises UnveilError as ``destination`` does.
    """
    with _replacing(path, folder=False) as (place, temporary):
        yield temporary
        os.replace(temporary, place)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; put it in the place of ``path`` if the block succeeds.

    A folder cannot be replaced in one step, so the old one is moved aside first and removed last. Links are written
    through. Raises UnveilError as ``destination`` does.
    """
    with _replacing(path, folder=True) as (place, temporary):
        temporary.mkdir()
        yield temporary
        aside = _temporary(place, "old")
        try:
            if place.exists():
                os.replace(place, aside)
            os.replace(temporary, place)
        finally:
            if aside.exists() and not place.exists():
                os.replace(aside, place)
        _remove(aside)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with a stable layout, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def link_or_copy(file: str | Path, copy: str | Path) -> None:
    """Have the content of a regular file at another name too: as a hard link, where the file system has them."""
    whole = regular(Path(file)).resolve()
    try:
        os.link(whole, copy)
    except OSError:  # another disk, or one without links
        shutil.copyfile(whole, copy)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a regular file's bytes, read in chunks."""
    with regular(path).open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
