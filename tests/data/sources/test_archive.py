"""The stored zip, and what files that should be archives really are."""

import hashlib
import io
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from tests.data.archives import make_celeba
from tests.data.local_server import QUOTA_PAGE, SIGN_IN_PAGE, scan_page

from unveil.data.sources.archive import (
    archived_images,
    copy_file,
    describe_page,
    is_image,
    refuse_page,
    require_space,
    write_stored_zip,
)
from unveil.errors import UnveilError

IMAGES = [("000002.png", b"two"), ("000001.jpg", b"one" * 1000)]


def test_a_stored_zip_keeps_order_and_bytes(tmp_path: Path) -> None:
    write_stored_zip(tmp_path / "a.zip", IMAGES)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = archive.infolist()
        assert [member.filename for member in members] == [f"img_align_celeba/{name}" for name, _ in IMAGES]
        assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
        assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
        assert [archive.read(member) for member in members] == [content for _, content in IMAGES]


def test_a_stored_zip_does_not_depend_on_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stored_zip(tmp_path / "a.zip", IMAGES)
    later = time.time() + 10**8
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(time, "localtime", lambda *seconds: time.gmtime(later))
    write_stored_zip(tmp_path / "b.zip", iter(IMAGES))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_images_of_an_archive_are_listed(tmp_path: Path) -> None:
    make_celeba(tmp_path, num_images=12)
    assert archived_images(tmp_path / "img_align_celeba.zip") == [f"{n:06d}.jpg" for n in range(1, 13)]
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "a") as archive:
        archive.writestr("__MACOSX/img_align_celeba/._000001.jpg", b"")
        archive.writestr("img_align_celeba/.DS_Store", b"")
        archive.writestr("readme.txt", b"")
    assert len(archived_images(tmp_path / "img_align_celeba.zip")) == 12


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content " * 100)
    return buffer.getvalue()


GOOD = zipped("img_align_celeba/000001.jpg", "img_align_celeba/000002.jpg")
BAD = {
    "quota page": (QUOTA_PAGE, "Quota exceeded"),
    "sign-in page": (SIGN_IN_PAGE, "sign in"),
    "virus scan page": (scan_page("/x"), "virus scan"),
    "another page": (b"\n<HTML><body>moved</body></HTML>", "a web page"),
    "truncated": (GOOD[: len(GOOD) // 2], "truncated zip"),
    "table damaged": (GOOD.replace(b"PK\x01\x02", b"PK\x01\x03"), "damaged zip"),
    "empty": (b"", "empty file"),
    "a 7z": (b"7z\xbc\xaf\x27\x1c" + b"x" * 100, "7z archive"),
    "an image": (b"\xff\xd8\xff\xe0" + b"x" * 100, "JPEG image"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid ...", "Git LFS"),
    "something else": (b"abcdefgh", "starts with b'abcd'"),
    "no members": (zipped(), "no images among 0 files"),
    "other contents": (zipped("a.txt", "b.txt"), "no images among 2 files, first 'a.txt'"),
    "no folder": (zipped("000001.jpg"), "found '000001.jpg'"),
    "nested": (zipped("img_align_celeba/img_align_celeba/000001.jpg"), "unpack the archive"),
    "a dot": (zipped("./img_align_celeba/000001.jpg"), "found './img_align_celeba/000001.jpg'"),
    "two slashes": (zipped("img_align_celeba//000001.jpg"), "found 'img_align_celeba//000001.jpg'"),
    "two dots": (
        zipped("a/../img_align_celeba/000001.jpg"),
        "no images among 1 files, first 'a/../img_align_celeba/000001.jpg'",
    ),
    "a name that is not UTF-8": (
        zipped("img_align_celeba/ä.jpg").replace("ä".encode(), b"\xff\xff"),
        "damaged zip ('utf-8' codec",
    ),
    "PNG edition": (zipped("img_align_celeba_png/000001.png"), "img_align_celeba_png"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=[name.replace(" ", "-") for name in BAD])
def test_what_is_no_archive_of_celeba_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "img_align_celeba.zip"
    path.write_bytes(content)
    with pytest.raises(UnveilError) as caught:
        archived_images(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    assert words in line


def test_data_is_no_page(tmp_path: Path) -> None:
    assert describe_page(GOOD) is None
    assert describe_page(b"202599\n5_o_Clock_Shadow quota exceeded") is None
    (tmp_path / "a.txt").write_bytes(QUOTA_PAGE)
    with pytest.raises(UnveilError, match="Quota exceeded"):
        refuse_page(tmp_path / "a.txt", "a table")


def test_images_are_told_by_their_names() -> None:
    from pathlib import PurePosixPath

    taken = ["a.jpg", "x/y/A.JPEG", "b.PNG", "c.tiff", "d.webp", "e.gif", "f.bmp", "g.tif"]
    left = ["a.txt", ".hidden.jpg", ".git/a.jpg", "__MACOSX/a.jpg", "jpg", "a.heic", "a.jpg.part"]
    assert all(is_image(PurePosixPath(name)) for name in taken)
    assert not any(is_image(PurePosixPath(name)) for name in left)


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path, 0, "nothing")
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    require_space(tmp_path, 900_000_000, "img_align_celeba.zip")
    with pytest.raises(UnveilError, match=r"disk full: found 1,000 MB free, img_align_celeba\.zip needs 1,507 MB"):
        require_space(tmp_path, 1_443_490_838, "img_align_celeba.zip")


def test_copying_gives_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(QUOTA_PAGE * 10_000)
    assert copy_file(tmp_path / "a", tmp_path / "b", print) == hashlib.md5(QUOTA_PAGE * 10_000).hexdigest()
    assert (tmp_path / "b").read_bytes() == QUOTA_PAGE * 10_000
