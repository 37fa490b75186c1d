"""What a store did not take lies in a folder of the project until it does: nothing is lost, also if a process dies.

``<run id>/calls.jsonl`` has a line for the store and one for each call; ``files`` beside it has what they copy.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel

from unveil.errors import UnveilError
from unveil.files import parse_json, read_text, write_text
from unveil.run.calls import AnyCall, Call
from unveil.run.store import Store, is_refusal

CALLS, LOCK = "calls.jsonl", "lock"
LINKED_BYTES = 64 << 20  # from which on a file is linked where that can be; a copy would take time and room
MOST_BYTES = 1 << 32  # of the lines


class _Head(BaseModel):
    store: str | None


class Outbox:
    """The folder of one run, held by one process at a time.

    Args:
        folder: ``.unveil/outbox/<run id>``; made when there is something to keep, and removed when there is not.
        store: for people, where the calls belong; None for the project's own.
    """

    def __init__(self, folder: Path, store: str | None) -> None:
        self.folder, self.store = folder, store
        self._file = folder / CALLS
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)

    @classmethod
    def of_run(cls, outboxes: Path, run_id: str, store: Store) -> Self:
        """The one of a run of ``store``; the project's own store is no address that another checkout could use."""
        return cls(outboxes / run_id, None if store.database is not None else store.shown)

    @classmethod
    def found(cls, folder: Path) -> Self:
        """The one in a folder, with the store that its calls belong to."""
        found = cls(folder, None)
        head = (found._lines() or [""])[0]
        found.store = parse_json(head, _Head, str(found._file), f"remove {folder}").store
        return found

    def hold(self) -> bool:
        """Whether this process holds it now: none that lives writes into it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def calls(self) -> list[Call]:
        """The calls, in order; a line that a killed process did not end is none.

        Raises:
            UnveilError: if a line is none of this program's.
        """
        if not self._file.exists():
            return []
        text = f"[{','.join(self._lines()[1:])}]"
        calls = parse_json(text, list[AnyCall], str(self._file), f"remove {self.folder}", finite=False)
        found, last = list[Call](), dict[str, Call]()
        for call in calls:
            if call.path is not None:
                call.path = self.folder / call.path
            if call.kind not in last or not last[call.kind].take(call):
                last[call.kind] = call
                found.append(call)
        return found

    def _lines(self) -> list[str]:
        return read_text(self._file, MOST_BYTES).split("\n")[:-1]

    def add(self, call: Call) -> None:
        """Keep one more. Raises OSError."""
        line = self._line(call)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def save(self, calls: Iterable[Call]) -> None:
        """Keep these calls alone, and the files that they copy. Raises OSError, and UnveilError if another holds it."""
        kept = list(calls)
        if not kept:
            self._file.unlink(missing_ok=True)  # first: what is half removed waits no more
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()
            return
        if not self._lock.is_locked and not self.hold():
            raise UnveilError(f"{self.folder}: another process holds it; let it end")
        write_text(self._file, "".join([json.dumps({"store": self.store}) + "\n", *map(self._line, kept)]))
        needed = {call.path.parent for call in kept if call.path is not None}
        for place in (self.folder / "files").glob("*"):
            if place not in needed:
                shutil.rmtree(place, ignore_errors=True)

    def _line(self, call: Call) -> str:
        path = call.path
        if path is None:
            return call.model_dump_json(exclude_none=True) + "\n"
        if not path.is_relative_to(self.folder) and path.exists():
            place = self.folder / "files" / uuid.uuid4().hex / path.name
            place.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, place, copy_function=_copy)
            else:
                _copy(path, place)
            path = call.path = place
        inside = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        return call.model_copy(update={"path": inside}).model_dump_json(exclude_none=True) + "\n"


def _copy(source: Path | str, place: Path | str) -> None:
    if Path(source).stat().st_size >= LINKED_BYTES:
        try:
            os.link(source, place)
        except OSError:  # another disk, or one without links
            pass
        else:
            return
    shutil.copyfile(source, place)


def upload(outbox: Outbox, client: Any, told: Callable[[Call, Exception], object]) -> list[Call]:
    """Make what an outbox keeps with an MlflowClient, and keep what fails.

    Args:
        outbox: held by this process.
        client: of the store that it is for.
        told: of each call that fails, and why. Those of its kind that come after it wait too, and all others if the
            store is away.

    Returns:
        what was made.
    """
    done, failed, is_away = list[Call](), set[str](), False
    waiting = outbox.calls()
    try:
        for call in waiting:
            if is_away or call.kind in failed:
                continue
            try:
                call.make(client)
            except Exception as error:  # noqa: BLE001 - the libraries beneath a store raise what they like
                failed.add(call.kind)
                is_away = not (call.is_file or is_refusal(error))
                told(call, error)
            else:
                done.append(call)
    finally:
        outbox.save(call for call in waiting if call not in done)
    return done
