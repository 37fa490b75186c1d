"""How often samples have what was asked for, as the oracle sees it."""

import math
from collections.abc import Mapping
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

from unveil.evaluation.metrics.metric import DATA, LEVEL, Kind, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.evaluation.oracle.facts import Answers

DEFINED_BY = (*DATA, "evaluation.oracle", "sampling.asked")
EACH = Kind(
    r"attribute_\w+_(yes|no)",
    "attribute as asked for",
    lower_is_better=False,
    source="1711.09020",
    defined_by=DEFINED_BY,
    depends_on_n=False,
    has_reference=False,
    apart=True,
)
MEAN = Kind(
    "attribute_accuracy",
    "attributes as asked for",
    lower_is_better=False,
    source="1711.09020",
    defined_by=DEFINED_BY,
    depends_on_n=False,
    has_reference=False,
)
ANSWERS = {"yes": 1, "no": -1}


def attribute_metrics(said: "Tensor", told: "Tensor", known: "Mapping[str, Answers]") -> list[Metric]:
    """Of each attribute, of the samples that were told it: the share of which the oracle says the same.

    ``attribute_<name>_yes`` is of those told yes, ``_no`` of those told no, with Wilson's interval; the floor is the
    same share of held-out images that have it, or not: what the oracle says of real ones. ``attribute_accuracy``, the
    first, is the mean over attributes, yes and no of one counting alike, with a standard error as if all were
    independent. Nothing is found where nothing was told.

    Args:
        said: bool [N, k], the oracle's answers.
        told: int8 [N, k] in {-1 no, 0 not told, 1 yes}.
        known: of the k attributes in their order, by name, what the oracle says of held-out images.
    """
    shares: dict[str, list[Metric]] = {}
    for (name, answers), answer, asked in zip(known.items(), said.T, told.T, strict=True):
        for word, sign in ANSWERS.items():
            right = answer[asked == sign] == (sign > 0)
            if len(right):
                metric = _share(f"attribute_{name}_{word}", int(right.sum()), len(right), getattr(answers, word))
                shares.setdefault(name, []).append(metric)
    if not shares:
        return []
    parts = shares.values()
    floors = [[metric.floor for metric in part if metric.floor is not None] for part in parts]
    variances = (fmean((metric.stderr or 0) ** 2 for metric in part) / len(part) for part in parts)
    mean = Metric(
        name="attribute_accuracy",
        value=fmean(fmean(metric.value for metric in part) for part in parts),
        lower_is_better=False,
        n=int((told != 0).any(dim=1).sum()),
        stderr=math.sqrt(fmean(variances) / len(shares)),
        floor=fmean(map(fmean, filter(None, floors))) if any(floors) else None,
    )
    return [mean, *(metric for part in parts for metric in part)]


def _share(name: str, right: int, count: int, floor: float | None) -> Metric:
    """A share of ``count``, with an error that is not 0 where all of a few are right."""
    from scipy.stats import binomtest

    ends = binomtest(right, count).proportion_ci(LEVEL, "wilson")
    width = (ends.high - ends.low) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    return Metric(
        name=name,
        value=right / count,
        lower_is_better=False,
        n=count,
        stderr=width / 2,
        low=ends.low,
        high=ends.high,
        level=LEVEL,
        floor=floor,
    )
