"""The evaluation card: all that makes a number stands in it, and nothing that changes by itself."""

from dataclasses import replace

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

LITE, INCEPTION = FEATURE_SETS["efficientnet-lite0"], FEATURE_SETS["inception"]


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
        reference=SplitFacts("train", 162_770),
        held_out=SplitFacts("test", 19_962),
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
            "clip_denoised": False,
            "model": "9876",
            "config": {
                "network": {"channels": 128, "channel_multipliers": [1, 2]},
                "ema_half_life_images": 4000,
            },
        },
        versions={"torch": "2.14.0"},
        commit="c0ffee" * 6,
    )


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
    assert "N = 2,000" in card
    assert rows["source"] == ["`celeba`"]
    assert rows["protocol"] == [f"`ddim`: {PROTOCOLS['ddim'].describe()}"]
    assert rows["reference"] == ["train split, 2,000 of 162,770 images"]
    assert rows["held out"] == ["test split, 2,000 of 19,962 images"]
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
    assert rows["clip_denoised"] == ["no"]
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
    assert why_not_comparable(INCEPTION, "celeba", "ddim", 64, "train") is None
    card = render(_facts(INCEPTION))
    for value in PUBLISHED["ddim"]:
        assert f"| {value.model} | {value.steps} | {value.fid:.2f} | {value.where} |" in card
    assert "1.27" not in card and "Not comparable" not in card
    other = render(replace(_facts(INCEPTION), protocol="adm-ip"))
    assert "| ADM-IP |  | 1.27 | 2301.11706 |" in other and "3.26" not in other


@pytest.mark.parametrize(
    ("features", "source", "protocol", "size", "reference", "said"),
    [
        (LITE, "celeba", "ddim", 64, "train", "this is fd_efficientnet_lite0"),
        (INCEPTION, "cartoon", "ddim", 64, "train", "the source cartoon"),
        (INCEPTION, "celeba", "score-sde", 64, "train", "this is score-sde"),
        (INCEPTION, "celeba", "adm-ip", 32, "train", "this is at 32"),
        (INCEPTION, "celeba", "ddim", 64, "valid", "the valid split"),
    ],
)
def test_says_in_one_line_why_others_do_not_compare(
    features: FeatureSet, source: str, protocol: str, size: int, reference: str, said: str
) -> None:
    reason = why_not_comparable(features, source, protocol, size, reference)
    assert reason is not None and said in reason and ";" not in reason
    facts = replace(_facts(features), source=source, protocol=protocol, image_size=size)
    card = render(replace(facts, reference=SplitFacts(reference, 20_000)))
    assert f"Not comparable: {reason}." in card.splitlines()
    assert "3.26" not in card and "1.27" not in card


def test_warns_of_few_images_and_of_images_that_are_in_both_sets() -> None:
    assert notes_on(1281, LITE) == []
    assert "not above the 1,280 features" in notes_on(1280, LITE)[0]
    few = notes_on(1000, INCEPTION)
    assert len(few) == 2 and "50,000" in few[1]
    assert notes_on(50_000, INCEPTION) == []
    assert notes_on(2000, LITE, shared=12)[0].startswith("12 of the 2,000 held-out images")
    assert "- note one\n" in render(replace(_facts(), notes=["note one"]))
    assert "## Notes" not in render(_facts())


def test_flatten_names_nested_values_with_dots() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}
