"""``unveil import`` and ``unveil export``: models from and to diffusers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from unveil.interchange.pipeline import Pipeline
    from unveil.params import Params

Models = Annotated[Path, typer.Option(help="The folder of the project's model.")]

DEFAULT_STEPS = {"ddpm": 1000, "ddim": 50}  # num_inference_steps of diffusers' pipelines; more than T fail


def import_(
    folder: Annotated[Path, typer.Argument(help="A pipeline folder of diffusers.", metavar="DIR")],
    models: Models = Path("models"),
    shards: Annotated[Path, typer.Option(help="The images to compare its samples with.")] = Path("data/shards"),
    params: Annotated[Path, typer.Option(help="The file that must agree with the model.")] = Path("params.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is there.")] = False,
) -> None:
    """Make a diffusers pipeline the project's model."""
    from unveil.interchange.pipeline import import_pipeline
    from unveil.params import load_params

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
    typer.echo("next: mkdir -p plots/train && dvc commit --force train && dvc repro")


def export(
    folder: Annotated[Path, typer.Argument(help="The pipeline folder to make.", metavar="DIR")],
    models: Models = Path("models"),
    scheduler: Annotated[Literal["ddpm", "ddim"], typer.Option(help="What it is to sample with.")] = "ddpm",
    threshold: Annotated[
        Literal["none", "clip"], typer.Option(help="Of the denoised image, in every step of ddpm.")
    ] = "none",
    variance: Annotated[
        Literal["small", "large"], typer.Option(help="Of ddpm's steps: the posterior's, or beta.")
    ] = "small",
) -> None:
    """Write the project's model as a pipeline folder of diffusers."""
    from unveil.interchange.pipeline import export_pipeline

    model = export_pipeline(models, folder, scheduler, threshold=threshold, variance=variance)
    timesteps = model.diffusion.timesteps
    few = f" and call it with num_inference_steps={timesteps} or fewer" if timesteps < DEFAULT_STEPS[scheduler] else ""
    typer.echo(f"{folder}: open it with {scheduler.upper()}Pipeline.from_pretrained{few}")


def disagreements(params: "Params", pipeline: "Pipeline") -> Iterator[str]:
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
