"""``unveil sweep``: a grid of experiments, one after the other; its table and its plot."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unveil.cli.find import project_root, tracked
from unveil.errors import UnveilError
from unveil.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unveil.run.sweep import Sweep, SweepPoint

NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)
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
    from unveil.run.sweep import NAME, Sweep, file_overrides, grid, short_names, varied

    if (root := project_root()) is None:
        raise UnveilError("found no DVC project here, expected params.yaml and dvc.yaml; call from its folder")
    overrides = [*(file_overrides(file) if file else ()), *(settings or ())]
    if not overrides:
        raise UnveilError("found nothing to vary, expected a FILE or -S, such as -S train.lr=1e-3,2e-3")
    if name is not None and not NAME.fullmatch(name):
        raise UnveilError(f"--name: found {name!r}, expected letters, digits and any of . _ + = - in it; mend it")
    points = grid(overrides, f"{name}," if name else "")
    named = name or "-".join(short_names(varied(points)).values())
    run, failed = Sweep(root, named, points), list[str]()
    try:
        with run.opened(data=not dry):
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
            results = Results.of(run, metric)
    except Terminated as stopped:
        say(f"sweep {named}: stopped; the same command goes on from here")
        raise typer.Exit(128 + stopped.number) from None
    if results.points:
        folder = out or root / "reports" / "sweeps" / named
        say(write_report(results, folder))
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


@dataclass(frozen=True)
class Measured:
    """A finished point, with the metric and the ends of its interval; NaN where there are none."""

    point: "SweepPoint"
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Results:
    """What the finished points of a sweep measured, the best first; ``keys`` has the short names of what varies."""

    metric: str
    keys: dict[str, str]
    points: list[Measured]

    @classmethod
    def of(cls, run: "Sweep", metric: str | None) -> "Results":
        """Read them. Raises UnveilError if none has such a metric."""
        from unveil.evaluation.features.published import FEATURE_SETS
        from unveil.evaluation.metrics.registry import kind_of
        from unveil.run.sweep import short_names, varied

        rows, revisions, values = list[Measured](), run.finished(), dict[str, float]()
        for point in run.points:
            if point.name in revisions:
                values = dict(run.metrics(revisions[point.name]))
                distances = (features.frechet for features in FEATURE_SETS.values())
                metric = metric or next((name for name in distances if name in values), None)
                low, high = (values.get(f"{metric}_{end}", math.nan) for end in ("low", "high"))
                rows.append(Measured(point, values.get(metric or "", math.nan), low, high))
        if rows and all(math.isnan(row.value) for row in rows):
            raise UnveilError(f"--metric: found no {metric}, expected one of {', '.join(sorted(values))}")
        sign = 1
        with suppress(ValueError):  # such as seconds
            sign = 1 if kind_of(metric or "").lower_is_better else -1
        rows.sort(key=lambda row: (math.isnan(row.value), sign * row.value))
        return cls(metric or "", short_names(varied(run.points)), rows)


def write_report(results: Results, folder: Path) -> str:
    """Write ``sweep.md`` and ``sweep.png``; return the table."""
    rows = [f"| {' | '.join(results.keys.values())} | {results.metric} | 95 % interval | experiment |"]
    rows.append("|" + " --- |" * (len(results.keys) + 3))
    for row in results.points:
        interval = "" if math.isnan(row.high - row.low) else f"{row.low:.4g} to {row.high:.4g}"
        cells = [*(row.point.values[key] for key in results.keys), f"{row.value:.4g}", interval, f"`{row.point.name}`"]
        rows.append(f"| {' | '.join(cells)} |")
    write_text(folder / "sweep.md", "\n".join(rows) + "\n")
    with atomic_path(folder / "sweep.png") as temporary:
        draw(results).savefig(temporary, format="png")
    return "\n".join(rows)


def draw(results: Results) -> "Figure":
    """The metric with its intervals: along the key of most values, a line for each combination of the others."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    along, *others = sorted(results.keys, key=lambda key: -len({row.point.values[key] for row in results.points}))
    texts = [row.point.values[along] for row in results.points]
    numbers = [float(text) for text in texts if NUMBER.fullmatch(text)]
    are_numbers = len(numbers) == len(texts)
    lines: dict[str, list[Measured]] = {}
    for row in results.points:
        label = ", ".join(f"{results.keys[key]} = {row.point.values[key]}" for key in others)
        lines.setdefault(label, []).append(row)
    for label, rows in lines.items():
        corners = sorted(
            (float(text) if are_numbers else text, row.value, max(row.value - row.low, 0), max(row.high - row.value, 0))
            for row, text in ((row, row.point.values[along]) for row in rows)
        )
        x, y, *errors = zip(*corners, strict=True)  # NaN is no error bar
        axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, label=label or None)
    if are_numbers and min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_FROM:
        axes.set_xscale("log")
    axes.set_xlabel(along)
    axes.set_ylabel(results.metric)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if others:
        axes.legend(fontsize=8, frameon=False)
    return figure
