"""Shared by all tests: nothing outside the test's own folder is read, written or phoned."""

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chromium import CHROMIUM
from tests.pipeline.servers import POSTGRESQL

if TYPE_CHECKING:
    from unveil.workers import Workers

ROOT = Path(__file__).resolve().parents[1]

os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "true",
    # Git commits in temporary repositories, whatever the machine's own settings are.
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}
# What the person who runs the tests, or DVC, has set for real runs.
for name in list(os.environ):
    if name in {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_RUN_ID",
        "UNVEIL_TRACKING",
        "CELEBA_ROOT",
    } or name.startswith("DVC_EXP"):
        del os.environ[name]
for name in ("DVC_STAGE", "DVC_ROOT"):
    os.environ.pop(name, None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is marked ``browser`` or ``postgresql`` needs one; no other skip of the kind stands anywhere."""
    if item.get_closest_marker("browser") and CHROMIUM is None:
        pytest.skip("no Chromium; install it, or name it in $CHROMIUM")
    if item.get_closest_marker("postgresql") and POSTGRESQL is None:
        pytest.skip("no PostgreSQL server; install Debian's postgresql, or put its initdb on the path")


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test passed."""
    report = yield
    item.stash[PASSED] = item.stash.get(PASSED, True) and report.passed
    return report


@pytest.fixture(autouse=True)
def emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    """What passed leaves no files behind: together they are four gigabytes.

    Its folder stays, so that no later test gets the same path, by which MLflow keeps databases open.
    """
    folder: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None and request.node.stash.get(PASSED, False):
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return ROOT


def git(folder: Path, *arguments: str) -> str:
    """Run Git in ``folder``; its output without the last newline."""
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.rstrip("\n")


@pytest.fixture(scope="session")
def tracked_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed project with params.yaml and dvc.yaml, whose store is shared: its creation takes seconds."""
    root = tmp_path_factory.mktemp("project")
    git(root, "init", "--quiet", "--initial-branch=main")
    for file in ("params.yaml", "dvc.yaml", ".gitignore"):
        (root / file).write_bytes((ROOT / file).read_bytes())
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=start")
    return root


@pytest.fixture
def project(tracked_project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The shared project as the working folder, with Git's work tree as committed."""
    monkeypatch.chdir(tracked_project)
    yield tracked_project
    git(tracked_project, "reset", "--quiet", "--hard")
    kept = [f"--exclude=/{name}" for name in ("mlflow.db*", "mlruns")]
    git(tracked_project, "clean", "--quiet", "-d", "-x", "--force", "--force", *kept)  # repositories within it, too


@pytest.fixture
def two_threads() -> "Iterator[Workers]":
    """Threads that share a batch, whatever the number of cores."""
    import torch

    from unveil.workers import workers

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with workers(torch.device("cpu"), 16) as threads:
        assert threads.count == 2
        yield threads
    torch.set_num_threads(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``-m`` does not name of calibrations and long tests: another ``-m`` must not bring them in."""
    for marker in ("calibration", "long"):
        if marker not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)
