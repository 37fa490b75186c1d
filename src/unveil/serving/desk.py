"""A queue before one worker: who came first is served first, and the others hear how long it takes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from unveil.errors import UnveilError


class Busy(UnveilError):
    """Too many wait already."""


@dataclass(eq=False)
class Ticket:
    """A place in the queue.

    Attributes:
        work: how much there is to do, in any unit.
        turn: set when nobody is before it.
    """

    work: float
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Desk:
    """The queue. All of it happens in one event loop.

    Args:
        most: tickets at once, that of the one who is served included.
        seconds: for a unit of work, until it was measured.
    """

    def __init__(self, most: int, seconds: float = 0.0) -> None:
        self.most = most
        self.seconds = seconds
        self._line: list[Ticket] = []

    @contextmanager
    def ticket(self, work: float) -> Iterator[Ticket]:
        """A place at the end of the queue, within the block.

        Raises:
            Busy: if there is none.
        """
        if len(self._line) >= self.most:
            seconds = self.ahead(None)[1]
            raise Busy(f"{self.most} requests are waiting already, for about {seconds:.0f} s; try again after that")
        ticket = Ticket(work)
        self._line.append(ticket)
        self._call()
        try:
            yield ticket
        finally:
            self._line.remove(ticket)
            self._call()

    def ahead(self, ticket: Ticket | None) -> tuple[int, float]:
        """How many are before a ticket (None: before a new one), and for about how many seconds."""
        before = self._line if ticket is None else self._line[: self._line.index(ticket)]
        return len(before), sum(other.work for other in before) * self.seconds

    def measured(self, work: float, seconds: float) -> None:
        """Take note of what a piece of work took."""
        if work > 0:
            self.seconds = seconds / work

    def _call(self) -> None:
        if self._line:
            self._line[0].turn.set()
