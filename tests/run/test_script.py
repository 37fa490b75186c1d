"""unveil.run.script: what an experiment failed with is in MLflow, also where its stage could not begin."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from tests.run.conftest import client_of

from unveil.run.script import main
from unveil.run.stage import stage

PARAMS = Path("params.yaml")


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of the experiment that DVC runs here."""
    name = request.node.name.translate(str.maketrans("[]: -", "_____"))
    monkeypatch.setenv("DVC_EXP_NAME", name)
    return str(name)


def only_run(project: Path, experiment: str) -> tuple[Run, str]:
    """The run of an experiment, and its log."""
    client = client_of(project)
    everywhere = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(everywhere, f"tags.`dvc.exp_name` = '{experiment}'")
    return run, (project / "mlruns" / run.info.run_id / "artifacts" / "log.txt").read_text(encoding="utf-8")


def test_a_stage_that_cannot_be_imported(project: Path, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "sample.py").write_text("import unveil.no_such_module")
    monkeypatch.setattr(sys, "argv", ["script.py", "sample.py"])
    with pytest.raises(ModuleNotFoundError):
        main(Path("sample.py"))
    run, log = only_run(project, experiment)
    assert (run.info.status, run.info.run_name) == ("FAILED", f"sample {experiment}")
    assert run.data.tags["unveil.error"] == "ModuleNotFoundError: No module named 'unveil.no_such_module'"
    assert 'File "sample.py", line 1' in log
    assert run.data.params["sample.sampler"] == "dpmpp-2m"


@pytest.mark.parametrize("text", ["batch_sise: 32", "batch_size: -1", "batch_size: [", "batch_size: null"])
def test_wrong_parameters(project: Path, experiment: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    PARAMS.write_text(PARAMS.read_text(encoding="utf-8").replace("batch_size: 32", text), encoding="utf-8")
    with pytest.raises(SystemExit), stage("train", PARAMS):
        pytest.fail("this is work")
    run, log = only_run(project, experiment)
    said = capsys.readouterr().err
    assert (run.info.status, f"error: {run.data.tags['unveil.error']}\n", log) == ("FAILED", said, said)
    artifacts = project / "mlruns" / run.info.run_id / "artifacts"
    assert (artifacts / "params.yaml").read_text(encoding="utf-8") == PARAMS.read_text(encoding="utf-8")
    if "[" not in text:
        key, value = text.split(": ")
        assert run.data.params[f"train.{key}"] == value.replace("null", "None")


def test_a_store_that_is_away_is_told_once(
    project: Path, experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(SystemExit), stage("train", PARAMS):
        pytest.fail("this is work")
    assert capsys.readouterr().err.count("\n") == 1
    assert time.monotonic() - started < 9


def test_processes_that_a_stage_spawned_end_with_it(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "preprocess.py").write_text(
        "import os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "def app():\n"
        "    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "unveil.run.script", "preprocess.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    spawned = psutil.Process(int(process.stdout.readline()))
    process.kill()
    spawned.wait(10)
