"""The Inception Score, which knows no reference."""

from typing import TYPE_CHECKING

from unveil.evaluation.metrics.metric import DATA, FEATURES, Entry, Found, Kind

if TYPE_CHECKING:
    from unveil.evaluation.metrics.measurement import Asked, Sets

SCORE = Kind(
    r"inception_score(_\w+)?",
    "Inception Score",
    lower_is_better=False,
    source="1606.03498",
    defined_by=(*DATA, *FEATURES, "evaluation.inception_score_splits"),
    has_reference=False,
)


def measure(sets: "Sets", asked: "Asked") -> Found:
    """The score of the samples and of held-out images, with its spread over splits."""
    from unveil.evaluation.metrics.distances import inception_score

    found = sets.logits().each(lambda rows: inception_score(rows, asked.seed))
    scores = {name: part.mean for name, part in found.items()}
    return Found((sets.metric("inception_score", scores, std=found["samples"].std),))


ENTRY = Entry(10, (SCORE,), measure, logits=True)
