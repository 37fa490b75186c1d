"""unveil.run.outbox: what a store does not take lies in files, survives the process, and arrives once."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from tests.run.conftest import KnownRun, client_of, python
from typer.testing import CliRunner, Result

from unveil.cli.main import app
from unveil.layout import OUTBOX

WRITERS = ("log_batch", "log_artifact", "log_text", "set_tag", "log_inputs", "log_outputs", "finalize_logged_model")
ENDS = ("set_terminated", "update_run", "delete_run")


def cut_off(run: KnownRun) -> None:
    """From now on the store takes everything, and says so of nothing; the end of a run it does not take at all."""
    for name in (*WRITERS, *ENDS):

        def call(*arguments: Any, real: Any = getattr(run.client, name), name: str = name, **named: Any) -> None:
            if name in WRITERS:
                real(*arguments, **named)
            raise MlflowException("Connection reset by peer")

        setattr(run.client, name, call)


def everything(run: KnownRun, folder: Path) -> None:
    """Tell a run some of all there is, of files that are gone afterwards."""
    (folder / "packaged" / "code").mkdir(parents=True)
    for name in ("packaged/config.json", "packaged/code/model.py", "curves.csv"):
        (folder / name).write_text(name)
    Image.new("RGB", (4, 4)).save(folder / "faces.png")
    for step in (10, 20):
        run.log_metrics({"loss": 1 / step, "diverged": math.nan}, step=step)
        run.log_image("previews", folder / "faces.png", step)
    run.set_tags({"key": "a value"})
    run.log_params({"late": 1})
    run.log_artifact(folder / "curves.csv", "tables")
    run.log_dataset("celeba-64-ddim", "ab" * 32, "data/shards", "training")
    run.log_model("denoiser", folder / "packaged", {"channels": 128}, {"unveil.weights.sha256": "cd" * 32}, step=20)
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def check_everything(project: Path, run_id: str, status: str) -> None:
    client = client_of(project)
    found = client.get_run(run_id)
    assert found.info.status == status
    assert found.data.tags["key"] == "a value" and found.data.params["late"] == "1"
    points = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(10, 0.1), (20, 0.05)]
    assert [math.isnan(point.value) for point in client.get_metric_history(run_id, "diverged")] == [True, True]
    files = [item.path for item in client.list_artifacts(run_id, "tables")]
    assert files == ["tables/curves.csv"]
    images = [item.path.split("+") for item in client.list_artifacts(run_id, "images")]
    pairs = sorted((key, step) for key, _, step, *_ in images)
    assert pairs == [("images/previews", step) for step in ("10", "10", "20", "20")], images
    assert found.inputs is not None and found.outputs is not None
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["celeba-64-ddim"]
    (output,) = found.outputs.model_outputs
    (model,) = client.search_logged_models([found.info.experiment_id], f"source_run_id = '{run_id}'")
    assert (output.model_id, output.step, str(model.status)) == (model.model_id, 20, "READY")
    assert (model.params, model.tags["unveil.weights.sha256"]) == ({"channels": "128"}, "cd" * 32)
    assert {item.path for item in client.list_logged_model_artifacts(model.model_id)} == {"code", "config.json"}


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def sync() -> Result:
    return CliRunner().invoke(app, ["sync"])


def of_a_process(project: Path, repository: Path, code: str, status: int = 0) -> tuple[str, str]:
    """Run code with a cut-off ``run``, in a process that ends; the run's id, and what it said on stderr."""
    start = f"""
        import os, signal
        from pathlib import Path
        from tests.run.conftest import start
        from tests.run.test_outbox import cut_off, everything

        run = start(Path.cwd())
        print(run.run_id, flush=True)
        cut_off(run)
        everything(run, Path("made"))
        {code}
    """
    process = python(start, project, repository, PYTHONPATH=f"{repository / 'src'}{os.pathsep}{repository}")
    run_id, said = process.communicate(timeout=120)
    assert process.returncode == status, said
    return run_id.strip(), said


def test_what_a_store_did_not_take_arrives_once(here: Path, repository: Path) -> None:
    run_id, said = of_a_process(here, repository, "run.finish('FINISHED')")
    assert "`unveil sync` uploads that" in said.splitlines()[-1]
    done = sync()
    assert done.exit_code == 0, done.output
    check_everything(here, run_id, "FINISHED")
    assert not list((here / OUTBOX).iterdir())
    assert sync().output == "nothing waits to be uploaded\n"


def test_a_killed_process_loses_nothing(here: Path, repository: Path) -> None:
    run_id, _ = of_a_process(here, repository, "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)
    with (here / OUTBOX / run_id / "calls.jsonl").open("a") as lines:
        lines.write('{"run_id": "half a li')
    done = sync()
    assert done.exit_code == 0, done.output
    check_everything(here, run_id, "RUNNING")
