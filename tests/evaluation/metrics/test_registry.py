"""Every metric has an entry, and every name a kind: the right one."""

from typing import get_args

import pytest

from unveil.evaluation.card.markdown import MEANINGS
from unveil.evaluation.metrics.registry import KINDS, METRICS, MetricName, kind_of


@pytest.mark.parametrize(
    ("name", "title", "lower"),
    [
        ("fid", "Fréchet distance", True),
        ("fd_dinov2", "Fréchet distance", True),
        ("fd_efficientnet_lite0_infinity", "Fréchet distance without the bias of a finite N", True),
        ("fid_infinity", "Fréchet distance without the bias of a finite N", True),
        ("kid_clip", "kernel distance", True),
        ("inception_score", "Inception Score", False),
        ("precision", "precision", False),
        ("recall_dinov2", "recall", False),
        ("density", "density", False),
        ("coverage_dinov2", "coverage", False),
        ("bits_per_dim", "bits per dimension", True),
        ("fid_conditional", "Fréchet distance at a scale of guidance", True),
        ("fd_dinov2_unconditional", "Fréchet distance at a scale of guidance", True),
        ("attribute_accuracy", "attributes as asked for", False),
        ("attribute_Wearing_Hat_no", "attribute as asked for", False),
        ("classification_accuracy_balanced", "classification accuracy score", False),
    ],
)
def test_every_name_has_its_kind(name: str, title: str, lower: bool) -> None:
    kind = kind_of(name)
    assert (kind.title, kind.lower_is_better) == (title, lower)


@pytest.mark.parametrize("name", ["", "fd", "fid2", "loss", "bits_per_dim_x", "precisions"])
def test_other_names_have_none(name: str) -> None:
    with pytest.raises(ValueError, match="of no known kind"):
        kind_of(name)


def test_each_kind_is_explained_in_one_sentence() -> None:
    assert set(MEANINGS) == {kind.title for kind in KINDS if kind.listed}
    for meaning in MEANINGS.values():
        assert meaning and not meaning.endswith(".") and ". " not in meaning
    assert all(kind.defined_by for kind in KINDS)


def test_every_name_of_a_metric_has_an_entry() -> None:
    assert set(get_args(MetricName)) == set(METRICS)
