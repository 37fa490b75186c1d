"""Images from outside: found through links, and refused before they hang the stage or fill the memory."""

import errno
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from annotated_types import Le
from PIL import Image
from safetensors.numpy import save_file
from tests.data.archives import make_celeba
from tests.data.bad_files import BOMBS, NO_FILES

from unveil.data.celeba import read_annotations
from unveil.data.config import Celeba, Download, Folder, Preprocess
from unveil.data.images import find_images, open_image, open_zip, read_member
from unveil.data.preprocess import decode
from unveil.data.shards import Shard, ShardRows, open_shard
from unveil.data.sources import fetch
from unveil.data.sources.archive import archived_images, copy_file
from unveil.data.sources.folder import encode_image, read_table
from unveil.errors import UnveilError, line_for_user
from unveil.evaluation.images.foreign import MOST_SIDE, read_folder, read_npz, read_safetensors

SUFFIXES = {".png", ".jpg"}
NOBODY = 65534  # a user without rights


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """A test that hangs fails."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pictures(folder: Path, *names: str) -> Path:
    """Small PNGs, each another one."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "PNG")
    return folder


def found(folder: Path) -> tuple[list[str], str]:
    """The names below ``folder`` in order, and the others."""
    paths, others = find_images(folder, SUFFIXES)
    return sorted(path.relative_to(folder).as_posix() for path in paths), others


# --- finding ----------------------------------------------------------------------------------------------


def test_links_are_followed_and_no_folder_is_entered_twice(tmp_path: Path) -> None:
    pictures(tmp_path / "other", "x.png", "deep/y.png")
    folder = pictures(tmp_path / "in", "z/1.png", "2.png")
    (folder / "a").symlink_to(tmp_path / "other")
    (folder / "b").symlink_to(tmp_path / "other" / "deep")  # which a has, too
    (folder / "c").symlink_to("z")  # its own name goes before
    (folder / "linked.png").symlink_to(tmp_path / "other" / "x.png")
    (tmp_path / "other" / "up").symlink_to(folder)
    (folder / "z" / "here").symlink_to(".")
    names, others = found(folder)
    assert names == ["2.png", "a/deep/y.png", "a/x.png", "linked.png", "z/1.png"]
    assert others == "4 taken already (linked folders)"


def test_what_is_left_out_is_counted_except_hidden_files(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", "1.png", "a.png/2.png", ".hidden/3.png", "__MACOSX/4.png", ".5.png")
    for name in ("a.txt", "b.TXT", "readme", ".DS_Store", os.fsdecode(b"no utf-8.\xff")):
        (folder / name).write_text("")
    assert found(folder) == (["1.png", "a.png/2.png"], "2 .txt, 1 .\\udcff, 1 without a suffix")


@pytest.mark.parametrize("deep", [False, True])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    """Permissions do not bind root, so the system's answer is put in."""
    folder = pictures(tmp_path / "in", "1.png", "closed/2.png")
    closed = folder / "closed" if deep else folder
    scan = os.scandir

    def refuse(path: Path | int) -> object:  # an open folder where one is removed
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_folder(folder, 1),
        lambda: fetch(tmp_path / "raw", Download(source="folder", workers=1, folder=Folder(path=folder)), say=print),
    )
    for read in readers:
        with pytest.raises(OSError, match="Permission denied") as caught:
            read()
        assert line_for_user(caught.value) == (
            f"{closed}: the system says: Permission denied; give yourself the right to use it"
        )


def test_permissions_are_asked_of_the_system() -> None:
    with TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        folder = pictures(Path(place) / "in", "1.png", "closed/2.png")
        for path, mode in ((Path(place), 0o755), (folder / "closed", 0)):
            path.chmod(mode)
        user = os.geteuid()
        if user == 0:  # whom permissions do not bind
            os.seteuid(NOBODY)
        try:
            with pytest.raises(PermissionError) as caught:
                found(folder)
        finally:
            os.seteuid(user)
            (folder / "closed").chmod(0o700)
    assert str(line_for_user(caught.value)).startswith(f"{folder / 'closed'}: the system says: Permission denied; ")


def test_links_that_lead_to_each_other_are_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", "1.png")
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as caught:
        found(folder)
    assert str(folder / "a") in str(line_for_user(caught.value))


# --- no regular files -------------------------------------------------------------------------------------


def _sample(path: Path) -> object:
    return read_folder(pictures(path.parent, "1.png", "3.png"), 3)


def _own_picture(path: Path) -> object:
    if problem := encode_image(path).problem:
        raise UnveilError(f"{path}: {problem}")
    return None


SHARD = Shard("a.safetensors", 1, "")
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "an own picture": ("a.png", _own_picture),
    "a sample": ("2.png", _sample),
    "a table of attributes": ("a.csv", lambda path: read_table(path, ["a.png"], print)),
    "the partition": ("list_eval_partition.txt", read_annotations),
    "the landmarks": ("list_landmarks_align_celeba.txt", read_annotations),
    "the archive": ("a.zip", archived_images),
    "the archive, copied": ("a.zip", lambda path: copy_file(path, path.with_name("copy"), print)),
    "the archive, decoded": ("a.zip", lambda path: open_zip(path, "")),
    "samples.npz": ("a.npz", lambda path: read_npz(path, 1)),
    "samples.safetensors": ("a.safetensors", lambda path: read_safetensors(path, 1)),
    "a shard": (SHARD.file, lambda path: open_shard(path.parent, SHARD, "images").__enter__()),
    "rows of a shard": (SHARD.file, lambda path: ShardRows(path.parent, SHARD)),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reader: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, read = READERS[reader]
    NO_FILES[kind](tmp_path / name)
    if (reader, kind) == ("a sample", "a folder"):  # which may hold images, whatever its name is
        pictures(tmp_path / name, "4.png")
        assert _sample(tmp_path / name) is not None
        return
    with pytest.raises(UnveilError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: found {kind}, expected a regular file; ")


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "a folder"])
@pytest.mark.parametrize(
    "name", ["img_align_celeba.zip", "identity_CelebA.txt", "img_align_celeba/000003.jpg", "whole copy"]
)
def test_a_copy_of_celeba_with_such_a_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    own = make_celeba(tmp_path / "own", num_images=12)
    if "/" in name:
        with zipfile.ZipFile(own / "img_align_celeba.zip") as archive:
            archive.extractall(own)
        (own / "img_align_celeba.zip").unlink()
    place = own / name
    place.unlink(missing_ok=True)
    monkeypatch.chdir(place.parent)
    NO_FILES[kind](place)
    with pytest.raises(UnveilError) as caught:
        fetch(
            tmp_path / "raw",
            Download(source="celeba", celeba=Celeba(path=place if name == "whole copy" else own)),
            say=lambda line: None,
        )
    assert str(caught.value).startswith(f"{place}: found {kind}, expected a regular file")


# --- bounds -----------------------------------------------------------------------------------------------

MEASURED = """
import resource, sys
from pathlib import Path
from unveil.data.preprocess import decode
from unveil.data.sources.celeba import _size
from unveil.data.sources.folder import encode_image
from unveil.errors import UnveilError
from unveil.evaluation.images.foreign import read_folder

taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 400_000_000,) * 2)
for path in map(Path, sys.argv[1:]):
    print(encode_image(path).problem)
    for read in (lambda: decode(path.read_bytes()), lambda: read_folder(path.parent, 1)):
        try:
            print(read())
        except (ValueError, UnveilError) as error:
            print(error)
    print(_size(path.read_bytes()))
"""


def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    """In a process with 400 MB to spare, by every reader, and the line says which bound was passed."""
    paths = [tmp_path / name / "bomb.png" for name in BOMBS]
    for path, content in zip(paths, BOMBS.values(), strict=True):
        path.parent.mkdir()
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(BOMBS)
    for number, name in enumerate(BOMBS):
        *said, size = lines[4 * number : 4 * number + 4]
        bound = "too large for PngImagePlugin.MAX_TEXT_CHUNK" if "text" in name else "exceeds limit of 89478484 pixels"
        assert all(bound in line for line in said) and size == "None", (name, said)


@pytest.mark.parametrize("content", [b"", b"text", BOMBS["PPM"][:3], b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_the_reason_is_one_line_without_addresses(content: bytes) -> None:
    for read in (decode, lambda data: open_image(data).__enter__()):
        with pytest.raises(ValueError, match=r"\w") as caught:
            read(content)
        assert " at 0x" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_member_that_says_it_is_too_long_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("img_align_celeba/000001.jpg", b"\xff\xd8" + bytes(1_000_000))
    content = path.read_bytes().replace((1_000_002).to_bytes(4, "little"), (4_000_000_000).to_bytes(4, "little"))
    path.write_bytes(content)
    with open_zip(path, "") as archive:
        with pytest.raises(ValueError, match=r"found 4,000,000,000 bytes, expected at most 268,435,456"):
            read_member(archive, "img_align_celeba/000001.jpg")
        with pytest.raises(ValueError, match="not in the archive"):
            read_member(archive, "img_align_celeba/000002.jpg")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = pictures(tmp_path / "in", "1.png") / "1.png"
    with path.open("r+b") as stream:
        stream.truncate(6_000_000_000)  # takes no room on the disk
    assert encode_image(path).problem.startswith("found 6,000,000,000 bytes, expected at most 268,435,456")
    with pytest.raises(UnveilError, match=r"1\.png: found 6,000,000,000 bytes"):
        read_folder(path.parent, 1)


def test_samples_larger_than_any_shards_are_refused(tmp_path: Path) -> None:
    assert Le(MOST_SIDE) in Preprocess.model_fields["image_size"].metadata
    large = np.zeros((1, 3, 1025, 1025), np.uint8)
    save_file({"images": large}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", large)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1025, 1025)).save(tmp_path / "in" / "1.png")
    for read, name in ((read_safetensors, "a.safetensors"), (read_npz, "a.npz"), (read_folder, "in")):
        with pytest.raises(UnveilError, match="images of 1,025 pixels a side, expected at most 1,024"):
            read(tmp_path / name, 1)
