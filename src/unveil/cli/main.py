"""The command ``unveil``: what it has, in one place. Heavy libraries are imported where a command needs them."""

from typing import Annotated

import typer

import unveil
from unveil.cli import (
    averages,
    cards,
    curves,
    diffusers,
    doctor,
    draw,
    edit,
    gc,
    likelihood,
    lineage,
    params,
    play,
    push,
    register,
    sweep,
    sync,
)
from unveil.cli.find import find_run
from unveil.errors import UnveilError
from unveil.run.commands import Frame, examples

app = typer.Typer(
    cls=Frame,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Help with examples: unveil evaluate --help. Completion in your shell: unveil --install-completion",
)
app.add_typer(params.recipes, name="recipes")
app.add_typer(params.app, name="params")
app.add_typer(averages.app, name="averages")
app.add_typer(curves.app, name="curves")
app.add_typer(edit.app, name="edit")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unveil {unveil.__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)]


@app.callback()
def main(version: Version = False) -> None:
    """Diffusion models of faces, from the archive to a number that says how it was made. `dvc repro` runs it all."""


@app.command(epilog=examples("unveil ui", "unveil ui --port 5001", "unveil ui --compare main my-experiment"))
def ui(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="For --compare: runs, DVC experiments, revisions or projects."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show these evaluations beside each other.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages on this project's runs. Ctrl-C ends it."""
    from unveil.run.ui import serve_ui

    if compare != bool(names):
        raise UnveilError("unveil ui: --compare and the runs to compare belong together: `unveil ui --compare A B`")
    serve_ui(port, [find_run(name) for name in names or ()])


app.command(epilog=examples("unveil doctor"))(doctor.doctor)
app.command(epilog=examples("unveil sync"))(sync.sync)
app.command(epilog=examples("unveil gc", "unveil gc --days 7 --force"))(gc.gc)
app.command(
    epilog=examples(
        "unveil sweep -S train.lr=1e-3,2e-3,4e-3",
        "unveil sweep -S 'sample.steps=range(5,21,5)' -S sample.sampler=ddim,heun --metric kid_efficientnet_lite0",
        "unveil sweep grid.yaml --name big",
    )
)(sweep.sweep)
app.command(
    epilog=examples(
        "unveil evaluate --samples theirs.npz --protocol ddim --out reports/theirs",
        "unveil evaluate --samples folder/of/pngs --out reports/pngs",
    )
)(cards.evaluate)
app.command(
    epilog=examples(
        "unveil compare main my-experiment",
        "unveil compare reports/card.json their-card.json our-card.json --json",
    )
)(cards.compare)
app.command(
    epilog=examples(
        "unveil draw --count 16 --seed 7 faces.png",
        'unveil draw --attributes "Smiling,Eyeglasses,-Wearing_Hat" --count 16 --guidance 2 faces.png',
        'unveil draw --switch "Smiling,Eyeglasses,Bald" --count 4 rows.png',
        "unveil draw --attributes Smiling --scales 0,1,2,4 --count 4 strip.png",
    )
)(draw.draw)
app.command(
    epilog=examples(
        "unveil register main",
        "unveil register my-experiment --metric kid_efficientnet_lite0",
        "unveil register main --weights snapshot:26000",
        "unveil register main --weights all-snapshots",
    )
)(register.register)
app.command(epilog=examples("unveil play", "unveil play --models path/to/models --port 8001"))(play.play)
app.command("import", epilog=examples("unveil import path/to/folder --force"))(diffusers.import_)
app.command(epilog=examples("unveil export my-model", "unveil export my-model --scheduler ddim"))(diffusers.export)
app.command(epilog=examples("unveil likelihood --images 64", "unveil likelihood --split valid --out bits.json"))(
    likelihood.likelihood
)
app.command(epilog=examples("unveil lineage main", "unveil lineage reports/card.json --json"))(lineage.lineage)
app.command(epilog=examples("unveil push", "unveil push --remote shared"))(push.push)
