"""What every source tells about itself, and what stands in ``source.json``."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from unveil.data.celeba import CANVAS
from unveil.errors import UnveilError

SOURCE_FILE = "source.json"


@dataclass(frozen=True)
class SourceFacts:
    """Where a raw folder's images are from.

    Args:
        origin: how they were obtained, in words, the same on every machine: no dates, no paths.
        licence: under which terms they may be used.
        credit: whom to name.
        canvas: (width, height) of every image, in pixels; None if they differ or are not aligned faces.
        published: whether every file has CelebA's published MD5.
    """

    origin: str
    licence: str
    credit: str
    canvas: tuple[int, int] | None = CANVAS
    published: bool = False


@dataclass(frozen=True)
class FileFacts:
    """Size and hash of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceRecord:
    """The content of ``source.json``: the same input gives the same record."""

    source: str
    origin: str
    licence: str
    credit: str
    images: int
    files: Mapping[str, FileFacts]
    canvas: tuple[int, int] | None
    published: bool

    def to_json(self) -> dict[str, object]:
        """The record as plain values, in the order in which they stand in the file."""
        return {**asdict(self), "canvas": None if self.canvas is None else list(self.canvas)}

    @classmethod
    def load(cls, folder: Path) -> "SourceRecord":
        """Read ``source.json`` in the raw folder."""
        path = folder / SOURCE_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            files = {name: FileFacts(**facts) for name, facts in values.pop("files").items()}
            canvas = values.pop("canvas")
            return cls(**values, files=files, canvas=None if canvas is None else (canvas[0], canvas[1]))
        except FileNotFoundError:
            raise UnveilError(f"{path}: not there, expected what download writes; run the download stage") from None
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise UnveilError(f"{path}: not what download writes; run the download stage again") from None


def worker_count(workers: int) -> int:
    """Number of processes that ``workers`` stands for: 0 means all cores that this process may use."""
    if workers < 0:
        raise UnveilError(f"workers: found {workers}, expected 0 (all cores) or more")
    if workers:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
