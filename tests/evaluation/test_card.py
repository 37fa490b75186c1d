"""The evaluation card: all that makes a number stands in it, and nothing that changes by itself."""

from dataclasses import replace
from typing import Any

import pytest

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card import (
    PUBLISHED,
    CardFacts,
    SplitFacts,
    flatten,
    notes_on,
    render,
    why_not_comparable,
)
from unveil.evaluation.features import FEATURE_SETS, FeatureSet
from unveil.evaluation.sets import SetSizes

LITE, INCEPTION = FEATURE_SETS["efficientnet-lite0"], FEATURE_SETS["inception"]
ALL_OF_TRAIN = SplitFacts("train", 162_770, 162_770)


def _metrics(features: FeatureSet) -> dict[str, float | int]:
    fd, kid = features.frechet, features.kernel
    return {
        fd: 152.318,
        f"{fd}_floor": 37.0625,
        f"{fd}_noise": 1493.27,
        f"{fd}_fraction": 0.0791466,
        kid: 0.0183727,
        f"{kid}_std": 0.00231,
        f"{kid}_floor": -1.25e-05,
        f"{kid}_noise": 0.71,
        "num_samples": 2000,
        "num_reference": 3000,
        "num_held_out": 1500,
    }


def _facts(features: FeatureSet = LITE) -> CardFacts:
    return CardFacts(
        metrics=_metrics(features),
        features=features,
        weights_file="weights.pth",
        weights_sha256="5793" * 16,
        source="celeba",
        protocol="ddim",
        image_size=64,
        shards="abcd" * 16,
        reference=SplitFacts("train", 162_770, 3000),
        held_out=SplitFacts("test", 19_962, 1500),
        kid_subsets=100,
        kid_subset_size=1000,
        seed=7,
        device="cpu",
        samples_sha256="ef01" * 16,
        samples_total=2500,
        samples={
            "protocol": "ddim",
            "sampler": "heun",
            "grid": "karras",
            "steps": 18,
            "nfe": 35,
            "seed": 11,
            "precision": "bf16",
            "threshold": "none",
            "model": "9876",
            "config": {
                "network": {"channels": 128, "channel_multipliers": [1, 2]},
                "ema_half_life_images": 4000,
            },
        },
        versions={"torch": "2.14.0"},
        commit="c0ffee" * 6,
    )


def _as_published(features: FeatureSet = INCEPTION) -> CardFacts:
    """50,000 samples against all training images."""
    return replace(_facts(features), metrics=_metrics(features) | {"num_samples": 50_000}, reference=ALL_OF_TRAIN)


def _rows(card: str) -> dict[str, list[str]]:
    """First cell of each table row to its other cells."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_holds_every_metric_with_its_controls() -> None:
    rows = _rows(render(_facts()))
    assert rows["`fd_efficientnet_lite0`"][:4] == ["152.318", "37.0625", "1493.27", "0.0791466"]
    assert rows["`kid_efficientnet_lite0`"][:3] == ["0.0183727 ± 0.00231", "-1.25e-05", "0.71"]


def test_holds_everything_that_made_the_number() -> None:
    card = render(_facts())
    rows = _rows(card)
    assert "N = 2,000 samples" in card and "2,000 images of uniform noise" in card
    assert "the same 3,000 real images of the train split" in card
    assert "1,500 real images of the test split" in card
    assert rows["source"] == ["`celeba`"]
    assert rows["protocol"] == [f"`ddim`: {PROTOCOLS['ddim'].describe()}"]
    assert rows["reference"] == ["train split, 3,000 of 162,770 images"]
    assert rows["held out"] == ["test split, 1,500 of 19,962 images"]
    assert _rows(render(_as_published()))["reference"] == ["train split, all 162,770 images"]
    assert rows["shards"] == [f"sha256 `{'abcd' * 16}`"]
    assert rows["weights of the network"] == [f"`weights.pth`, sha256 `{'5793' * 16}`"]
    assert rows["seed"] == ["11"] and "7, of the noise and the subsets" in card
    for key, value in (
        ("sampler", "heun"),
        ("grid", "karras"),
        ("steps", "18"),
        ("nfe", "35"),
        ("precision", "bf16"),
    ):
        assert rows[key] == [value]
    assert rows["threshold"] == ["none"]
    assert rows["images"] == ["2000 of 2500, those with the smallest ids"]
    assert rows["bytes of the images"] == [f"sha256 `{'ef01' * 16}`"]
    assert rows["weights"] == ["sha256 `9876`"]
    assert rows["network.channel_multipliers"] == ["1, 2"] and rows["ema_half_life_images"] == ["4000"]
    assert rows["torch"] == ["2.14.0"] and "c0ffee" in rows["last commit that changed the code"][0]


def test_is_the_same_for_the_same_facts_and_no_row_is_torn() -> None:
    assert render(_facts()) == render(_facts())
    odd = render(replace(_facts(), samples={"note": "a | b\nc"}))
    assert "| note | a \\| b c |" in odd
    assert "The samples do not say." in odd


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_knows_every_protocol_and_says_what_it_does(protocol: str) -> None:
    assert PROTOCOLS[protocol].describe() in render(replace(_facts(), protocol=protocol))


def test_shows_published_values_only_of_the_same_measurement() -> None:
    assert why_not_comparable(INCEPTION, "celeba", "ddim", 64, ALL_OF_TRAIN, 50_000) is None
    card = render(_as_published())
    assert "`fid` above is with 50,000 against all 162,770." in card
    for value in PUBLISHED["ddim"]:
        assert f"| {value.model} | {value.steps} | {value.fid:.2f} | {value.where} |" in card
    assert "1.27" not in card and "Not comparable" not in card
    other = render(replace(_as_published(), protocol="adm-ip"))
    assert "| ADM-IP |  | 1.27 | 2301.11706 |" in other and "3.26" not in other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": LITE}, "this is fd_efficientnet_lite0"),
        ({"source": "cartoon"}, "the source cartoon"),
        ({"protocol": "score-sde"}, "this is score-sde"),
        ({"protocol": "adm-ip", "image_size": 32}, "this is at 32"),
        ({"reference": SplitFacts("valid", 19_867, 19_867)}, "the valid split"),
        ({"reference": SplitFacts("train", 162_770, 50_000)}, "this is of 50,000 against 50,000 of 162,770"),
        ({"num_images": 10_000}, "of 50,000 samples against all training images, and this is of 10,000 against all"),
    ],
)
def test_says_in_one_line_why_others_do_not_compare(changes: dict[str, Any], said: str) -> None:
    same = {"features": INCEPTION, "source": "celeba", "protocol": "ddim", "image_size": 64}
    found: dict[str, Any] = same | {"reference": ALL_OF_TRAIN, "num_images": 50_000} | changes
    reason = why_not_comparable(**found)
    assert reason is not None and said in reason and ";" not in reason
    count = found.pop("num_images")
    facts = replace(_facts(found["features"]), **found)
    card = render(replace(facts, metrics=dict(facts.metrics) | {"num_samples": count}))
    assert f"Not comparable: {reason}." in card.splitlines()
    assert "3.26" not in card and "1.27" not in card


def test_warns_of_few_images_and_of_images_that_are_in_both_sets() -> None:
    assert notes_on(SetSizes(1281, 1281, 1281), LITE) == []
    assert notes_on(SetSizes(1280, 1280, 1280), LITE)[0].startswith("N = 1,280 is not above the 1,280 features")
    few = notes_on(SetSizes(1000, 1000, 1000), INCEPTION)
    assert len(few) == 2 and "50,000" in few[1]
    assert notes_on(SetSizes(50_000, 162_770, 50_000), INCEPTION) == []
    assert notes_on(SetSizes(2000, 3000, 2000), LITE, shared=12)[0].startswith("12 of the 2,000 held-out images")
    (reference,) = notes_on(SetSizes(2000, 1000, 2000), LITE)
    assert reference.startswith("The reference of 1,000 images is not above the 1,280 features")
    assert "- note one\n" in render(replace(_facts(), notes=["note one"]))
    assert "## Notes" not in render(_facts())


def test_warns_of_a_floor_at_fewer_images() -> None:
    (only,) = notes_on(SetSizes(50_000, 162_770, 19_962), INCEPTION)  # and nothing of a bias at 50,000
    assert "the floor is at N = 19,962, and is higher than it would be at N = 50,000" in only
    floor, singular = notes_on(SetSizes(2000, 2000, 500), LITE)
    assert "N = 500" in floor and singular.startswith("The held-out set of 500 images is not above the 1,280 features")


def test_flatten_names_nested_values_with_dots() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}
