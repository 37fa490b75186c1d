"""unveil.files: only regular files are read, writing follows links, and nothing half-done stays."""

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from unveil.errors import UnveilError
from unveil.files import (
    atomic_directory,
    atomic_path,
    destination,
    expanded,
    file_digest,
    read_bytes,
    read_json,
    read_text,
    regular,
)

READERS: list[Callable[[Path], object]] = [
    regular,
    read_bytes,
    read_text,
    file_digest,
    lambda path: read_json(path, int, ""),
]


def special(folder: Path) -> dict[str, Path]:
    """What a file's name can stand for and is no file, by the word that a message has for it."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(folder)  # the address of a socket is at most 107 bytes long
        server.bind("socket")
        os.chdir(before)
    (folder / "link").symlink_to(folder / "pipe")
    names = {name: folder / name for name in ("pipe", "folder", "socket", "link")}
    return names | {"device": Path("/dev/zero")}


def test_what_is_no_regular_file_is_refused_by_name_and_at_once(tmp_path: Path) -> None:
    for word, path in special(tmp_path).items():
        for read in READERS:
            kind = "pipe" if word == "link" else word
            with pytest.raises(UnveilError, match=f"{path}: found a {kind}, expected a regular file"):
                read(path)


def test_a_link_to_a_file_is_read_and_a_missing_one_is_the_system_s_to_say(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf12")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link") == "12"
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "nothing")


def test_a_file_beyond_the_bound_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(UnveilError, match=r"file: found no text in UTF-8"):
        read_text(path)
    with pytest.raises(UnveilError, match=r"file: found 5 bytes, expected at most 4"):
        read_bytes(path, most=4)
    os.truncate(path, 2**40)  # takes no room on the disk
    with pytest.raises(UnveilError, match="expected at most"):
        read_text(path)


@dataclass(frozen=True)
class Entry:
    images: int
    names: tuple[str, ...]


def test_json_is_read_as_exactly_what_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"images": 3, "names": ["a"]}')
    assert read_json(path, Entry, "make it again") == Entry(3, ("a",))
    for text, words in {
        '{"images": "3", "names": []}': 'images: found "3", expected a valid integer',
        '{"images": 3.5, "names": []}': "images: found 3.5, expected a valid integer",
        '{"images": 3, "names": [1]}': "names.0: found 1, expected a valid string",
        '{"images": NaN, "names": []}': "not valid JSON",
        '{"images": 3, "names": ["a", 1e999]}': "names.1: found Infinity, expected a number of at most 64 bits",
        '{"images": 3}': "names is missing",
        "[" * 100_000: "not valid JSON",
        "": "not valid JSON",
    }.items():
        path.write_text(text)
        with pytest.raises(UnveilError) as raised:
            read_json(path, Entry, "make it again")
        line = str(raised.value)
        assert line.startswith(f"{path}: ")
        assert line.endswith("; make it again")
        assert words in line


def test_writing_goes_through_links(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "raw").mkdir(parents=True)
    (disk / "raw" / "old").touch()
    (disk / "file").touch()
    project = tmp_path / "project"
    project.mkdir()
    (project / "raw").symlink_to(disk / "raw")
    (project / "file").symlink_to("../disk/file")
    with atomic_directory(project / "raw") as temporary:
        (temporary / "new").touch()
    with atomic_path(project / "file") as temporary:
        temporary.write_text("new")
    assert (project / "raw").is_symlink()
    assert (project / "file").is_symlink()
    assert [path.name for path in (disk / "raw").iterdir()] == ["new"]
    assert (disk / "file").read_text() == "new"
    assert {path.name for path in [*project.iterdir(), *disk.iterdir()]} == {"raw", "file"}


def test_what_cannot_be_written_to_is_refused_by_name_and_stays(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted" / "disk")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    for name, words in {
        "gone": "gone: a link to .*disk, which is not there",
        "gone/a/b": "gone: a link to .*disk, which is not there",
        "loop": "loop: a link to loop, which is not there",
        "file/raw": "file: found a file, expected a folder; name another",
        "file": "file: found a file, expected a folder",
    }.items():
        with pytest.raises(UnveilError, match=words), atomic_directory(tmp_path / name):
            pass
    with pytest.raises(UnveilError, match="found a folder, expected a file"), atomic_path(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_killed_process_left_is_removed_or_put_back(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = process.pid
    here, long_ago = platform.node().partition(".")[0], time.time() - 2 * 24 * 3600
    kept = {f".raw.{here}-{os.getppid()}.tmp", f".raw.other-{gone}.tmp"}
    theirs = {f".raw.{gone}.old", f".env.{here}-{gone}.old", f".rawer.{here}-{gone}.tmp", f"raw.{here}-{gone}.tmp"}
    left = {f".raw.{here}-{gone}.tmp", f".raw.old-{gone}.tmp"}
    for name in kept | theirs | left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    os.utime(tmp_path / f".raw.old-{gone}.tmp", (long_ago, long_ago))
    destination(tmp_path / "raw")
    assert {path.name for path in tmp_path.iterdir()} == kept | theirs
    (tmp_path / f".raw.{here}-{gone}.old").mkdir()  # killed between moving the old one aside and putting the new one
    destination(tmp_path / "raw")
    assert {path.name for path in tmp_path.iterdir()} == {"raw", *kept, *theirs}


def test_a_full_disk_is_named_by_what_was_written(tmp_path: Path) -> None:
    for block in (atomic_path, atomic_directory):
        with (
            pytest.raises(OSError, match="No space left") as raised,
            block(tmp_path / "output"),
            Path("/dev/full").open("wb", buffering=0) as full,
        ):
            full.write(b"1")
        assert raised.value.filename == str(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_that_nobody_has_is_one_line() -> None:
    assert expanded(Path("~/x")) == Path.home() / "x"
    with pytest.raises(UnveilError, match="found a character that no path has"):
        expanded(Path("a\0b"))
    with pytest.raises(UnveilError, match=r"~no-such-user/x: .*; write the whole path"):
        expanded(Path("~no-such-user/x"))
