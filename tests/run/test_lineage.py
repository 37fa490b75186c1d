"""unveil.run.lineage: the record of the execution that wrote the files that are there, and what a chain lacks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tests.run.test_stage import PARAMS, pipeline, stored
from typer.testing import CliRunner

from unveil.cli.main import app
from unveil.files import file_digest, write_json
from unveil.run.stage import Run, stage
from unveil.run.store import Store


def lineage(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["lineage", *words])
    return done.exit_code, done.output


def again(project: Path) -> tuple[dict[str, Run], dict[str, Run]]:
    """The pipeline twice, with another model; the records that are there are the later one's."""
    first = pipeline(project)
    shutil.copytree(project / "models", project / "first")
    weights = "models/model.safetensors"
    second = pipeline(project, weights="others")
    assert first["train"].record["outputs"][weights] != second["train"].record["outputs"][weights]
    shutil.copy(project / "first" / "model.safetensors", project / weights)
    return first, second


def test_a_model_without_its_record_leads_to_the_run_that_trained_it(project: Path) -> None:
    first, second = again(project)
    assert json.loads(Path("models/run.json").read_text())["run_id"] == second["train"].record["run_id"]
    with stage("sample", PARAMS) as run:
        run.follow(Path("models/run.json"))
        run.log_metrics({"nfe": 7}, model=True)
    tags = stored(project, run).data.tags
    assert tags["unveil.upstream.train"] == first["train"].record["run_id"]
    assert run.record["upstream"] == json.loads(Path("first/run.json").read_text())["upstream"] | {
        "train": {key: value for key, value in first["train"].record.items() if key != "upstream"}
    }
    model = MlflowClient(Store.locate(project).uri).get_logged_model(first["train"].record["model_id"])
    assert run.record["run_id"] in {metric.run_id for metric in model.metrics or []}


def test_a_model_of_unknown_origin_is_tied_to_no_run(project: Path) -> None:
    pipeline(project)
    (project / "models" / "model.safetensors").write_text("somebody's")
    with stage("sample", PARAMS) as run:
        run.follow(Path("models/run.json"))
    tags = stored(project, run).data.tags
    assert tags["unveil.upstream.missing"] == (
        "models/run.json: it tells of another models/model.safetensors than is there"
    )
    assert run.record["upstream"] == {}
    assert run.record["model_id"] is None


def test_an_evaluation_written_elsewhere_states_no_file_of_the_projects_own(project: Path) -> None:
    pipeline(project)
    with stage("evaluate", PARAMS) as run:
        write_json(Path("theirs/metrics/evaluate.json"), {"fid": 4})
        run.write_record(Path("theirs/metrics/run.json"))
    assert run.record["outputs"] == {"metrics/evaluate.json": file_digest(project / "theirs/metrics/evaluate.json")}
    assert run.record["inputs"] == {}


def test_the_chain_of_a_run_a_folder_a_card_and_a_revision_is_one(project: Path) -> None:
    runs = pipeline(project, shards=None)
    status, shown = lineage(runs["evaluate"].record["run_id"])
    assert status == 0, shown
    assert shown.endswith("nothing is missing\n")
    places = [shown.index(runs[name].record["run_id"]) for name in runs]
    assert places == sorted(places, reverse=True)
    for name in ("git_commit", "model_id"):
        assert runs["train"].record[name] in shown
    assert runs["train"].record["outputs"]["models/model.safetensors"][:12] in shown
    shutil.copytree(project / "reports", project / "sent")  # away from the record
    for other in (".", "metrics/run.json", "reports/card.json", "sent/card.json"):
        assert lineage(other) == (0, shown)
    status, out = lineage(".", "--json")
    assert (status, [one["stage"] for one in json.loads(out)["chain"]]) == (0, list(reversed(runs)))
    assert lineage(runs["train"].record["run_id"])[0] == 0


def test_what_a_chain_lacks_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = pipeline(project, shards=None)
    client = MlflowClient(Store.locate(project).uri)
    client.delete_logged_model(runs["train"].record["model_id"])
    record: dict[str, Any] = json.loads(Path("metrics/run.json").read_text())
    del record["upstream"]["download"]
    before = record["upstream"]
    before["preprocess"]["run_id"] = None
    before["train"] |= {"run_id": "0" * 32, "git_commit": "0" * 40, "tracking_uri": "http://server"}
    before["train"]["outputs"]["models/config.json"] = "0" * 64
    Path("metrics/run.json").write_text(json.dumps(record))
    status, shown = lineage(".")
    assert status == 1
    store = f"sqlite:///{project}/mlflow.db"
    assert shown.partition("missing:\n")[2].splitlines() == [
        "  download: no record of it",
        "  sample: it read another models/config.json than train wrote",
        f"  train: {store} has no run {'0' * 32}; it went to http://server",
        f"  train: {store} has no model {record['model_id']}; it went to http://server",
        f"  train: Git has no commit {'0' * 40} here; `git fetch` may bring it",
        "  preprocess: MLflow did not track it",
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///gone.db")
    status, shown = lineage(".")
    assert status == 1
    assert shown.partition("missing:\n")[2].startswith(
        f"  sqlite:///{project}/gone.db does not answer, or is not there"
    )
    assert "no run" not in shown


@pytest.mark.parametrize("name", ["nobody", "params.yaml", "0" * 32])
def test_what_has_no_lineage_is_one_line(project: Path, name: str) -> None:
    status, shown = lineage(name)
    assert status == 2
    assert shown.startswith(f"{name}: ")
    assert len(shown.splitlines()) == 1
