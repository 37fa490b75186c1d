"""unveil.run.tracking: where the store lies, what a run keeps, and what happens when the store does not answer."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from tests.conftest import git

from unveil.errors import UnveilError
from unveil.run import tracked
from unveil.run.checkout import git_tags, main_checkout, refuse_lost_experiment
from unveil.run.store import Store
from unveil.run.tracked import TrackedRun, _Batch
from unveil.run.ui import ui_command


class KnownRun(TrackedRun):
    """A run that is tracked: it has an id."""

    run_id: str
    client: MlflowClient


def start(project: Path, **params: object) -> KnownRun:
    run = KnownRun.start(Store.locate(project), {"unveil.stage": "train"}, params)
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


# ------------------------------------------------------------------------------- main_checkout


def committed(folder: Path) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "file").write_text("text")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=start")
    return folder


def test_a_checkout_and_a_plain_folder_are_their_own_main_checkout(tmp_path: Path) -> None:
    assert main_checkout(tmp_path) == tmp_path
    assert main_checkout(committed(tmp_path / "clone")) == tmp_path / "clone"


@pytest.mark.parametrize("inner", ["tmpabc123", "standalone/tmpabc123"])
def test_a_temporary_copy_of_dvc_leads_to_the_checkout_that_it_was_made_from(tmp_path: Path, inner: str) -> None:
    main = committed(tmp_path / "main")
    copy = committed(main / ".dvc" / "tmp" / "exps" / inner)  # a repository of its own, as DVC makes it
    assert main_checkout(copy) == main


def test_a_worktree_and_its_temporary_copies_lead_to_the_main_checkout(tmp_path: Path) -> None:
    main = committed(tmp_path / "main")
    git(main, "worktree", "add", "--quiet", "../tree")
    assert main_checkout(tmp_path / "tree") == main
    assert main_checkout(committed(tmp_path / "tree" / ".dvc" / "tmp" / "exps" / "tmpabc")) == main


def test_a_project_in_a_subfolder_stays_in_its_subfolder(tmp_path: Path) -> None:
    main = tmp_path / "main"
    committed(main)
    (main / "faces").mkdir()
    (main / "faces" / "dvc.yaml").write_text("stages: {}")
    git(main, "add", "--all")
    git(main, "commit", "--quiet", "--message=project")
    git(main, "worktree", "add", "--quiet", "../tree")
    assert main_checkout(main / "faces") == main / "faces"
    assert main_checkout(tmp_path / "tree" / "faces") == main / "faces"


def test_a_worktree_of_a_bare_repository_is_its_own(tmp_path: Path) -> None:
    main = committed(tmp_path / "main")
    git(tmp_path, "clone", "--quiet", "--bare", str(main), "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "--quiet", "../tree")
    assert main_checkout(tmp_path / "tree") == tmp_path / "tree"


def test_a_git_hook_s_environment_does_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = committed(tmp_path / "main"), committed(tmp_path / "other")
    git(main, "worktree", "add", "--quiet", "../tree")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert main_checkout(tmp_path / "tree") == main


# --------------------------------------------------------------------------------------- Store


def test_the_default_store_lies_in_the_main_checkout(tmp_path: Path) -> None:
    main = committed(tmp_path / "main")
    store = Store.locate(committed(main / ".dvc" / "tmp" / "exps" / "tmpabc"))
    assert store == Store(f"sqlite:///{main}/mlflow.db", main / "mlruns", main / "mlflow.db", True)


def test_mlflow_tracking_uri_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = committed(tmp_path / "main")
    copy = committed(main / ".dvc" / "tmp" / "exps" / "tmpabc")
    for uri, expected, artifacts in (
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", None),
        ("sqlite:////elsewhere/runs.db", "sqlite:////elsewhere/runs.db", Path("/elsewhere/mlruns")),
        # Relative to the main checkout, or every temporary copy would have a store of its own.
        ("sqlite:///runs.db", f"sqlite:///{main}/runs.db", main / "mlruns"),
        ("mlruns", f"file://{main}/mlruns", None),
        ("postgresql://user@host/runs", "postgresql://user@host/runs", main / "mlruns"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = Store.locate(copy)
        assert (store.uri, store.artifacts, store.is_default) == (expected, artifacts, False)


CREATE = """
    import sys
    from pathlib import Path
    from unveil.run.store import Store
    from unveil.run.tracked import TrackedRun

    run = TrackedRun.start(Store.locate(Path.cwd()), {"who": sys.argv[1]}, {"a": 1})
    for step in range(50):
        run.log_metrics({"loss": step / 2, "other": step}, step=step)
    run.finish("FINISHED")
"""


@pytest.mark.slow
def test_four_processes_create_one_store_at_once_and_lose_nothing(tmp_path: Path, repository: Path) -> None:
    main = committed(tmp_path / "main")
    copies = [main] + [committed(main / ".dvc" / "tmp" / "exps" / f"tmp{number}") for number in range(3)]
    processes = [python(CREATE, copy, repository, str(number)) for number, copy in enumerate(copies)]
    for process in processes:
        finished(process)
        assert process.stderr is not None
    client = client_of(main)
    experiment = client.get_experiment_by_name("unveil")
    assert experiment is not None
    assert experiment.artifact_location == (main / "mlruns").as_uri()
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["who"] for run in runs} == {"0", "1", "2", "3"}
    assert all(run.info.status == "FINISHED" and run.data.params == {"a": "1"} for run in runs)
    for run in runs:
        points = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in points] == [(step, step / 2) for step in range(50)]
    assert not any((copy / "mlflow.db").exists() for copy in copies[1:])


def test_a_store_of_another_mlflow_version_is_one_line(project: Path, tmp_path: Path) -> None:
    start(project).finish("FINISHED")
    old = tmp_path / "mlflow.db"
    old.write_bytes((project / "mlflow.db").read_bytes())
    with sqlite3.connect(old) as database:
        database.execute("UPDATE alembic_version SET version_num = '728d730b5ebd'")
    with pytest.raises(UnveilError, match=r"made by another version of MLflow.*mlflow db upgrade sqlite:///"):
        Store.locate(tmp_path).open()


@pytest.mark.parametrize("is_silent", [False, True], ids=["gone", "silent"])
def test_a_server_that_does_not_answer_is_one_line_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        if is_silent:  # it accepts, and never replies
            unused.listen()
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        with pytest.raises(UnveilError, match=f"{uri} cannot be opened.*UNVEIL_TRACKING=off") as caught:
            start(tmp_path)
        assert time.monotonic() - started < 8
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:hidden@127.0.0.1:1/runs", "postgresql://127.0.0.1:1/runs"),
        ("postgresql://db/runs?user=me&password=hidden", "postgresql://db/runs?user=***&password=***"),
        ("sqlite:////home/me@corp/mlflow.db", "sqlite:////home/me@corp/mlflow.db"),
        ("http://127.0.0.1:1/team@home", "http://127.0.0.1:1/team@home"),
        ("http://me:hidden@127.0.0.1:1/a@b", "http://127.0.0.1:1/a@b"),
    ],
)
def test_a_password_is_shown_to_nobody(uri: str, shown: str) -> None:
    store = Store(uri, None, None, False)
    assert store.shown == shown
    for error in (OSError(f"no answer from {uri}"), OSError(f"out-of-date database schema in {uri}")):
        assert "hidden" not in str(store.cannot_open(error))
        assert shown in str(store.cannot_open(error))


@pytest.mark.parametrize("uri", ["nosuchdatabase://db/runs", "postgresql://me:x@[bad/x", "postgresql://h:notaport/x"])
def test_an_address_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UnveilError, match="MLFLOW_TRACKING_URI") as caught:
        Store.locate(tmp_path).open()
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_created_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file/mlflow.db")
    with pytest.raises(UnveilError, match="file: found a file, expected a folder"):
        Store.locate(tmp_path).open()


def test_a_deleted_experiment_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "doomed")
    client, experiment = Store.locate(project).open()
    client.delete_experiment(experiment)
    with pytest.raises(UnveilError, match=f"'doomed' was deleted.*--experiment-id {experiment}"):
        Store.locate(project).open()


def test_the_id_of_an_experiment_is_followed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, own = Store.locate(project).open()
    other = client.create_experiment("by id")
    for number, name, expected in (
        (other, "", other),
        (other, "by id", other),
        (own, "by id", f"MLFLOW_EXPERIMENT_ID={own} is 'unveil', MLFLOW_EXPERIMENT_NAME 'by id'; unset one of them"),
        ("777", "", "MLFLOW_EXPERIMENT_ID=777: .* has none of this id"),
        ("9" * 40, "", "MLFLOW_EXPERIMENT_ID=9+: .* has none of this id"),
        ("words", "", "MLFLOW_EXPERIMENT_ID=words: .* has none of this id"),
    ):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        if expected == other:
            assert Store.locate(project).open()[1] == other
        else:
            with pytest.raises(UnveilError, match=expected):
                Store.locate(project).open()
    client.delete_experiment(other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    with pytest.raises(UnveilError, match=f"'by id' was deleted.*--experiment-id {other}"):
        Store.locate(project).open()


def logged(project: Path) -> tuple[str, str]:
    """A run with an artifact and a model; their ids."""
    (project / "note.txt").write_text("text")
    (project / "config.json").write_text("{}")
    run = start(project)
    run.log_artifact(project / "note.txt", "notes")
    model_id = run.log_model("denoiser", project / "config.json", project / "config.json", {})
    run.finish("FINISHED")
    assert model_id is not None
    return run.run_id, model_id


def listed(project: Path, run_id: str, model_id: str) -> list[str]:
    _artifact_repos_cache.clear()  # of this process, whatever the store says now
    client = client_of(project)
    model = client.list_logged_model_artifacts(model_id)
    return [item.path for item in [*client.list_artifacts(run_id, "notes"), *model]]


def store_at(folder: Path, project: Path) -> Path:
    """A new folder with a copy of the project's store, which takes seconds to create."""
    Store.locate(project).open()
    folder.mkdir()
    with (
        closing(sqlite3.connect(project / "mlflow.db")) as source,
        closing(sqlite3.connect(folder / "mlflow.db")) as to,
    ):
        source.backup(to)
    (folder / "mlruns").mkdir()
    return folder


@pytest.mark.parametrize("is_moved", [True, False], ids=["moved", "copied"])
def test_a_moved_or_copied_checkout_has_its_artifacts_beside_its_store(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str], is_moved: bool
) -> None:
    old, new = store_at(tmp_path / "old", project), tmp_path / "new #1"
    ids = logged(old)
    capsys.readouterr()
    shutil.copytree(old, new)
    before = sorted(path for path in old.rglob("*") if path.is_file() and path.name != "mlflow.db.lock")
    if is_moved:
        shutil.rmtree(old)
    later = logged(new)
    assert (
        capsys.readouterr().err
        == f"{new}/mlflow.db was moved or copied: its runs' artifacts are now in mlruns beside it\n"
    )
    for run_id, model_id in (ids, later):
        assert listed(new, run_id, model_id) == ["notes/note.txt", "config.json"]
        assert client_of(new).get_run(run_id).info.artifact_uri == f"{(new / 'mlruns').as_uri()}/{run_id}/artifacts"
        assert client_of(new).get_logged_model(model_id).artifact_location.startswith((new / "mlruns").as_uri())
        assert (new / "mlruns" / run_id / "artifacts" / "notes" / "note.txt").is_file()
    if is_moved:
        assert not old.exists()
    else:
        assert before == sorted(path for path in old.rglob("*") if path.is_file() and path.name != "mlflow.db.lock")
    Store.locate(new).open()
    assert capsys.readouterr().err == ""


def test_other_places_of_artifacts_are_left_alone(tmp_path: Path, project: Path) -> None:
    folder = store_at(tmp_path / "here", project)
    client, _ = Store.locate(folder).open()
    theirs = client.create_experiment("theirs", artifact_location=(tmp_path / "mlruns").as_uri())
    run = client.create_run(theirs)
    shutil.move(folder, tmp_path / "there")
    client, _ = Store.locate(tmp_path / "there").open()
    assert client.get_experiment(theirs).artifact_location == (tmp_path / "mlruns").as_uri()
    assert client.get_run(run.info.run_id).info.artifact_uri == run.info.artifact_uri


@pytest.mark.parametrize(
    "name", ["a#b", "a?b", "a?b=1#c", "a%b", "a%20b", "a%3Fb", "%(x)s", "a b;c&d", "é ü 顔", "a\nb"]
)
def test_any_name_of_a_folder_will_do(tmp_path: Path, project: Path, name: str) -> None:
    folder = store_at(tmp_path / name, project)
    beside = set(tmp_path.iterdir())
    run_id, model_id = logged(folder)
    assert listed(folder, run_id, model_id) == ["notes/note.txt", "config.json"]
    assert (folder / "mlruns" / run_id / "artifacts" / "notes" / "note.txt").is_file()
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        assert store.execute("SELECT count(*) FROM runs WHERE run_uuid = ?", [run_id]).fetchone() == (1,)
    assert set(tmp_path.iterdir()) == beside
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, _ = ui_command(Store.locate(folder), port)
    served = MlflowClient(command[command.index("--backend-store-uri") + 1])
    assert served.get_run(run_id).info.status == "FINISHED"


def test_an_address_of_one_s_own_may_be_quoted(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store_at(tmp_path / "a?b c", project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{quote(str(folder))}/mlflow.db")
    assert Store.locate(tmp_path).database == folder / "mlflow.db"
    run_id, model_id = logged(folder)
    assert listed(folder, run_id, model_id) == ["notes/note.txt", "config.json"]


def test_a_folder_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=r"a\\udcff.*not UTF-8, here at character \d+; rename it"):
        Store.locate(tmp_path / os.fsdecode(b"a\xff"))


# --------------------------------------------------------------------------------- TrackedRun


def test_a_run_keeps_what_it_was_told(project: Path) -> None:
    run = start(project, lr=2e-4, **{"network.channels": [1, 2]})
    for step in (10, 20, 30):
        run.log_metrics({"loss": 1 / step, "lr": 0.1}, step=step)
    (project / "note.txt").write_text("text")
    run.log_artifact(project / "note.txt", "notes")
    run.set_tags({"key": "value"})
    run.finish("FINISHED")

    found = client_of(project).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.0002", "network.channels": "[1, 2]"}
    assert found.data.tags["key"] == "value"
    assert history(project, run, "loss") == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)]
    assert [item.path for item in client_of(project).list_artifacts(run.run_id, "notes")] == ["notes/note.txt"]
    assert (project / "mlruns" / run.run_id / "artifacts" / "notes" / "note.txt").read_text() == "text"


def test_the_shortest_run_has_system_metrics(project: Path) -> None:
    run = start(project)
    run.finish("FINISHED")
    keys = set(client_of(project).get_run(run.run_id).data.metrics)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= keys


def test_each_point_is_in_the_store_as_soon_as_it_was_logged(project: Path) -> None:
    run = start(project)
    run.log_metrics({"loss": 0.5}, step=7)
    with sqlite3.connect(project / "mlflow.db") as database:
        rows = database.execute("SELECT key, value, step FROM metrics WHERE run_uuid = ?", [run.run_id])
        assert ("loss", 0.5, 7) in rows.fetchall()
    run.finish("FINISHED")


def test_more_than_mlflow_takes_at_once_and_longer_than_it_allows(project: Path) -> None:
    run = start(project, **{f"p{number}": number for number in range(230)})
    run.set_tags({f"t{number}": str(number) for number in range(230)} | {"long": "x" * 20_000})
    run.log_metrics({f"m{number}": number for number in range(1230)})
    run.finish("FINISHED")
    data = client_of(project).get_run(run.run_id).data
    assert data.params == {f"p{number}": str(number) for number in range(230)}
    assert all(data.tags[f"t{number}"] == str(number) for number in range(230))
    assert set(data.tags["long"]) == {"x"}
    assert all(data.metrics[f"m{number}"] == number for number in range(1230))


@pytest.mark.parametrize("copied", [True, False], ids=["small", "large"])
def test_a_model_is_safetensors_and_json_linked_to_its_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    monkeypatch.setattr(tracked, "WEIGHTS_COPY_BYTES", 1000 if copied else 999)
    config, weights = project / "config.json", project / "model.safetensors"
    config.write_text("{}")
    weights.write_bytes(bytes(1000))
    train = start(project)
    model_id = train.log_model("denoiser-x.y/z", config, weights, {"network.channels": 128}, step=640)
    train.finish("FINISHED")
    assert model_id is not None

    client = client_of(project)
    model = client.get_logged_model(model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("denoiser-x-y-z", "READY", train.run_id)
    assert model.params == {"network.channels": "128"}
    # sha256 of 1000 zero bytes, as coreutils' sha256sum prints it
    assert model.tags["unveil.weights.sha256"] == ("541b3e9daa09b20bf85fa273e5cbd3e80185aa4ec298e765db87742b70138a53")
    outputs = client.get_run(train.run_id).outputs
    assert outputs is not None
    assert [(output.model_id, output.step) for output in outputs.model_outputs] == [(model_id, 640)]
    names = {path.name for path in Path(model.artifact_location.removeprefix("file://")).iterdir()}
    assert names == ({"config.json", "model.safetensors"} if copied else {"config.json"})


def test_metrics_reach_the_model_and_the_data_set(project: Path) -> None:
    (project / "config.json").write_text("{}")
    (project / "model.safetensors").write_bytes(b"0")
    train = start(project)
    model_id = train.log_model("denoiser", project / "config.json", project / "model.safetensors", {})
    train.finish("FINISHED")
    assert model_id is not None

    run, digest = start(project), "0123456789abcdef" * 4
    assert run.link_model(model_id)
    assert not run.link_model("m-" + "0" * 32)
    run.log_dataset("celeba-64-ddim", digest, "data/shards", "evaluation")
    run.log_metrics({"fid": 3.5}, model_id=model_id, dataset=("celeba-64-ddim", digest))
    run.finish("FINISHED")

    client = client_of(project)
    inputs = client.get_run(run.run_id).inputs
    assert inputs is not None
    assert [item.model_id for item in inputs.model_inputs] == [model_id]
    (item,) = inputs.dataset_inputs
    assert (item.dataset.name, item.dataset.digest) == ("celeba-64-ddim", digest[:36])
    assert json.loads(item.dataset.source) == {"uri": "data/shards"}
    assert [(tag.key, tag.value) for tag in item.tags] == [("mlflow.data.context", "evaluation")]
    (metric,) = client.get_logged_model(model_id).metrics or []
    assert (metric.key, metric.value, metric.run_id) == ("fid", 3.5, run.run_id)
    assert (metric.dataset_name, metric.dataset_digest) == ("celeba-64-ddim", digest[:36])


def test_points_of_an_outage_arrive_when_the_store_is_back(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(project)
    real = run.client.log_batch

    def broken(*arguments: Any, **named: Any) -> None:
        raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)

    run.log_metrics({"loss": 0.0}, step=0)
    monkeypatch.setattr(run.client, "log_batch", broken)
    for step in range(1, 5):
        run.log_metrics({"loss": float(step)}, step=step)
    monkeypatch.setattr(run.client, "log_batch", real)
    run.log_metrics({"loss": 5.0}, step=5)
    run.finish("FINISHED")
    assert history(project, run, "loss") == [(step, float(step)) for step in range(6)]
    lines = capsys.readouterr().err.splitlines()
    hint = "what it does not take is kept and tried again"
    assert lines == [f"warning: MLflow did not take the metric values: database is locked; {hint}"]


def test_what_a_store_does_not_take_till_the_end_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(project)
    for method in ("log_batch", "log_artifact", "create_logged_model", "set_terminated"):
        refusing(monkeypatch, run, method)
    run._ended.set()  # no system metrics besides
    run._sampler.join()
    (project / "weights").write_text("{}")
    run.log_metrics({"loss": 1.0, "lr": 2.0}, step=1)
    run.log_metrics({"loss": 1.0, "lr": 2.0}, step=2)
    run.set_tags({"a": "b"})
    run.log_artifact(Path("weights"), "previews")
    assert run.log_model("denoiser", Path("weights"), Path("weights"), {}) is None
    started = time.monotonic()
    run.finish("FINISHED")
    assert time.monotonic() - started < 8
    *_, last = capsys.readouterr().err.splitlines()
    named = r"\d+ metric values, 1 tags, artifact weights, model denoiser, end of the run \(FINISHED\)"
    assert re.fullmatch(f"warning: MLflow's store did not answer, and is without: {named}", last)


@pytest.mark.slow
def test_a_model_whose_files_find_no_room_at_first_is_whole_in_the_end(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(project)
    log, refusals = run.client.log_model_artifact, iter([True, False, True, False])

    def full_now_and_then(*arguments: str) -> None:
        if next(refusals, False):
            raise OSError(28, "No space left on device")
        log(*arguments)

    monkeypatch.setattr(run.client, "log_model_artifact", full_now_and_then)
    files = [project / name for name in ("config.json", "model.safetensors")]
    for file in files:
        file.write_text("{}")
    assert run.log_model("denoiser", files[0], files[1], {}) is not None
    run.finish("FINISHED")
    (model,) = client_of(project).search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    assert model.status == "READY"
    assert {path.name for path in Path(unquote(urlsplit(model.artifact_location).path)).iterdir()} == {
        file.name for file in files
    }


def test_a_row_that_is_refused_takes_no_other_with_it(project: Path) -> None:
    run = start(project)
    with pytest.raises(MlflowException):
        _Batch(run.client, run.run_id, "tags", 100)([RunTag("a", "1"), RunTag("no*name", "2"), RunTag("b", "3")])
    run.finish("FINISHED")
    assert {"a": "1", "b": "3"}.items() <= client_of(project).get_run(run.run_id).data.tags.items()


def test_a_database_that_somebody_holds_is_not_waited_for(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(project)
    with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        for step in range(20):
            run.log_metrics({"loss": float(step)}, step=step)
        assert time.monotonic() - started < 7
        with pytest.raises(UnveilError, match="cannot be opened: it does not answer"):
            start(project)
        assert time.monotonic() - started < 14
        holder.execute("ROLLBACK")
    run.finish("FINISHED")
    assert history(project, run, "loss") == [(step, float(step)) for step in range(20)]
    assert client_of(project).get_run(run.run_id).info.status == "FINISHED"


def test_a_run_deleted_while_it_goes_on_does_not_stop_the_stage(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(project)
    client_of(project).delete_run(run.run_id)
    for step in range(3):
        run.log_metrics({"loss": 1.0}, step=step)
    run.finish("FINISHED")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines))
    assert all(line.startswith("warning: MLflow did not take the ") for line in lines)
    assert any("metric values" in line for line in lines)


def refusing(monkeypatch: pytest.MonkeyPatch, run: KnownRun, method: str) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise MlflowException("not today", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(run.client, method, refuse)


def test_a_run_that_was_interrupted_is_gone_on_with(project: Path) -> None:
    first = start(project, lr=1)
    first.log_metrics({"loss": 3.0}, step=10)
    first.finish("KILLED", "stopped")
    second = start(project, lr=1)
    empty = second.run_id
    assert second.take_over(first.run_id, {"git.commit": "new"}, {"lr": 1}) == frozenset({10})
    second.log_metrics({"loss": 2.0}, step=20)
    second.finish("FINISHED")
    found = client_of(project).get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["unveil.resumed"] == "1" and found.data.tags["git.commit"] == "new"
    assert "unveil.error" not in found.data.tags
    assert history(project, first, "loss") == [(10, 3.0), (20, 2.0)]
    assert client_of(project).get_run(empty).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("case", ["finished", "other parameters", "no such run", "deleted", "update refused"])
def test_a_run_that_cannot_be_gone_on_with_leaves_both_as_they_are(
    project: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    first = start(project, lr=1)
    first.finish("FINISHED" if case == "finished" else "KILLED")
    if case == "deleted":
        client_of(project).delete_run(first.run_id)
    second = start(project, lr=2 if case == "other parameters" else 1)
    with monkeypatch.context() as patch:
        if case == "update refused":
            refusing(patch, second, "update_run")
        wanted = "0" * 32 if case == "no such run" else first.run_id
        assert second.take_over(wanted, {}, {"lr": 2 if case == "other parameters" else 1}) is None
    second.log_metrics({"loss": 1.0}, step=1)
    second.finish("FINISHED")
    assert history(project, second, "loss") == [(1, 1.0)]
    assert client_of(project).get_run(second.run_id).info.status == "FINISHED"
    assert client_of(project).get_run(first.run_id).info.status == ("FINISHED" if case == "finished" else "KILLED")


def test_who_may_delete_nothing_goes_on_all_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = start(project), start(project)
    first.finish("KILLED")
    empty = second.run_id
    refusing(monkeypatch, second, "delete_run")
    assert second.take_over(first.run_id, {}, {}) == frozenset()
    second.log_metrics({"loss": 1.0}, step=1)
    second.finish("FINISHED")
    assert history(project, first, "loss") == [(1, 1.0)]
    assert client_of(project).get_run(empty).info.status == "KILLED"


def test_without_tracking_everything_is_accepted_and_mlflow_is_not_imported(tmp_path: Path, repository: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from unveil.run.tracked import TrackedRun

        run = TrackedRun()
        run.log_params({"a": 1}); run.log_metrics({"b": 2}); run.set_tags({"c": "d"})
        run.log_text("e", "f"); run.log_artifact(Path("nowhere")); run.log_dataset("g", "h", "i", "j")
        Path("k").write_text("{}")
        assert run.log_model("l", Path("k"), Path("k"), {}) is None and not run.link_model("m")
        run.finish("FINISHED")
        print("mlflow" in sys.modules, sorted(path.name for path in Path.cwd().iterdir()))
    """
    assert finished(python(code, tmp_path, repository)) == "False ['k']\n"


# ------------------------------------------------------------------------------------ privacy


@pytest.mark.slow
def test_a_tracked_run_opens_no_connection_and_asks_no_name_server(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import socket

        calls = []
        for name in ("connect", "connect_ex", "sendto"):
            def spy(self, *arguments, name=name):
                if self.family != socket.AF_UNIX:
                    calls.append((name, arguments[-1]))
                raise OSError("no network")
            setattr(socket.socket, name, spy)
        def resolve(*arguments, **named):
            calls.append(("getaddrinfo", arguments))
            raise OSError("no network")
        socket.getaddrinfo = resolve

        from pathlib import Path
        from unveil.run.checkout import git_tags, machine_tags, source_tags
        from unveil.run.store import Store
        from unveil.run.tracked import TrackedRun

        tags = source_tags("train", None) | machine_tags() | git_tags(Path.cwd())
        run = TrackedRun.start(Store.locate(Path.cwd()), tags, {"a": 1})
        Path("config.json").write_text("{}")
        run.log_metrics({"loss": 1.0})
        run.log_model("denoiser", Path("config.json"), Path("config.json"), {})
        run.log_artifact(Path("config.json"))
        run.finish("FINISHED")
        import atexit
        atexit._run_exitfuncs()
        print(calls)
    """
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS"):  # MLflow is silent under tests by itself
        monkeypatch.delenv(name, raising=False)
    environment = {"MLFLOW_DISABLE_TELEMETRY": "false", "DO_NOT_TRACK": "false"}  # the module decides
    assert finished(python(code, tmp_path, repository, **environment)) == "[]\n"


# ---------------------------------------------------------------------------------------- git


def test_git_tags_tell_commit_and_changes(tmp_path: Path) -> None:
    main = committed(tmp_path / "main")
    commit = git(main, "rev-parse", "HEAD")
    clean = git_tags(main)
    assert (clean["git.commit"], clean["git.dirty"]) == (commit, "false")
    assert "git.changed" not in clean

    (main / "dvc.lock").write_text("written by the pipeline")
    (main / "metrics").mkdir()
    (main / "metrics" / "evaluate.json").write_text("{}")
    assert git_tags(main) == clean

    (main / "file").write_text("edited")
    (main / "new").write_text("")
    dirty = git_tags(main)
    assert (dirty["git.dirty"], dirty["git.changed"]) == ("true", "file, new")


def test_git_tags_without_git_or_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_tags(tmp_path) == {}
    git(tmp_path, "init", "--quiet")
    assert git_tags(tmp_path) == {"git.dirty": "false"}
    monkeypatch.setenv("PATH", "")
    assert git_tags(tmp_path) == {}


def test_git_s_refusal_is_said_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = committed(tmp_path / "main")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git behaves as if the folder were another user's
    assert git_tags(main) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: the run is without its commit, as git fails in {main}: fatal: detected dubious")
    assert f"git config --global --add safe.directory {main}" in line
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    (main / ".git" / "index").write_text("damaged")
    assert git_tags(main) == {}
    assert "as git fails in" in capsys.readouterr().err
    assert git_tags(tmp_path) == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("inner", ["tmpabc", "standalone/tmpabc"])
def test_an_experiment_that_dvc_would_lose_is_refused(tmp_path: Path, inner: str) -> None:
    main = committed(tmp_path / "main")
    git(main, "commit", "--quiet", "--allow-empty", "--message=second")
    git(tmp_path, "clone", "--quiet", "--depth=1", main.as_uri(), "shallow")
    for clone, is_shallow in ((main, False), (tmp_path / "shallow", True)):
        copy = committed(clone / ".dvc" / "tmp" / "exps" / inner)
        refuse_lost_experiment(clone)  # in the workspace all is well
        if is_shallow:
            with pytest.raises(UnveilError, match=r"shallow is a shallow clone.*git fetch --unshallow"):
                refuse_lost_experiment(copy)
        else:
            refuse_lost_experiment(copy)


# ----------------------------------------------------------------------------------------- ui


def test_the_pages_are_for_this_machine_and_this_store(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = Store.locate(tmp_path)
    command, address = ui_command(store, port)
    assert address.startswith(f"http://127.0.0.1:{port}/#/experiments/1/runs?")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == str(port)
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert MlflowClient(store.uri).get_experiment_by_name("unveil") is not None  # created, there was none


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnveilError, match=f"port {port} of 127.0.0.1 is in use; choose another with --port"):
            ui_command(Store.locate(tmp_path), port)


def test_a_server_has_pages_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    with pytest.raises(UnveilError, match=r"open https://mlflow\.example\.org in a browser"):
        ui_command(Store.locate(tmp_path), 5000)
