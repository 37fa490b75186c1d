"""The weights of the feature networks: where they may lie, and the proof that they are the published ones."""

import http.client
import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unveil.errors import UnveilError
from unveil.evaluation.features.published import PUBLISHED, PublishedFile
from unveil.files import atomic_path, file_digest, regular

ENVIRONMENT = "UNVEIL_WEIGHTS"
"""A file of weights, or a folder in which the published names are looked for."""
TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True)
class WeightsFile:
    """A file that was found, and its SHA-256, which is the published one where one is published."""

    path: Path
    sha256: str


def find_weights(
    published: PublishedFile,
    path: Path | None = None,
    *,
    key: str = "evaluate.weights",
    sha256: str | None = None,
) -> WeightsFile:
    """The published weights, checked by SHA-256 before anything reads them.

    Looks, in this order, at ``path``; at the file that the published file's own variable names, which
    only Inception has ($UNVEIL_INCEPTION); at $UNVEIL_WEIGHTS; and in torch's cache of checkpoints, into which
    it downloads them last of all.

    ``path`` is the file, under any name, or a folder that holds it under one of its names, and ``key`` the parameter
    that it is from, for messages. ``sha256`` is the expected hash where none is published; elsewhere it has to agree
    with the published one.

    Raises UnveilError where they are nowhere, or are not the published ones. A place that is named and does not hold
    them is a reason to stop, never to look further; only $UNVEIL_WEIGHTS may be a folder without them, or a file that
    is another network's.
    """
    published = _expected(published, sha256)
    places = {f"${name}": os.environ.get(name) for name in (published.environment, ENVIRONMENT) if name}
    for place, named in ((key, path), *places.items()):
        if named and (place != f"${ENVIRONMENT}" or _may_hold(Path(named), published)):
            return _checked(Path(named), published, f"{place}: ", f"it is published at {published.url}")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if cached := _within(folder, published):
        return _checked(cached, published, "", f"delete it, and it is fetched from {published.url}")
    unset = [f"{name} ({value}) does not hold it" if value else f"{name} is not set" for name, value in places.items()]
    return _download(folder / published.name, published, key, ", ".join([f"{key} is null", *unset]))


def _expected(published: PublishedFile, sha256: str | None) -> PublishedFile:
    """The published file, with the hash that its user gives for it."""
    if not sha256:
        return published
    given = sha256.lower()
    if len(given) != 64 or set(given) - set("0123456789abcdef"):
        raise UnveilError(f"sha256 of {published.name}: found {sha256!r}, expected 64 hexadecimal digits")
    if not given.startswith(published.sha256):
        raise UnveilError(
            f"sha256 of {published.name}: found {sha256}, but {published.sha256} is published; drop yours"
        )
    return replace(published, sha256=given)


def _identity(published: PublishedFile) -> str:
    if not published.sha256:
        return f"{published.name}, of which no sha256 is published"
    begins = "" if len(published.sha256) == 64 else "beginning with "
    return f"{published.name} with sha256 {begins}{published.sha256}"


def _within(folder: Path, published: PublishedFile) -> Path | None:
    return next((folder / name for name in published.names if (folder / name).exists()), None)


def _may_hold(place: Path, published: PublishedFile) -> bool:
    """Whether what $UNVEIL_WEIGHTS names is for this network: no folder without it, no other network's file."""
    if place.is_dir():
        return _within(place, published) is not None
    return place.name in published.names or not any(place.name in other.names for other in PUBLISHED)


def _checked(path: Path, published: PublishedFile, place: str, mend: str) -> WeightsFile:
    """The file, or the one in this folder. Raises UnveilError with what is wrong with it, and how to mend that."""
    found = _within(path, published) if path.is_dir() else path
    problem, digest = f"a folder without {' or '.join(published.names)}", ""
    if found is not None:
        problem, digest = _inspect(found, published)
    if found is None or problem:
        raise UnveilError(f"{place}{found or path}: {problem}, expected {_identity(published)}; {mend}")
    return WeightsFile(found, digest)


def _inspect(path: Path, published: PublishedFile) -> tuple[str, str]:
    """What is wrong with a file that should be the published one, "" if nothing is, and its SHA-256."""
    try:
        with regular(path).open("rb") as stream:
            start = stream.read(512).lstrip().lower()
        digest = file_digest(path)
    except OSError as error:
        return "no such file" if isinstance(error, FileNotFoundError) else f"unreadable ({error.strerror})", ""
    if not start or start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights" if start else "an empty file", ""
    return ("" if digest.startswith(published.sha256) else f"sha256 {digest}"), digest


def _download(destination: Path, published: PublishedFile, key: str, unset: str) -> WeightsFile:
    """Fetch the file into torch's cache; ``unset`` says in words where it is not."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none
    try:
        with atomic_path(destination) as temporary:
            torch.hub.download_url_to_file(published.url, str(temporary), published.sha256 or None, progress=False)
            problem, digest = _inspect(temporary, published)
            if problem:
                raise OSError(problem)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # RuntimeError: another hash
        raise UnveilError(
            f"{_identity(published)} is not there: {unset}, {destination} does not exist, and the download from "
            f"{published.url} failed ({getattr(error, 'reason', None) or error}); fetch that file some other way and "
            f"name it, or its folder, in {key} or ${ENVIRONMENT}, or set evaluate.features: efficientnet-lite0"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return WeightsFile(destination, digest)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote; nothing else of it is unpickled.

    Raises UnveilError if the file holds anything else, or is damaged.
    """
    try:
        state = torch.load(regular(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UnveilError(
            f"{path}: not a file of weights ({' '.join(str(error).split())[:120]}), expected a state dict of tensors; "
            "get the published file"
        ) from None
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UnveilError(f"{path}: holds {type(state).__name__}, expected a state dict of tensors")
    return dict(state)


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within the block, weights that do not fit their network are another's, which UnveilError says in one line."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        words = " ".join(str(error).split())[:160]
        raise UnveilError(f"{path}: weights of another network ({words}); get the published file") from None
