"""The card's Markdown: it says what the document says, the number first."""

import re
from dataclasses import asdict

import pytest
from tests.evaluation.card.cards import NAMES, TRAIN, card, choices, metric, metrics

from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.card import AtSize, BySize, Card, parse_card
from unveil.evaluation.card.markdown import MEANINGS, render
from unveil.evaluation.metrics.guidance import AtScale
from unveil.evaluation.metrics.registry import kind_of


def _rows(page: str) -> dict[str, list[str]]:
    """First cell of each table row to its other cells; of rows with one name the first."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line[1:-1].split(" | ")]
            found.setdefault(cells[0], cells[1:])
    return found


def test_the_first_screen_has_the_number_and_all_that_it_needs() -> None:
    page = render(card())
    assert page.startswith("# Evaluation card\n\n")
    sentence = page.splitlines()[2]
    for part in (
        "**`fid` = 12.3181**",
        "95% interval 12.2003 to 12.4401",
        "50,000 samples against all 162,770 real images of the train split of `celeba`",
        "protocol `ddim` at 64 x 64",
        "features of `inception`",
        "Lower is better.",
    ):
        assert part in sentence
    scale = page.splitlines()[4]
    assert "1,500 real images of the test split" in scale
    assert "have 1.9 (the floor)" in scale and "uniform noise has 400.1" in scale and "2.62% of the way" in scale


def test_every_metric_stands_in_the_table_and_is_explained() -> None:
    page = render(card())
    rows = _rows(page)
    assert rows["`fid`"] == ["lower", "12.3181 ± 0.061", "12.2003 to 12.4401 (95%)", "50,000", "1.9", "400.1", "2.62%"]
    assert rows["`inception_score`"][:2] == ["higher", "2.41 (spread 0.03)"]
    for name in NAMES:
        assert rows[f"`{name}`"][0] == ("lower" if kind_of(name).lower_is_better else "higher")
        assert page.count(MEANINGS[kind_of(name).title]) == 1
    bare = _rows(render(card({"fid": 3.0}, memorization=None)))
    assert bare["metric"] == ["better", "samples", "N"]  # no empty columns


def test_attributes_have_a_table_of_their_own() -> None:
    flat = {"attribute_Bald_yes": 0.9712, "attribute_Bald_yes_low": 0.95, "attribute_Bald_yes_high": 0.99}
    more = metric("attribute_Bald_yes", flat | {"attribute_Bald_yes_floor": 1.0}, n=207)
    page = render(Card.of([*metrics(), more, metric("attribute_accuracy", {"attribute_accuracy": 0.98})], choices()))
    rows = _rows(page)
    assert rows["Bald"] == ["yes", "97.1%", "95% to 99%", "207", "100%"]
    assert "`attribute_Bald_yes`" not in rows and rows["`attribute_accuracy`"][1] == "0.98"
    assert "## Attributes" not in render(card())


def test_scales_of_guidance_have_a_row_each() -> None:
    points = [asdict(AtScale(0.0, 500, 30.5, 0.5, 0.75)), asdict(AtScale(2.0, 500, 20.25, 0.75, 0.5, 0.99))]
    page = render(card(by_guidance=points))
    assert "500 samples at each scale" in page
    assert _rows(page)["2"] == ["20.25", "0.75", "0.5", "0.99"] and _rows(page)["0"][-1] == ""


def test_controls_stand_in_order_below_the_samples_each_row_with_its_n() -> None:
    page = render(card())
    table = page[page.index("## Controls") : page.index("## Distance by")]
    names = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")][2:]
    first = ["**the samples**", "held-out real images, as they are"]
    assert names == [*first, "`undamaged`", "`jpeg-75`", "`blur-1`"]
    rows = _rows(table)
    assert rows["`jpeg-75`"] == ["saved as JPEG of quality 75", "1,000", "6.2", "0.003"]
    assert rows["`undamaged`"] == ["nothing: the floor of the controls", "1,000", "5.5", "0"]
    assert [rows[name][1] for name in first] == ["50,000", "1,500"]
    assert (
        "only rows of equal N compare" in table and "The order is that of" in table and "controls.jpeg-75" not in page
    )


def test_distances_without_a_limit_say_so() -> None:
    points = (AtSize(images=20, distance=3.0), AtSize(images=40, distance=2.0))
    page = render(card(by_size=[BySize(metric="fid", points=points)]))
    assert "endlessly many (extrapolated" not in page and "too few for the number of features" in page


def test_sections_follow_the_document() -> None:
    page = render(card())
    rows = _rows(page)
    assert rows["5,000"] == ["16.1"] and rows["endlessly many (extrapolated, 1911.07023)"] == ["11.9"]
    assert "- No copies were found." in page and rows["nearer_share"] == ["0.498"]
    assert "- note one\n" in page
    assert "2.3100 ± 0.0100 bits per dimension" in page and "3 images of the test split" in page
    assert rows["hardware.cpu"] == ["a fast one"] and rows["training_seconds"] == ["1234.5"]
    assert "> **Lossy:** JPEG files." in render(card(lossy=["JPEG files."]))
    few = render(card({"fid": 3.0}, by_size=[], memorization=None, notes=[], environment={}, cost={}, model={}))
    for title in ("Likelihood", "Distance by", "Memorisation", "Notes", "Environment", "Cost"):
        assert f"## {title}" in page and f"## {title}" not in few


def test_says_everything_that_made_the_number() -> None:
    page = render(card())
    rows = _rows(page)
    assert rows["source"] == ["celeba"]
    assert rows["protocol"] == [f"`ddim`: {PROTOCOLS['ddim'].describe()}"]
    assert rows["reference"] == ["train split, all 162,770 images"]
    assert rows["held out"] == ["test split, 1,500 of 19,962 images"]
    assert rows["shards"] == [f"`{'abcd' * 16}`"] and rows["weights_sha256"] == [f"`{'5793' * 16}`"]
    for key, value in (("sampler", "heun"), ("nfe", "35"), ("guidance", "none"), ("commit", "c0ffee")):
        assert rows[key] == [value]
    assert rows["network.channel_multipliers"] == ["1, 2"] and rows["ema_half_life_images"] == ["4000"]


def test_is_the_same_after_a_round_trip_and_no_row_is_torn() -> None:
    one = card(sampling={"note": "a | b\nc", "path": "p"})
    page = render(one)
    assert render(parse_card(one.to_json(), "a card")) == page
    assert "| note | a \\| b c |" in page
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")]
    assert min(widths) >= 3


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "of-tomorrow"])
def test_knows_every_protocol_and_says_what_it_does(protocol: str) -> None:
    page = render(card(data={"protocol": protocol}))
    known = PROTOCOLS.get(protocol)
    assert f"`{protocol}`" in page and (known is None or known.describe() in page)


def test_published_values_stand_below_ours_or_the_difference_is_named() -> None:
    page = render(card())
    rows = _rows(page)
    assert rows["**this model**"][:3] == ["heun", "35", "**12.32** (95% interval 12.2003 to 12.4401)"]
    assert rows["DDPM"][2:4] == ["3.26", "2010.02502, table 1"]
    assert "`fid` above is with 50,000 against all 162,770." in page and "1.27" not in page
    other = render(_with_reference(1000))
    assert "3.26" not in other and "Not comparable: they are of 50,000 samples" in other


def _with_reference(taken: int) -> Card:
    return card(data={"reference": {"name": "train", "images": TRAIN, "taken": taken}})


def test_samples_that_do_not_name_their_model_are_said_to() -> None:
    page = render(Card.of(metrics(), choices() | {"model": {}, "sampling": {}}))
    assert "## Model\n\nThe samples do not say.\n" in page and "## Sampling\n\nThe samples do not say.\n" in page
    assert _rows(page)["**this model**"][:2] == ["", ""]
