"""``unveil gc``: what the project keeps and nobody needs."""

from typing import Annotated

import typer

from unveil.cli.find import needed_root
from unveil.errors import UnveilError, line_for_user, one_line


def gc(
    force: Annotated[bool, typer.Option("--force", help="Delete it. Without this, nothing is deleted.")] = False,
    days: Annotated[float, typer.Option(min=0, help="Keep what was touched in so many days.")] = 30,
) -> None:
    """Show what nobody needs any more: of checkpoints, features, downloads, copies, MLflow's runs and DVC's cache.

    Kept is what any commit, experiment, MLflow run or registered model leads to, what a process uses, and what waits
    for `unveil sync`.
    """
    from unveil.evaluation.card.card import aligned
    from unveil.progress import megabytes, say
    from unveil.run.checkout import main_checkout
    from unveil.run.cleaning import find_waste
    from unveil.run.store import import_mlflow

    project = main_checkout(needed_root())
    say("asking MLflow and DVC what is needed, which takes minutes where there are hundreds of commits")
    found, deleted = find_waste(project, days), []
    for line in aligned([(waste.kind, waste.name, megabytes(waste.size), waste.reason) for waste in found]):
        typer.echo(line)
    if not found:
        typer.echo(f"nothing that nobody needs and that nobody touched for {days:g} days")
    elif not force:
        total = megabytes(sum(waste.size for waste in found))
        typer.echo(f"{total} in all; nothing was deleted, `unveil gc --force` deletes it")
    else:
        failures: tuple[type[Exception], ...] = (UnveilError, *import_mlflow()[1])
        for waste in found:
            try:
                waste.remove()
                deleted.append(waste)
            except failures as error:  # such as another user's file; the others can go
                typer.echo(f"error: {waste.name}: {line_for_user(error) or one_line(error)}", err=True)
        left = len(found) - len(deleted)
        total = megabytes(sum(waste.size for waste in deleted))
        typer.echo(f"{total} deleted" + (f", without {left} of {len(found)}, which are named above" if left else ""))
        if left:
            raise typer.Exit(1)
