"""The evaluation card as Markdown: the number first, then what to make of it, then everything that made it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.card import BySize, Card, Split, flatten
from unveil.evaluation.card.meanings import MEANINGS
from unveil.evaluation.card.published import PUBLISHED_SAMPLES, PUBLISHED_SIZE, share
from unveil.evaluation.choices import UNDAMAGED
from unveil.evaluation.metrics.metric import Metric
from unveil.evaluation.metrics.registry import kind_of

HASH = re.compile(r"[0-9a-f]{32,}")


def render(card: Card) -> str:
    """The card, in Markdown."""
    memorization = card.memorization
    copies = [_list(memorization.sentences), _values(memorization.numbers)] if memorization else []
    sections = {
        "Likelihood": _likelihood(card),
        "What the metrics mean": _meanings(card),
        "Controls: what a silent mistake would cost": _controls(card),
        "Distance by number of samples": _paragraphs(map(_by_size, card.by_size)),
        "Memorisation": _paragraphs(copies),
        "Notes": _list(card.notes),
        f"Published values, CelebA {PUBLISHED_SIZE} x {PUBLISHED_SIZE}": _published(card),
        **_made_by(card),
    }
    lossy = (f"> **Lossy:** {sentence}" for sentence in card.lossy)
    summary = _paragraphs((_headline(card), _scale(card), *lossy, _metrics(card)))
    written = (f"\n## {title}\n\n{text}\n" for title, text in sections.items() if text)
    return f"# Evaluation card\n\n{summary}\n" + "".join(written)


# ------------------------------------------------------------------------------------ the first screen


def _headline(card: Card) -> str:
    metric, data = card.headline, card.choices.data
    on = "" if metric.features is None else f", features of `{metric.features}`"
    real = f" against {_share(data.reference)} real images of the {data.reference.name} split"
    return (
        f"**`{metric.name}` = {_number(metric.value)}**{_spread(metric)}: {metric.n:,} samples"
        f"{real if metric.n_reference else ''} of `{data.source}`, protocol `{data.protocol}` at {data.image_size} x "
        f"{data.image_size}{on}. {_better(metric).capitalize()} is better."
    )


def _scale(card: Card) -> str:
    metric, held_out = card.headline, card.choices.data.held_out
    if metric.floor is None or metric.noise is None:
        return ""
    text = (
        f"For scale: {held_out.taken:,} real images of the {held_out.name} split, which the model should not have "
        f"seen, have {_number(metric.floor)} (the floor), and uniform noise has {_number(metric.noise)}."
    )
    if metric.fraction is not None:
        text += f" The samples are {_percent(metric.fraction)} of the way from the floor to the noise."
    return text


def _metrics(card: Card) -> str:
    """The table of all metrics, without columns in which nothing stands."""
    columns: dict[str, list[Any]] = {
        "metric": [f"`{metric.name}`" for metric in card.metrics],
        "better": [_better(metric) for metric in card.metrics],
        "samples": [_number(metric.value) + _error(metric) for metric in card.metrics],
        "interval": [_interval(metric, "{1} to {2} ({0:.0%})") for metric in card.metrics],
        "N": [metric.n for metric in card.metrics],
        "floor: real, held out": [metric.floor for metric in card.metrics],
        "scale: uniform noise": [metric.noise for metric in card.metrics],
        "from floor to scale": ["" if m.fraction is None else _percent(m.fraction) for m in card.metrics],
    }
    filled = {title: cells for title, cells in columns.items() if any(cell not in ("", None) for cell in cells)}
    return _table(filled, zip(*filled.values(), strict=True))


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
        line = f"**`{metric.name}`** ({title}{kind.source}; {_better(metric)} is better): {MEANINGS[kind.title]}."
        lines.setdefault(kind.title, line)
    closing = (
        "± is one standard error: with other samples of the same model the number moves by about so much. From floor "
        "to scale is 0% for samples as good as held-out real images, and 100% for noise."
    )
    return _paragraphs((_list(lines.values()), closing))


def _controls(card: Card) -> str:
    """A table of the metrics by damage, best first, below the samples and the floor, which have another N."""
    metrics = [metric for metric in card.metrics if metric.controls]
    if not metrics:
        return ""
    first, evaluation = metrics[0], card.choices.evaluation
    words = evaluation.get("controls")
    said = {UNDAMAGED: "nothing: the floor of the controls"} | (dict(words) if isinstance(words, Mapping) else {})
    names = dict.fromkeys(name for metric in metrics for name in metric.controls)
    sign = 1 if first.lower_is_better else -1
    ordered = sorted(names, key=lambda name: sign * first.controls.get(name, sign * float("inf")))
    rows: list[tuple[Any, ...]] = [("**the samples**", "", first.n, [metric.value for metric in metrics])]
    if any(metric.floor is not None for metric in metrics):
        taken = card.choices.data.held_out.taken
        rows.append(("held-out real images, as they are", "the floor", taken, [metric.floor for metric in metrics]))
    rows += [
        (f"`{name}`", str(said.get(name, "")), first.n_controls, [metric.controls.get(name) for metric in metrics])
        for name in ordered
    ]
    text = (
        "Held-out real images, damaged in a known way and measured like the samples, best first. A mistake of this "
        f"kind in anybody's pipeline moves the number so far without a word. The order is that of "
        f"`{first.name}`. All but kernel distances change with N, so only rows of equal N compare."
    )
    size = evaluation.get("kid_subset_size")
    if isinstance(size, int) and first.n_controls is not None and first.n_controls < size:
        text += f" Kernel distances of the controls are of subsets of {first.n_controls:,}."
    if UNDAMAGED in names:
        text += f" `{UNDAMAGED}` are the same images as they are: the floor of the controls."
    header = ("images", "what was done to them", "N", *(f"`{metric.name}`" for metric in metrics))
    return _paragraphs((text, _table(header, ((name, what, n, *values) for name, what, n, values in rows))))


def _by_size(part: BySize) -> str:
    text = (
        "The same model at other numbers of samples: a distance is biased upwards at small N, so only equal N compare."
    )
    rows: list[tuple[Any, ...]] = [(point.images, point.distance) for point in part.points]
    if part.extrapolation is None:
        text += " These N are too few for the number of features to tell the distance of endlessly many."
    else:
        rows.append(("endlessly many (extrapolated, 1911.07023)", part.extrapolation))
    return _paragraphs((text, _table(("samples", f"`{part.metric}`"), rows)))


def _published(card: Card) -> str:
    if card.published.why_not is not None:
        return f"Not comparable: {card.published.why_not}."
    metric, sampling = card.comparable, card.choices.sampling
    text = (
        f"Published with {PUBLISHED_SAMPLES:,} samples of the same protocol; `{metric.name}` above is with "
        f"{metric.n:,} against {_share(card.choices.data.reference)}."
    )
    ours = [
        _text(sampling.get("sampler", "")),
        _text(sampling.get("nfe", "")),
        f"**{metric.value:.2f}**{_spread(metric)}",
    ]
    rows = [
        (one.model, one.sampler, str(one.steps or ""), f"{one.fid:.2f}", f"{one.source}, {one.where}", one.note)
        for one in card.published.values
    ]
    header = ("model", "sampler", "evaluations", "FID", "source", "note")
    return _paragraphs((text, _table(header, (("**this model**", *ours, "this card", ""), *rows))))


# ------------------------------------------------------------------------------------- what made it


def _made_by(card: Card) -> dict[str, str]:
    """Everything that made the number: sections by title."""
    choices, data = card.choices, card.choices.data
    rest = {key: value for key, value in data.model_dump().items() if key not in ("reference", "held_out")}
    if protocol := PROTOCOLS.get(data.protocol):
        rest["protocol"] = f"`{data.protocol}`: {protocol.describe()}"
    splits = {"reference": data.reference, "held out": data.held_out}
    said = {name: f"{split.name} split, {_share(split)} images" for name, split in splits.items()}
    shown = any(metric.controls for metric in card.metrics)  # the words on the controls stand in their own section
    found = {
        "Data": rest | said,
        **{f"Features: {name}": on.model_dump() for name, on in choices.features.items()},
        "Sampling": choices.sampling,
        "Model": choices.model,
        "Evaluation": {key: value for key, value in choices.evaluation.items() if key != "controls" or not shown},
        "Code": choices.code,
        "Environment": card.environment,
        "Cost": card.cost,
    }
    unsaid = dict.fromkeys(("Sampling", "Model"), "The samples do not say.")
    return {title: _values(flatten(values)) or unsaid.get(title, "") for title, values in found.items()}


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


def _share(split: Split) -> str:
    return share(split.taken, split.images)


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


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _values(values: Mapping[str, Any]) -> str:
    return _table(("what", "value"), ((key, _text(value)) for key, value in values.items())) if values else ""


def _table(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """Whole numbers are counts, others are as ``_number`` writes them, and of None nothing stands there."""
    lines = [titles := list(header), ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _number(value)
    return " ".join((value or "").split()).replace("|", "\\|")
