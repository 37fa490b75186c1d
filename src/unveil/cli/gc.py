"""``unveil gc``: what the project keeps and nobody needs."""

from typing import Annotated

import typer

from unveil.cli.find import needed_root
from unveil.errors import line_for_user


def gc(
    force: Annotated[bool, typer.Option("--force", help="Delete it. Without this, nothing is deleted.")] = False,
    days: Annotated[float, typer.Option(min=0, help="Keep what was touched in so many days.")] = 30,
) -> None:
    """Show what nobody needs any more: of checkpoints, features, downloads, copies, MLflow's runs and DVC's cache.

    Kept is what any commit, experiment, MLflow run or registered model leads to, what a process uses, and what waits
    for `unveil sync`.
    """
    from unveil.evaluation.card.card import aligned
    from unveil.progress import megabytes
    from unveil.run.checkout import main_checkout
    from unveil.run.cleaning import find_waste

    found, left = find_waste(main_checkout(needed_root()), days), 0
    for line in aligned([(waste.kind, waste.name, megabytes(waste.size), waste.reason) for waste in found]):
        typer.echo(line)
    total = megabytes(sum(waste.size for waste in found))
    if not found:
        typer.echo(f"nothing that nobody needs and that nobody touched for {days:g} days")
    elif not force:
        typer.echo(f"{total} in all; nothing was deleted, `unveil gc --force` deletes it")
    else:
        for waste in found:
            try:
                waste.remove()
            except OSError as error:  # such as another user's file; the others can go
                left += 1
                typer.echo(f"error: {line_for_user(error) or error}", err=True)
        typer.echo(f"{total} deleted" + (f", without {left} of {len(found)}, which are named above" if left else ""))
    if left:
        raise typer.Exit(1)
