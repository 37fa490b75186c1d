"""``unveil averages``: which averages of the weights a model has, and which of them gives the best samples."""

from pathlib import Path
from typing import Annotated

import typer

from unveil.run.commands import examples

app = typer.Typer(no_args_is_help=True, help="Averages of a trained model's weights.")
Models = Annotated[Path, typer.Option(help="Folder of the model.")]


@app.command("list", epilog=examples("unveil averages list"))
def list_averages(models: Models = Path("models")) -> None:
    """Show which averages there are, and which can be made, as sample.weights names them."""
    from unveil.averages import Averages
    from unveil.model import WEIGHTS_FILE, ModelConfig

    half_life = ModelConfig.load(models).training.get("ema_half_life_images")
    stored = Averages.beside(models / WEIGHTS_FILE)
    if half_life is None or not stored.images:
        typer.echo("ema: the model's own weights; no others were kept")
    else:
        typer.echo(f"ema: the model's own, half-life {half_life:,} images, after {stored.images:,} images of training")
    for entry in stored.half_lives:
        typer.echo(f"half-life:{entry.half_life_images}: stored in {entry.file}")
    if stored.snapshots:
        profiles = ", ".join(str(choice) for choice in stored.choices() if choice.kind == "power")
        first, last = stored.snapshots[0].images, stored.snapshots[-1].images
        least, greatest = stored.deviations()
        typer.echo(f"{profiles}: {len(stored.snapshots)} snapshots, {first:,} to {last:,} images")
        typer.echo(f"power:S with S from {least:.3g} to {greatest:.3g}: can be made from them")


@app.command(epilog=examples("unveil averages search --weights ema,power:0.05,power:0.1 --images 1000"))
def search(
    weights: Annotated[
        str | None, typer.Option(help="Averages with commas between them; default: all, and a grid of power:S.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=2, help="Samples of each; default: evaluate.num_images.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the samples; default: sample.seed.")] = None,
    params: Annotated[Path, typer.Option(help="The file of parameters.", readable=False)] = Path("params.yaml"),
    models: Models = Path("models"),
    shards: Annotated[Path, typer.Option(help="Folder of the shards.")] = Path("data/shards"),
    out: Annotated[Path, typer.Option(help="Folder of the search; points that are there are kept.")] = Path(
        "reports/averages"
    ),
) -> None:
    """Sample with each average and measure the evaluation's distance; says which is best."""
    from unveil.cli.search import Search, choices_of, write_report
    from unveil.params import load_params
    from unveil.progress import say

    choices = choices_of(weights) if weights is not None else None
    settings = load_params(params)
    images = settings.evaluate.num_images if images is None else images
    seed = settings.sample.seed if seed is None else seed
    found = Search(models, shards, out, settings, images, seed, say)
    found.run(found.candidates() if choices is None else choices)
    say(write_report(found))
