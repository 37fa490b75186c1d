"""The classification accuracy score: as good as real images, or as bad as samples that do not show what they should."""

import pytest
import torch
from tests.evaluation.oracle.coloured import labelled

from unveil.data.batches import Batch, signed
from unveil.evaluation.images.labelled import Labelled
from unveil.evaluation.metrics.classification import measure
from unveil.evaluation.metrics.measurement import Asked
from unveil.evaluation.oracle.config import OracleTraining

SETTINGS = OracleTraining(images=1600, batch_size=32, channels=8, lr=0.01, device="cpu")
ASKED = Asked(("classification-accuracy",), 1, 2, 0, 0)


def _batch(count: int, seed: int) -> Batch:
    images, flags = labelled(count, seed)
    return Batch(images, signed(flags))


@pytest.mark.parametrize(("sign", "least", "most"), [(1, 0.97, 1.0), (-1, 0.0, 0.03)])
def test_samples_that_show_what_was_asked_for_or_its_opposite(sign: int, least: float, most: float) -> None:
    samples = _batch(200, 1)
    assert samples.attributes is not None
    samples = Batch(samples.images, samples.attributes * sign)
    labelled_images = Labelled(samples, _batch(200, 2), _batch(100, 3), SETTINGS, torch.device("cpu"), print)
    plain, balanced = measure(labelled_images, ASKED).metrics
    assert (plain.name, balanced.name) == ("classification_accuracy", "classification_accuracy_balanced")
    for metric in (plain, balanced):
        assert (metric.n, metric.n_reference) == (200, 100)
        assert least <= metric.value <= most and metric.floor is not None and metric.floor > 0.97
