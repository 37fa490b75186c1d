"""Lines of progress for work that takes minutes, with an estimate of the time left."""

import time
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line for the user."""


class Progress:
    """Says how far a piece of work is, at most every ``every_s`` seconds, and nothing if it is done before.

    Args:
        name: what is worked on, the start of each line.
        total: amount of work.
        describe: an amount of work in words.
        done: amount that was there at the start; it does not count for the speed.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        name: str,
        total: int,
        say: Say,
        *,
        describe: Callable[[int], str],
        done: int = 0,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.done = name, total, done
        self._say, self._describe, self._every_s, self._clock = say, describe, every_s, clock
        self._start = self._last = clock()
        self._done_at_start = done

    def add(self, amount: int) -> None:
        """Count ``amount`` as done, and say so if it is time."""
        self.done += amount
        now = self._clock()
        if now - self._last < self._every_s or self.done >= self.total:
            return
        self._last = now
        speed = (self.done - self._done_at_start) / (now - self._start)
        left = duration((self.total - self.done) / speed) if speed > 0 else "unknown time"
        done, total = self._describe(self.done), self._describe(self.total)
        self._say(f"{self.name}: {done} of {total}, {self._describe(int(speed))}/s, about {left} left")


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
