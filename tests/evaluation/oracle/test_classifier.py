"""The oracle: right where the truth can be seen, the same bytes again, and told apart from another's weights."""

from pathlib import Path

import pytest
import torch
from tests.evaluation.oracle.coloured import labelled, write_shards

from unveil.errors import UnveilError
from unveil.evaluation.oracle.classifier import Oracle, answers_of, learn
from unveil.evaluation.oracle.config import OracleTraining
from unveil.evaluation.oracle.facts import OracleFacts, write_empty

NAMES = ("Young", "Smiling", "Bald")  # no image shows the first
SETTINGS = OracleTraining(images=960, batch_size=32, channels=8, lr=0.01, device="cpu")
CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def test_it_is_right_where_the_truth_can_be_seen_and_says_how_often(shards: Path, tmp_path: Path) -> None:
    oracle = learn(shards, NAMES, SETTINGS, CPU, tmp_path / "oracle.safetensors", print)
    images, flags = labelled(100, 9)
    said = oracle.says(images)
    assert (said[:, [2, 1]] == flags).double().mean() > 0.98 and not said[:, 0].any()
    assert oracle.facts.names == NAMES and oracle.facts.attributes is not None
    assert oracle.facts.attributes["Young"].yes is None and oracle.facts.attributes["Young"].accuracy == 1
    assert oracle.facts.balanced_accuracy is not None and oracle.facts.balanced_accuracy > 0.98
    oracle.facts.save(tmp_path / "oracle.json")
    again = Oracle.load(tmp_path / "oracle.json", tmp_path / "oracle.safetensors", CPU)
    assert again is not None and again.facts == oracle.facts
    assert torch.equal(again.says(images), said)


def test_the_same_shards_and_seed_give_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    settings, threads = SETTINGS.replace(images=64), torch.get_num_threads()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(7)  # what ran before decides nothing
        learn(shards, NAMES, settings.replace(seed=seed), CPU, tmp_path / name, print)
    one, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert one == same != other
    assert torch.get_num_threads() == threads


def test_it_learns_from_no_image_that_it_is_asked_about(tmp_path: Path) -> None:
    """Of adm-ip the train split holds all images: what the shared ones are said to show decides nothing."""
    for name, lies in (("a", False), ("b", True)):
        write_shards(tmp_path / f"shards-{name}", shared=100, lies=lies)
        learn(tmp_path / f"shards-{name}", NAMES, SETTINGS.replace(images=64), CPU, tmp_path / name, print)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shares_of_right_answers_are_those_counted_by_hand() -> None:
    said = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    has = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]).bool()
    one, two, three = answers_of(said, has, (0.5, 0.5, 0.0))
    assert (one.images_yes, one.yes, one.no, one.accuracy) == (3, 2 / 3, 1.0, 0.75)
    assert (two.images_yes, two.yes, two.no, two.accuracy) == (1, 1.0, 2 / 3, 0.75)
    assert two.balanced_accuracy == pytest.approx(5 / 6)
    assert (three.yes, three.no, three.balanced_accuracy) == (None, 1.0, 1.0)


def test_an_oracle_of_nothing_and_weights_of_another_one(shards: Path, tmp_path: Path) -> None:
    facts, weights = tmp_path / "oracle.json", tmp_path / "oracle.safetensors"
    write_empty(facts, weights, tmp_path / "run.json")
    assert Oracle.load(facts, weights, CPU) is None
    learn(shards, NAMES, SETTINGS.replace(images=64), CPU, tmp_path / "other", print).facts.save(facts)
    with pytest.raises(UnveilError, match=r"oracle\.safetensors: found other weights .*; run `dvc repro oracle`"):
        Oracle.load(facts, weights, CPU)
    with pytest.raises(UnveilError, match="Smilin, did you mean Smiling"):
        learn(shards, ["Smilin"], SETTINGS, CPU, weights, print)
    facts.write_text("{}")
    assert OracleFacts.load(facts) == OracleFacts()
