"""What may go, and what anything leads to."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from dvc.repo import Repo
from filelock import FileLock
from mlflow import MlflowClient
from tests.conftest import git
from tests.run.conftest import KnownRun, client_of, start
from typer.testing import CliRunner

from unveil.cli.main import app
from unveil.run.cleaning import find_waste
from unveil.run.dvc import paths_digest


def names(project: Path, kind: str, days: float = 0) -> set[str]:
    """Of the waste of a kind."""
    return {waste.name.split()[0] for waste in find_waste(project, days) if waste.kind == kind}


def file(path: Path, days: float = 0) -> Path:
    """A file that was written so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)
    for place in (path, path.parent):
        os.utime(place, (time.time() - days * 86_400,) * 2)
    return path


@pytest.fixture
def untracked(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    return project


def test_what_is_young_or_in_use_stays(untracked: Path) -> None:
    kept = untracked / ".unveil"
    old = [
        file(kept / "checkpoints/aa/step-00000001/state.json", days=9).parents[1],
        file(kept / "features/aa.safetensors", days=9),
        file(kept / "downloads/img.zip.part", days=9).parent,
        file(untracked / ".dvc/tmp/exps/tmpa/params.yaml", days=9).parent,
    ]
    os.utime(old[0], (0, 0))
    held, busy = kept / "checkpoints/bb", untracked / ".dvc/tmp/exps/tmpb"
    file(held / "step-00000001/state.json", days=9)
    file(busy / "src/stage.py", days=9)
    file(untracked / ".dvc/tmp/exps/sweeps/lr/.git/refs/exps/ab/cd/lr=1", days=9)  # which the project may lack
    file(kept / "outbox/aa/lines", days=9)
    file(kept / "features/bb.safetensors")
    with FileLock(f"{held}.lock"), subprocess.Popen(["sleep", "60"], cwd=busy / "src") as process:
        for folder in (held, busy):
            os.utime(folder, (0, 0))
        found = find_waste(untracked, days=7)
        assert not find_waste(untracked, days=10)
        said = CliRunner().invoke(app, ["gc", "--days", "7"]).output
        assert "nothing was deleted" in said and all(path.exists() for path in old)
        assert CliRunner().invoke(app, ["gc", "--days", "7", "--force"]).exit_code == 0
        process.kill()
    assert [waste.kind for waste in found] == ["checkpoints", "features", "downloads", "copies"]
    assert all(waste.size > 0 and "9 days" in waste.reason for waste in found)
    assert not any(path.exists() for path in old)
    assert held.is_dir() and busy.is_dir() and (kept / "outbox/aa/lines").exists()


def ended(project: Path, status: str, **tags: str) -> KnownRun:
    run = start(project)
    run.set_tags({key.replace("__", "."): value for key, value in tags.items()})
    run.finish(status)
    return run


def test_a_run_stays_that_anything_leads_to(project: Path) -> None:
    client: MlflowClient = client_of(project)
    failed, upstream, killed = (ended(project, status) for status in ("FAILED", "FAILED", "KILLED"))
    ended(project, "FINISHED", unveil__upstream__train=upstream.run_id)
    deleted, registered = ended(project, "FINISHED"), ended(project, "FINISHED")
    client.log_text(deleted.run_id, "text", "a.txt")
    client.create_registered_model("cleaning")
    client.create_model_version("cleaning", str(project), run_id=registered.run_id)
    for run in (deleted, registered):
        client.delete_run(run.run_id)
    note = file(project / ".unveil/checkpoints/aa/run.json")
    note.write_text(f'{{"run_id": "{killed.run_id}"}}')
    own = {run.run_id for run in (failed, upstream, killed, deleted, registered)}
    assert names(project, "failed runs") & own == {failed.run_id}
    assert names(project, "deleted runs") & own == {deleted.run_id}
    assert not names(project, "failed runs", days=1) | names(project, "deleted runs", days=1)
    for waste in find_waste(project, 0):
        if waste.name.split()[0] in own:
            waste.remove()
    assert client.get_run(failed.run_id).info.lifecycle_stage == "deleted"
    assert deleted.run_id not in names(project, "deleted runs")
    assert not list((project / "mlruns" / deleted.run_id).rglob("a.txt"))


def test_of_dvcs_cache_what_a_commit_or_a_run_has_stays(project: Path) -> None:
    (project / "dvc.yaml").unlink()
    repo = Repo.init()
    folder, digests = project / "folder", {}
    for content in ("committed", "of a run", "nobody's", "here"):
        file(folder / "sub" / "a").write_text(content)
        file(folder / "b").write_text(f"{content}, too")
        repo.add("folder")
        digests[content] = paths_digest(project, ["folder"])
        if content == "committed":
            git(project, "add", "--all")
            git(project, "commit", "--quiet", "--message=folder")
    ended(project, "FINISHED", unveil__output__folder=str(digests["of a run"]))
    cached = {path for path in (project / ".dvc/cache/files").rglob("*") if path.is_file()}
    (waste,) = (waste for waste in find_waste(project, 0) if waste.kind == "DVC cache")
    waste.remove()
    left = {path for path in cached if path.exists()}
    assert len(cached) == 12 and len(left) == 9
    assert not {"nobody's", "nobody's, too"} & {path.read_text() for path in left}
    assert not names(project, "DVC cache")
