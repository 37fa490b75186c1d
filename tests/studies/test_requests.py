"""The study of faces on request: what it measures, that it goes on, and what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from studies.__main__ import app
from studies.requests import inversions
from tests.evaluation.oracle.coloured import write_shards
from tests.serving.models import DIFFUSION, SIZE, save_conditional
from typer.testing import CliRunner, Result

from studies import requests
from unveil.diffusion.config import Sampler
from unveil.evaluation.oracle.classifier import learn
from unveil.evaluation.oracle.config import OracleTraining
from unveil.files import write_json
from unveil.model import ModelConfig
from unveil.params import Params, render

NAMES = ("Smiling", "Bald")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, its oracle, and the shards that both say they were trained on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requests, "INVERSION_STEPS", 4)
    digest = write_shards(tmp_path / "data" / "shards", SIZE).digest()
    model = ModelConfig.load(save_conditional(tmp_path / "models"))
    write_json(Path("models/config.json"), replace(model, data={**model.data, "shards": digest}).to_dict())
    Path("oracle").mkdir()
    settings = OracleTraining(images=640, batch_size=32, channels=8, device="cpu")
    weights = Path("oracle/oracle.safetensors")
    learn(Path("data/shards"), NAMES, settings, torch.device("cpu"), weights, print).facts.save(
        Path("oracle/oracle.json")
    )
    _params("dpmpp-2m")
    return tmp_path


def _params(sampler: str) -> None:
    params = Params()
    drawn = {"sampler": sampler, "steps": 3, "grid": "karras", "batch_size": 4, "precision": "fp32", "device": "cpu"}
    train, sample = params.train.replace(diffusion=DIFFUSION), params.sample.replace(**drawn)
    Path("params.yaml").write_text(render(params.replace(train=train, sample=sample)))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["requests", "--images", "6", "--real", "5", *arguments])


def test_it_measures_writes_and_goes_on(project: Path) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    out = project / "reports" / "requests"
    found = json.loads((out / "requests.json").read_text())
    assert tuple(found["attributes"]) == NAMES
    for row in found["attributes"].values():
        for word in ("yes", "no"):
            assert 0 <= row[word]["low"] <= row[word]["share"] <= row[word]["high"] <= 1
            assert row[word]["high"] - row[word]["low"] > 0.3  # of six samples little is known
    assert found["least_yes"] == min(row["yes"]["share"] for row in found["attributes"].values())
    assert [(row["sampler"], row["steps"]) for row in found["back"]] == [("dpmpp-2m", 4), ("dpmpp-2m", 3), ("ddim", 4)]
    assert all(row["least"] <= row["mean"] for row in found["back"])
    assert (out / "requests.md").read_text().strip() in done.output
    with Image.open(out / "requests.png") as picture:
        assert picture.width > 500
    asked = (out / "asked.json").read_bytes()
    content = json.loads(asked)
    content["points"].pop()
    (out / "asked.json").write_text(json.dumps(content))
    again = run()
    assert again.exit_code == 0 and again.output.count(" have it\n") == 1 and "to noise and back," not in again.output
    assert (out / "asked.json").read_bytes() == asked
    other = run("--guidance", "3")
    assert other.exit_code == 1 and "measured with another guidance (2.0, now 3.0)" in other.output


def test_only_what_draws_no_noise_on_its_way_goes_to_noise_and_back() -> None:
    ddpm = Sampler(sampler="ddpm", steps=5, grid="karras")
    assert [(case.sampler, case.steps) for case in inversions(ddpm)] == [("ddim", requests.INVERSION_STEPS)]


def test_a_mistake_is_one_line(project: Path) -> None:
    for arguments, words in (
        (["--real", "101"], "--real: found 101, but the test split of data/shards has 100 images"),
        (["--oracle", "elsewhere"], "elsewhere/oracle.json"),
        (["--models", "elsewhere"], "elsewhere/config.json"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and words in done.output and done.output.count("\n") == 1, done.output
    write_json(Path("oracle/oracle.json"), {})
    done = run()
    assert done.exit_code == 1 and "does not know all of Smiling, Bald" in done.output
