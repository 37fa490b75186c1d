"""Printing that never ends the work: a closed pipe or terminal is not listened to, and any name can be shown."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class Unheard:
    """A text stream that drops what nobody can read any more, and escapes what its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        with suppress(AttributeError):  # a stream that a test put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """Write the text, if somebody reads."""
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
        except OSError:
            with suppress(OSError):  # what is left in buffers goes there too, also when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unheard() -> Iterator[None]:
    """Within the block, stdout and stderr may be closed by whoever read them."""
    out: Any = Unheard(sys.stdout)
    err: Any = Unheard(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield
