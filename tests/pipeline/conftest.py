"""The `smoke` recipe, really run by DVC with a real MLflow store, in a clone of this working tree."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

NOT_COPIED = shutil.ignore_patterns("mlflow.db*", "mlruns", "tmp")


@dataclass(frozen=True)
class Project:
    """A clone in which the pipeline runs."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of commands: this Python is first on the path."""
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "dvc-site-cache"),
            "OMP_NUM_THREADS": "1",
        }

    def command(self, *words: str, fails: bool = False) -> str:
        """Run a command at the root; what it printed."""
        done = subprocess.run(
            words, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def dvc(self, *words: str, fails: bool = False) -> str:
        """Run DVC; what it printed."""
        return self.command(sys.executable, "-m", "dvc", *words, fails=fails)

    def json(self, *words: str) -> Any:
        """Run a DVC command that prints JSON, and read it."""
        out = self.dvc(*words)
        return json.loads(out[min(index for index in (out.find("{"), out.find("[")) if index >= 0) :])

    def commit(self, message: str) -> None:
        """Commit everything."""
        self.command("git", "add", "--all")
        self.command("git", "commit", "--quiet", f"--message={message}")

    def set_params(self, old: str, new: str) -> None:
        """Replace a line of params.yaml, which must be there once."""
        path = self.root / "params.yaml"
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new), encoding="utf-8")

    @property
    def client(self) -> MlflowClient:
        """The project's own store."""
        return MlflowClient(f"sqlite:///{self.root}/mlflow.db")

    def runs(self) -> list[Run]:
        """All runs, oldest first; none if there is no store."""
        if not (self.root / "mlflow.db").exists():
            return []
        experiment = self.client.get_experiment_by_name("unveil")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id], order_by=["start_time"]))

    def copy(self, root: Path) -> "Project":
        """The project with its data and DVC's cache, without its runs."""
        shutil.copytree(self.root.with_name("pristine"), root, symlinks=True)
        return Project(root)


def stage_of(run: Run) -> str:
    """The stage that a run belongs to."""
    return str(run.data.tags["unveil.stage"])


@dataclass(frozen=True)
class Smoke(Project):
    """The project after its first `dvc repro`, which printed ``output``; nobody changes it."""

    output: str


@pytest.fixture(scope="session")
def smoke(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Made by the first of the test processes that needs it; the others wait."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    project, said = Project(folder / "smoke" / "unveil"), folder / "smoke" / "output.txt"
    with FileLock(folder / "smoke.lock"):
        if not said.exists():
            copy_sources(repository, project.root)
            project.command("git", "init", "--quiet", "--initial-branch=main")
            code = "import sys; sys.path.insert(0, 'src'); from unveil.cli.main import app; app()"
            project.command(sys.executable, "-c", code, "recipes", "apply", "smoke")
            project.commit("smoke")
            output = project.dvc("repro")
            # What is copied is not what others run commands in, whose lock files come and go.
            shutil.copytree(project.root, project.root.with_name("pristine"), symlinks=True, ignore=NOT_COPIED)
            said.write_text(output, encoding="utf-8")
    return Smoke(project.root, said.read_text(encoding="utf-8"))


def copy_sources(repository: Path, root: Path) -> None:
    """Copy what Git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.rstrip("\0").split("\0"):
        if (repository / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, root / name)


@dataclass(frozen=True)
class Experiments(Project):
    """A project in which experiments ran in the workspace, in a temporary copy and in the queue."""

    names: tuple[str, ...] = ("lower", "temporary", "five", "six")


@pytest.fixture(scope="session")
def experiments(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiments]:
    project = Experiments(smoke.copy(tmp_path_factory.mktemp("experiments") / "unveil").root)
    project.commit("baseline")
    project.dvc("exp", "run", "--name", "lower", "--set-param", "train.lr=2e-4")
    project.dvc("exp", "run", "--name", "temporary", "--temp", "--set-param", "sample.steps=3")
    project.dvc("exp", "run", "--name", "five", "--queue", "--set-param", "sample.steps=5")
    project.dvc("exp", "run", "--name", "six", "--queue", "--set-param", "sample.steps=6")
    project.dvc("queue", "start", "--jobs", "2")
    try:
        waiting_until = time.monotonic() + 600
        while (status := project.dvc("queue", "status")).count("Success") < 2:
            assert "Failed" not in status, status + project.dvc("queue", "logs", "five")
            assert time.monotonic() < waiting_until, status
            time.sleep(1)
        yield project
    finally:
        project.dvc("queue", "stop", "--kill")
