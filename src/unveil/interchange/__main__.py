"""``python -m unveil.interchange import DIR | export DIR``: models to and from diffusers."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unveil.errors import UnveilError
from unveil.interchange.pipeline import export_pipeline, import_pipeline

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Models to and from diffusers' pipeline folders.")

Models = Annotated[Path, typer.Option(help="The folder of the project's model.")]


class Scheduler(StrEnum):
    """diffusers' schedulers that a model can be given."""

    ddpm = "ddpm"
    ddim = "ddim"


class Variance(StrEnum):
    """Of DDPM's steps: the posterior's, or beta."""

    small = "small"
    large = "large"


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder of diffusers.", metavar="DIR")],
    models: Models = Path("models"),
    shards: Annotated[Path, typer.Option(help="The images to compare its samples with.")] = Path("data/shards"),
) -> None:
    """Make a diffusers pipeline the project's model."""
    with _one_line_errors():
        pipeline = import_pipeline(folder, models, shards)
        parameters = sum(tensor.numel() for tensor in pipeline.weights.values())
        advice = ", ".join(f"sample.{key} {str(value).lower()}" for key, value in pipeline.sampling.items())
        typer.echo(f"{models}: {parameters:,} parameters; it sampled with {advice}")
        typer.echo("next: dvc commit --force train && dvc repro sample evaluate")


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="The pipeline folder to make.", metavar="DIR")],
    models: Models = Path("models"),
    scheduler: Annotated[Scheduler, typer.Option(help="What it is to sample with.")] = Scheduler.ddpm,
    clip_denoised: Annotated[bool, typer.Option(help="Clip the denoised image in every step.")] = False,
    variance: Annotated[Variance, typer.Option(help="Of ddpm.")] = Variance.small,
) -> None:
    """Write the project's model as a pipeline folder of diffusers."""
    with _one_line_errors():
        export_pipeline(models, folder, scheduler.value, clip_denoised=clip_denoised, variance=variance.value)
        typer.echo(f"{folder}: open it with {scheduler.value.upper()}Pipeline.from_pretrained")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except UnveilError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
