"""Published values: shown only beside the same measurement, otherwise each difference is named."""

from typing import Any

import pytest
from tests.evaluation.card.cards import FLAT, TRAIN, card

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.card import Card, Split
from unveil.evaluation.card.published import PUBLISHED, comparable, why_not_comparable

ALL = {"protocol": "adm-ip", "reference": {"name": "train", "images": 202_599, "taken": 202_599}}


def _with(**data: Any) -> Card:
    return card(data=data)


def _reference(name: str = "train", images: int = TRAIN, taken: int = TRAIN) -> dict[str, Any]:
    return {"name": name, "images": images, "taken": taken}


def test_every_value_has_a_known_protocol_and_a_source() -> None:
    for value in PUBLISHED:
        assert value.protocol in PROTOCOLS
        assert value.fid > 0 and value.source and value.where
        assert (value.image_size, value.samples) == (64, 50_000)


def test_the_same_measurement_has_values_best_first() -> None:
    assert why_not_comparable(card()) is None
    found = [(value.model, value.steps, value.fid) for value in comparable(card())]
    assert found[:2] == [("DDPM", 1000, 3.26), ("DDIM", 1000, 3.51)] and found[-1] == ("DDIM", 10, 17.33)
    assert [fid for *_, fid in found] == sorted(fid for *_, fid in found)


def test_the_number_of_reference_images_chooses_among_the_values_of_a_protocol() -> None:
    assert [value.fid for value in comparable(_with(**ALL))] == [1.27]
    part = {
        taken: _with(protocol="adm-ip", reference=_reference("train", 202_599, taken)) for taken in (50_000, 10_000)
    }
    assert [value.fid for value in comparable(part[50_000])] == [1.31, 1.60]
    reason = why_not_comparable(part[10_000])
    assert reason is not None and "all training images or 50,000 of them" in reason


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (card({"kid": 0.1}), "this is kid"),
        (_with(source="cartoon"), "the source cartoon"),
        (_with(protocol="score-sde"), "this is score-sde"),
        (_with(**ALL, image_size=32), "this is at 32"),
        (_with(reference=_reference("valid", 9, 9)), "the valid split"),
        (_with(reference=_reference(taken=50_000)), "this is of 50,000 against 50,000 of 162,770"),
        (card(n=10_000), "of 50,000 samples against all training images, and this is of 10,000 against all"),
        (card(lossy=["JPEG."]), "went through a lossy file format"),
    ],
)
def test_another_measurement_is_refused_with_the_difference(other: Card, said: str) -> None:
    reason = why_not_comparable(other)
    assert comparable(other) == ()
    assert reason is not None and said in reason and ";" not in reason


def test_all_differences_are_named() -> None:
    reason = why_not_comparable(card(FLAT, 10, data={"source": "cartoon", "protocol": "squash"}))
    assert reason is not None and reason.count(";") == 2


def test_share() -> None:
    splits = (Split(name="train", images=images, taken=taken) for taken, images in ((40, 40), (1200, 5000)))
    assert [split.share for split in splits] == ["all 40", "1,200 of 5,000"]
