"""``python -m unveil.interchange import DIR | export DIR``: models to and from diffusers."""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unveil.commands import one_line_errors
from unveil.interchange.pipeline import Pipeline, export_pipeline, import_pipeline
from unveil.params import Params, load_params

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Models to and from diffusers' pipeline folders.")

Models = Annotated[Path, typer.Option(help="The folder of the project's model.")]

DEFAULT_STEPS = {"ddpm": 1000, "ddim": 50}  # num_inference_steps of diffusers' pipelines; more than T fail


class Scheduler(StrEnum):
    """diffusers' schedulers that a model can be given."""

    ddpm = "ddpm"
    ddim = "ddim"


class Variance(StrEnum):
    """Of DDPM's steps: the posterior's, or beta."""

    small = "small"
    large = "large"


class Threshold(StrEnum):
    """What keeps the denoised image in [-1, 1]."""

    none = "none"
    clip = "clip"


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder of diffusers.", metavar="DIR")],
    models: Models = Path("models"),
    shards: Annotated[Path, typer.Option(help="The images to compare its samples with.")] = Path("data/shards"),
    params: Annotated[Path, typer.Option(help="The file that must agree with the model.")] = Path("params.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is there.")] = False,
) -> None:
    """Make a diffusers pipeline the project's model."""
    with one_line_errors():
        current = load_params(params) if params.exists() else None
        pipeline = import_pipeline(folder, models, shards, force=force)
        parameters = sum(tensor.numel() for tensor in pipeline.weights.values())
        advice = ", ".join(f"sample.{key}: {value}" for key, value in pipeline.sampling.settings.items())
        typer.echo(f"{models}: {parameters:,} parameters; it sampled with {advice}")
        for difference in pipeline.sampling.not_represented:
            typer.echo(f"not represented: {difference}")
        if current is None:
            typer.echo(f"{params}: not there, expected the model's train.network and train.diffusion in it")
        elif lines := list(disagreements(current, pipeline)):
            typer.echo("\n".join([f"set in {params} before the next stage:", *lines]))
        typer.echo("next: mkdir -p plots/train && dvc commit --force train && dvc repro sample evaluate")


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="The pipeline folder to make.", metavar="DIR")],
    models: Models = Path("models"),
    scheduler: Annotated[Scheduler, typer.Option(help="What it is to sample with.")] = Scheduler.ddpm,
    threshold: Annotated[
        Threshold, typer.Option(help="Of the denoised image, in every step of ddpm.")
    ] = Threshold.none,
    variance: Annotated[Variance, typer.Option(help="Of ddpm.")] = Variance.small,
) -> None:
    """Write the project's model as a pipeline folder of diffusers."""
    with one_line_errors():
        model = export_pipeline(models, folder, scheduler.value, threshold=threshold.value, variance=variance.value)
        timesteps = model.diffusion.timesteps
        few = (
            f" and call it with num_inference_steps={timesteps} or fewer"
            if timesteps < DEFAULT_STEPS[scheduler]
            else ""
        )
        typer.echo(f"{folder}: open it with {scheduler.value.upper()}Pipeline.from_pretrained{few}")


def disagreements(params: Params, pipeline: Pipeline) -> Iterator[str]:
    """Lines ``key: value`` of what params.yaml would have to say of the pipeline's model, where it says another."""
    numbers = ("timesteps", "beta_start", "beta_end") if pipeline.diffusion.path == "vp-linear" else ("timesteps",)
    offset = ("cosine_offset",) if pipeline.diffusion.path == "vp-cosine" else ()
    diffusion = ("path", "parameterization", "objective", *numbers, *offset)
    for section, ours, theirs, keys in (
        ("network", params.train.network, pipeline.network, tuple(type(params.train.network).model_fields)),
        ("diffusion", params.train.diffusion, pipeline.diffusion, diffusion),
    ):
        for key in keys:
            if getattr(ours, key) != (value := getattr(theirs, key)):
                shown = list(value) if isinstance(value, tuple) else value
                yield f"train.{section}.{key}: {json.dumps(shown).strip(chr(34))}"


if __name__ == "__main__":
    app()
