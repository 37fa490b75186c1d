"""Fetching one published file over HTTP: resumed where it broke off, checked, and with named failures."""

import hashlib
import http.client
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import Request, urlopen

from unveil.data.celeba import PublishedFile
from unveil.data.sources.archive import describe_page
from unveil.data.sources.progress import Progress, Say, megabytes
from unveil.errors import UnveilError
from unveil.files import CHUNK_BYTES, file_digest, regular

ATTEMPTS = 5
PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
TIMEOUT_S = 30.0
PAGE_BYTES = 1 << 20
USER_AGENT = "unveil"


class HostFailed(UnveilError):
    """A host did not deliver a file; another one may."""


class Response(Protocol):
    """What is used of an HTTP response."""

    status: int
    headers: http.client.HTTPMessage

    def read(self, amount: int, /) -> bytes:
        """At most ``amount`` bytes of the body."""

    def geturl(self) -> str:
        """Address after all redirections."""

    def close(self) -> None:
        """End the connection."""


Opener = Callable[..., Response]
"""As ``urllib.request.urlopen``: takes a Request and ``timeout`` in seconds."""


@dataclass(frozen=True)
class Host:
    """A place that has the published files.

    Args:
        name: for messages and ``source.json``.
        address: URL of a published file, given its name.
    """

    name: str
    address: Callable[[str], str]


class _ConnectionLost(Exception):
    """The body ended before its time; what arrived is kept."""


def part_path(target: Path) -> Path:
    """Where the bytes of a file wait until all have arrived."""
    return target.with_name(target.name + ".part")


def fetch_file(
    host: Host,
    target: Path,
    expected: PublishedFile,
    say: Say,
    *,
    opener: Opener = urlopen,
) -> None:
    """Bring one published file to ``target``, whose name is the file's.

    The bytes gather in ``<target>.part``. A later call goes on where this one stopped (HTTP Range); a server
    that cannot do that starts over. Only a file with the published size and MD5 gets its name.

    Args:
        host: from where.
        target: where to; its folder exists.
        expected: published size and MD5.
        say: takes lines of progress.
        opener: opens requests, ``urllib.request.urlopen`` or a stand-in.

    Raises:
        HostFailed: no network, quota used up, refused, not there, changed; the line says which.
    """
    part = part_path(target)
    attempt = 0
    while attempt < ATTEMPTS:
        start = _usable_bytes(part, expected)
        try:
            start = _receive(host, target.name, part, start, expected, say, opener)
        except _ConnectionLost as error:
            kept = part.stat().st_size if part.exists() else 0
            attempt = 1 if kept > start else attempt + 1
            say(f"{target.name}: {host.name} broke off at {megabytes(kept)} ({error}); going on from there")
            time.sleep(min(PAUSE_S * 2**attempt, LONGEST_PAUSE_S))
            continue
        found = file_digest(part, "md5")
        if found == expected.md5:
            os.replace(part, target)
            return
        part.unlink()
        if start == 0:
            raise HostFailed(
                f"{target.name}: changed checksum: {host.name} delivered MD5 {found}, published is {expected.md5}"
            )
        say(f"{target.name}: the partial download of an earlier run was damaged; starting over")
        attempt += 1
    raise HostFailed(
        f"{target.name}: {host.name} broke off {ATTEMPTS} times without a further byte; what arrived is "
        "kept, the next run goes on from there"
    )


def _usable_bytes(part: Path, expected: PublishedFile) -> int:
    """Bytes of an earlier attempt to go on from; too many of them are no beginning of the file."""
    have = part.stat().st_size if part.exists() else 0
    if have > expected.bytes:
        part.unlink()
        return 0
    return have


def _receive(host: Host, name: str, part: Path, start: int, expected: PublishedFile, say: Say, opener: Opener) -> int:
    """Complete ``part``; return how many of its bytes are from before."""
    if start == expected.bytes:
        return start
    response = _open(host, name, host.address(name), start, opener)
    try:
        if start and (response.status != 206 or _range_start(response) != start):
            say(f"{name}: {host.name} cannot go on at {megabytes(start)}; starting over")
            start = 0
            if response.status == 206:  # neither the whole nor what was asked for
                response.close()
                response = _open(host, name, host.address(name), 0, opener)
        elif start:
            say(f"{name}: going on at {megabytes(start)} of {megabytes(expected.bytes)}")
        _check_length(host, name, response, start, expected)
        _store(host, name, response, part, start, expected, say)
    finally:
        response.close()
    return start


def _store(
    host: Host, name: str, response: Response, part: Path, start: int, expected: PublishedFile, say: Say
) -> None:
    progress = Progress(name, expected.bytes, say, describe=megabytes, done=start)
    with part.open("ab" if start else "wb") as stream:
        while chunk := _read(response, CHUNK_BYTES):
            page = describe_page(chunk) if progress.done == 0 else None
            if page is not None:
                raise HostFailed(f"{name}: {host.name} answered with {page}")
            if progress.done + len(chunk) > expected.bytes:
                stream.truncate(0)
                raise HostFailed(f"{name}: changed: {host.name} sends more than the published {expected.bytes:,} bytes")
            stream.write(chunk)
            progress.add(len(chunk))
    if progress.done < expected.bytes:
        raise _ConnectionLost("the body ended early")


def _read(response: Response, amount: int) -> bytes:
    try:
        return response.read(amount)
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from None


def _open(host: Host, name: str, address: str, start: int, opener: Opener, *, confirm: bool = True) -> Response:
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = opener(Request(address, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        with error:
            if error.code == 416 and start:  # the file is shorter than what is here
                return _open(host, name, address, 0, opener)
            raise _refusal(host, name, error) from None
    except URLError as error:
        raise _unreachable(host, name, address, error.reason) from None
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from None
    if response.headers.get_content_type() != "text/html":
        return response
    page = _read(response, PAGE_BYTES)
    base = response.geturl()
    response.close()
    form = _download_form(page, base) if confirm else None
    if form is None:
        raise HostFailed(f"{name}: {host.name} answered with {describe_page(page) or 'a web page'}")
    return _open(host, name, form, start, opener, confirm=False)


def _refusal(host: Host, name: str, error: HTTPError) -> Exception:
    page = describe_page(error.read(PAGE_BYTES))
    if page is not None and "Quota" in page:
        return HostFailed(f"{name}: {host.name} answered with {page}")
    if error.code >= 500:
        return _ConnectionLost(f"status {error.code} {error.reason}")
    reasons = {
        401: "wants a login",
        403: "refuses the file",
        404: "no longer has the file",
        429: "refuses more downloads for now",
    }
    what = reasons.get(error.code, "refuses")
    return HostFailed(f"{name}: {host.name} {what} (status {error.code} {error.reason})")


def _unreachable(host: Host, name: str, address: str, reason: object) -> HostFailed:
    where = urlsplit(address).hostname
    if isinstance(reason, ssl.SSLError):
        return HostFailed(f"{name}: no secure connection to {host.name} at {where} ({reason})")
    return HostFailed(f"{name}: no network: {host.name} at {where} cannot be reached ({reason})")


def _range_start(response: Response) -> int | None:
    """First byte of a part of a file, from a header such as ``Content-Range: bytes 100-199/200``."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else None


def _check_length(host: Host, name: str, response: Response, start: int, expected: PublishedFile) -> None:
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and start + int(length) != expected.bytes:
        raise HostFailed(
            f"{name}: changed: {host.name} offers {start + int(length):,} bytes, published are {expected.bytes:,}"
        )


class _FormReader(HTMLParser):
    """Finds the form by which Google Drive lets one confirm the download of a file too large to scan."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action = values.get("action")
        elif tag == "input" and self.action is not None and "name" in values:
            self.fields[values["name"]] = values.get("value", "")


def _download_form(page: bytes, base: str) -> str | None:
    """Address behind the button "Download anyway" of Google Drive's page; None if there is no such button."""
    reader = _FormReader()
    reader.feed(page.decode("utf-8", errors="replace"))
    if not reader.action:
        return None
    return f"{urljoin(base, reader.action)}?{urlencode(reader.fields)}"


def copy_file(source: Path, target: Path, say: Say) -> str:
    """Copy a file and return the MD5 of its bytes, in one pass."""
    digest = hashlib.md5(usedforsecurity=False)
    progress = Progress(target.name, source.stat().st_size, say, describe=megabytes)
    with regular(source).open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            progress.add(len(chunk))
    return digest.hexdigest()
