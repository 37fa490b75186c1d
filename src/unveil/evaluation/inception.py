"""The weights of the FID network: where they may lie, and the proof that they are the published ones."""

import http.client
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from unveil.errors import UnveilError
from unveil.files import atomic_path, file_digest

ENVIRONMENT = "UNVEIL_INCEPTION"


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody published, and how to know it again."""

    name: str
    url: str
    size: int  # bytes
    sha256: str


# torch-fidelity's file. pytorch-fid publishes the same bytes as pt_inception-2015-12-05-6726825d.pth.
INCEPTION = PublishedFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    url=("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"),
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


def find_weights(path: Path | None = None, published: PublishedFile = INCEPTION) -> Path:
    """Path of the published weights, checked by size and SHA-256.

    Looks, in this order, at ``path``, at the file that $UNVEIL_INCEPTION names, and in torch's cache of
    checkpoints, into which it downloads them last of all. A file that is named and is not there, or is
    not the published one, is an UnveilError, never a reason to look further.
    """
    if path is not None:
        return _named(path, "evaluate.inception_weights", published)
    if named := os.environ.get(ENVIRONMENT):
        return _named(Path(named), f"${ENVIRONMENT}", published)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / published.name
    if not cached.exists():
        _download(cached, published)
    elif problem := problem_of(cached, published):
        raise UnveilError(
            f"{cached}: {problem}, expected {_identity(published)}; delete it, and it is fetched from {published.url}"
        )
    return cached


def problem_of(path: Path, published: PublishedFile = INCEPTION) -> str | None:
    """What is wrong with a file that should be the published one, in a few words; None if nothing is."""
    try:
        with path.open("rb") as stream:
            start = stream.read(512).lstrip().lower()
        size = path.stat().st_size
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            return "a web page, not weights"
        if size != published.size:
            return f"{size:,} bytes of {published.size:,}"
        digest = file_digest(path)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if digest == published.sha256 else f"sha256 {digest}"


def _identity(published: PublishedFile) -> str:
    return f"{published.name} with sha256 {published.sha256}"


def _named(path: Path, place: str, published: PublishedFile) -> Path:
    if path.is_dir():
        problem: str | None = "a folder"
    elif not path.exists():
        problem = "no such file"
    else:
        problem = problem_of(path, published)
    if problem:
        raise UnveilError(
            f"{place}: {path}: {problem}, expected {_identity(published)}; it is published at {published.url}"
        )
    return path


def _download(destination: Path, published: PublishedFile) -> None:
    try:
        with atomic_path(destination) as temporary:
            with urllib.request.urlopen(published.url, timeout=60) as answer, temporary.open("wb") as stream:
                shutil.copyfileobj(answer, stream)
            if problem := problem_of(temporary, published):
                raise UnveilError(_missing(destination, published, f"the network gave {problem}"))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        problem = f"the download failed ({reason})"
        raise UnveilError(_missing(destination, published, problem)) from error


def _missing(cached: Path, published: PublishedFile, problem: str) -> str:
    return (
        f"evaluate.features is inception, but {_identity(published)} is not there: "
        f"evaluate.inception_weights is null, ${ENVIRONMENT} is not set, {cached} does not exist, "
        f"and from {published.url} {problem}; fetch that file some other way and name it in one of the first "
        f"two, or set evaluate.features: efficientnet-lite0"
    )
