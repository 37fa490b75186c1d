"""Printing that never ends the work: a closed pipe or terminal is not listened to, and any name can be shown."""

import errno
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from unveil.progress import give_way
from unveil.rank import is_main_process

MOST_PIECES = 20_000  # of a log that is kept, the last


class Unheard:
    """A text stream that drops what nobody can read any more, and escapes what its encoding lacks.

    Attributes:
        log: the pieces that were written, without passing lines.
    """

    def __init__(self, stream: TextIO, log: deque[str] | None = None) -> None:
        self._stream = stream
        self.log = deque(maxlen=MOST_PIECES) if log is None else log
        self._lost: OSError | None = None
        with suppress(AttributeError):  # a stream that a test put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """Write the text, if somebody reads."""
        give_way()
        if not text.startswith("\r"):
            self.log.append(text)
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if somebody reads."""
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # of a log on a full disk only this text is lost
            if error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
                self._drop_all()
            else:
                self._lost = error

    def _drop_all(self) -> None:
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def lost(self) -> OSError | None:
        """Why some of the text was lost, although somebody reads; the last thing to ask: what is left is dropped."""
        self.flush()
        if self._lost is not None:
            self._drop_all()  # else the interpreter would fail with it at its end
        return self._lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unheard() -> Iterator[Unheard]:
    """Within the block, stdout, which is yielded, and stderr may be closed by whoever read them; both have one log."""
    with Path(os.devnull).open("w") as nowhere:  # for a stream that was closed before Python began
        out = Unheard(sys.stdout or nowhere)
        err = Unheard(sys.stderr or nowhere, out.log)
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
            try:
                yield out
            finally:
                give_way("\n")


def warn(line: str) -> None:
    """Print a warning to stderr, once for all processes."""
    if is_main_process():
        sys.stderr.write(f"warning: {line}\n")  # in one piece: threads warn too
        sys.stderr.flush()
