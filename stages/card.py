"""Stage 7: the evaluation's card as a page. Other words need no other samples, and no other numbers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.evaluation.card.card import read_card
from unveil.evaluation.card.markdown import render
from unveil.files import read_json, write_text
from unveil.layout import CARD, EVALUATE_RECORD, PAGE
from unveil.printing import unheard
from unveil.run.attach import attach
from unveil.run.commands import one_line_errors

app = typer.Typer(add_completion=False)


@app.command()
def main(
    card: Annotated[Path, typer.Option(help="The card that evaluate wrote.", readable=False)] = CARD,
    page: Annotated[Path, typer.Option(help="Where the page is written.")] = PAGE,
    record: Annotated[Path, typer.Option(help="The record of the evaluation's run, which gets the page too.")] = (
        EVALUATE_RECORD
    ),
) -> None:
    """Write the card for people, and attach it to the evaluation's MLflow run. It has no run of its own."""
    with unheard(), one_line_errors():
        write_text(page, render(read_card(card)))
        run_id = read_json(record, dict[str, Any], "evaluate again").get("run_id") if record.exists() else None
        if isinstance(run_id, str) and (refused := attach(run_id, page, Path.cwd())) is not None:
            typer.echo(f"note: {page} is not in the run {run_id} of MLflow: {refused}")


if __name__ == "__main__":
    app()
