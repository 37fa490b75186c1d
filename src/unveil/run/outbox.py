"""What a store did not take lies in a folder of the project until it does: nothing is lost, also if a process dies.

``<run id>/calls.jsonl`` has a line for each call; ``files`` beside it has what they copy.
"""

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import RootModel

from unveil.errors import UnveilError
from unveil.files import link_or_copy, parse_json, read_text, write_text
from unveil.run.calls import AnyCall, Call
from unveil.run.store import is_refusal

CALLS, LOCK = "calls.jsonl", "lock"
LINKED_BYTES = 64 << 20  # from which on a file is linked where that can be; a copy would take time and room
MOST_BYTES = 1 << 32  # of the lines


class _Line(RootModel[AnyCall]):
    pass


class Outbox:
    """The folder of one run, held by one process at a time.

    Args:
        folder: ``.unveil/outbox/<run id>``; made when there is something to keep, and removed when there is not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / CALLS
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)

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
        lines, calls = read_text(self._file, MOST_BYTES).split("\n")[:-1], list[Call]()
        for number, line in enumerate(lines, 1):
            kept = parse_json(line, _Line, f"{self._file}:{number}", "remove this line alone", finite=False)
            calls.append(kept.root)
        found, last = list[Call](), dict[str, Call]()
        for call in calls:
            if call.path is not None:
                call.path = self.folder / call.path
            if call.kind not in last or not last[call.kind].take(call):
                last[call.kind] = call
                found.append(call)
        return found

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
        write_text(self._file, "".join(map(self._line, kept)))
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
    is_large = Path(source).stat().st_size >= LINKED_BYTES
    (link_or_copy if is_large else shutil.copyfile)(source, place)


def upload(outbox: Outbox, client: Any) -> tuple[list[Call], list[Call], dict[str, Exception]]:
    """Make what an outbox held by this process keeps with an MlflowClient, and keep what fails.

    Returns:
        what was made, what is lost, since the file that it copies is gone, and why each kind failed. Those of its kind
        that come after it wait too, and all others if the store is away.
    """
    done, lost, failures, is_away = list[Call](), list[Call](), dict[str, Exception](), False
    waiting = outbox.calls()
    try:
        for call in waiting:
            if is_away or call.kind in failures:
                continue
            try:
                call.make(client)
            except Exception as error:  # noqa: BLE001 - the libraries beneath a store raise what they like
                if call.is_lost:
                    lost.append(call)
                    continue
                failures[call.kind] = error
                is_away = not (call.is_file or is_refusal(error))
            else:
                done.append(call)
    finally:
        ended = {*done, *lost}
        outbox.save(call for call in waiting if call not in ended)
    return done, lost, failures
