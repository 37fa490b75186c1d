"""What every source tells about itself, and what stands in ``source.json``."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from unveil.data.config import SourceName
from unveil.errors import UnveilError
from unveil.files import read_json
from unveil.section import NO_OTHERS, Amount, Count, FileName, Sha256

SOURCE_FILE = "source.json"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileFacts:
    """Size and hash of one file."""

    __pydantic_config__ = NO_OTHERS
    bytes: Amount
    sha256: Sha256


@dataclass(frozen=True)
class SourceRecord:
    """The content of ``source.json``: where a raw folder's images are from. The same input gives the same record.

    Attributes:
        origin: how they were obtained, in words, the same on every machine: no dates, no paths.
        licence: under which terms they may be used.
        credit: whom to name.
        images: their number.
        files: of the folder, beside this record.
        canvas: (width, height) of every image, in pixels; None if they differ or are not aligned faces.
        published: whether every file has CelebA's published MD5.
    """

    __pydantic_config__ = NO_OTHERS
    source: SourceName
    origin: str
    licence: str
    credit: str
    images: Count
    files: Mapping[FileName, FileFacts]
    canvas: tuple[Count, Count] | None
    published: bool

    @classmethod
    def load(cls, folder: Path) -> "SourceRecord":
        """Read ``source.json`` in the raw folder. Raises UnveilError if it is missing or damaged."""
        return read_json(folder / SOURCE_FILE, cls, "run the download stage again")


def worker_count(workers: int) -> int:
    """Number of processes that ``workers`` stands for: 0 means all cores that this process may use."""
    if workers < 0:
        raise UnveilError(f"workers: found {workers}, expected 0 (all cores) or more")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return workers or usable or 1


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, at_least: int = 1
) -> Iterator[Result]:
    """Results in the order of their items, computed by several processes; few are in memory at a time.

    Args:
        function: of a module, so that a process can import it.
        items: its arguments.
        workers: processes, 0 = all cores.
        at_least: items of a process; fewer are not worth its start.
    """
    processes = min(worker_count(workers), -(-len(items) // at_least))
    if processes <= 1:
        yield from map(function, items)
        return
    # Spawned, because a fork copies the locks of the threads that tracking runs.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
