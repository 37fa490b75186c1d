"""``unveil recipes``: named sets of parameters; ``unveil params``: the file that holds them."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.errors import UnveilError
from unveil.params import load_params, read_text, render, write_params
from unveil.recipes import apply_recipe, load_recipe, names
from unveil.run.commands import examples

app = typer.Typer(no_args_is_help=True, help="The file of parameters, params.yaml.")
recipes = typer.Typer(no_args_is_help=True, help="Named sets of parameters for params.yaml.")

Name = Annotated[str, typer.Argument(help="A recipe that `list` names.", metavar="NAME", autocompletion=names)]
File = Annotated[Path, typer.Option(help="The file of parameters.")]


@app.command(epilog=examples("unveil params fmt"))
def fmt(params: File = Path("params.yaml")) -> None:
    """Write params.yaml in its usual order and layout, with the comments of every key; the values stay.

    A key that is not there is added with its default, and one of an earlier version goes. Your own comments go, too:
    the file before is then kept beside it.
    """
    text, rendered = read_text(params), render(load_params(params, fill=True))
    if text == rendered:
        typer.echo(f"{params}: nothing to change")
        return
    typer.echo(f"{params}: written anew, the values stay{_kept(write_params(params, text, rendered))}")


@app.command(epilog=examples("unveil params check", "unveil params check --params other.yaml"))
def check(params: File = Path("params.yaml")) -> None:
    """Say whether params.yaml is right: every value possible, order and comments as `unveil params fmt` has them."""
    if render(load_params(params)) != read_text(params):
        raise UnveilError(f"{params}: the values are right, the layout is another; `unveil params fmt` writes it")
    typer.echo(f"{params}: right")


@recipes.command("list", epilog=examples("unveil recipes list"))
def list_recipes() -> None:
    """Name every recipe, with what it is."""
    width = max(map(len, names()))
    for name in names():
        typer.echo(f"{name:{width}}  {load_recipe(name).description}")


@recipes.command(epilog=examples("unveil recipes show celeba64-ddpm"))
def show(name: Name) -> None:
    """Print all parameters of a recipe as YAML."""
    recipe = load_recipe(name)
    typer.echo(f"# {recipe.name}: {recipe.description}\n{recipe.to_yaml()}", nl=False)


@recipes.command(epilog=examples("unveil recipes apply celeba64-ddpm", "unveil recipes apply demo"))
def apply(name: Name, params: File = Path("params.yaml")) -> None:
    """Write a recipe's values into params.yaml. Own comments go: the file before is then kept beside it."""
    changed, kept = apply_recipe(name, params)
    what = f"{len(changed)} value{'s'[: len(changed) != 1]} changed" if changed or kept else "nothing to change"
    typer.echo(f"{params}: recipe {name}, {what}{_kept(kept)}")


def _kept(path: Path | None) -> str:
    return f"; the file before, with your comments and layout, is {path}" if path else ""
