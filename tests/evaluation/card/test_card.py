"""The evaluation card as a document: whole, strict, and the same bytes for the same facts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.card.cards import card, choices, metrics

from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card, flatten, parse_card, read_card

ROOT = Path(__file__).resolve().parents[3]


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "card.json"
    one = card()
    one.save(path)
    assert read_card(path) == one
    assert read_card(path).to_json() == path.read_text()
    assert json.loads(path.read_text())["format"] == 2
    assert one.choices.model["network"] == {"channels": 128, "channel_multipliers": [1, 2]}  # JSON has no tuples
    assert one.headline.name == "fid" and one.metric("kid") == one.metrics[1] and one.metric("loss") is None


def test_equal_facts_give_equal_bytes() -> None:
    assert card().to_json() == card().to_json()
    apart = card(environment={"torch": "2.15"}, cost={})
    document, other = json.loads(card().to_json()), json.loads(apart.to_json())
    assert document != other
    for section in ("environment", "cost"):
        del document[section], other[section]
    assert document == other


def test_a_card_keeps_choices_that_it_has_no_name_for() -> None:
    kept = card(data={"shard_hashes": {"train-00000": "ab"}, "order": "by id"}, features={"batch": 4})
    assert kept.choices.data.shard_hashes == {"train-00000": "ab"}
    again = parse_card(kept.to_json(), "a card")
    assert again.choices.model_dump()["data"]["order"] == "by id"
    assert again.choices.model_dump()["features"]["inception"]["batch"] == 4


def test_published_values_stand_only_beside_the_same_measurement() -> None:
    assert card().published.why_not is None
    assert {value.source for value in card().published.values} == {"2010.02502"}
    small = card(n=10_000).published
    assert small.values == () and small.why_not is not None and "this is of 10,000" in small.why_not
    last = Card.of(metrics()[::-1], choices())  # the FID need not be the headline
    assert last.headline.name == "bits_per_dim" and last.published == card().published
    assert "this is kid" in str(Card.of(metrics()[1:], choices()).published.why_not)
    assert "lossy" in str(card(lossy=["The samples were JPEG files."]).published.why_not)


@pytest.mark.parametrize("broken", ["twice", "none", "infinite", "choices"])
def test_facts_that_are_no_card_are_refused(broken: str) -> None:
    made = metrics()
    facts = choices()
    if broken == "twice":
        made.append(made[0])
    elif broken == "none":
        made = []
    elif broken == "infinite":
        facts["sampling"]["eta"] = float("inf")
    else:
        del facts["data"]["protocol"]
    with pytest.raises(ValueError, match=r"twice|at least 1|not JSON compliant|Field required"):
        Card.of(made, facts)


def _changed(**changes: Any) -> str:
    return json.dumps(json.loads(card().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ('{"format": 2, "metrics": [', "not valid JSON"),
        ("[" * 100_000, "not valid JSON (recursion limit exceeded"),
        ('{"format": 2, "metrics": [], "x": NaN}', "not valid JSON"),
        ('{"format": 2, "metrics": [], "x": 1e999}', "found Infinity, expected a number of at most 64 bits"),
        ("[1, 2]", "found [1, 2], expected an object"),
        ('{"fid": 3.5}', "metrics is missing"),
        (_changed(format=1), "format: found 1, expected 2"),
        (_changed(format=None), "format: found null, expected 2"),
        (_changed(metrics=[]), "metrics: "),
        (_changed(metrics=[{"name": "fid"}]), "metrics.0.value is missing"),
        (_changed(notes=[3]), "notes.0: found 3, expected a valid string"),
        (_changed(mood="good"), "mood: unknown key"),
        (_changed(choices={}), "choices.data is missing"),
    ],
)
def test_reading_what_is_no_card_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(UnveilError) as caught:
        read_card(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and said in line and "dvc repro evaluate" in line and "\n" not in line


def test_reading_no_file_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="not there"):
        read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnveilError, match="not valid JSON"):
        read_card(tmp_path / "card.json")


def test_a_card_is_read_without_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    card().save(path)
    code = (
        "import sys; from pathlib import Path; import unveil.cli.cards; "
        "from unveil.evaluation.card.card import read_card; from unveil.evaluation.card.markdown import render; "
        "render(read_card(Path(sys.argv[1]))); sys.exit('torch' in sys.modules)"
    )
    subprocess.run((sys.executable, "-c", code, str(path)), check=True, env={"PYTHONPATH": "src"}, cwd=ROOT)


def test_flatten_names_nested_values_with_dots() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}
