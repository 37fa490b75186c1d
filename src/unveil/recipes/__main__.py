"""``python -m unveil.recipes list | show NAME | apply NAME``: named parameter sets."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.commands import one_line_errors
from unveil.recipes import apply_recipe, load_recipe, names

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Named sets of parameters for params.yaml.")

Name = Annotated[str, typer.Argument(help="A recipe that `list` names.", metavar="NAME")]


@app.command("list")
def list_recipes() -> None:
    """Name every recipe, with what it is."""
    known = names()
    width = max(map(len, known))
    for name in known:
        typer.echo(f"{name:{width}}  {load_recipe(name).description}")


@app.command()
def show(name: Name) -> None:
    """Print all parameters of a recipe as YAML."""
    with one_line_errors():
        recipe = load_recipe(name)
        typer.echo(f"# {recipe.name}: {recipe.description}\n{recipe.to_yaml()}", nl=False)


@app.command()
def apply(
    name: Name,
    params: Annotated[Path, typer.Option(help="The file to rewrite; its comments stay.")] = Path("params.yaml"),
) -> None:
    """Write a recipe's values into params.yaml."""
    with one_line_errors():
        changed = apply_recipe(name, params)
        what = f"{len(changed)} value{'s'[: len(changed) != 1]} changed" if changed else "nothing to change"
        typer.echo(f"{params}: recipe {name}, {what}")


if __name__ == "__main__":
    app()
