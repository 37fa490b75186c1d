"""Published files from stand-ins and, by the real libraries, from a server on this machine that plays both hosts."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from huggingface_hub import constants
from tests.data.local_server import QUOTA_PAGE, LocalServer, closed_address, scan_page, serving

from unveil.data.celeba import CelebAFile
from unveil.data.sources import transfer
from unveil.data.sources.transfer import DRIVE, MIRROR, Host, HostFailed, fetch_file
from unveil.progress import Say

NAME = "file.zip"
CONTENT = b"PK" + bytes(range(256)) * 20_000
EXPECTED = CelebAFile(hashlib.md5(CONTENT).hexdigest(), len(CONTENT), "abc")
DRIVE_PATH = "/uc?id=abc"
MIRROR_PATH = f"/datasets/{transfer.MIRROR_REPOSITORY}/resolve/main/{NAME}"
PART = NAME + "abcdefgh.part"  # as gdown names what is not complete


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A server to which both hosts' addresses lead."""
    with serving(files={DRIVE_PATH: CONTENT, MIRROR_PATH: CONTENT}) as running:
        lead_to(running.address, monkeypatch)
        yield running


def lead_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    get = requests.Session.get

    def get_here(session: requests.Session, url: str, **options: object) -> requests.Response:
        return get(session, url.replace("https://drive.google.com", address), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "get", get_here)
    monkeypatch.setattr(transfer, "RETRIES", 0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", address)  # HF_ENDPOINT, which is read at the first import
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def fetch(host: Host, folder: Path) -> list[str]:
    """Fetch the file; return what was said."""
    said: list[str] = []
    fetch_file(host, folder / NAME, EXPECTED, said.append)
    assert (folder / NAME).read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == [NAME]
    return said


def failure(host: Host, folder: Path) -> str:
    """Fetch a file that cannot be had; return the line."""
    with pytest.raises(HostFailed) as caught:
        fetch(host, folder)
    assert not (folder / NAME).exists()
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{NAME}: {host.name}: ")
    return line


def delivering(content: bytes) -> Host:
    def bring(target: Path, published: CelebAFile, say: Say) -> None:
        target.write_bytes(content)

    return Host("the test host", bring)


# --- any host ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"PK" + b"x" * (len(CONTENT) - 2), CONTENT[:-1], CONTENT + b"x", b""],
    ids=["other", "shorter", "longer", "empty"],
)
def test_a_changed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    line = failure(delivering(content), tmp_path)
    assert f"found MD5 {hashlib.md5(content).hexdigest()} ({len(content):,} bytes)" in line
    assert f"published is {EXPECTED.md5} ({len(CONTENT):,} bytes)" in line
    assert list(tmp_path.iterdir()) == []


def test_what_another_host_began_goes_when_the_file_is_there(tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT[:1000])
    fetch(delivering(CONTENT), tmp_path)


# --- Google Drive, by gdown -------------------------------------------------------------------------------


def test_a_file_arrives_from_the_drive(server: LocalServer, tmp_path: Path) -> None:
    fetch(DRIVE, tmp_path)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644


def test_the_virus_scan_page_is_confirmed(server: LocalServer, tmp_path: Path) -> None:
    server.answers[DRIVE_PATH] = (200, "text/html", scan_page(f"{server.address}/confirmed"))
    server.files["/confirmed?id=abc&confirm=t&uuid=1-2+3"] = CONTENT
    fetch(DRIVE, tmp_path)


def test_what_arrived_before_a_break_serves_the_next_run(server: LocalServer, tmp_path: Path) -> None:
    server.break_after[DRIVE_PATH] = [1_000_000]
    assert "IncompleteRead" in failure(DRIVE, tmp_path)
    assert fetch(DRIVE, tmp_path) == []
    assert 0 < server.asked(DRIVE_PATH)[-1] <= 1_000_000


def test_a_damaged_beginning_is_discarded(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(b"x" * 1000)
    assert any("damaged; starting over" in line for line in fetch(DRIVE, tmp_path))


@pytest.mark.parametrize("parts", [[CONTENT], [CONTENT + b"x"], [b"PK", b"P"]], ids=["whole", "longer", "two"])
def test_a_beginning_that_gdown_cannot_use_is_discarded(
    server: LocalServer, tmp_path: Path, parts: list[bytes]
) -> None:
    for number, content in enumerate(parts):
        (tmp_path / f"{NAME}abcdefg{number}.part").write_bytes(content)
    fetch(DRIVE, tmp_path)
    assert server.asked(DRIVE_PATH) == [0]


@pytest.mark.parametrize("status", [200, 403])
def test_the_quota_page_is_named(server: LocalServer, tmp_path: Path, status: int) -> None:
    server.answers[DRIVE_PATH] = (status, "text/html; charset=utf-8", QUOTA_PAGE)
    (tmp_path / PART).write_bytes(CONTENT[:1000])
    assert "quota exceeded" in failure(DRIVE, tmp_path)
    assert (tmp_path / PART).read_bytes() == CONTENT[:1000]  # what was there is not lost


# --- the mirror, by huggingface_hub -----------------------------------------------------------------------


def test_a_file_arrives_from_the_mirror_and_nobody_else_is_asked(server: LocalServer, tmp_path: Path) -> None:
    fetch(MIRROR, tmp_path)
    assert {request.path for request in server.requests} == {MIRROR_PATH}


def test_the_mirror_goes_on_after_a_break(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # else the whole file is one
    server.break_after[MIRROR_PATH] = [1_000_000]
    fetch(MIRROR, tmp_path)
    assert server.asked(MIRROR_PATH)[-1] == 1_000_000


def test_an_offline_hub_is_not_asked(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(MIRROR, tmp_path)
    assert server.requests == []


def test_a_full_disk_is_not_the_hosts_failure(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(MIRROR, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- both -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "words"), [(DRIVE, "public link"), (MIRROR, "404")], ids=["drive", "mirror"])
def test_a_file_that_is_gone_is_named(server: LocalServer, tmp_path: Path, host: Host, words: str) -> None:
    server.files.clear()
    assert words in failure(host, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", [DRIVE, MIRROR], ids=["drive", "mirror"])
def test_no_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    lead_to(closed_address(), monkeypatch)
    assert "no network" in failure(host, tmp_path)
