"""Fetching a published file with the libraries of its two hosts; size and MD5 judge what arrived."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unveil.data.celeba import CelebAFile
from unveil.errors import UnveilError
from unveil.files import file_digest
from unveil.progress import ProgressLine, Say, megabytes

RETRIES = 5
TIMEOUT_S = 30.0
MIRROR_REPOSITORY = "Yuehao/celeba"


class HostFailed(UnveilError):
    """A host did not deliver a file; another one may."""


@dataclass(frozen=True)
class Host:
    """A place that has the published files.

    Args:
        name: for messages and ``source.json``.
        bring: writes a published file to the path, whose name is the file's, or raises HostFailed with the reason.
    """

    name: str
    bring: Callable[[Path, CelebAFile, Say], None]


def fetch_file(host: Host, target: Path, published: CelebAFile, say: Say) -> None:
    """Bring one published file to ``target``, whose name is the file's.

    Only a file with the published MD5 stays. If it was begun by an earlier run, its beginning may be what is wrong:
    then it is fetched once more, from the start.

    Raises:
        HostFailed: no network, quota used up, refused, not there, changed; the line says which.
    """
    begun = _usable_bytes(target, published)
    try:
        host.bring(target, published, say)
    except HostFailed as error:
        raise HostFailed(f"{target.name}: {host.name}: {error}") from None
    _discard_parts(target)
    md5, size = file_digest(target, "md5"), target.stat().st_size
    if md5 == published.md5:
        return
    target.unlink()
    if begun:
        say(f"{target.name}: the partial download of an earlier run was damaged; starting over")
        fetch_file(host, target, published, say)
        return
    raise HostFailed(
        f"{target.name}: {host.name}: changed checksum: found MD5 {md5} ({size:,} bytes), "
        f"published is {published.md5} ({published.bytes:,} bytes)"
    )


def partial_files(target: Path) -> list[Path]:
    """What gdown has of a file that is not complete; it names it with eight random characters."""
    return list(target.parent.glob(f"{target.name}{'?' * 8}.part"))


def _usable_bytes(target: Path, published: CelebAFile) -> int:
    """How many bytes gdown can go on from: it takes one partial file, and asks for at least one more byte."""
    sizes = [path.stat().st_size for path in partial_files(target)]
    if len(sizes) == 1 and sizes[0] < published.bytes:
        return sizes[0]
    _discard_parts(target)
    return 0


def _discard_parts(target: Path) -> None:
    for path in partial_files(target):
        path.unlink()


def from_drive(target: Path, published: CelebAFile, say: Say) -> None:
    """Fetch a file from Google Drive; what arrives of it stays for the next run."""
    import gdown  # both take long to import and are rarely needed
    import requests

    start = _usable_bytes(target, published)
    progress = ProgressLine(target.name, published.bytes, say, describe=megabytes, done=start)
    try:
        gdown.download(
            id=published.drive_id,
            output=str(target),
            quiet=True,
            use_cookies=False,  # which would lie in the user's home
            resume=True,
            progress=lambda done, _: progress.add(done - progress.done),
            timeout=TIMEOUT_S,
            retries=RETRIES,
        )
    except (gdown.DownloadError, requests.RequestException) as error:
        raise HostFailed(_reason(error, requests.ConnectionError)) from None
    target.chmod(0o644)  # gdown makes it readable to its owner alone


def from_mirror(target: Path, published: CelebAFile, say: Say) -> None:
    """Fetch a file from the mirror; the variables HF_ENDPOINT and HF_HUB_OFFLINE hold.

    After a break it goes on where it was, but what arrived does not outlast the run.
    """
    import httpx2
    from huggingface_hub import hf_hub_download

    folder = target.with_name(f"{target.name}.mirror")
    try:
        path = hf_hub_download(MIRROR_REPOSITORY, target.name, repo_type="dataset", local_dir=folder)
        os.replace(path, target)
    except (OSError, RuntimeError, ValueError, httpx2.HTTPError) as error:  # ValueError: of HF_ENDPOINT
        if getattr(error, "errno", None) is not None:  # a full disk, say: no other host mends that
            raise
        raise HostFailed(_reason(error, httpx2.TransportError)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception, unreachable: type[Exception]) -> str:
    """One line on why a library gave up; ``unreachable`` is its error where no server answers."""
    cause = error.__cause__ or error
    text = " ".join(str(cause).split())
    if "Too many users have viewed or downloaded" in text:
        return "quota exceeded (too many downloads of this file today; try tomorrow)"
    return f"no network ({text})" if isinstance(cause, unreachable) else text


DRIVE = Host("Google Drive (torchvision's list)", from_drive)
MIRROR = Host(f"the Hugging Face mirror {MIRROR_REPOSITORY}", from_mirror)
