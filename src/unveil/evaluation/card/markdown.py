"""The evaluation card as Markdown: the number first, then what to make of it, then everything that made it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.card import BySize, Card, Split, flatten
from unveil.evaluation.card.meanings import MEANINGS
from unveil.evaluation.card.published import PUBLISHED_SAMPLES, PUBLISHED_SIZE, PublishedValue, share
from unveil.evaluation.choices import UNDAMAGED
from unveil.evaluation.metrics.metric import Metric
from unveil.evaluation.metrics.registry import kind_of

SPLITS = ("reference", "held_out")
UNSAID = "The samples do not say."
UNDAMAGED_WORDS = "nothing: the floor of the controls"
HASH = re.compile(r"[0-9a-f]{32,}")


def render(card: Card) -> str:
    """The card, in Markdown."""
    choices = card.choices
    sections = (
        _section("Likelihood", _likelihood(card)),
        _section("What the metrics mean", _meanings(card)),
        _section("Controls: what a silent mistake would cost", _controls(card)),
        _section("Distance by number of samples", _by_size(card)),
        _section("Memorisation", _memorization(card)),
        _section("Notes", _list(card.notes)),
        _section(f"Published values, CelebA {PUBLISHED_SIZE} x {PUBLISHED_SIZE}", _published(card)),
        _section("Data", _values(_data(card))),
        *(_section(f"Features: {name}", _values(flatten(on.model_dump()))) for name, on in choices.features.items()),
        _section("Sampling", _values(flatten(choices.sampling)) or UNSAID),
        _section("Model", _values(flatten(choices.model)) or UNSAID),
        _section("Evaluation", _values(_evaluation(card))),
        _section("Code", _values(flatten(choices.code))),
        _section("Environment", _values(flatten(card.environment))),
        _section("Cost", _values(flatten(card.cost))),
    )
    return "# Evaluation card\n\n" + _summary(card) + "\n" + "".join(f"\n{part}" for part in sections if part)


# ------------------------------------------------------------------------------------ the first screen


def _summary(card: Card) -> str:
    parts = [
        f"{_headline(card)}\n\n{_scale(card)}".strip(),
        *(f"> **Lossy:** {sentence}" for sentence in card.lossy),
        _metrics(card),
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(card: Card) -> str:
    metric, data = card.headline, card.choices.data
    on = "" if metric.features is None else f", features of `{metric.features}`"
    against = (
        f" against {share(data.reference.taken, data.reference.images)} real images of the {data.reference.name} split"
        if metric.n_reference
        else ""
    )
    return (
        f"**`{metric.name}` = {_number(metric.value)}**{_spread(metric)}: {metric.n:,} samples{against} of "
        f"`{data.source}`, protocol `{data.protocol}` at {data.image_size} x {data.image_size}{on}. "
        f"{_direction(metric).capitalize()} is better."
    )


def _spread(metric: Metric) -> str:
    if metric.low is not None and metric.high is not None and metric.level is not None:
        return f" ({metric.level:.0%} interval {_number(metric.low)} to {_number(metric.high)})"
    return f" ± {_number(metric.stderr)}" if metric.stderr is not None else ""


def _scale(card: Card) -> str:
    metric = card.headline
    if metric.floor is None or metric.noise is None:
        return ""
    held_out = card.choices.data.held_out
    text = (
        f"For scale: {held_out.taken:,} real images of the {held_out.name} split, which the model should not have "
        f"seen, have {_number(metric.floor)} (the floor), and uniform noise has {_number(metric.noise)}."
    )
    if metric.fraction is not None:
        text += f" The samples are {_percent(metric.fraction)} of the way from the floor to the noise."
    return text


def _metrics(card: Card) -> str:
    header = (
        "metric",
        "better",
        "samples",
        "interval",
        "N",
        "floor: real, held out",
        "scale: uniform noise",
        "from floor to scale",
    )
    rows = [
        (
            f"`{metric.name}`",
            _direction(metric),
            _number(metric.value) + _error(metric),
            _interval(metric),
            f"{metric.n:,}",
            _optional(metric.floor),
            _optional(metric.noise),
            "" if metric.fraction is None else _percent(metric.fraction),
        )
        for metric in card.metrics
    ]
    filled = [column for column, title in enumerate(header) if any(row[column] for row in rows)]
    return _table([header[column] for column in filled], [[row[column] for column in filled] for row in rows])


def _direction(metric: Metric) -> str:
    return "lower" if metric.lower_is_better else "higher"


def _error(metric: Metric) -> str:
    """The standard error, or the spread of what the value is the mean of."""
    if metric.stderr is not None:
        return f" ± {_digits(metric.stderr)}"
    return f" (spread {_digits(metric.std)})" if metric.std is not None else ""


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None or metric.level is None:
        return ""
    return f"{_number(metric.low)} to {_number(metric.high)} ({metric.level:.0%})"


# ------------------------------------------------------------------------------------- what to make of it


def _likelihood(card: Card) -> str:
    metric = card.metric("bits_per_dim")
    if metric is None:
        return ""
    error = "" if metric.stderr is None else f" ± {metric.stderr:.4f}"
    return (
        f"{metric.value:.4f}{error} bits per dimension, an upper bound, lower is better: mean and standard error over "
        f"{metric.n:,} images of the {card.choices.data.held_out.name} split, by the probability-flow ODE "
        f"(2011.13456) with uniform dequantization."
    )


def _meanings(card: Card) -> str:
    lines: dict[str, str] = {}
    for metric in card.metrics:
        kind = kind_of(metric.name)
        title = "" if kind.title == metric.name else f"{kind.title}, "
        lines.setdefault(
            kind.title,
            f"**`{metric.name}`** ({title}{kind.source}; {_direction(metric)} is better): {MEANINGS[kind.title]}.",
        )
    closing = (
        "± is one standard error: with other samples of the same model the number moves by about so much. From floor "
        "to scale is 0% for samples as good as held-out real images, and 100% for noise."
    )
    return _list(lines.values()) + f"\n\n{closing}"


def _controls(card: Card) -> str:
    """A table of the metrics by damage, best first, below the samples and the floor, which have another N."""
    metrics = [metric for metric in card.metrics if metric.controls]
    if not metrics:
        return ""
    words = card.choices.evaluation.get("controls")
    said = words if isinstance(words, Mapping) else {}
    names = dict.fromkeys(name for metric in metrics for name in metric.controls)
    first = metrics[0]
    rows: list[tuple[str, str, int | None, list[float | None]]] = [
        ("**the samples**", "", first.n, [metric.value for metric in metrics])
    ]
    if any(metric.floor is not None for metric in metrics):
        taken = card.choices.data.held_out.taken
        rows.append(("held-out real images, as they are", "the floor", taken, [metric.floor for metric in metrics]))
    controls: list[tuple[str, str, int | None, list[float | None]]] = [
        (
            f"`{name}`",
            str(said.get(name, UNDAMAGED_WORDS if name == UNDAMAGED else "")),
            first.n_controls,
            [metric.controls.get(name) for metric in metrics],
        )
        for name in names
    ]
    rows += sorted(controls, key=lambda row: _rank(row[3][0], first))
    table = _table(
        ("images", "what was done to them", "N", *(f"`{metric.name}`" for metric in metrics)),
        [
            (name, what, "" if count is None else f"{count:,}", *(_optional(value) for value in values))
            for name, what, count, values in rows
        ],
    )
    text = (
        "Held-out real images, damaged in a known way and measured like the samples, best first. A mistake of this "
        f"kind in anybody's pipeline moves the number so far without a word. The order is that of "
        f"`{first.name}`. All but kernel distances change with N, so only rows of equal N compare."
    )
    size = card.choices.evaluation.get("kid_subset_size")
    if isinstance(size, int) and first.n_controls is not None and first.n_controls < size:
        text += f" Kernel distances of the controls are of subsets of {first.n_controls:,}."
    if UNDAMAGED in names:
        text += f" `{UNDAMAGED}` are the same images as they are: the floor of the controls."
    return f"{text}\n\n{table}"


def _rank(value: float | None, metric: Metric) -> float:
    """Rises from the best to the worst, and to what was not measured."""
    if value is None:
        return float("inf")
    return value if metric.lower_is_better else -value


def _by_size(card: Card) -> str:
    return "\n\n".join(_one_by_size(part) for part in card.by_size)


def _one_by_size(part: BySize) -> str:
    rows = [(f"{point.images:,}", _number(point.distance)) for point in part.points]
    if part.extrapolation is not None:
        rows.append(("endlessly many (extrapolated, 1911.07023)", _number(part.extrapolation)))
    text = (
        "The same model at other numbers of samples: a distance is biased upwards at small N, so only equal N compare."
    )
    if part.extrapolation is None:
        text += " These N are too few for the number of features to tell the distance of endlessly many."
    return f"{text}\n\n" + _table(("samples", f"`{part.metric}`"), rows)


def _memorization(card: Card) -> str:
    if card.memorization is None:
        return ""
    numbers = _table(("what", "value"), _rows(card.memorization.numbers)) if card.memorization.numbers else ""
    return "\n\n".join(part for part in (_list(card.memorization.sentences), numbers) if part)


def _published(card: Card) -> str:
    if card.published.why_not is not None:
        return f"Not comparable: {card.published.why_not}."
    metric, data = card.comparable, card.choices.data
    text = (
        f"Published with {PUBLISHED_SAMPLES:,} samples of the same protocol; `{metric.name}` above is with "
        f"{metric.n:,} against {share(data.reference.taken, data.reference.images)}."
    )
    sampling = card.choices.sampling
    ours = (
        "**this model**",
        _text(sampling.get("sampler", "")),
        _text(sampling.get("nfe", "")),
        f"**{metric.value:.2f}**{_spread(metric)}",
        "this card",
        "",
    )
    rows = [ours, *(_published_row(value) for value in card.published.values)]
    return f"{text}\n\n" + _table(("model", "sampler", "evaluations", "FID", "source", "note"), rows)


def _published_row(value: PublishedValue) -> tuple[str, ...]:
    steps = "" if value.steps is None else str(value.steps)
    return (value.model, value.sampler, steps, f"{value.fid:.2f}", f"{value.source}, {value.where}", value.note)


# ------------------------------------------------------------------------------------- what made it


def _data(card: Card) -> dict[str, Any]:
    data = card.choices.data
    rest = {key: value for key, value in data.model_dump().items() if key not in SPLITS}
    protocol = PROTOCOLS.get(data.protocol)
    said = {"protocol": data.protocol if protocol is None else f"`{data.protocol}`: {protocol.describe()}"}
    return flatten(rest | said | {"reference": _split(data.reference), "held out": _split(data.held_out)})


def _evaluation(card: Card) -> dict[str, Any]:
    """Without the words on the controls, which stand in their own section."""
    shown = any(metric.controls for metric in card.metrics)
    return flatten({key: value for key, value in card.choices.evaluation.items() if key != "controls" or not shown})


def _split(split: Split) -> str:
    return f"{split.name} split, {share(split.taken, split.images)} images"


def _values(values: Mapping[str, Any]) -> str:
    return _table(("what", "value"), _rows(values)) if values else ""


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _text(value)) for key, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    text = "none" if value is None else str(value)
    return f"`{text}`" if HASH.fullmatch(text) else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _digits(value: float) -> str:
    """Two digits, which is all that an error deserves."""
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _optional(value: float | None) -> str:
    return "" if value is None else _number(value)


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n" if text else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
