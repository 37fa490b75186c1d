"""`unveil register` of real experiments: the best is champion, and loads elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipeline.conftest import Experiments, stage_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("experiments")]

METRIC = "kid_efficientnet_lite0"  # which has an interval, also with few samples
DRAW = "import mlflow; print(mlflow.pyfunc.load_model('models:/unveil@champion').predict([{'seed': 0}]).image[0][:4])"


def test_the_best_experiment_is_champion_and_loads_without_the_project(
    experiments: Experiments, tmp_path: Path
) -> None:
    champion: dict[str, float] = {}
    runs = {run.data.tags.get("dvc.exp_name"): run for run in experiments.runs() if stage_of(run) == "evaluate"}
    for number, name in enumerate(experiments.names, 1):
        run = runs[name]
        said = experiments.command(sys.executable, "-m", "unveil", "register", name, "--metric", METRIC)
        assert f"version {number} of unveil: models:/m-" in said
        alias = experiments.client.get_model_version_by_alias("unveil", "champion")
        assert (alias.run_id == run.info.run_id) == (f"champion: version {number}:" in said)
        if alias.run_id == run.info.run_id:
            assert not champion or run.data.metrics[f"{METRIC}_high"] < champion[f"{METRIC}_low"]
            champion = run.data.metrics
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{experiments.root}/mlflow.db"
    done = subprocess.run((sys.executable, "-c", DRAW), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "b'\\x89PNG'\n", done.stderr
