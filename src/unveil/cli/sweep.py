"""``unveil sweep``: a grid of experiments, one after the other; its table and its plot."""

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unveil.cli.find import needed_root, tracked
from unveil.errors import UnveilError
from unveil.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from unveil.run.sweep import Sweep

LOG_FROM = 20.0  # greatest through least value of a parameter, from which its axis is logarithmic


def sweep(
    file: Annotated[
        Path | None, typer.Argument(help="A YAML file: dotted keys, each with a list of values.", metavar="[FILE]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set-param", "-S", help="Values of a key: a,b,c or range(first,end,step).", metavar="KEY=VALUES"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Of the sweep; its experiments begin with it.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What sorts the table; default: the distance.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of table and plot; default: reports/sweeps/NAME.")] = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Only say which experiments there are, and which are to run.")
    ] = False,
) -> None:
    """Run every combination of values as an experiment of DVC, one after the other.

    It runs in a clone: your files are not touched, and what you have changed is part of each experiment. The same
    command goes on where it was stopped; what failed is tried again. Exits with 1 if an experiment failed.
    """
    from unveil.progress import say
    from unveil.run.signals import Terminated
    from unveil.run.sweep import NAME, Sweep, file_overrides, grid, plain_name, short_names, varied

    root = needed_root()
    overrides = [*(file_overrides(file) if file else ()), *(settings or ())]
    if not overrides:
        raise UnveilError("found nothing to vary, expected a FILE or -S, such as -S train.lr=1e-3,2e-3")
    if name is not None and not NAME.fullmatch(name):
        raise UnveilError(f"--name: found {name!r}, expected letters, digits and any of . _ + = - in it; mend it")
    points = grid(overrides, f"{name}," if name else "")
    named = plain_name(name or "-".join(short_names(varied(points)).values()))
    run, failed = Sweep(root, named, points), list[str]()
    try:
        with run.opened():
            finished = run.finished()
            say(f"sweep {named}: {len(points)} experiments, {len(finished)} finished before")
            for number, point in enumerate(points, 1):
                if dry or point.name in finished:
                    say(f"{point.name}: {'finished' if point.name in finished else 'to run'}")
                    continue
                say(f"[{number}/{len(points)}] {point.name}")
                if not run.run(point):
                    failed.append(point.name)
                    say(f"{point.name}: failed; the sweep goes on")
            about, frame = results(run, metric)
    except Terminated as stopped:
        say(f"sweep {named}: stopped; the same command goes on from here")
        raise typer.Exit(128 + stopped.number) from None
    if len(frame):
        folder = out or root / "reports" / "sweeps" / named
        say(write_report(about, frame, folder))
        say(f"{folder}: sweep.md, sweep.png")
    for point_name in failed:
        typer.echo(f"error: {point_name} failed{reason(point_name)}; the same command tries it again", err=True)
    if failed:
        raise typer.Exit(1)


def reason(experiment: str) -> str:
    """Why an experiment failed, as MLflow has it, and in which run; nothing if it does not say."""
    from unveil.run.store import tracking_is_off

    with suppress(UnveilError), tracked(experiment) as client:
        if not tracking_is_off():
            places = [place.experiment_id for place in client.search_experiments()]
            asked = f"tags.`dvc.exp_name` = '{experiment}' AND attributes.status != 'FINISHED'"
            for run in client.search_runs(places, asked, max_results=1, order_by=["start_time DESC"]):
                return f": {run.data.tags.get('unveil.error', run.info.status)} (run {run.info.run_id})"
    return ""


def results(run: "Sweep", metric: str | None) -> "tuple[str, DataFrame]":
    """The metric, and a row for each finished point, the best first: values that vary, metric, low, high, name.

    Raises:
        UnveilError: if none has such a metric.
    """
    from pandas import DataFrame

    from unveil.evaluation.features.published import FEATURE_SETS
    from unveil.evaluation.metrics.registry import kind_of
    from unveil.run.sweep import short_names, varied

    named, commits = short_names(varied(run.points)), run.finished()
    measured = {point: run.metrics(commits[point.name]) for point in run.points if point.name in commits}
    there = sorted({name for values in measured.values() for name in values})
    distances = [features.frechet for features in FEATURE_SETS.values() if features.frechet in there]
    metric = metric or next(iter(distances), "")
    if measured and metric not in there:
        raise UnveilError(f"--metric: found no {metric or 'distance'}, expected one of {', '.join(there)}")
    columns = {metric: metric, "low": f"{metric}_low", "high": f"{metric}_high"}
    rows = [
        {named[key]: point.values[key] for key in named}
        | {column: values.get(name, math.nan) for column, name in columns.items()}
        | {"experiment": point.name}
        for point, values in measured.items()
    ]
    ascending = True
    with suppress(ValueError):  # such as seconds
        ascending = kind_of(metric).lower_is_better
    frame = DataFrame(rows, columns=[*named.values(), *columns, "experiment"])
    return metric, frame.sort_values(metric, ascending=ascending, kind="stable")


def write_report(metric: str, frame: "DataFrame", folder: Path) -> str:
    """Write ``sweep.md`` and ``sweep.png`` of what ``results`` gives; return the table."""
    table = frame.drop(columns=["low", "high"])
    table[metric] = frame[metric].map("{:.4g}".format)
    interval = frame["low"].map("{:.4g}".format) + " to " + frame["high"].map("{:.4g}".format)
    table["experiment"] = "`" + frame["experiment"] + "`"
    table.insert(len(table.columns) - 1, "95 % interval", interval.where(frame["low"].notna(), ""))
    text: str = table.to_markdown(index=False, disable_numparse=True)
    write_text(folder / "sweep.md", text + "\n")
    with atomic_path(folder / "sweep.png") as temporary:
        draw(metric, frame).savefig(temporary, format="png")
    return text


def draw(metric: str, frame: "DataFrame") -> "Figure":
    """The metric with its intervals: along the key of most values, a line for each combination of the others."""
    from matplotlib.figure import Figure
    from pandas import to_numeric

    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    along, *others = sorted(frame.columns[: list(frame.columns).index(metric)], key=lambda key: -frame[key].nunique())
    numbers = to_numeric(frame[along], errors="coerce")
    frame = frame.assign(x=frame[along] if numbers.isna().any() else numbers).sort_values("x")
    frame["label"] = [", ".join(f"{key} = {row[key]}" for key in others) for _, row in frame.iterrows()]
    for label, line in frame.groupby("label"):
        errors = [(line[metric] - line["low"]).clip(lower=0), (line["high"] - line[metric]).clip(lower=0)]
        axes.errorbar(line["x"], line[metric], yerr=errors, marker="o", capsize=3, label=label or None)
    if numbers.notna().all() and numbers.min() > 0 and numbers.max() / numbers.min() >= LOG_FROM:
        axes.set_xscale("log")
    axes.set_xlabel(along)
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25, linewidth=0.6)
    if others:
        axes.legend(fontsize=8, frameon=False)
    return figure
