"""``unveil params``: the file of parameters, its values checked, its comments and layout those of the sections."""

from pathlib import Path
from typing import Annotated

import typer

from unveil import params as parameters
from unveil.errors import UnveilError
from unveil.files import read_text, write_text
from unveil.run.commands import examples

app = typer.Typer(no_args_is_help=True, help="The file of parameters, params.yaml.")
File = Annotated[Path, typer.Option(help="The file of parameters.")]


@app.command(epilog=examples("unveil params fmt"))
def fmt(params: File = Path("params.yaml")) -> None:
    """Write params.yaml in its usual order and layout, with the comments of every key; the values stay.

    A key that is not there is added with its default.
    """
    text = parameters.render(parameters.load_params(params, fill=True))
    changed = text != read_text(params)
    if changed:
        write_text(params, text)
    typer.echo(f"{params}: {'written anew, the values stay' if changed else 'nothing to change'}")


@app.command(epilog=examples("unveil params check", "unveil params check --params other.yaml"))
def check(params: File = Path("params.yaml")) -> None:
    """Say whether params.yaml is right: every value possible, order and comments as `unveil params fmt` has them."""
    if parameters.render(parameters.load_params(params)) != read_text(params):
        raise UnveilError(f"{params}: the values are right, the layout is another; `unveil params fmt` writes it")
    typer.echo(f"{params}: right")
