"""The command ``unveil``: what it has, in one place. Heavy libraries are imported where a command needs them."""

from typing import Annotated

import typer

import unveil
from unveil.cli import averages, cards, curves, diffusers, doctor, recipes
from unveil.run.commands import Frame

app = typer.Typer(
    cls=Frame,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has examples: unveil evaluate --help. Completion in your shell: unveil --install-completion",
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(averages.app, name="averages")
app.add_typer(curves.app, name="curves")
for name, function, example in (
    ("evaluate", cards.evaluate, "Example: unveil evaluate --samples theirs.npz --protocol ddim --out reports/theirs"),
    ("compare", cards.compare, "Examples: unveil compare main my-experiment; unveil compare a/card.json b c --json"),
    ("import", diffusers.import_, "Example: unveil import path/to/folder --force"),
    ("export", diffusers.export, "Examples: unveil export my-model; unveil export my-model --scheduler ddim"),
    ("doctor", doctor.doctor, "Example: unveil doctor"),
):
    app.command(name, epilog=example)(function)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unveil {unveil.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Diffusion models of faces, from the archive to a number that says how it was made. `dvc repro` runs it all."""


@app.command(epilog="Example: unveil ui --port 5001")
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000) -> None:
    """Open MLflow's pages on this project's store, for this machine only."""
    from unveil.run import tracking

    tracking.ui(port)
