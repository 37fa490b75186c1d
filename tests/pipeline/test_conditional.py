"""A pipeline that is told attributes, really run: from `dvc exp run` to the oracle's answers and a picture by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.pipeline.conftest import Project, Smoke, stage_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipeline")]
NAMES = ["Smiling", "Eyeglasses", "Male"]


@pytest.fixture(scope="module")
def told(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The smoke pipeline with attributes, as an experiment."""
    project = smoke.copy(tmp_path_factory.mktemp("told") / "unveil")
    changes = {
        "train.attributes": NAMES,
        "sample.attributes": ["data"],
        "sample.guidance_scales": [0.0, 1.0, 2.0],
        "sample.guidance_images": 24,
        "oracle.images": 640,
    }
    words = [word for key, value in changes.items() for word in ("-S", f"{key}={json.dumps(value)}")]
    project.dvc("exp", "run", "--name", "told", *words)
    return project


def _metrics(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.root / "metrics/evaluate.json").read_text(encoding="utf-8"))
    return found


def test_the_oracle_answers_for_every_attribute_in_dvc_and_mlflow_alike(told: Project) -> None:
    runs = {stage_of(run): run for run in told.runs()}
    assert set(runs) == {"train", "oracle", "sample", "evaluate"}
    asked = {name for name in _metrics(told) if name.startswith("attribute_")}
    assert all(any(name in metric for metric in asked) for name in NAMES)
    assert asked <= runs["evaluate"].data.metrics.keys()
    assert runs["evaluate"].data.tags["unveil.upstream.train"] == runs["train"].info.run_id


def test_the_curve_of_guidance_has_a_row_for_each_scale_and_is_a_plot(told: Project) -> None:
    rows = list(csv.DictReader((told.root / "plots/evaluate/by_guidance.csv").read_text().splitlines()))
    assert [float(row["scale"]) for row in rows] == [0, 1, 2]
    told.dvc("plots", "show")
    assert "by_guidance" in Path(told.root / "dvc_plots/index.html").read_text(encoding="utf-8")


def test_the_samples_say_what_each_was_asked_for_and_a_picture_by_hand_is_the_same_bytes(told: Project) -> None:
    stored = load_file(told.root / "samples/samples.safetensors")
    assert stored["attributes"].shape == (40, 3) and set(stored["attributes"].unique().tolist()) == {-1, 1}
    number = 7
    row = stored["attributes"][number].tolist()
    request = ",".join(name if value > 0 else f"-{name}" for name, value in zip(NAMES, row, strict=True))
    out = told.root / "one.png"
    told.command(
        *("unveil", "draw", f"--attributes={request}", "--count", "1", "--first", str(number), "--seed", "0", str(out))
    )
    with Image.open(out) as picture:
        pixels = torch.tensor(list(picture.getdata()), dtype=torch.uint8)
        size, facts = picture.size, json.loads(picture.text["unveil"])  # type: ignore[attr-defined]
    expected = stored["images"][number]
    assert size == (32, 32)
    assert torch.equal(pixels.reshape(32, 32, 3).permute(2, 0, 1), expected)
    assert facts["attributes"] == request.split(",")


def test_back_to_no_attributes_nothing_is_computed_again(told: Project) -> None:
    told.command("git", "checkout", "--quiet", "params.yaml", "dvc.lock", "metrics")
    assert "Running stage" not in told.dvc("repro")
