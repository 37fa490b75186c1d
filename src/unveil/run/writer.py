"""Calls to a store that may not answer: a thread makes them, and who has them made waits a few seconds at most.

From the first that fails or is late until all are made, those that wait lie in an outbox too.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from unveil.errors import UnveilError, one_line
from unveil.printing import warn
from unveil.run.calls import Call, named
from unveil.run.outbox import Outbox
from unveil.run.store import WAIT_SECONDS

LATE_SECONDS = 1.0  # after which a call that does not return is kept
TOTAL_SECONDS = 60.0  # of all waiting in one execution
END_SECONDS = 10.0  # of these are kept for the end
RETRY_SECONDS = 20.0  # from a failure to the next attempt; at the end one second
T = TypeVar("T")


class _Question(Generic[T]):
    kind, is_file = "question", False

    def __init__(self, question: Callable[[], T]) -> None:
        self.answer: Future[T] = Future()
        self._question = question

    def make(self, _: Any) -> None:
        try:
            self.answer.set_result(self._question())
        except Exception as error:  # noqa: BLE001 - raised where it was asked
            self.answer.set_exception(error)


class Writer:
    """Makes calls one after another, and again while they fail; those of one kind keep their order.

    A kind that fails does not hold up the others: the disk for artifacts may be full while the database is well.

    Args:
        is_final: told of a call and its error by the thread; whether another attempt would be useless.

    Attributes:
        client: what calls are made with.
        outbox: where those that wait are kept; None keeps none.
    """

    def __init__(self, is_final: Callable[[Call, Exception], bool]) -> None:
        self.client: Any = None
        self.outbox: Outbox | None = None
        self._is_final = is_final
        self._calls: list[Call | _Question[Any]] = []
        self._current: Call | _Question[Any] | None = None
        self._failing: set[str] = set()
        self._keeping = False
        self._changed = threading.Condition()
        self._left = TOTAL_SECONDS - END_SECONDS
        self._pause = RETRY_SECONDS
        self._retry_at = 0.0
        threading.Thread(target=self._work, name="writer", daemon=True).start()

    def write(self, call: Call, wait: bool = True) -> None:
        """Have a call made until it succeeds.

        Args:
            call: may become part of an earlier one that waits.
            wait: for this call, unless earlier ones wait too. One that has a file of the caller's is waited for in any
                case, and kept if it is late: the caller may then remove the file.
        """
        with self._changed:
            behind = bool(self._calls)
            if self._keeping:
                self._keep(call)
            last = next((made for made in reversed(self._calls) if made.kind == call.kind), None)
            if isinstance(last, Call) and last is not self._current and last.take(call):
                return
            self._add(call)
            if self._keeping or not (call.is_file or (wait and not behind)):
                return
            for seconds in (LATE_SECONDS, WAIT_SECONDS - LATE_SECONDS):
                self._wait(lambda: call not in self._calls or bool(self._failing), seconds)
                if call in self._calls:
                    self._keep()

    def take_over(self, outbox: Outbox, earlier: list[Call]) -> None:
        """Go on with the outbox of an earlier process, whose calls come first."""
        with self._changed:
            if self.outbox is not None:
                self.outbox.save([])
            self.outbox = outbox
            self._calls[:0] = earlier
            self._keep()
            self._changed.notify_all()

    def ask(self, question: Callable[[], T], seconds: float = WAIT_SECONDS) -> T | None:
        """What ``question`` returns or raises; None if that takes too long, or earlier calls have failed."""
        asked = _Question(question)
        with self._changed:
            if any(call.kind in self._failing and not call.is_file for call in self._calls):
                return None
            self._add(asked)
            self._wait(asked.answer.done, seconds)
            if asked in self._calls and asked is not self._current:
                self._calls.remove(asked)
        return asked.answer.result() if asked.answer.done() else None

    def hurry(self) -> None:
        """Wait no more before the end."""
        self._left = 0.0

    def close(self) -> str:
        """Wait while what was not written yet goes on, within the minute; in words, what remains, which is kept."""
        with self._changed:
            was_well = not self._failing
            self._left, self._pause, self._retry_at = self._left + END_SECONDS, 1.0, 0.0
            self._changed.notify_all()
            until, before = time.monotonic() + WAIT_SECONDS, len(self._calls)
            while self._calls and self._left > 0 and (time.monotonic() < until or (was_well and self._is_sending())):
                self._wait(lambda: not self._calls, 0.2)
                if len(self._calls) < before:
                    until, before = time.monotonic() + WAIT_SECONDS, len(self._calls)
            return named(self._keep() if self._calls else [])

    def _is_sending(self) -> bool:
        """Whether a file is on its way: a large one takes longer than other calls."""
        return self._current is not None and self._current.is_file and not self._failing

    def _keep(self, one: Call | None = None) -> list[Call]:
        """Keep one call more; without it, all that wait, which it returns, and no others."""
        waiting = [call for call in self._calls if isinstance(call, Call)]
        self._keeping = one is not None or bool(waiting)
        try:
            if self.outbox is not None and one is not None:
                self.outbox.add(one)
            elif self.outbox is not None:
                self.outbox.save(waiting)
        except (OSError, UnveilError) as error:
            self.outbox = None
            warn(f"what MLflow's store does not take cannot be kept: {one_line(error)}")
        return waiting

    def _add(self, call: Call | _Question[Any]) -> None:
        self._calls.append(call)
        self._changed.notify_all()

    def _wait(self, ended: Callable[[], bool], seconds: float) -> None:
        started = time.monotonic()
        self._changed.wait_for(ended, max(min(seconds, self._left), 0.0))
        self._left -= time.monotonic() - started

    def _next(self) -> Call | _Question[Any]:
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
                call.make(self.client)
                again = False
            except BaseException as error:  # noqa: BLE001 - the libraries beneath a store raise what they like
                again = isinstance(call, Call) and isinstance(error, Exception) and not self._is_final(call, error)
            with self._changed:
                self._current = None
                if again:
                    self._failing.add(call.kind)
                    self._retry_at = time.monotonic() + self._pause
                    self._keep()
                else:
                    self._calls.remove(call)
                    if self._keeping:
                        self._keep()
                self._changed.notify_all()
