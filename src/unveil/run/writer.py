"""Calls to a store that may not answer: a thread makes them, and who has them made waits a few seconds at most."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

WAIT_SECONDS = 5.0  # at a time
TOTAL_SECONDS = 60.0  # of all waiting in one execution
END_SECONDS = 10.0  # of these are kept for the end
FILES = {"artifact", "model"}  # kinds that go to a disk, which may fail alone
RETRY_SECONDS = 20.0  # from a failure to the next attempt; at the end one second
T = TypeVar("T")


@dataclass(eq=False)
class _Call:
    kind: str
    call: Callable[[list[Any]], object]
    rows: list[Any]  # none for a question


class Writer:
    """Makes calls one after another, and again while they fail; those of one kind keep their order.

    A kind that fails does not hold up the others: the disk for artifacts may be full while the database is well.

    Args:
        is_final: told of a kind and its error by the thread; whether another attempt would be useless.
    """

    def __init__(self, is_final: Callable[[str, Exception], bool]) -> None:
        self._is_final = is_final
        self._calls: list[_Call] = []
        self._current: _Call | None = None
        self._failing: set[str] = set()
        self._changed = threading.Condition()
        self._left = TOTAL_SECONDS - END_SECONDS
        self._pause = RETRY_SECONDS
        self._retry_at = 0.0
        threading.Thread(target=self._work, name="writer", daemon=True).start()

    def write(self, kind: str, call: Callable[[list[Any]], object], rows: list[Any], wait: bool = True) -> None:
        """Have ``call(rows)`` made until it succeeds.

        Args:
            kind: what the rows are, in words.
            call: may be made again after it wrote a part.
            rows: what it writes, in the end with those of an equal call; names are shown to the user.
            wait: for this call, unless earlier ones wait too.
        """
        with self._changed:
            behind = bool(self._calls)
            last = next((made for made in reversed(self._calls) if made.kind == kind), None)
            if last is not None and last is not self._current and last.call == call:
                last.rows += rows
                return
            made = self._add(_Call(kind, call, list(rows)))
            if wait and not behind:
                self._wait(lambda: made not in self._calls or bool(self._failing), WAIT_SECONDS)

    def ask(self, question: Callable[[], T], seconds: float = WAIT_SECONDS) -> T | None:
        """What ``question`` returns or raises; None if that takes too long, or earlier calls have failed."""
        answer: Future[T] = Future()

        def call(_: list[Any]) -> None:
            try:
                answer.set_result(question())
            except Exception as error:  # noqa: BLE001 - raised where it was asked
                answer.set_exception(error)

        with self._changed:
            if self._failing - FILES:
                return None
            asked = self._add(_Call("question", call, []))
            self._wait(answer.done, seconds)
            if asked in self._calls and asked is not self._current:
                self._calls.remove(asked)
        return answer.result() if answer.done() else None

    def hurry(self) -> None:
        """Wait no more before the end."""
        self._left = 0.0

    def close(self) -> list[str]:
        """Wait while what was not written yet goes on, within the minute; in words, what remains."""
        with self._changed:
            was_well = not self._failing
            self._left, self._pause, self._retry_at = self._left + END_SECONDS, 1.0, 0.0
            self._changed.notify_all()
            until, before = time.monotonic() + WAIT_SECONDS, len(self._calls)
            while self._calls and self._left > 0 and (time.monotonic() < until or (was_well and self._is_sending())):
                self._wait(lambda: not self._calls, 0.2)
                if len(self._calls) < before:
                    until, before = time.monotonic() + WAIT_SECONDS, len(self._calls)
            rows: dict[str, list[Any]] = {}
            for call in self._calls:
                rows[call.kind] = rows.get(call.kind, []) + call.rows
        return [
            f"{kind} {', '.join(dict.fromkeys(some))}" if isinstance(some[0], str) else f"{len(some)} {kind}"
            for kind, some in rows.items()
            if some
        ]

    def _is_sending(self) -> bool:
        """Whether something with a name is on its way: a large file takes longer than other calls."""
        rows = self._current.rows if self._current is not None and not self._failing else []
        return bool(rows) and isinstance(rows[0], str)

    def _add(self, call: _Call) -> _Call:
        self._calls.append(call)
        self._changed.notify_all()
        return call

    def _wait(self, ended: Callable[[], bool], seconds: float) -> None:
        started = time.monotonic()
        self._changed.wait_for(ended, max(min(seconds, self._left), 0.0))
        self._left -= time.monotonic() - started

    def _next(self) -> _Call:
        while True:
            now = time.monotonic()
            if now >= self._retry_at:
                self._failing.clear()
            for call in self._calls:
                if call.kind not in self._failing:
                    return call
            self._changed.wait(self._retry_at - now if self._failing else None)

    def _work(self) -> None:
        while True:
            with self._changed:
                call = self._current = self._next()
            try:
                call.call(call.rows)
                again = False
            except BaseException as error:  # noqa: BLE001 - the libraries beneath a store raise what they like
                again = isinstance(error, Exception) and not self._is_final(call.kind, error)
            with self._changed:
                self._current = None
                if again:
                    self._failing.add(call.kind)
                    self._retry_at = time.monotonic() + self._pause
                else:
                    self._calls.remove(call)
                self._changed.notify_all()
