"""A metric is whole, and flat once."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.evaluation.card.cards import FLAT, metrics

from unveil.evaluation.metrics.metric import Metric, flat_metrics


def test_flat_values_have_every_number_under_its_name_and_ending() -> None:
    found = flat_metrics(metrics())
    assert found == FLAT and list(found) == sorted(FLAT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"low": 1.0}, "stand together"),
        ({"low": 2.0, "high": 1.0, "level": 0.9}, "low 2 is above high 1"),
        ({"name": "beauty"}, "no known kind"),
        ({"value": float("nan")}, "finite"),
        ({"stderr": -1.0}, "greater than or equal to 0"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_a_metric_that_is_not_whole_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Metric(**{"name": "fid", "value": 1.0, "lower_is_better": True, "n": 10} | changes)
