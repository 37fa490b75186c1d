"""The oracle: right where the truth can be seen, the same bytes again, and told apart from another's weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unveil.data.shards import ShardIndex, write_shard
from unveil.errors import UnveilError
from unveil.evaluation.oracle.classifier import Oracle, answers_of, learn
from unveil.evaluation.oracle.config import OracleTraining
from unveil.evaluation.oracle.facts import OracleFacts, write_empty

SIZE = 8
NAMES = ("Bald", "Smiling", "Young")  # red above, blue below, and what no image shows
SETTINGS = OracleTraining(images=960, batch_size=32, channels=8, lr=0.01, device="cpu")
CPU = torch.device("cpu")


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a red upper half if the first attribute holds, and a blue lower half if the second does."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, SIZE, SIZE), generator=generator)
    flags = torch.rand(count, 2, generator=generator) < torch.tensor([0.1, 0.5])
    images[:, 0, : SIZE // 2] += 100 * flags[:, 0, None, None]
    images[:, 2, SIZE // 2 :] += 100 * flags[:, 1, None, None]
    return images.to(torch.uint8), torch.cat([flags, torch.zeros(count, 1, dtype=torch.bool)], dim=1)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder, splits, start = tmp_path / "shards", {}, 0
    folder.mkdir()
    for split, count in (("train", 200), ("valid", 4), ("test", 100)):
        images, flags = labelled(count, start)
        splits[split] = (write_shard(folder, split, 0, images, flags, torch.arange(start, start + count)),)
        start += count
    facts = {"source": "cartoon", "protocol": "squash", "image_size": SIZE, "attributes": NAMES}
    ShardIndex.of(splits, (0.0,) * 3, (1.0,) * 3, **facts).save(folder)
    return folder


def test_it_is_right_where_the_truth_can_be_seen_and_says_how_often(shards: Path, tmp_path: Path) -> None:
    names = ("Young", "Smiling", "Bald")  # another order than the shards'
    oracle = learn(shards, names, SETTINGS, CPU, tmp_path / "oracle.safetensors", print)
    images, flags = labelled(100, 9)
    said = oracle.says(images)
    assert ((said == flags[:, [2, 1, 0]]).double().mean(dim=0) > 0.98).all()
    assert oracle.facts.names == names and oracle.facts.attributes is not None
    assert oracle.facts.attributes["Young"].yes is None and oracle.facts.attributes["Young"].accuracy == 1
    assert oracle.facts.accuracy is not None and oracle.facts.accuracy > 0.98
    oracle.facts.save(tmp_path / "oracle.json")
    again = Oracle.load(tmp_path / "oracle.json", tmp_path / "oracle.safetensors", CPU)
    assert again is not None and again.facts == oracle.facts
    assert torch.equal(again.says(images), said)


def test_the_same_shards_and_seed_give_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    settings = SETTINGS.replace(images=64)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(7)  # what ran before decides nothing
        learn(shards, NAMES, settings.replace(seed=seed), CPU, tmp_path / name, print)
    one, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert one == same != other


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
