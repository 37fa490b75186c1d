"""Training that is killed with no warning, eight times at random moments, ends as one that was not."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.training.test_stage_train import ROOT, make_project, set_params

KILLS = 8


def _train(project: Path, kills: int) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PYTHONUNBUFFERED": "1"}
    environment.pop("UNVEIL_TRACKING", None)
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, str(Path(__file__).with_name("kill.py")), str(kills), "1"]
    done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _curves(project: Path) -> list[dict[str, str]]:
    with (project / "plots" / "train" / "curves.csv").open(newline="") as stream:
        return [{key: row[key] for key in ("images", "loss", "grad_norm", "lr")} for row in csv.DictReader(stream)]


@pytest.mark.slow
def test_killed_eight_times_it_ends_as_if_it_never_was(tmp_path: Path) -> None:
    killed, whole = make_project(tmp_path / "often"), make_project(tmp_path / "whole")
    for project in (killed, whole):
        set_params(
            project,
            images=32 * 150,
            log_every_images=96,
            checkpoint_every_images=160,
            preview_every_images=0,
            validate_every_images=480,
            ema_more_half_lives=[500],
            ema_profiles=[0.05, 0.1],
            snapshot_every_images=320,
            augment=0.15,
        )
        (project / ".git").mkdir()
    output = _train(killed, KILLS)
    assert output.splitlines().count("killed") == KILLS
    assert "going on from step" in output
    _train(whole, 0)
    for name in ("model.safetensors", "config.json"):
        assert (killed / "models" / name).read_bytes() == (whole / "models" / name).read_bytes()
    assert _curves(killed) == _curves(whole)
    averages = {path.name: path.read_bytes() for path in (whole / "models" / "averages").iterdir()}
    assert len(averages) == 1 + 1 + 15
    assert averages == {path.name: path.read_bytes() for path in (killed / "models" / "averages").iterdir()}

    client = MlflowClient(f"sqlite:///{killed / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    trained = [run for run in runs if "loss" in run.data.metrics]
    assert len(trained) == 1
    assert trained[0].info.status == "FINISHED"
    assert int(trained[0].data.tags["unveil.resumed"]) > 0
    for metric, kept in (("loss", _curves(whole)), ("lr", _curves(whole))):
        history = client.get_metric_history(trained[0].info.run_id, metric)
        assert [point.step for point in sorted(history, key=lambda point: point.step)] == [
            int(row["images"]) for row in kept
        ]
        values = {point.step: point.value for point in history}
        assert [format(values[int(row["images"])], ".6g") for row in kept] == [row[metric] for row in kept]
