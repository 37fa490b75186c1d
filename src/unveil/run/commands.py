"""The frame of a command: what a user can mend is one line, and output that nobody takes is no defect."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from unveil.errors import line_for_user
from unveil.printing import unheard

BAD_INPUT = 2  # of comparisons and lineage, whose status 1 says something of good input
COMPARISONS = ("compare", "curves", "lineage")


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:" if len(commands) > 1 else "Example:", *commands])


@contextmanager
def one_line_errors(status: Callable[[], int] = lambda: 1) -> Iterator[None]:
    """Print what a user can mend to stderr and exit with the status, without a traceback."""
    try:
        yield
    except Exception as error:
        if (line := line_for_user(error)) is None:
            raise
        typer.echo(line, err=True)
        raise typer.Exit(status()) from None


class Frame(TyperGroup):
    """A command with subcommands, none of which ends in a traceback for what its user can mend.

    A closed pipe only drops the output; output that is lost otherwise, as on a full disk, is told, with status 1.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Parse and run."""
        with unheard() as out:
            try:
                return super().main(*arguments, **options)
            finally:
                if (lost := out.lost()) is not None:
                    typer.echo(line_for_user(OSError(lost.errno, lost.strerror, "stdout")), err=True)
                    raise SystemExit(1) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        with one_line_errors(lambda: BAD_INPUT if ctx.invoked_subcommand in COMPARISONS else 1):
            return super().invoke(ctx)
