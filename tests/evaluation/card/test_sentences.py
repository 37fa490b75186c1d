"""What a card warns of, in words."""

from unveil.evaluation.card.sentences import notes_on
from unveil.evaluation.features.published import FEATURE_SETS
from unveil.evaluation.images.sets import SetSizes

LITE, INCEPTION = FEATURE_SETS["efficientnet-lite0"], FEATURE_SETS["inception"]


def test_warns_of_few_images_and_of_images_that_are_in_both_sets() -> None:
    assert notes_on(SetSizes(1281, 1281, 1281), LITE) == []
    assert notes_on(SetSizes(1280, 1280, 1280), LITE)[0].startswith("N = 1,280 is not above the 1,280 features")
    few = notes_on(SetSizes(1000, 1000, 1000), INCEPTION)
    assert len(few) == 2 and "50,000" in few[1]
    assert notes_on(SetSizes(50_000, 162_770, 50_000), INCEPTION) == []
    assert notes_on(SetSizes(2000, 3000, 2000), LITE, shared=12)[0].startswith("12 of the 2,000 held-out images")
    (reference,) = notes_on(SetSizes(2000, 1000, 2000), LITE)
    assert reference.startswith("The reference of 1,000 images is not above the 1,280 features")


def test_warns_of_a_floor_at_fewer_images() -> None:
    (only,) = notes_on(SetSizes(50_000, 162_770, 19_962), INCEPTION)  # and nothing of a bias at 50,000
    assert "the floor is at N = 19,962, and is higher than it would be at N = 50,000" in only
    floor, singular = notes_on(SetSizes(2000, 2000, 500), LITE)
    assert "N = 500" in floor and singular.startswith("The held-out set of 500 images is not above the 1,280 features")
