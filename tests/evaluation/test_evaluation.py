"""A whole evaluation of samples that were asked for something, on images whose truth is known."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from tests.evaluation.oracle.coloured import NAMES, coloured, write_shards
from torch import Tensor
from typer.testing import CliRunner, Result

from stages import evaluate, oracle
from unveil.data.shards import ShardIndex
from unveil.diffusion.config import Guidance
from unveil.evaluation.card.card import read_card
from unveil.evaluation.oracle.facts import OracleFacts
from unveil.generation import save_scales
from unveil.networks.condition import Condition
from unveil.tensors import save_tensors

ROOT = Path(__file__).resolve().parents[2]
SIZE, COUNT, WRONG = 16, 60, 6


def _told() -> Tensor:
    """What the samples were asked for: int8 [COUNT, 2], all of it."""
    return torch.randint(0, 2, (COUNT, 2), generator=torch.Generator().manual_seed(5)).to(torch.int8) * 2 - 1


def _params(**evaluation: Any) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["train"]["attributes"] = list(NAMES)
    params["sample"]["attributes"] = ["data"]
    params["oracle"] |= {"images": 1600, "batch_size": 32, "channels": 8, "lr": 0.01, "device": "cpu"}
    small = {"num_images": COUNT, "reference_images": 50, "kid_subset_size": 12, "controls": [], "interval_splits": 0}
    params["evaluate"] |= small | {"metrics": ["frechet"]} | evaluation
    yaml.dump(params, Path("params.yaml"))


def _facts(index: ShardIndex) -> dict[str, Any]:
    data = {"source": index.source, "protocol": index.protocol, "image_size": SIZE, "shards": index.digest()}
    return data | {"model": "aa" * 32, "attributes": list(NAMES), "asked": ["data"], "nfe": 7, "guidance": 2.0}


def _samples(index: ShardIndex, told: Tensor, **changes: Any) -> None:
    """Samples that show what they were told, but for the first ones, which are bald and were not to be, or not."""
    shown = told > 0
    shown[:WRONG, 0] = ~shown[:WRONG, 0]
    tensors = {"images": coloured(shown, 77, SIZE), "ids": torch.arange(COUNT), "attributes": told}
    save_tensors(Path("samples/samples.safetensors"), tensors, {"facts": json.dumps(_facts(index) | changes)})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardIndex:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    _params()
    return write_shards(tmp_path / "data" / "shards", SIZE)


def _run(stage: Any) -> Result:
    return CliRunner().invoke(stage.app, [])


def _metrics() -> dict[str, float]:
    found: dict[str, float] = json.loads(Path("metrics/evaluate.json").read_text())
    return found


def test_whether_samples_are_what_was_asked_for_is_counted(index: ShardIndex) -> None:
    told = _told()
    _samples(index, told)
    images = [coloured((told > 0) ^ (scale == 0), 9, SIZE)[:20] for scale in (0, 1)]
    scales = [Guidance(guidance=float(scale)) for scale in (0, 1)]
    save_scales(Path("samples/by_guidance.safetensors"), images, scales, Condition(attributes=told[:20]), _facts(index))
    _params(metrics=["frechet", "classification-accuracy"])
    for stage in (oracle, evaluate):
        done = _run(stage)
        assert done.exit_code == 0, done.output
    found, facts = _metrics(), OracleFacts.load(Path("oracle/oracle.json"))
    for column, name in enumerate(NAMES):
        for word, sign in (("yes", 1), ("no", -1)):
            asked = told[:, column] == sign
            wrong = int(asked[:WRONG].sum()) if name == "Bald" else 0
            key = f"attribute_{name}_{word}"
            assert found[key] == pytest.approx(1 - wrong / int(asked.sum()), abs=0.05)
            assert found[f"{key}_floor"] == getattr((facts.attributes or {})[name], word)
    assert 0.9 < found["attribute_accuracy"] < 0.99
    assert found["classification_accuracy"] > 0.9 and found["classification_accuracy_floor"] > 0.9
    card = read_card(Path("reports/card.json"))
    assert [(one.scale, one.images) for one in card.by_guidance] == [(0.0, 20), (1.0, 20)]
    assert card.metric("fd_efficientnet_lite0_conditional") is not None
    told_opposite, as_told = (one.accuracy for one in card.by_guidance)
    assert told_opposite is not None and as_told is not None and told_opposite < 0.05 and as_told > 0.95
    with Path("plots/evaluate/by_guidance.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["scale"] for row in rows] == ["0.0", "1.0"] and float(rows[1]["accuracy"]) == as_told
    said = card.choices.evaluation["oracle"]
    assert isinstance(said, dict) and said["weights_sha256"] == facts.weights_sha256
    assert card.choices.sampling["guidance"] == 2.0


@pytest.mark.parametrize("without", ["requests", "oracle"])
def test_nothing_is_said_of_samples_that_were_told_nothing_and_without_an_oracle(
    index: ShardIndex, without: str
) -> None:
    _samples(index, _told() * (without == "oracle"))
    if without == "requests":
        assert _run(oracle).exit_code == 0
    done = _run(evaluate)
    assert done.exit_code == 0, done.output
    assert not [name for name in _metrics() if name.startswith(("attribute", "classification"))]
    assert "oracle" not in read_card(Path("reports/card.json")).choices.evaluation
    assert Path("plots/evaluate/by_guidance.csv").read_text() == "scale,distance,precision,recall,accuracy\n"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("other shards", "oracle/oracle.json: shards are"),
        ("partly told", "expected samples that were told every attribute"),
        ("no names", "attributes are int8"),
    ],
)
def test_what_does_not_belong_together_is_one_line(index: ShardIndex, broken: str, said: str) -> None:
    told = _told()
    if broken == "partly told":
        _params(metrics=["frechet", "classification-accuracy"])
        told[3] = 0
    _samples(index, told, **({"attributes": ["Bald"]} if broken == "no names" else {}))
    if broken == "other shards":
        assert _run(oracle).exit_code == 0
        facts = json.loads(Path("oracle/oracle.json").read_text())
        Path("oracle/oracle.json").write_text(json.dumps(facts | {"shards": "ab" * 32}))
    done = _run(evaluate)
    assert done.exit_code == 1 and said in done.output and done.output.count("\n") == 1, done.output
    assert not Path("metrics/evaluate.json").exists()
