"""What the package's commands share: they print a user's error as one line, where the library raises it."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from unveil.errors import line_for_user
from unveil.printing import unheard


@contextmanager
def one_line_errors(status: int = 1) -> Iterator[None]:
    """Print what a user can mend to stderr and exit with ``status``, without a traceback."""
    with unheard():
        try:
            yield
        except Exception as error:
            if (line := line_for_user(error)) is None:
                raise
            typer.echo(line, err=True)
            raise typer.Exit(status) from None
