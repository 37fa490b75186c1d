"""What may go, and what anything leads to."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tests.conftest import git
from tests.run.conftest import KnownRun, client_of, start
from typer.testing import CliRunner

from unveil.cli.main import app
from unveil.errors import UnveilError
from unveil.layout import CHECKPOINTS, PACKAGES, RUNNING
from unveil.run.cleaning import EXPERIMENTS, Tracked, Waste, find_waste
from unveil.run.orphans import LivingRun


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


def test_what_a_process_takes_meanwhile_stays(untracked: Path) -> None:
    place = EXPERIMENTS / "sweeps/lr"
    folders = [untracked / path for path in (CHECKPOINTS / "aa", PACKAGES / "aa", place)]
    for folder in folders:
        file(folder / "file", days=9)
    locks = [untracked / path for path in (f"{CHECKPOINTS}/aa.lock", f"{place}.lock")]
    found = find_waste(untracked, days=7)
    assert len(found) == 3
    living = LivingRun(untracked / RUNNING)
    living.set("aa")
    with FileLock(locks[0]), FileLock(locks[1]):
        assert not find_waste(untracked, days=7)
        for waste in found:
            with pytest.raises(UnveilError, match="meanwhile"):
                waste.remove()
    living.clear()
    assert len(find_waste(untracked, days=7)) == 3


def test_what_led_to_a_registered_model_stays_without_its_run(project: Path) -> None:
    client: MlflowClient = client_of(project)
    before = ended(project, "FINISHED")
    training = ended(project, "FINISHED", unveil__upstream__preprocess=before.run_id)
    client.create_registered_model("led")
    client.create_model_version("led", str(project), run_id=training.run_id)
    for run in (before, training):
        client.delete_run(run.run_id)
    assert not {before.run_id, training.run_id} & names(project, "deleted runs")
    assert before.run_id not in Tracked(project).unneeded


def test_an_error_of_mlflows_ends_nothing(untracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MlflowException("database is\nlocked")

    (untracked / ".dvc").mkdir()
    gone: list[str] = []
    found = [Waste("failed runs", "aa", 1, "", refuse), Waste("features", "bb", 1, "", lambda: gone.append("bb"))]
    monkeypatch.setattr("unveil.run.cleaning.find_waste", lambda *_: found)
    said = CliRunner().invoke(app, ["gc", "--force"])
    assert said.exit_code == 1 and gone == ["bb"]
    assert "error: aa: database is locked" in said.output and "without 1 of 2" in said.output


@pytest.fixture
def cache(project: Path) -> Iterator[Path]:
    """Of a project of DVC's without a pipeline; the project is shared, so its commits go again."""
    head = git(project, "rev-parse", "HEAD")
    (project / "dvc.yaml").unlink()
    Repo.init()
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=no pipeline")
    yield project / ".dvc/cache"
    git(project, "reset", "--quiet", "--hard", head)


def put(cache: Path, content: str | dict[str, str], days: float = 9) -> str:
    """An object: a file, or a folder of files by their names; its MD5."""
    if isinstance(content, dict):
        listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(content.items())]
        text, ending = json.dumps(listed), ".dir"
    else:
        text, ending = content, ""
    md5 = hashlib.md5(text.encode()).hexdigest() + ending
    path = file(cache / "files/md5" / md5[:2] / md5[2:])
    path.write_text(text)
    os.utime(path, (time.time() - days * 86_400,) * 2)
    return md5


def executed(cache: Path, name: str, outs: dict[str, str], days: float = 9) -> None:
    """An entry of the run cache."""
    path = file(cache / "runs" / name[:2] / name / "value")
    path.write_text(json.dumps({"cmd": "sh", "outs": [{"path": out, "md5": md5} for out, md5 in outs.items()]}))
    os.utime(path, (time.time() - days * 86_400,) * 2)


def going(project: Path, days: float = 7) -> set[str]:
    """What the objects hold that may go, without those of folders."""
    cached = {path: path.read_text() for path in (project / ".dvc/cache/files").rglob("*") if path.is_file()}
    for waste in find_waste(project, days):
        if waste.kind == "DVC cache":
            waste.remove()
    gone = {text for path, text in cached.items() if not path.exists()}
    return {text for text in gone if not text.startswith(("[", "{"))}


def test_of_dvcs_cache_what_a_commit_or_an_execution_has_stays(project: Path, cache: Path) -> None:
    file(project / "folder/a").write_text("committed")
    Repo().add("folder")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=folder")
    for path in (path for path in cache.rglob("*") if path.is_file()):
        os.utime(path, (0, 0))
    runs = {name: ended(project, "FINISHED").run_id for name in ("active", "deleted", "fresh")}
    client: MlflowClient = client_of(project)
    for name in ("deleted", "fresh"):
        client.delete_run(runs[name])
    for name, run_id in (runs | {"elsewhere": "0" * 32}).items():
        outs = {
            "data/shards": put(cache, {"a": put(cache, f"{name}, part"), "b": put(cache, "shared")}),
            "data/preprocess.run.json": put(cache, json.dumps({"run_id": run_id})),
        }
        executed(cache, name, outs, days=1 if name == "fresh" else 9)
    executed(cache, "unrecorded", {"plots/card": put(cache, "unrecorded")})
    put(cache, {"a": put(cache, "old part of a new folder")}, days=1)
    put(cache, {"a": put(cache, "nobody's part")})
    put(cache, "young", days=1)
    assert going(project) == {"deleted, part", "nobody's part"}
    assert not names(project, "DVC cache", days=7)


def test_a_run_in_either_store_counts(project: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(project, "FINISHED")
    shutil.copy(project / "mlflow.db", project / "other.db")
    run = ended(project, "FINISHED")
    put(cache, "nobody's")
    executed(cache, "own", {"models/run.json": put(cache, json.dumps({"run_id": run.run_id})), "m": put(cache, "own")})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    assert going(project) == set() and not (project / "none.db").exists()
    (project / "none.db").write_text("no database")
    assert going(project) == set()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert going(project) == {"nobody's"}
    MlflowClient(f"sqlite:///{project}/mlflow.db").delete_run(run.run_id)
    assert going(project) == {"own"}


def test_dvcs_cache_is_left_alone_if_it_may_be_needed(
    project: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cache, "nobody's")

    def left(why: str) -> bool:
        gone = going(project)
        return not gone and why in capsys.readouterr().err

    for reference in ("refs/stash", "refs/exps/stash", "refs/exps/celery/stash"):
        git(project, "update-ref", reference, "HEAD")
        assert left("stash")
        git(project, "update-ref", "-d", reference)
    git(project, "worktree", "add", "--quiet", "--detach", str(project / "tree"))
    assert left("worktree")
    git(project, "worktree", "remove", "--force", "tree")
    clone = project / EXPERIMENTS / "sweeps/lr"
    git(project, "clone", "--quiet", "--shared", ".", str(clone))
    git(clone, "update-ref", "refs/exps/ab/cd/lr=1", "HEAD")
    git(clone, "pack-refs", "--all")
    assert left("sweeps/lr") and not names(project, "copies")
    git(clone, "update-ref", "-d", "refs/exps/ab/cd/lr=1")
    lock = file(Path(f"{clone}.lock"))
    with FileLock(lock):
        assert left("runs")
    assert going(project) == {"nobody's"}
