"""``python -m unveil.training``: tools for training runs.

``compare A B``: do two of them agree within noise? ``averages list``, ``averages search``: which averages of the
weights a model has, and which of them gives the best samples.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unveil.commands import one_line_errors
from unveil.errors import UnveilError
from unveil.training.comparison import FALSE_ALARMS, Comparison, LossCurve, Stretch, read_curve
from unveil.training.comparison import compare as compare_curves

if TYPE_CHECKING:
    from unveil.training.averages import Averages

RUN_ID = re.compile(r"[0-9a-f]{32}")
BAD_INPUT = 2  # 1 says that the two differ
PLACES = ("curves.csv", "plots/train/curves.csv")  # within a folder
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Tools for training runs.")


@app.callback()
def main() -> None:
    """Tools for training runs."""


averages = typer.Typer(no_args_is_help=True, help="Averages of a trained model's weights.")
app.add_typer(averages, name="averages")
Models = Annotated[Path, typer.Option(help="Folder of the model.")]


@averages.command("list")
def list_averages(models: Models = Path("models")) -> None:
    """Show which averages there are, and which can be made, as sample.weights names them."""
    with one_line_errors():
        from unveil.training.averages import Averages
        from unveil.training.checkpoint import WEIGHTS_FILE, ModelConfig

        half_life = ModelConfig.load(models).training.get("ema_half_life_images")
        for line in describe_averages(Averages.beside(models / WEIGHTS_FILE), half_life):
            typer.echo(line)


@averages.command()
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
    with one_line_errors():
        from studies import averages as study_of
        from unveil.params import load_params

        choices = study_of.choices_of(weights) if weights is not None else None
        settings = study_of.Settings.of(load_params(params), images, seed)
        found = study_of.Search(models, shards, out, settings, say=typer.echo)
        found.run(found.candidates() if choices is None else choices)
        typer.echo(study_of.write_report(found))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A curves.csv, a folder with one, or an MLflow run.", metavar="A")],
    second: Annotated[str, typer.Argument(help="The run to compare it with, in the same ways.", metavar="B")],
) -> None:
    """Compare the loss curves of two training runs; exits with 0: they agree, 1: they differ, 2: bad input."""
    with one_line_errors(BAD_INPUT):
        result = compare_curves(find_curve(first), find_curve(second))
    for line in describe(result):
        typer.echo(line)
    if not result.agrees:
        raise typer.Exit(1)


def find_curve(name: str) -> LossCurve:
    """The loss curve that a name on the command line means: a file, a folder, or a run in the project's store.

    Raises:
        UnveilError: if it means none.
        OSError: if its file cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        found = next((path / place for place in PLACES if (path / place).is_file()), None)
        if found is None:
            raise UnveilError(
                f"{path}: found a folder without {' or '.join(PLACES)}, expected one; `dvc repro train` or "
                "`dvc checkout` writes it"
            )
        return read_curve(found)
    if path.exists():
        return read_curve(path)
    if RUN_ID.fullmatch(name):
        return tracked_curve(name)
    raise UnveilError(
        f"{name}: found no such file or folder, expected a curves.csv of the train stage, a folder with one, or the "
        "id of a run in MLflow (32 hexadecimal digits); give another"
    )


def tracked_curve(run_id: str) -> LossCurve:
    """The loss curve of a train run in the store of the project around the working folder.

    Raises:
        UnveilError: if there is no such store, run or curve.
    """
    from unveil.run.tracking import Store, one_line

    store = Store.locate(Path.cwd())
    if store.database is not None and not store.database.exists():  # opening would make one
        raise UnveilError(
            f"{run_id}: found no store {store.shown}, expected the one that holds the run; call from its project, or "
            "set MLFLOW_TRACKING_URI"
        )
    client, _ = store.open()
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)  # asked for a run that it does not have, the history is only empty
        history = client.get_metric_history(run_id, "loss")
    except MlflowException as error:
        raise UnveilError(f"{run_id}: {store.shown} has no such run ({one_line(error)}); give another") from None
    if not history:
        raise UnveilError(f"{run_id}: found no metric loss, expected a run of the train stage; give another")
    # A run that was taken up again has some points twice; the later ones are those that it went on with.
    latest = {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}
    return LossCurve.of(f"run {run_id}", sorted(latest.items()))


def describe_averages(stored: "Averages", half_life: float | None) -> list[str]:
    """The lines that are printed of the averages of a model, whose own has that half-life; None if it is unknown."""
    if half_life is None or not stored.images:
        lines = ["ema: the model's own weights; no others were kept"]
    else:
        lines = [f"ema: the model's own, half-life {half_life:,} images, after {stored.images:,} images of training"]
    lines += [f"half-life:{entry.half_life_images}: stored in {entry.file}" for entry in stored.half_lives]
    if stored.snapshots:
        profiles = ", ".join(str(choice) for choice in stored.choices() if choice.kind == "power")
        first, last = stored.snapshots[0].images, stored.snapshots[-1].images
        least, greatest = stored.deviations()
        lines.append(f"{profiles}: {len(stored.snapshots)} snapshots, {first:,} to {last:,} images")
        lines.append(f"power:S with S from {least:.3g} to {greatest:.3g}: can be made from them")
    return lines


def describe(result: Comparison) -> list[str]:
    """The lines that are printed."""
    start, stop = result.images
    lines = [f"{result.points} shared points, from {start:,} to {stop:,} images"]
    if result.parted_at is None:
        return [*lines, "identical: every loss is the same, to the last digit"]
    one, other = result.noise
    lines += [
        f"first different at {result.parted_at:,} images; largest difference {_percent(result.largest)} at "
        f"{result.largest_at:,}",
        f"noise of a point in the second half: {one:.2%} in A, {other:.2%} in B",
        *(_stretch_line(stretch) for stretch in result.stretches),
    ]
    if result.agrees:
        return [*lines, "agree: no difference beyond noise"]
    apart = ", ".join(stretch.name for stretch in result.stretches if stretch.differs)
    rarely = f"two seeds of one program: in 1 of {1 / FALSE_ALARMS:,.0f} comparisons"
    return [*lines, f"differ: {apart} beyond noise ({rarely})"]


def _stretch_line(stretch: Stretch) -> str:
    return (
        f"{stretch.name:<11}  {stretch.points:>5} points  B - A {_percent(stretch.mean)} "
        f"+- {stretch.standard_error:.2%}  within noise up to {stretch.limit:.2%}"
    )


def _percent(value: float) -> str:
    """With a sign, and digits enough for rounding errors."""
    return f"{value:+.2%}" if abs(value) >= 1e-4 else f"{100 * value:+.1e}%"


if __name__ == "__main__":
    app()
