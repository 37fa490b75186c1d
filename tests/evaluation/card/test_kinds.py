"""The kinds of metrics: each name has one, and the right one."""

import pytest

from unveil.evaluation.card.kinds import KINDS, kind_of


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
    for kind in KINDS:
        assert kind.meaning and not kind.meaning.endswith(".") and ". " not in kind.meaning
        assert kind.defined_by
