"""What the tests of runs share: a run in a project's store, a repository, a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from mlflow import MlflowClient
from tests.conftest import git

from unveil.layout import OUTBOX
from unveil.run.store import Store
from unveil.run.tracked import TrackedRun


class KnownRun(TrackedRun):
    """A run that is tracked: it has an id."""

    run_id: str
    client: MlflowClient


def start(project: Path, **params: object) -> KnownRun:
    run = KnownRun.start(Store.locate(project), {"unveil.stage": "train"}, params, project / OUTBOX)
    assert isinstance(run, KnownRun)
    return run


def client_of(project: Path) -> MlflowClient:
    return MlflowClient(Store.locate(project).uri)


def history(project: Path, run: KnownRun, key: str) -> list[tuple[int, float]]:
    points = client_of(project).get_metric_history(run.run_id, key)
    return [(point.step, point.value) for point in points]


def python(code: str, folder: Path, repository: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(repository / "src")} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def committed(folder: Path) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "file").write_text("text")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=start")
    return folder
