"""Fetching over HTTP against a server on this machine: resumed, checked, and each failure by its name."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
from tests.data.local_server import QUOTA_PAGE, SIGN_IN_PAGE, LocalServer, closed_address, scan_page, serving

from unveil.data.celeba import PublishedFile
from unveil.data.sources import transfer
from unveil.data.sources.transfer import Host, HostFailed, copy_file, fetch_file, part_path

NAME = "file.zip"
CONTENT = b"PK" + bytes(range(256)) * 20_000
EXPECTED = PublishedFile(hashlib.md5(CONTENT).hexdigest(), len(CONTENT), "abc")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with serving(files={"/" + NAME: CONTENT}) as running:
        yield running


def host(server: LocalServer) -> Host:
    return Host("the test host", lambda name: f"{server.address}/{name}")


def fetch(server: LocalServer, folder: Path) -> list[str]:
    """Fetch the file; return what was said."""
    said: list[str] = []
    fetch_file(host(server), folder / NAME, EXPECTED, said.append)
    assert (folder / NAME).read_bytes() == CONTENT
    assert not part_path(folder / NAME).exists()
    return said


def failure(server: LocalServer, folder: Path) -> str:
    """Fetch a file that cannot be had; return the line."""
    with pytest.raises(HostFailed) as caught:
        fetch(server, folder)
    assert not (folder / NAME).exists()
    line = str(caught.value)
    assert "\n" not in line
    assert NAME in line
    assert "the test host" in line
    return line


def test_a_file_arrives_whole(server: LocalServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    assert server.asked("/" + NAME) == [0]


@pytest.mark.parametrize("have", [1, 70_000, len(CONTENT) - 1])
def test_a_partial_download_goes_on(server: LocalServer, tmp_path: Path, have: int) -> None:
    part_path(tmp_path / NAME).write_bytes(CONTENT[:have])
    said = fetch(server, tmp_path)
    assert server.asked("/" + NAME) == [have]
    assert any("going on" in line for line in said)


def test_a_complete_part_needs_no_request(server: LocalServer, tmp_path: Path) -> None:
    part_path(tmp_path / NAME).write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert server.requests == []


def test_without_ranges_it_starts_over(server: LocalServer, tmp_path: Path) -> None:
    server.ranges = False
    part_path(tmp_path / NAME).write_bytes(CONTENT[:1000])
    said = fetch(server, tmp_path)
    assert server.asked("/" + NAME) == [1000]
    assert any("starting over" in line for line in said)


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * len(CONTENT)], ids=["begun", "whole"])
def test_a_corrupt_part_is_discarded(server: LocalServer, tmp_path: Path, part: bytes) -> None:
    part_path(tmp_path / NAME).write_bytes(part)
    said = fetch(server, tmp_path)
    assert server.asked("/" + NAME)[-1] == 0
    assert any("damaged" in line for line in said)


def test_a_part_that_is_too_long_is_discarded(server: LocalServer, tmp_path: Path) -> None:
    part_path(tmp_path / NAME).write_bytes(CONTENT + b"x")
    fetch(server, tmp_path)
    assert server.asked("/" + NAME) == [0]


def test_a_connection_that_breaks_is_taken_up(server: LocalServer, tmp_path: Path) -> None:
    server.break_after["/" + NAME] = [1_000_000, 2_000_000]
    said = fetch(server, tmp_path)
    assert server.asked("/" + NAME) == [0, 1_000_000, 3_000_000]
    assert sum("broke off" in line for line in said) == 2


def test_a_connection_that_always_breaks_keeps_what_arrived(server: LocalServer, tmp_path: Path) -> None:
    server.break_after["/" + NAME] = [1_000_000] + [0] * 100
    assert "the next run goes on" in failure(server, tmp_path)
    assert part_path(tmp_path / NAME).read_bytes() == CONTENT[:1_000_000]
    server.break_after.clear()
    fetch(server, tmp_path)
    assert server.asked("/" + NAME)[-1] == 1_000_000


def test_a_changed_file_is_refused(server: LocalServer, tmp_path: Path) -> None:
    other = b"PK" + b"x" * (len(CONTENT) - 2)
    server.files["/" + NAME] = other
    line = failure(server, tmp_path)
    assert "changed checksum" in line
    assert hashlib.md5(other).hexdigest() in line
    assert EXPECTED.md5 in line
    assert not part_path(tmp_path / NAME).exists()


@pytest.mark.parametrize("content", [CONTENT + b"x", CONTENT[:-1]], ids=["longer", "shorter"])
def test_another_length_is_refused_before_the_bytes(server: LocalServer, tmp_path: Path, content: bytes) -> None:
    server.files["/" + NAME] = content
    assert f"offers {len(content):,} bytes" in failure(server, tmp_path)
    assert not part_path(tmp_path / NAME).exists()


@pytest.mark.parametrize("status", [200, 403])
def test_the_quota_page_is_named(server: LocalServer, tmp_path: Path, status: int) -> None:
    server.answers["/" + NAME] = (status, "text/html; charset=utf-8", QUOTA_PAGE)
    part_path(tmp_path / NAME).write_bytes(CONTENT[:1000])
    assert "Quota exceeded" in failure(server, tmp_path)
    assert part_path(tmp_path / NAME).read_bytes() == CONTENT[:1000]  # what was there is not lost


def test_a_page_that_calls_itself_data_is_named(server: LocalServer, tmp_path: Path) -> None:
    page = QUOTA_PAGE + b" " * (len(CONTENT) - len(QUOTA_PAGE))
    server.answers["/" + NAME] = (200, "application/octet-stream", page)
    assert "Quota exceeded" in failure(server, tmp_path)


def test_the_virus_scan_page_is_confirmed(server: LocalServer, tmp_path: Path) -> None:
    address = "/confirmed?id=abc&confirm=t&uuid=1-2+3"
    server.answers["/" + NAME] = (200, "text/html", scan_page("/confirmed"))
    server.files[address] = CONTENT
    part_path(tmp_path / NAME).write_bytes(CONTENT[:1000])
    fetch(server, tmp_path)
    assert server.asked(address) == [1000]


def test_a_virus_scan_page_without_end_is_named(server: LocalServer, tmp_path: Path) -> None:
    page = (200, "text/html", scan_page("/confirmed"))
    server.answers |= {"/" + NAME: page, "/confirmed?id=abc&confirm=t&uuid=1-2+3": page}
    assert "virus scan" in failure(server, tmp_path)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "login"), (403, "refuses"), (404, "no longer"), (429, "refuses more"), (410, "refuses")],
)
def test_a_refusal_is_named(server: LocalServer, tmp_path: Path, status: int, words: str) -> None:
    server.answers["/" + NAME] = (status, "text/plain", b"no")
    line = failure(server, tmp_path)
    assert words in line
    assert f"status {status}" in line
    assert len(server.requests) == 1


def test_a_sign_in_page_is_named(server: LocalServer, tmp_path: Path) -> None:
    server.answers["/" + NAME] = (200, "text/html", SIGN_IN_PAGE)
    assert "sign in" in failure(server, tmp_path)


def test_a_server_that_is_down_is_asked_again(server: LocalServer, tmp_path: Path) -> None:
    server.answers["/" + NAME] = (503, "text/plain", b"later")
    failure(server, tmp_path)
    assert len(server.requests) == transfer.ATTEMPTS


def test_no_network_is_named(tmp_path: Path) -> None:
    assert "no network" in failure(LocalServer(closed_address()), tmp_path)


def test_a_name_that_does_not_resolve_is_no_network(tmp_path: Path) -> None:
    def offline(request: object, timeout: float) -> transfer.Response:
        raise URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    nowhere = Host("the test host", lambda name: f"https://drive.example/{name}")
    with pytest.raises(HostFailed, match=r"no network: the test host at drive\.example") as caught:
        fetch_file(nowhere, tmp_path / NAME, EXPECTED, print, opener=offline)
    assert "name resolution" in str(caught.value)


def test_copying_gives_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert copy_file(tmp_path / "a", tmp_path / "b", print) == EXPECTED.md5
    assert (tmp_path / "b").read_bytes() == CONTENT
