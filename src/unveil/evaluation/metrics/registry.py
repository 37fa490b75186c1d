"""Every metric: a new one is a module with an ``ENTRY``, and its name and line here."""

import re
from typing import Literal

from unveil.evaluation.metrics import (
    attributes,
    classification,
    frechet,
    inception_score,
    kernel,
    memorization,
    neighbourhoods,
)
from unveil.evaluation.metrics.metric import DATA, Entry, Kind

MetricName = Literal[
    "frechet",
    "kernel",
    "inception-score",
    "precision-recall",
    "density-coverage",
    "memorization",
    "classification-accuracy",
]
METRICS: dict[MetricName, Entry] = {
    "frechet": frechet.ENTRY,
    "kernel": kernel.ENTRY,
    "precision-recall": neighbourhoods.PRECISION_RECALL,
    "density-coverage": neighbourhoods.DENSITY_COVERAGE,
    "inception-score": inception_score.ENTRY,
    "memorization": memorization.ENTRY,
    "classification-accuracy": classification.ENTRY,
}
"""In the order in which a reader wants their numbers."""
LEAST_IMAGES: dict[MetricName, int] = {name: entry.least for name, entry in METRICS.items()}
"""Images that a set needs for a metric to be defined."""
BITS_PER_DIM = Kind(  # of cards that were made when evaluate measured it; today `unveil likelihood` does
    "bits_per_dim",
    "bits per dimension",
    lower_is_better=True,
    source="2011.13456",
    defined_by=(*DATA, "data.shards", "data.held_out.name"),
    depends_on_n=False,
)
KINDS = (*(kind for entry in METRICS.values() for kind in entry.kinds), attributes.MEAN, attributes.EACH, BITS_PER_DIM)


def kind_of(name: str) -> Kind:
    """The kind of the metric of this name. Raises ValueError for a name that is none's."""
    for kind in KINDS:
        if re.fullmatch(kind.names, name):
            return kind
    raise ValueError(f"metric {name!r} is of no known kind; expected one of {', '.join(kind.title for kind in KINDS)}")
