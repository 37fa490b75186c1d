"""Two evaluation cards side by side: which choices differ, and which metrics moved by more than noise."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

from unveil.evaluation.card.card import Card, aligned, flatten
from unveil.evaluation.metrics.metric import Kind, Metric
from unveil.evaluation.metrics.registry import kind_of

LIMIT = 3.0  # standard errors; chance alone passes it in 1 of 370 comparisons
NOT_STATED = "not stated"
OTHERS = ("by_size", "by_guidance", "memorization", "notes", "published")  # what is neither choice nor metric
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

    ``better`` and ``worse`` say how B is, beyond noise; ``unknown`` is a difference whose noise is not known;
    ``not comparable`` are numbers on different things; ``missing`` is a metric of one card alone.
    """

    name: str
    a: float | None  # value in A; None if A has none
    b: float | None
    z: float | None  # b - a in standard errors of a difference; None where these are not known, or 0
    verdict: Verdict
    reason: str = ""  # why it is unknown, not comparable or missing, as a clause


@dataclass(frozen=True)
class CardDifference:
    """What ``compare_cards`` finds."""

    differences: tuple[Difference, ...]  # of the choices
    movements: tuple[Movement, ...]  # one for each metric of either card
    others: tuple[str, ...]  # other sections that are not the same
    not_compared: tuple[Difference, ...]  # of hardware, versions and cost, which decide nothing

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


def compare_cards(a: Card, b: Card) -> CardDifference:
    """Compare two cards.

    A metric is judged by ``z = (b - a) / sqrt(stderr_a^2 + stderr_b^2)``: beyond ``LIMIT`` it moved, which is stricter
    than 95 % because a card has many metrics. Standard errors are over draws of the samples; two cards of the same
    sampling seed have errors in common, and then the judgement is on the safe side. A standard error that a card lacks
    is taken from its interval, as that of a normal distribution. Metrics whose defining choices differ
    (``Kind.defined_by``, and N where it matters) are not compared.
    """
    one, other = a.model_dump(mode="json"), b.model_dump(mode="json")
    differences = _differences(*(card["choices"] | {"lossy": card["lossy"]} for card in (one, other)))
    names = dict.fromkeys(metric.name for card in (a, b) for metric in card.metrics)
    pairs = {name: (a.metric(name), b.metric(name)) for name in names}
    details = (name for name, (x, y) in pairs.items() if x and y and x.value == y.value and x != y)
    return CardDifference(
        differences=differences,
        movements=tuple(_movement(name, *pair, differences) for name, pair in pairs.items()),
        others=(
            *(section for section in OTHERS if one[section] != other[section]),
            *(f"intervals and controls of {name}" for name in details),
        ),
        not_compared=_differences(*({key: card[key] for key in NOT_COMPARED} for card in (one, other))),
    )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    one, other = flatten(a), flatten(b)
    return tuple(
        Difference(key, one.get(key, NOT_STATED), other.get(key, NOT_STATED))
        for key in dict.fromkeys((*one, *other))
        if key not in one or key not in other or one[key] != other[key]
    )


def _movement(name: str, a: Metric | None, b: Metric | None, differences: Iterable[Difference]) -> Movement:
    moved = partial(Movement, name, None if a is None else a.value, None if b is None else b.value)
    if a is None or b is None:
        return moved(None, "missing", f"{'A' if a is None else 'B'} has none")
    if reasons := _defining(kind_of(name), a, b, differences):
        return moved(None, "not comparable", "; ".join(reasons))
    if a.value == b.value:
        return moved(0.0, "same")
    errors = {"A": standard_error(a), "B": standard_error(b)}
    if without := [side for side, error in errors.items() if error is None]:
        return moved(None, "unknown", f"{' and '.join(without)} without a standard error")
    difference, noise = b.value - a.value, math.hypot(*filter(None, errors.values()))
    z = difference / noise if noise else None
    if abs(difference) <= LIMIT * noise:
        return moved(z, "within noise")
    return moved(z, "better" if (difference < 0) == a.lower_is_better else "worse")


def _defining(kind: Kind, a: Metric, b: Metric, differences: Iterable[Difference]) -> list[str]:
    """Each choice that makes the two values numbers on different things."""
    keys = [key.replace("features.", f"features.{a.features}.", 1) for key in kind.defined_by]
    reasons = [
        f"{difference.key} is {_shown(difference.a)} in A and {_shown(difference.b)} in B"
        for difference in differences
        if any(f"{difference.key}.".startswith(f"{key}.") for key in keys)
    ]
    if kind.depends_on_n and a.n != b.n:
        reasons.append(f"N is {a.n:,} in A and {b.n:,} in B")
    return reasons


def standard_error(metric: Metric) -> float | None:
    """The metric's standard error, or that of a normal distribution with its interval; None if it has neither."""
    if metric.stderr is not None:
        return metric.stderr
    if metric.low is None or metric.high is None or metric.level is None:
        return None
    return (metric.high - metric.low) / (2 * NormalDist().inv_cdf((1 + metric.level) / 2))


# ----------------------------------------------------------------------------------------- in words


MOVED = f"moved beyond noise ({LIMIT:g} standard errors): B is"
WORDS: dict[Verdict, tuple[str, str]] = {
    "better": (f"{MOVED} better", "B is better beyond noise in {}"),
    "worse": (f"{MOVED} worse", "B is worse beyond noise in {}"),
    "within noise": ("within noise", "no more than noise in {}"),
    "same": ("the same", "the same in {}"),
    "unknown": ("cannot say whether it is noise", "noise not known in {}"),
    "not comparable": ("cannot be compared", "not comparable in {}"),
    "missing": ("cannot be compared", "in one card alone: {}"),
}
"""What each verdict is called in the line of a metric, and in the conclusion on all."""


def describe_difference(found: CardDifference, a: str, b: str) -> list[str]:
    """The lines that are printed; ``a`` and ``b`` are what the user called the cards."""
    lines = [f"A: {a}", f"B: {b}"]
    if found.equal:
        lines.append("equal: every choice and every number is the same")
    else:
        lines += _difference_lines("choices that differ", found.differences) or ["no choice differs"]
        lines += ["metrics:", *(f"  {line}" for line in aligned(map(_movement_cells, found.movements)))]
        if found.others:
            lines.append(f"also not the same: {', '.join(found.others)}")
    lines += _difference_lines("not compared", found.not_compared)
    return lines if found.equal else [*lines, conclusion(found)]


def conclusion(found: CardDifference) -> str:
    """One sentence on whether the cards differ by more than noise."""
    groups = {verdict: [move.name for move in found.movements if move.verdict == verdict] for verdict in WORDS}
    return "; ".join(WORDS[verdict][1].format(", ".join(names)) for verdict, names in groups.items() if names)


def _difference_lines(title: str, differences: Iterable[Difference]) -> list[str]:
    cells = [(difference.key, _shown(difference.a), "->", _shown(difference.b)) for difference in differences]
    return [f"{title} (A -> B):", *(f"  {line}" for line in aligned(cells))] if cells else []


def _movement_cells(move: Movement) -> tuple[str, ...]:
    z = "" if move.z is None or move.verdict == "same" else f"z = {move.z:+.1f}"
    values = ("none" if value is None else f"{value:.6g}" for value in (move.a, move.b))
    words = WORDS[move.verdict][0] + (f": {move.reason}" if move.reason else "")
    return move.name, next(values), "->", next(values), z, words


def _shown(value: Any) -> str:
    """A value on one line; the start of a hash is enough to see that it is another."""
    text = " ".join(str(value).split()) or "none"
    return f"{text[:12]}..." if re.fullmatch("[0-9a-f]{40,}", text) else text
