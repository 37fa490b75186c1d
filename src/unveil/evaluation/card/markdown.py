"""The evaluation card as Markdown: the number first, then what to make of it, then everything that made it.

The words stand in ``page.md.j2`` and ``meanings.yaml``; here are the tables, and how a value is written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.card import Card, flatten
from unveil.evaluation.card.published import PUBLISHED_SAMPLES, PUBLISHED_SIZE
from unveil.evaluation.metrics.metric import UNDAMAGED, Kind, Metric
from unveil.evaluation.metrics.registry import kind_of
from unveil.parameter_file import package_data

HASH = re.compile(r"[0-9a-f]{32,}")
MEANINGS: dict[str, str] = package_data(__package__, "meanings.yaml")
"""What each kind of metric says, by the kind's title."""


def render(card: Card) -> str:
    """The card, in Markdown."""
    pages = Environment(
        loader=PackageLoader("unveil.evaluation", "card"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.filters.update(
        better=_better,
        cell=_cell,
        line=lambda text: " ".join(text.split()) + "\n",
        number=_number,
        percent=_percent,
        spread=_spread,
        row=_row,
        table=_table,
        text=_text,
        values=_values,
    )
    damaged = [metric for metric in card.metrics if metric.controls]
    subset = card.choices.evaluation.get("kid_subset_size")
    kinds: dict[str, tuple[Metric, Kind]] = {}
    for metric in card.metrics:
        kind = kind_of(metric.name)
        kinds.setdefault(kind.title, (metric, kind))
    page = pages.get_template("page.md.j2").render(
        card=card,
        copies=card.memorization,
        metrics=_metrics(card),
        kinds=kinds.values(),
        meanings=MEANINGS,
        damaged=damaged,
        undamaged=UNDAMAGED,
        subset=subset if isinstance(subset, int) else None,
        controls=_controls(card, damaged),
        published_size=PUBLISHED_SIZE,
        published_samples=PUBLISHED_SAMPLES,
        attributes=_attributes(card),
        made_by=_made_by(card),
    )
    return re.sub(r"\n{3,}", "\n\n", page).rstrip("\n") + "\n"


# ------------------------------------------------------------------------------------------------ tables

Rows = list[Sequence[Any]]


def _metrics(card: Card) -> Rows:
    """All metrics but those with a table of their own, without columns in which nothing stands."""
    metrics = [metric for metric in card.metrics if not kind_of(metric.name).apart]
    columns: list[list[Any]] = [
        ["metric", *(f"`{metric.name}`" for metric in metrics)],
        ["better", *map(_better, metrics)],
        ["samples", *(_number(metric.value) + _error(metric) for metric in metrics)],
        ["interval", *(_interval(metric, "{1} to {2} ({0:.0%})") for metric in metrics)],
        ["N", *(metric.n for metric in metrics)],
        ["floor: real, held out", *(metric.floor for metric in metrics)],
        ["scale: uniform noise", *(metric.noise for metric in metrics)],
        ["from floor to scale", *("" if m.fraction is None else _percent(m.fraction) for m in metrics)],
    ]
    filled = [cells for cells in columns if any(cell not in ("", None) for cell in cells[1:])]
    return list(zip(*filled, strict=True))


def _attributes(card: Card) -> Rows:
    """What was asked for and what was found, a row for each attribute and answer; none without an oracle."""
    metrics = [metric for metric in card.metrics if kind_of(metric.name).apart]
    rows = [
        (
            *metric.name.removeprefix("attribute_").rsplit("_", 1),
            _percent(metric.value),
            "" if metric.low is None or metric.high is None else f"{_percent(metric.low)} to {_percent(metric.high)}",
            metric.n,
            "" if metric.floor is None else _percent(metric.floor),
        )
        for metric in metrics
    ]
    title = ("attribute", "asked for", "samples that have it so", "interval (95%)", "N", "of real, held-out images")
    return [title, *rows] if rows else []


def _controls(card: Card, metrics: Sequence[Metric]) -> list[tuple[str, str, list[float | None]]]:
    """Each damage, best first: its name, what was done, and the value of each metric."""
    if not metrics:
        return []
    first, words = metrics[0], card.choices.evaluation.get("controls")
    said = {UNDAMAGED: "nothing: the floor of the controls"} | (dict(words) if isinstance(words, Mapping) else {})
    names = dict.fromkeys(name for metric in metrics for name in metric.controls)
    sign = 1 if first.lower_is_better else -1
    ordered = sorted(names, key=lambda name: sign * first.controls.get(name, sign * float("inf")))
    return [(name, str(said.get(name, "")), [metric.controls.get(name) for metric in metrics]) for name in ordered]


def _made_by(card: Card) -> dict[str, Mapping[str, Any]]:
    """Everything that made the number: sections by title."""
    choices, data = card.choices, card.choices.data
    stated = data.model_dump(exclude={"reference", "held_out"})
    if protocol := PROTOCOLS.get(data.protocol):
        stated["protocol"] = f"`{data.protocol}`: {protocol.describe()}"
    for name, split in (("reference", data.reference), ("held out", data.held_out)):
        stated[name] = f"{split.name} split, {split.share} images"
    shown = any(metric.controls for metric in card.metrics)  # the words on the controls stand in their own section
    return {
        "Data": stated,
        **{f"Features: {name}": on.model_dump() for name, on in choices.features.items()},
        "Sampling": choices.sampling,
        "Model": choices.model,
        "Evaluation": {key: value for key, value in choices.evaluation.items() if key != "controls" or not shown},
        "Code": choices.code,
        "Environment": card.environment,
        "Cost": card.cost,
    }


def _values(values: Mapping[str, Any]) -> Rows:
    """Nested values, a row each; none without values."""
    rows = [(key, _text(value)) for key, value in flatten(values).items()]
    return [("what", "value"), *rows] if rows else []


def _table(rows: Rows) -> str:
    """The first row is the title of each column; without rows nothing."""
    lines = [*rows[:1], *(["---"] * len(row) for row in rows[:1]), *rows[1:]]
    return "\n".join(map(_row, lines))


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


# ----------------------------------------------------------------------------------------- single values


def _better(metric: Metric) -> str:
    return "lower" if metric.lower_is_better else "higher"


def _interval(metric: Metric, form: str) -> str:
    if metric.low is None or metric.high is None or metric.level is None:
        return ""
    return form.format(metric.level, _number(metric.low), _number(metric.high))


def _spread(metric: Metric) -> str:
    stderr = "" if metric.stderr is None else f" ± {_number(metric.stderr)}"
    return _interval(metric, " ({:.0%} interval {} to {})") or stderr


def _error(metric: Metric) -> str:
    """The standard error, or the spread of what the value is the mean of: two digits are all that it deserves."""
    form, value = (" ± {}", metric.stderr) if metric.stderr is not None else (" (spread {})", metric.std)
    return "" if value is None else form.format(f"{value:.2g}" if value < 100 else f"{value:.0f}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    text = "none" if value is None else str(value)
    return f"`{text}`" if HASH.fullmatch(text) else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _cell(value: Any) -> str:
    """Whole numbers are counts, others are as ``_number`` writes them, and of None nothing stands there."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _number(value)
    return " ".join((value or "").split()).replace("|", "\\|")
