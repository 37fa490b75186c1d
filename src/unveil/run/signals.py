"""Signals that end a stage: raised as an exception, noted for later, or ignored while a run is closed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IMPATIENCE_SECONDS = 1.0  # after which another Ctrl-C is meant as one
# Not SIGINT: Python raises KeyboardInterrupt by itself.
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Terminated(BaseException):
    """A signal asked the process to end; ``hint`` ends the stage's line. No Exception, so that no stage swallows it."""

    def __init__(self, number: int, hint: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.hint = hint


@contextmanager
def signals_raised() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into ``Terminated`` in this process; elsewhere they do what they did."""
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Terminated(number)
        # A forked worker has inherited the handler but not the run: it simply ends.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with _handlers(handle, [number for number in ENDING_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]):
        yield


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note SIGINT, SIGTERM and SIGHUP in the list that is yielded, so that work can end where it likes.

    A second Ctrl-C, after a moment, raises ``Terminated``. Other repetitions do not: a process of several gets a signal
    twice, from the system and from what started it.
    """
    noted: list[int] = []
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if noted and number == signal.SIGINT and time.monotonic() - first > IMPATIENCE_SECONDS:
            raise Terminated(number)
        first = first or time.monotonic()
        noted.append(number)

    numbers = [signal.SIGINT, *ENDING_SIGNALS]
    with _handlers(handle, [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]):
        yield noted


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Let nothing interrupt the few writes that end a run."""
    with _handlers(signal.SIG_IGN, [signal.SIGINT, *ENDING_SIGNALS]):
        yield


@contextmanager
def _handlers(handler: Any, numbers: list[signal.Signals]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows it nowhere else
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
