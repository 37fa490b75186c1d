"""``python -m studies NAME``: studies that are more than one run of the pipeline."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from unveil.diffusion.config import SamplerName
from unveil.errors import UnveilError
from unveil.run.commands import Frame

app = typer.Typer(cls=Frame, add_completion=False, no_args_is_help=True, help="Studies behind REPORT.md.")


@app.callback()
def main() -> None:
    """Studies behind REPORT.md."""


@app.command()
def nfe(
    images: Annotated[int, typer.Option(min=2, help="Samples of each point.")] = 1000,
    reference_images: Annotated[int, typer.Option(min=2, help="Real images they are compared with.")] = 2000,
    samplers: Annotated[str, typer.Option(help="Names with commas between them.")] = ",".join(get_args(SamplerName)),
    grids: Annotated[str, typer.Option(help="Names with commas between them.")] = "karras",
    evaluations: Annotated[str, typer.Option(help="Network evaluations, with commas.")] = "5,9,15,23,35,51",
    sigma_min: Annotated[float, typer.Option(min=1e-8, help="Smallest sigma of the grids.")] = 0.1,
    sigma_max: Annotated[float, typer.Option(min=1e-8, help="Largest sigma of the grids.")] = 80.0,
    reference: Annotated[bool, typer.Option(help="Measure DDPM with 1000 steps too, at the end.")] = True,
    budget: Annotated[float, typer.Option(min=0, help="Minutes; points that would end later are left out.")] = 240.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 100,
    models: Annotated[Path, typer.Option(help="Folder of the model.")] = Path("models"),
    shards: Annotated[Path, typer.Option(help="Folder of the shards.")] = Path("data/shards"),
    out: Annotated[Path, typer.Option(help="Folder of the study; points that are there are kept.")] = Path(
        "reports/nfe"
    ),
) -> None:
    """Distance against network evaluations, for every sampler, on one trained model."""
    from studies import nfe as study_of

    settings = study_of.NfeSettings(images, reference_images, seed, sigma_min, sigma_max, batch_size)
    study = study_of.NfeStudy(models, shards, out, settings, say=typer.echo)
    configs = list(
        study_of.cases(_names(samplers), _names(grids), study.sigma_min, study.sigma_max, _numbers(evaluations))
    )
    if reference:
        configs.append(study_of.reference_case(study.sigma_min, study.sigma_max))
    study.run(configs, 60 * budget)
    typer.echo(study_of.write_report(study))


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
    from studies import tutorials as study_of

    cases = study_of.chosen(only or [])
    budget = study_of.Budget(images=images, samples=samples)
    study = study_of.TutorialStudy(shards, out, budget, say=typer.echo)
    results = study.run(cases, 60 * minutes, jobs)
    table = study_of.write_report(study, results, figures or out / "figures")
    typer.echo(table)
    if report is not None:
        study_of.fill_report(report, table)


@app.command()
def distances(
    images: Annotated[int, typer.Option(min=4, help="N, images of each set.")] = 2000,
    held_out: Annotated[str, typer.Option(help="Split of the images that are changed: valid or test.")] = "test",
    features: Annotated[str, typer.Option(help="Feature network, as evaluate.features.")] = "efficientnet-lite0",
    weights: Annotated[Path | None, typer.Option(help="File of its weights; default: its usual places.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise and draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once, on a GPU.")] = 64,
    shards: Annotated[Path, typer.Option(help="Folder of the shards.")] = Path("data/shards"),
    raw: Annotated[Path, typer.Option(help="Folder of the archive that the shards were made of.")] = Path("data/raw"),
    out: Annotated[Path, typer.Option(help="Folder of the study; what is measured there is kept.")] = Path(
        "reports/distances"
    ),
) -> None:
    """What moves a Fréchet distance, and by how much: real images against real images, changed on purpose."""
    from studies import distances as study_of

    settings = study_of.DistanceSettings(images, held_out, seed, features, weights, batch_size)
    study = study_of.DistanceStudy(shards, raw, out, settings, say=typer.echo)
    study.run()
    typer.echo(study_of.write_report(study))


@app.command()
def requests(
    guidance: Annotated[float, typer.Option(min=0, max=100, help="Scale: 1 as trained, more exaggerates.")] = 2.0,
    images: Annotated[int, typer.Option(min=1, help="Samples of each request.")] = 200,
    real: Annotated[int, typer.Option(min=1, help="Held-out images that go to noise and back.")] = 16,
    models: Annotated[Path, typer.Option(help="Folder of the model, one that is told attributes.")] = Path("models"),
    oracle: Annotated[Path, typer.Option(help="Folder of the oracle.")] = Path("oracle"),
    shards: Annotated[Path, typer.Option(help="Folder of the shards.")] = Path("data/shards"),
    params: Annotated[Path, typer.Option(help="The file whose sample: says how to draw.")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="Folder of the study; what is measured there is kept.")] = Path(
        "reports/requests"
    ),
) -> None:
    """Whether samples have the attribute that was asked for, and how images come back from their noise."""
    from studies import requests as study_of
    from unveil.progress import say

    study = study_of.RequestStudy(models, oracle, shards, params, out, guidance, images, real, say)
    study.run()
    typer.echo(study_of.write_report(study))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in _names(text)})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 2:
        raise UnveilError(f"--evaluations: found {text!r}, expected whole numbers >= 2 with commas between them")
    return numbers


if __name__ == "__main__":
    app()
