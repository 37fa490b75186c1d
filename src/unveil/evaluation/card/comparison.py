"""Two evaluation cards side by side: which choices differ, and which metrics moved by more than noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

from unveil.evaluation.card.card import Card, flatten
from unveil.evaluation.metrics.metric import Kind, Metric
from unveil.evaluation.metrics.registry import kind_of

LIMIT = 3.0  # standard errors; chance alone passes it in 1 of 370 comparisons
NOT_STATED = "not stated"
OTHERS = ("by_size", "memorization", "notes", "published")  # what is neither choice nor metric
NOT_COMPARED = ("environment", "cost")

Verdict = Literal["same", "within noise", "better", "worse", "unknown", "not comparable", "missing"]


@dataclass(frozen=True)
class Difference:
    """A choice that two cards do not share: dotted key, its value in A and in B, ``not stated`` where it is absent."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Movement:
    """A metric in two cards.

    Attributes:
        name: of the metric.
        a: value in A; None if A has none.
        b: value in B; None if B has none.
        z: ``b - a`` in standard errors of a difference; None where these are not known, or 0.
        verdict: ``better`` and ``worse`` say how B is, beyond noise; ``unknown`` is a difference whose noise is not
            known; ``not comparable`` are numbers on different things; ``missing`` is a metric of one card alone.
        reason: why it is unknown, not comparable or missing, as a clause; else empty.
    """

    name: str
    a: float | None
    b: float | None
    z: float | None
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` finds.

    Attributes:
        differences: of the choices.
        movements: one for each metric of either card.
        others: other sections that are not the same.
        not_compared: differences of hardware, versions and cost, which are shown and decide nothing.
    """

    differences: tuple[Difference, ...]
    movements: tuple[Movement, ...]
    others: tuple[str, ...]
    not_compared: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether choices, metrics and all that follows from them are the same, to the last digit."""
        return not (self.differences or self.others) and all(move.verdict == "same" for move in self.movements)

    @property
    def within_noise(self) -> bool:
        """Whether every metric is in both cards, can be compared, and differs by no more than noise."""
        return all(move.verdict in ("same", "within noise") for move in self.movements)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"equal": self.equal, "within_noise": self.within_noise, **asdict(self)}


def compare(a: Card, b: Card) -> Comparison:
    """Compare two cards.

    A metric is judged by ``z = (b - a) / sqrt(stderr_a^2 + stderr_b^2)``: beyond ``LIMIT`` it moved, which is stricter
    than 95 % because a card has many metrics. Standard errors are over draws of the samples; two cards of the same
    sampling seed have errors in common, and then the judgement is on the safe side. A standard error that a card lacks
    is taken from its interval, as that of a normal distribution. Metrics
    whose defining choices differ (``Kind.defined_by``, and N where it matters) are not compared.
    """
    differences = _differences(_choices(a), _choices(b))
    names = dict.fromkeys(metric.name for card in (a, b) for metric in card.metrics)
    one, other = a.model_dump(mode="json"), b.model_dump(mode="json")
    return Comparison(
        differences=differences,
        movements=tuple(_movement(name, a.metric(name), b.metric(name), differences) for name in names),
        others=(
            *(section for section in OTHERS if one[section] != other[section]),
            *(f"intervals and controls of {name}" for name in names if _only_details(a.metric(name), b.metric(name))),
        ),
        not_compared=_differences(*({key: card[key] for key in NOT_COMPARED} for card in (one, other))),
    )


def _choices(card: Card) -> dict[str, Any]:
    return {**card.choices.model_dump(mode="json"), "lossy": list(card.lossy)}


def _only_details(a: Metric | None, b: Metric | None) -> bool:
    """Whether two metrics have the same value, and another interval, floor, control ..."""
    return a is not None and b is not None and a.value == b.value and a != b


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    one, other = flatten(a), flatten(b)
    return tuple(
        Difference(key, one.get(key, NOT_STATED), other.get(key, NOT_STATED))
        for key in dict.fromkeys((*one, *other))
        if key not in one or key not in other or one[key] != other[key]
    )


def _movement(name: str, a: Metric | None, b: Metric | None, differences: Iterable[Difference]) -> Movement:
    if a is None or b is None:
        reason = f"{'A' if a is None else 'B'} has none"
        return Movement(name, None if a is None else a.value, None if b is None else b.value, None, "missing", reason)
    if reasons := _defining(kind_of(name), a, b, differences):
        return Movement(name, a.value, b.value, None, "not comparable", "; ".join(reasons))
    if a.value == b.value:
        return Movement(name, a.value, b.value, 0.0, "same")
    errors = standard_error(a), standard_error(b)
    if errors[0] is None or errors[1] is None:
        which = " and ".join(side for side, error in zip("AB", errors, strict=True) if error is None)
        return Movement(name, a.value, b.value, None, "unknown", f"{which} without a standard error")
    noise = math.hypot(errors[0], errors[1])
    difference = b.value - a.value
    if abs(difference) <= LIMIT * noise:
        return Movement(name, a.value, b.value, difference / noise, "within noise")
    verdict: Verdict = "better" if (difference < 0) == a.lower_is_better else "worse"
    return Movement(name, a.value, b.value, difference / noise if noise else None, verdict)


def _defining(kind: Kind, a: Metric, b: Metric, differences: Iterable[Difference]) -> list[str]:
    """Each choice that makes the two values numbers on different things."""
    keys = [_on_features(key, a) for key in kind.defined_by]
    reasons = [
        f"{difference.key} is {_shown(difference.a)} in A and {_shown(difference.b)} in B"
        for difference in differences
        if any(difference.key == key or difference.key.startswith(f"{key}.") for key in keys)
    ]
    if kind.depends_on_n and a.n != b.n:
        reasons.append(f"N is {a.n:,} in A and {b.n:,} in B")
    return reasons


def _on_features(key: str, metric: Metric) -> str:
    """The dotted key of a choice of the metric's own feature network."""
    section, _, name = key.partition(".")
    return f"features.{metric.features}.{name}" if section == "features" else key


def standard_error(metric: Metric) -> float | None:
    """The metric's standard error, or that of a normal distribution with its interval; None if it has neither."""
    if metric.stderr is not None:
        return metric.stderr
    if metric.low is None or metric.high is None or metric.level is None:
        return None
    return (metric.high - metric.low) / (2 * NormalDist().inv_cdf((1 + metric.level) / 2))


# ----------------------------------------------------------------------------------------- in words


def describe(found: Comparison, a: str, b: str) -> list[str]:
    """The lines that are printed; ``a`` and ``b`` are what the user called the cards."""
    lines = [f"A: {a}", f"B: {b}"]
    if found.equal:
        lines.append("equal: every choice and every number is the same")
    else:
        lines += _difference_lines("choices that differ", found.differences) or ["no choice differs"]
        lines += ["metrics:", *_aligned([_movement_cells(move) for move in found.movements])]
        if found.others:
            lines.append(f"also not the same: {', '.join(found.others)}")
    lines += _difference_lines("not compared", found.not_compared)
    return lines if found.equal else [*lines, conclusion(found)]


def conclusion(found: Comparison) -> str:
    """One sentence on whether the cards differ by more than noise."""
    groups: dict[str, list[str]] = {}
    for move in found.movements:
        groups.setdefault(move.verdict, []).append(move.name)
    said = {
        "better": "B is better beyond noise in {}",
        "worse": "B is worse beyond noise in {}",
        "within noise": "no more than noise in {}",
        "same": "the same in {}",
        "unknown": "noise not known in {}",
        "not comparable": "not comparable in {}",
        "missing": "in one card alone: {}",
    }
    return "; ".join(text.format(", ".join(groups[verdict])) for verdict, text in said.items() if verdict in groups)


def _difference_lines(title: str, differences: Iterable[Difference]) -> list[str]:
    cells = [(difference.key, _shown(difference.a), "->", _shown(difference.b)) for difference in differences]
    return [f"{title} (A -> B):", *_aligned(cells)] if cells else []


def _movement_cells(move: Movement) -> tuple[str, ...]:
    z = "" if move.z is None or move.verdict == "same" else f"z = {move.z:+.1f}"
    words = {
        "better": f"moved beyond noise ({LIMIT:g} standard errors): B is better",
        "worse": f"moved beyond noise ({LIMIT:g} standard errors): B is worse",
        "within noise": "within noise",
        "same": "the same",
        "unknown": "cannot say whether it is noise",
        "not comparable": "cannot be compared",
        "missing": "cannot be compared",
    }[move.verdict]
    text = f"{words}: {move.reason}" if move.reason else words
    return move.name, _value(move.a), "->", _value(move.b), z, text


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _shown(value: Any) -> str:
    """A value on one line; the start of a hash is enough to see that it is another."""
    text = " ".join(str(value).split()) or "none"
    if len(text) >= 40 and all(letter in "0123456789abcdef" for letter in text):
        return f"{text[:12]}..."
    return text
