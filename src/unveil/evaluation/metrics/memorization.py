"""Whether samples are copies of training images, or of each other."""

from typing import TYPE_CHECKING

from unveil.evaluation.metrics.metric import Entry, Found, Kind

if TYPE_CHECKING:
    from unveil.evaluation.metrics.measurement import Asked, Sets

NEARER = Kind(
    r"nearer_to_training(_\w+)?",
    "samples nearer to training images than held-out images are",
    lower_is_better=True,
    source="2004.05675",
    listed=False,
)
DUPLICATES = Kind(
    r"near_duplicates(_\w+)?",
    "near duplicates among the samples",
    lower_is_better=True,
    source="2301.13188",
    listed=False,
)


def measure(sets: "Sets", asked: "Asked") -> Found:
    """Two shares, and all that was found out about copies."""
    from unveil.evaluation.metrics.copies import find_copies

    copies = find_copies(sets.samples, sets.reference, sets.held_out, asked.seed, asked.shared, asked.training_total)
    shares = {"nearer_to_training": copies.of_training.nearer, "near_duplicates": copies.duplicates.near}
    metrics = [sets.metric(sets.features.metric(name), {"samples": share.found}) for name, share in shares.items()]
    return Found(tuple(metrics), copies=copies)


ENTRY = Entry(2, (NEARER, DUPLICATES), measure)
