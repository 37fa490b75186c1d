"""What the package's commands share: they print a user's error as one line, where the library raises it."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from unveil.errors import UnveilError


@contextmanager
def one_line_errors(status: int = 1) -> Iterator[None]:
    """Print what a user can mend to stderr and exit with ``status``, without a traceback."""
    try:
        yield
    except UnveilError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(status) from None
    except OSError as error:  # a file where a folder belongs, no right to read ...
        typer.echo(f"{error.filename}: {error.strerror}; expected a path that can be used; give another", err=True)
        raise typer.Exit(status) from None
