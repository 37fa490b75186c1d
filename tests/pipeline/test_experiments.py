"""`dvc exp run`, in the workspace, in a temporary copy and in the queue: one store has them all."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from tests.pipeline.conftest import Experiments, stage_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("experiments")]

CHANGED = {
    "lower": {"train.lr": 2e-4, "sample.steps": 4},
    # in the workspace that `lower` had left
    "temporary": {"train.lr": 2e-4, "sample.steps": 3},
    "five": {"train.lr": 2e-4, "sample.steps": 5},
    "six": {"train.lr": 2e-4, "sample.steps": 6},
}


@pytest.fixture(scope="session")
def shown(experiments: Experiments) -> dict[str, Any]:
    """What `dvc exp show` says of each experiment."""
    found: dict[str, Any] = {}
    for baseline in experiments.json("exp", "show", "--json"):
        for experiment in baseline.get("experiments") or []:
            for revision in experiment["revs"]:
                found[revision["name"]] = revision["data"]
    return found


@pytest.fixture(scope="session")
def evaluations(experiments: Experiments) -> dict[str, Run]:
    """The evaluate run of each experiment in the main checkout's store."""
    return {run.data.tags["dvc.exp_name"]: run for run in experiments.runs() if stage_of(run) == "evaluate"}


def test_dvc_and_mlflow_list_the_same_experiments(
    experiments: Experiments, shown: dict[str, Any], evaluations: dict[str, Run]
) -> None:
    assert set(CHANGED) == set(experiments.names)
    assert set(shown) == set(evaluations) == set(CHANGED)


@pytest.mark.parametrize("name", CHANGED)
def test_both_give_an_experiment_the_same_parameters_and_metrics(
    shown: dict[str, Any], evaluations: dict[str, Run], name: str
) -> None:
    params, run = shown[name]["params"]["params.yaml"]["data"], evaluations[name]
    assert run.info.status == "FINISHED"
    for key, value in CHANGED[name].items():
        section, leaf = key.split(".")
        assert params[section][leaf] == value
        assert run.data.params[key] == str(value)
    assert run.data.params["download.cartoon.num_faces"] == str(params["download"]["cartoon"]["num_faces"])
    metrics = shown[name]["metrics"]["metrics/evaluate.json"]["data"]
    assert metrics.items() <= run.data.metrics.items()
    assert run.data.tags["dvc.exp_baseline_rev"] == run.data.tags["git.commit"]
    assert run.data.tags["git.changed"] == "params.yaml"


def test_an_experiment_reruns_what_it_changes(experiments: Experiments) -> None:
    stages: dict[str, set[str]] = {name: set() for name in CHANGED}
    for run in experiments.runs():
        stages[run.data.tags["dvc.exp_name"]].add(stage_of(run))
    sampling = {"sample", "evaluate"}
    assert stages == {"lower": {"train", *sampling}, "temporary": sampling, "five": sampling, "six": sampling}


def test_different_parameters_give_different_metrics(evaluations: dict[str, Run]) -> None:
    distances = {run.data.metrics["fd_efficientnet_lite0"] for run in evaluations.values()}
    assert len(distances) == len(evaluations)


def test_two_experiments_are_compared(experiments: Experiments, tmp_path: Path) -> None:
    both = ("five", "six")
    params = experiments.json("exp", "diff", *both, "--json")["params"]["params.yaml"]
    assert params == {"sample.steps": {"old": 5, "new": 6, "diff": 1}}
    metrics = experiments.json("metrics", "diff", *both, "--json")["metrics/evaluate.json"]
    assert metrics["fd_efficientnet_lite0"]["diff"] != 0
    experiments.dvc("plots", "diff", *both, "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("Distance to real images", "grid.png", *both))


def test_queued_runs_are_tied_to_the_model_that_they_sampled_from(
    experiments: Experiments, evaluations: dict[str, Run]
) -> None:
    (train,) = [
        run for run in experiments.runs() if stage_of(run) == "train" and run.data.tags["dvc.exp_name"] == "lower"
    ]
    assert train.outputs is not None
    (output,) = train.outputs.model_outputs
    model = experiments.client.get_logged_model(output.model_id)
    assert model.name == "denoiser-lower"
    on_model = {metric.run_id for metric in model.metrics or [] if metric.key == "fd_efficientnet_lite0"}
    assert on_model == {run.info.run_id for run in evaluations.values()}


def test_temporary_copies_leave_no_store_of_their_own(experiments: Experiments) -> None:
    assert [path.parent for path in experiments.root.rglob("mlflow.db")] == [experiments.root]
    for run in experiments.runs():
        assert run.info.artifact_uri == f"file://{experiments.root}/mlruns/{run.info.run_id}/artifacts"


def test_applying_an_experiment_brings_its_record(experiments: Experiments, evaluations: dict[str, Run]) -> None:
    experiments.dvc("exp", "apply", "temporary")
    record = json.loads((experiments.root / "metrics" / "run.json").read_text())
    assert record["run_id"] == evaluations["temporary"].info.run_id
    assert record["dvc_exp_name"] == "temporary"
    assert record["upstream"]["sample"]["params"]["sample.steps"] == 3
    assert record["upstream"]["train"]["params"]["train.lr"] == 2e-4
