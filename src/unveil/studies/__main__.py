"""``python -m unveil.studies NAME``: studies that are more than one run of the pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from unveil.errors import UnveilError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Studies behind REPORT.md.")


@app.callback()
def main() -> None:
    """Studies behind REPORT.md."""


@app.command()
def tutorials(
    only: Annotated[
        list[str] | None, typer.Option(help="Only this run and those without a mistake; repeatable.")
    ] = None,
    images: Annotated[int, typer.Option(min=8, help="Images of each training.")] = 20_000,
    samples: Annotated[int, typer.Option(min=10, help="Samples that each run is judged by.")] = 500,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, each with its share of the cores.")] = 2,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no training that would end later than this.")] = 60.0,
    shards: Annotated[Path, typer.Option(help="Folder of the shards.")] = Path("data/shards"),
    out: Annotated[Path, typer.Option(help="Folder of the study; what is finished there is kept.")] = Path(
        "reports/tutorials"
    ),
    figures: Annotated[Path | None, typer.Option(help="Folder of the pictures; default: OUT/figures.")] = None,
    report: Annotated[Path | None, typer.Option(help="Put the table into this file too, between its comments.")] = None,
) -> None:
    """Why tutorials fail: each classic mistake alone, against the same run without it."""
    from unveil.studies import tutorials as study_of

    with _one_line_errors():
        cases = study_of.chosen(only or [])
        budget = study_of.Budget(images=images, samples=samples)
        study = study_of.Study(shards, out, budget, say=typer.echo)
        results = study.run(cases, 60 * minutes, jobs)
        table = study_of.write_report(study, results, figures or out / "figures")
        typer.echo(table)
        if report is not None:
            study_of.fill_report(report, table)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except UnveilError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
