"""After `kill -9`: a stage whose DVC was killed ends itself; a run whose process was killed is ended later."""

import fcntl
import os
import signal
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from unveil.layout import OUTBOX
from unveil.run.store import import_mlflow, is_refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECK_SECONDS = 1.0
REASON = "the process was killed, or its machine stopped; a later stage or `unveil ui` ended the run"

_followed: dict[psutil.Process, str] = {}  # what this process works for, and its name


def is_dvc(words: list[str]) -> bool:
    """Whether a command line is DVC's own: ``dvc repro``, ``python -m dvc ...``, ``python .../dvc/__main__.py ...``.

    A shell, nohup or timeout around it is not: they may end without DVC.
    """
    paths = [Path(word) for word in words[:6]]
    names = [(path.parent if path.name == "__main__.py" else path).name.lower() for path in paths]
    return bool(names) and (names[0] == "dvc" or (names[0].startswith("python") and "dvc" in names[1:]))


def employers() -> dict[psutil.Process, str]:
    """What this process works for, and its name: the DVC processes above it, and torchrun if that started it."""
    found: dict[psutil.Process, str] = {}
    with suppress(psutil.Error):
        above = psutil.Process().parents()
        if "TORCHELASTIC_RUN_ID" in os.environ:
            found |= dict.fromkeys(above[:1], "torchrun")
        for process in above:
            with suppress(psutil.Error):  # of another user
                if is_dvc(process.cmdline()):
                    found[process] = "DVC"
    return found


@cache
def follow() -> None:
    """Have this process end by SIGTERM when what it works for has ended, even by ``kill -9``; needed once a process."""
    _followed.update(employers())
    if _followed:
        threading.Thread(target=_watch, name="employers", daemon=True).start()


def gone() -> str:
    """Why this process got its SIGTERM, as the end of a line; empty if something else sent it."""
    ended = (
        f", as {name} (process {process.pid}) had ended" for process, name in _followed.items() if not _lives(process)
    )
    return next(ended, "")


def _watch() -> None:
    while not gone():
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class LivingRun:
    """Marks a run in ``folder`` as one of a living process: by a locked file, which the system frees with the process.

    The number of a process would say nothing in a container, after a restart, or on another machine. Where the folder
    cannot be written or locked, the run is not marked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark: tuple[Path, int] | None = None

    def set(self, run_id: str) -> None:
        """Mark this run in the place of the one before."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            unseen = self._folder / f".{run_id}"  # until it is locked
            handle = os.open(unseen, os.O_CREAT | os.O_WRONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark = unseen.replace(self._folder / run_id), handle
            self.clear()
            self._mark = mark

    def clear(self) -> None:
        """Take the mark away: somebody else knows of the run's end."""
        if self._mark is not None:
            (path, handle), self._mark = self._mark, None
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def end_orphans(folder: Path, client: "MlflowClient") -> list[str]:
    """End as KILLED the runs marked in ``folder`` whose process ended without doing so; their ids.

    What another process has locked lives. A run that this store does not know keeps its mark, for the store that does.

    Raises:
        MlflowException: or another error of a store that does not answer.
    """
    ended = []
    for path in sorted(folder.glob("[!.]*")):
        try:
            handle = os.open(path, os.O_WRONLY)
        except OSError:
            continue
        with os.fdopen(handle, "w"):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            # Without a link, another process has dealt with it since.
            if os.fstat(handle).st_nlink and (was_running := _end(path.name, client)) is not None:
                if not (folder.parent / OUTBOX.name / path.name).exists():  # which may make it RUNNING again
                    path.unlink(missing_ok=True)
                ended += [path.name] if was_running else []
    return ended


def _end(run_id: str, client: "MlflowClient") -> bool | None:
    """End a run that is RUNNING, at the time of its last system metrics; whether it was; None if it is not known."""
    try:
        run = client.get_run(run_id)
    except import_mlflow()[1] as error:
        if is_refusal(error):
            return None
        raise
    if run.info.status != "RUNNING" or run.info.lifecycle_stage != "active":
        return False
    key = next((key for key in run.data.metrics if key.startswith("system/")), None)
    points = client.get_metric_history(run_id, key) if key is not None else []
    client.set_tag(run_id, "unveil.error", REASON)
    client.set_terminated(run_id, "KILLED", max((point.timestamp for point in points), default=None))
    return True
