"""Published values: shown only beside the same measurement, otherwise each difference is named."""

from dataclasses import replace
from typing import Any

import pytest

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.published import PUBLISHED, Measurement, comparable, share, why_not_comparable

OURS = Measurement("inception", "fid", "celeba", "ddim", 64, "train", 162_770, 162_770, 50_000)
ALL: dict[str, Any] = {"protocol": "adm-ip", "reference_images": 202_599, "reference_total": 202_599}


def test_every_value_has_a_known_protocol_and_a_source() -> None:
    for value in PUBLISHED:
        assert value.protocol in PROTOCOLS
        assert value.fid > 0 and value.source and value.where
        assert (value.image_size, value.samples) == (64, 50_000)


def test_the_same_measurement_has_values_best_first() -> None:
    assert why_not_comparable(OURS) is None
    found = [(value.model, value.steps, value.fid) for value in comparable(OURS)]
    assert found[:2] == [("DDPM", 1000, 3.26), ("DDIM", 1000, 3.51)] and found[-1] == ("DDIM", 10, 17.33)
    assert [fid for *_, fid in found] == sorted(fid for *_, fid in found)


def test_the_number_of_reference_images_chooses_among_the_values_of_a_protocol() -> None:
    whole = replace(OURS, **ALL)
    assert [value.fid for value in comparable(whole)] == [1.27]
    assert [value.fid for value in comparable(replace(whole, reference_images=50_000))] == [1.31, 1.60]
    reason = why_not_comparable(replace(whole, reference_images=10_000))
    assert reason is not None and "all training images or 50,000 of them" in reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extractor": "dinov2", "metric": "fd_dinov2"}, "this is fd_dinov2"),
        ({"metric": "kid"}, "this is kid"),
        ({"source": "cartoon"}, "the source cartoon"),
        ({"protocol": "score-sde"}, "this is score-sde"),
        (ALL | {"image_size": 32}, "this is at 32"),
        ({"reference_split": "valid", "reference_images": 9, "reference_total": 9}, "the valid split"),
        ({"reference_images": 50_000}, "this is of 50,000 against 50,000 of 162,770"),
        ({"samples": 10_000}, "of 50,000 samples against all training images, and this is of 10,000 against all"),
        ({"lossy": True}, "went through a lossy file format"),
    ],
)
def test_another_measurement_is_refused_with_the_difference(changes: dict[str, Any], said: str) -> None:
    ours = replace(OURS, **changes)
    reason = why_not_comparable(ours)
    assert comparable(ours) == ()
    assert reason is not None and said in reason and ";" not in reason


def test_all_differences_are_named() -> None:
    reason = why_not_comparable(replace(OURS, source="cartoon", protocol="squash", samples=10))
    assert reason is not None and reason.count(";") == 2


def test_share() -> None:
    assert (share(40, 40), share(1200, 5000)) == ("all 40", "1,200 of 5,000")
