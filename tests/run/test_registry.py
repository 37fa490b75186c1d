"""What makes a champion: a number that is better beyond noise and both intervals, and measured the same way."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.card.cards import FLAT, card

from unveil.evaluation.card.card import Card
from unveil.run.registry import is_better


def of(value: float, half: float = 0.12, **changes: Any) -> Card:
    """A card whose FID has this value and half width of its interval."""
    flat = {"fid": value, "fid_stderr": half / 2, "fid_low": value - half, "fid_high": value + half}
    return card(FLAT | flat, **changes)


@given(st.floats(5, 20), st.floats(5, 20), st.floats(0.01, 3), st.floats(0.01, 3))
def test_of_two_at_most_one_is_better_and_then_their_intervals_are_apart(
    a: float, b: float, half_a: float, half_b: float
) -> None:
    one, other = of(a, half_a), of(b, half_b)
    better = is_better(other, one, "fid")[0]
    assert not (better and is_better(one, other, "fid")[0])
    assert not better or b + half_b < a - half_a
    if b + 2 * half_b < a - 2 * half_a:
        assert better


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (of(11.0), "fid 11 (10.88 to 11.12) against the champion's 12 (11.88 to 12.12) is better beyond noise"),
        (of(12.0), "is the same"),
        (of(12.01), "is within noise (3 standard errors)"),
        (of(13.0), "is worse"),
        (of(5.0, data={"protocol": "gan"}), "cannot be compared: data.protocol is ddim in A and gan in B"),
        (of(5.0, data={"source": "cartoon"}), "cannot be compared: data.source is celeba in A and cartoon in B"),
        (of(5.0, features={"weights_sha256": "b" * 64}), "cannot be compared: features."),
        (of(5.0, n=10_000), "cannot be compared: N is 50,000 in A and 10,000 in B"),
    ],
)
def test_why_is_said(other: Card, said: str) -> None:
    better, why = is_better(other, of(12.0), "fid")
    assert said in why
    assert better == ("better beyond" in said)


def test_a_metric_of_which_the_noise_is_not_known_or_that_one_lacks_crowns_nobody() -> None:
    better, why = is_better(card(FLAT | {"density": 1.5}), card(), "density")
    assert not better and "A and B without a standard error" in why
    without = card({key: value for key, value in FLAT.items() if not key.startswith("kid")})
    assert is_better(card(), without, "kid") == (
        False,
        "kid cannot be compared: A has none (A: the champion, B: this version)",
    )


def test_where_more_is_better_more_is_better() -> None:
    assert is_better(card(FLAT | {"precision": 0.8}), card(), "precision")[0]
    assert not is_better(card(FLAT | {"precision": 0.6}), card(), "precision")[0]
