"""`unveil sweep` with the whole pipeline: its experiments, and their runs in MLflow."""

import sys
from pathlib import Path

import pytest
from tests.pipeline.conftest import Smoke, stage_of


@pytest.mark.long
def test_a_sweep_of_the_pipeline(smoke: Smoke, tmp_path: Path) -> None:
    project = smoke.copy(tmp_path / "unveil")
    project.commit("baseline")
    grid = tmp_path / "grid.yaml"
    grid.write_text("sample.steps: [3, 5]\nsample.sampler: [ddim]\n")
    project.command(sys.executable, "-m", "unveil", "sweep", str(grid), "--name", "big")
    evaluations = [run for run in project.runs() if stage_of(run) == "evaluate"]
    assert {run.data.tags["dvc.exp_name"] for run in evaluations} == {"big,steps=3", "big,steps=5"}
    assert {run.data.tags["unveil.sweep"] for run in evaluations} == {"big"}
    assert {run.data.tags["git.changed"] for run in evaluations} == {"params.yaml"}
    assert [path.parent for path in project.root.rglob("mlflow.db")] == [project.root]
    assert len(project.json("metrics", "diff", "big,steps=3", "big,steps=5", "--json")["metrics/evaluate.json"]) > 1
    project.dvc("exp", "apply", "big,steps=5")
