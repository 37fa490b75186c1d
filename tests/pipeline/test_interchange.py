"""A model of diffusers' own training goes through sample and evaluate like one of ours."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers import DDPMScheduler
from safetensors import safe_open
from tests.pipeline.conftest import Project, Smoke, stage_of

from unveil.files import file_digest

pytestmark = pytest.mark.slow

CHANGES = {  # what the file must say of the imported model
    "      stem: 4": "      stem: 1",
    "path: flow": "path: vp-linear",
    "parameterization: x0": "parameterization: eps",
    "objective: flow": "objective: simple",
}


@pytest.fixture
def imported(smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = smoke.copy(tmp_path / "unveil")
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(project.root / "tmp" / "theirs")
    params = project.root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        text = text.replace(old.strip(), new.strip())
    params.write_text(text.replace("attention_resolutions: [4]", "attention_resolutions: [16]"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", "src")
    project.command(sys.executable, "-m", "unveil", "import", "tmp/theirs", "--force")
    project.dvc("commit", "--force", "train")
    return project


def test_samples_and_evaluation_are_of_the_imported_model(imported: Project) -> None:
    imported.dvc("repro")
    root: Path = imported.root
    with safe_open(root / "samples" / "samples.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts["model"] == file_digest(root / "models" / "model.safetensors")
    assert facts["config"]["training"]["imported_from"] == "theirs"
    assert json.loads((root / "metrics" / "evaluate.json").read_text())["num_samples"] == 40
    assert [stage_of(run) for run in imported.runs()] == ["sample", "evaluate"]  # and train did not run
    sample = imported.runs()[0]
    assert "import" in sample.data.tags["unveil.upstream.missing"]
    assert "Data and pipelines are up to date." in imported.dvc("status")
