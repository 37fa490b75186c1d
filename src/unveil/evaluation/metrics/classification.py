"""The classification accuracy score: what a classifier learns from samples, asked about real images (1905.10887)."""

from statistics import fmean
from typing import TYPE_CHECKING

from unveil.evaluation.metrics.metric import DATA, Entry, Found, Kind, Metric

if TYPE_CHECKING:
    from unveil.data.batches import Batch
    from unveil.evaluation.images.labelled import Labelled
    from unveil.evaluation.metrics.measurement import Asked

SCORE = Kind(
    "classification_accuracy(_balanced)?",
    "classification accuracy score",
    lower_is_better=False,
    source="1905.10887",
    defined_by=(*DATA, "data.shards", "data.held_out", "sampling.asked", "evaluation.classifier"),
)


def measure(labelled: "Labelled", asked: "Asked") -> Found:
    """Accuracy on held-out images, mean over the attributes, plain and balanced.

    The floor is of the same classifier, trained on as many real images (all, if there are fewer).
    """
    from unveil.evaluation.metrics.distances import significant
    from unveil.evaluation.oracle.classifier import answers_of, labels_of, says_yes, trained_on

    def scores(title: str, batch: "Batch") -> dict[str, float]:
        labelled.say(f"classification accuracy: training on {len(batch):,} {title}")
        classifier = trained_on(batch, labelled.settings, labelled.device, labelled.say)
        said, shares = says_yes(classifier, labelled.held_out.images, labelled.device), labels_of(batch).float().mean(0)
        answers = answers_of(said, labels_of(labelled.held_out), shares.tolist())
        ends = {"": "accuracy", "_balanced": "balanced_accuracy"}
        return {end: fmean(getattr(one, key) for one in answers) for end, key in ends.items()}

    values, floors = scores("samples", labelled.samples), scores("real images", labelled.real)
    return Found(
        tuple(
            Metric(
                name=f"classification_accuracy{end}",
                value=significant(value),
                lower_is_better=False,
                n=len(labelled.samples),
                n_reference=len(labelled.held_out),
                floor=significant(floors[end]),
            )
            for end, value in values.items()
        )
    )


ENTRY = Entry(2, (SCORE,), None, measure_labelled=measure)
