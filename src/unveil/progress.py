"""What long work says: plain lines, and on a terminal one line of progress that renews itself."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.cells import set_cell_size

Say = Callable[[str], None]
"""Takes one line for the user; one that the next makes idle is a :class:`Passing`."""

_standing: TextIO | None = None  # the terminal on which a passing line stands


class Passing(str):
    """A line that gives way to the next on a terminal; elsewhere a line like any other."""

    __slots__ = ()


def renews() -> bool:
    """Whether stdout is a terminal, on which a line can be written anew."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def say(line: str) -> None:
    """Print a line at once; on a terminal a passing one takes the place of the one before, cut to its width."""
    global _standing
    if isinstance(line, Passing) and renews():
        _standing = None  # nothing need be erased: the line is written over
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r{set_cell_size(line, width).rstrip()}\x1b[K")
        sys.stdout.flush()
        _standing = sys.stdout
    else:
        give_way()
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def give_way(end: str = "\r\x1b[K") -> None:
    """Erase the passing line, if one stands, before anything else is written; or leave it, with a line break."""
    global _standing
    stream, _standing = _standing, None
    if stream is not None:
        stream.write(end)
        stream.flush()


class ProgressLine:
    """Says how far a piece of work is, in passing lines: every 10 s, or 0.2 s where they renew themselves.

    Work that is done before says nothing.

    Args:
        name: what is worked on, the start of each line.
        total: amount of work.
        describe: an amount of work in words.
        done: amount that was there at the start; it does not count for the speed.
    """

    def __init__(
        self,
        name: str,
        total: int,
        say: Say,
        *,
        describe: Callable[[int], str],
        done: int = 0,
    ) -> None:
        self.name, self.total, self.done = name, total, done
        self._say, self._describe = say, describe
        self._every_s = 0.2 if renews() else 10.0
        self._start = self._last = time.monotonic()
        self._done_at_start = done

    def add(self, amount: int) -> None:
        """Count ``amount`` as done, and say so if it is time."""
        self.done += amount
        now = time.monotonic()
        if now - self._last < self._every_s or self.done >= self.total:
            return
        self._last = now
        speed = (self.done - self._done_at_start) / (now - self._start)
        left = duration((self.total - self.done) / speed) if speed > 0 else "unknown time"
        done, total = self._describe(self.done), self._describe(self.total)
        self._say(Passing(f"{self.name}: {done} of {total}, {self._describe(int(speed))}/s, about {left} left"))


def duration(seconds: float) -> str:
    """A time span in words: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def megabytes(amount: int) -> str:
    """Bytes in words, in units of 10^6 bytes."""
    return f"{amount / 1e6:,.1f} MB" if amount < 100_000_000 else f"{amount / 1e6:,.0f} MB"


def images(amount: int) -> str:
    """A number of images in words."""
    return f"{amount:,} images"
