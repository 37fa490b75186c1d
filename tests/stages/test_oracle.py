"""The stage of the oracle: nothing where nothing is told, else its files, its run, and one line when it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML
from stages.oracle import app
from tests.evaluation.oracle.coloured import NAMES, write_shards
from typer.testing import CliRunner, Result

from unveil.evaluation.oracle.facts import OracleFacts
from unveil.files import file_digest
from unveil.run.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("UNVEIL_TRACKING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _run(*names: str) -> Result:
    yaml = YAML()
    params: dict[str, Any] = yaml.load(ROOT / "params.yaml")
    params["train"]["attributes"] = list(names)
    params["sample"] |= {"attributes": [], "guidance": 1.0, "guidance_scales": []}
    params["oracle"] |= {"images": 960, "batch_size": 32, "channels": 8, "lr": 0.01, "device": "cpu"}
    yaml.dump(params, Path("params.yaml"))
    return CliRunner().invoke(app, [])


def test_without_attributes_it_is_nothing_and_needs_no_torch_no_shards_and_no_run(project: Path) -> None:
    assert _run().exit_code == 0
    assert OracleFacts.load(project / "oracle" / "oracle.json") == OracleFacts()
    first = {path.name: path.read_bytes() for path in (project / "oracle").iterdir()}
    assert sorted(first) == ["oracle.json", "oracle.safetensors", "run.json"]
    program = "import sys; from stages.oracle import main; from pathlib import Path; main(Path('params.yaml')); "
    done = subprocess.run(
        [sys.executable, "-c", program + "print(*{'torch', 'mlflow'} & {*sys.modules})"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
    assert {path.name: path.read_bytes() for path in (project / "oracle").iterdir()} == first
    assert not (project / "mlflow.db").exists()


def test_it_is_trained_measured_and_logged(project: Path) -> None:
    write_shards(project / "data" / "shards")
    done = _run(*NAMES)
    assert done.exit_code == 0, done.output
    facts = OracleFacts.load(project / "oracle" / "oracle.json")
    assert facts.names == NAMES and facts.weights_sha256 == file_digest(project / "oracle" / "oracle.safetensors")
    record = json.loads((project / "oracle" / "run.json").read_text())
    assert record["params"]["oracle.images"] == 960
    run = MlflowClient(Store.locate(project).uri).get_run(record["run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["accuracy"] == pytest.approx(facts.accuracy)
    assert run.data.metrics["balanced_accuracy_Bald"] > 0.95


def test_shards_that_are_not_there_are_one_line(project: Path) -> None:
    done = _run(*NAMES)
    assert done.exit_code == 1 and "data/shards/index.json: not there" in done.output
    assert not (project / "oracle" / "oracle.json").exists()
