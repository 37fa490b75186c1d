"""``unveil curves``: the loss curves of training runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from unveil.run.commands import examples

if TYPE_CHECKING:
    from unveil.training.comparison import CurveComparison, LossCurve, Stretch

PLACES = ("curves.csv", "plots/train/curves.csv")  # within a folder
app = typer.Typer(no_args_is_help=True, help="Loss curves of training runs.")


@app.callback()
def main() -> None:
    """Loss curves of training runs."""


@app.command(epilog=examples("unveil curves compare plots/train other/plots/train"))
def compare(
    first: Annotated[str, typer.Argument(help="A curves.csv, a folder with one, or an MLflow run.", metavar="A")],
    second: Annotated[str, typer.Argument(help="The run to compare it with, in the same ways.", metavar="B")],
) -> None:
    """Compare the loss curves of two training runs; exits with 0: they agree, 1: they differ, 2: bad input."""
    from unveil.training.comparison import compare as compare_curves

    result = compare_curves(find_curve(first), find_curve(second))
    for line in describe(result):
        typer.echo(line)
    if result.verdict == "differ":
        raise typer.Exit(1)


def find_curve(name: str) -> "LossCurve":
    """The loss curve that a name on the command line means: a file, a folder, or a run in the project's store.

    Raises:
        UnveilError: if it means none.
        OSError: if its file cannot be read.
    """
    from unveil.cli.find import RUN_ID, find_file, tracked
    from unveil.errors import UnveilError
    from unveil.training.comparison import LossCurve, read_curve

    if (path := find_file(name, PLACES, "train")) is not None:
        return read_curve(path)
    if not RUN_ID.fullmatch(name):
        raise UnveilError(
            f"{name}: found no such file or folder, expected a curves.csv of the train stage, a folder with one, or "
            "the id of a run in MLflow (32 hexadecimal digits); give another"
        )
    with tracked(name) as client:
        client.get_run(name)  # asked for a run that it does not have, the history is only empty
        history = client.get_metric_history(name, "loss")
    if not history:
        raise UnveilError(f"{name}: found no metric loss, expected a run of the train stage; give another")
    # A run that was taken up again has some points twice; the later ones are those that it went on with.
    latest = {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}
    return LossCurve.of(f"run {name}", sorted(latest.items()))


def describe(result: "CurveComparison") -> list[str]:
    """The lines that are printed."""
    from unveil.training.comparison import FALSE_ALARMS

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
    if result.verdict == "agree":
        return [*lines, "agree: no difference beyond noise"]
    apart = ", ".join(stretch.name for stretch in result.stretches if stretch.differs)
    rarely = f"two seeds of one program: in 1 of {1 / FALSE_ALARMS:,.0f} comparisons"
    return [*lines, f"differ: {apart} beyond noise ({rarely})"]


def _stretch_line(stretch: "Stretch") -> str:
    return (
        f"{stretch.name:<11}  {stretch.points:>5} points  B - A {_percent(stretch.mean)} "
        f"+- {stretch.standard_error:.2%}  within noise up to {stretch.limit:.2%}"
    )


def _percent(value: float) -> str:
    """With a sign, and digits enough for rounding errors."""
    return f"{value:+.2%}" if abs(value) >= 1e-4 else f"{100 * value:+.1e}%"
