"""How often samples have what was asked for, as the oracle sees it."""

from collections.abc import Mapping
from statistics import fmean
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
    first, is the mean over attributes, yes and no of one counting alike. Nothing is found where nothing was told.

    Args:
        said: bool [N, k], the oracle's answers.
        told: int8 [N, k] in {-1 no, 0 not told, 1 yes}.
        known: of the k attributes in their order, by name, what the oracle says of held-out images.
    """
    from scipy.stats import binomtest

    by_name: dict[str, list[Metric]] = {}
    for (name, answers), answer, asked in zip(known.items(), said.T, told.T, strict=True):
        for word, sign in ANSWERS.items():
            here = answer[asked == sign]
            if not len(here):
                continue
            right = int((here == (sign > 0)).sum())
            ends = binomtest(right, len(here)).proportion_ci(LEVEL, "wilson")
            metric = Metric(
                name=f"attribute_{name}_{word}",
                value=right / len(here),
                lower_is_better=False,
                n=len(here),
                low=float(ends.low),
                high=float(ends.high),
                level=LEVEL,
                floor=getattr(answers, word),
            )
            by_name.setdefault(name, []).append(metric)
    if not by_name:
        return []
    floors = [[metric.floor for metric in part if metric.floor is not None] for part in by_name.values()]
    mean = Metric(
        name="attribute_accuracy",
        value=fmean(fmean(metric.value for metric in part) for part in by_name.values()),
        lower_is_better=False,
        n=int((told != 0).any(dim=1).sum()),
        floor=fmean(map(fmean, filter(None, floors))) if any(floors) else None,
    )
    return [mean, *(metric for part in by_name.values() for metric in part)]
