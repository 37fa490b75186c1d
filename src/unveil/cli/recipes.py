"""``unveil recipes``: named sets of parameters; ``unveil params``: the file that holds them."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.recipes import apply_recipe, load_recipe, names
from unveil.run.commands import examples

app = typer.Typer(no_args_is_help=True, help="Named sets of parameters for params.yaml.")

Name = Annotated[str, typer.Argument(help="A recipe that `list` names.", metavar="NAME", autocompletion=names)]
File = Annotated[Path, typer.Option(help="The file of parameters.")]


@app.command("list", epilog=examples("unveil recipes list"))
def list_recipes() -> None:
    """Name every recipe, with what it is."""
    known = names()
    width = max(map(len, known))
    for name in known:
        typer.echo(f"{name:{width}}  {load_recipe(name).description}")


@app.command(epilog=examples("unveil recipes show celeba64-ddpm"))
def show(name: Name) -> None:
    """Print all parameters of a recipe as YAML."""
    recipe = load_recipe(name)
    typer.echo(f"# {recipe.name}: {recipe.description}\n{recipe.to_yaml()}", nl=False)


@app.command(epilog=examples("unveil recipes apply celeba64-ddpm", "unveil recipes apply demo"))
def apply(name: Name, params: File = Path("params.yaml")) -> None:
    """Write a recipe's values into params.yaml."""
    changed = apply_recipe(name, params)
    what = f"{len(changed)} value{'s'[: len(changed) != 1]} changed" if changed else "nothing to change"
    typer.echo(f"{params}: recipe {name}, {what}")
