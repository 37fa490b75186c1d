"""Several processes of a stage: how many, and what is said when one of them fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from unveil.run.launch import processes_here

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
    "PYTHONPATH": str(ROOT / "src"),
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "expected"),
    [
        (0, "auto", 0, 1),
        (0, "auto", 4, 4),
        (0, "cpu", 4, 1),
        (2, "auto", 0, 2),
        (2, "auto", 4, 2),
        (8, "cuda", 4, 4),
        (8, "cpu", 4, 8),
    ],
)
def test_processes_are_as_many_as_asked_but_not_more_than_gpus(
    asked: int, device: str, gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert processes_here(asked, device) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("sys.exit(3 if rank == 1 else time.sleep(60))", 3, ""),
        ("rank == 1 and os.kill(os.getpid(), 9); time.sleep(60)", 137, "error: process 1 was killed by SIGKILL\n"),
        ("rank == 1 and os.kill(int(os.environ['LAUNCHER']), 15); time.sleep(60)", 143, ""),
    ],
)
def test_the_launcher_ends_as_the_process_that_failed(body: str, status: int, said: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys, time\nrank = int(os.environ['RANK'])\n{body}\n")
    # It is in the place of the shell, whose number it has.
    command = f'LAUNCHER=$$ exec "{sys.executable}" -m unveil.run.launch --standalone --nproc-per-node=2 "{script}"'
    done = subprocess.run(command, shell=True, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (status, said)


STAGE = """
import os, time
from contextlib import ExitStack
from pathlib import Path
import torch
from unveil.distributed import joined
from unveil.errors import UnveilError
from unveil.run.stage import stage

rank = int(os.environ["RANK"])
with stage("sample", Path("params.yaml")) as run, ExitStack() as held:
    processes = held.enter_context(joined(torch.device("cpu")))
    {body}
    processes.gather(torch.ones(3))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a stage can run; its store is shared, as the making of one takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".git").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        'raise UnveilError("found this, expected that")',
        'if rank == 1: raise UnveilError("found this, expected that")',
        'raise UnveilError("found this, expected that") if rank == 1 else time.sleep(60)',
    ],
    ids=["both", "other", "other while main computes"],
)
def test_an_error_is_said_once_and_is_what_mlflow_has(body: str, project: Path) -> None:
    if "else" in body:
        body = body.replace("raise UnveilError", "(_ for _ in ()).throw(UnveilError").replace('that")', 'that"))')
    word = str(abs(hash(body)))  # of this case: the store has the others' runs too
    done = _run_stage(body.replace("found this", f"found {word}"), project)
    assert (done.returncode, done.stderr) == (1, f"error: found {word}, expected that\n")
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(everywhere, order_by=["start_time DESC"])[0]
    assert run.info.status == "FAILED" and f"found {word}, expected that" in str(run.data.tags)


@pytest.mark.slow
def test_a_mistake_in_the_program_keeps_its_traceback(project: Path) -> None:
    done = _run_stage('if rank == 1: raise KeyError("a mistake")', project)
    assert done.returncode == 1 and "KeyError: 'a mistake'" in done.stderr


def _run_stage(body: str, project: Path) -> subprocess.CompletedProcess[str]:
    (project / "script.py").write_text(STAGE.format(body=body))
    environment = {**ENVIRONMENT, "UNVEIL_TRACKING": ""}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "unveil.run.launch", "--standalone", "--nproc-per-node=2", "script.py"]
    return subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, check=False)
