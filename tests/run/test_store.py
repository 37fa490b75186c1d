"""unveil.run.store: where the store lies, how it is made, and what is said when it cannot be opened."""

import os
import shutil
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from tests.run.conftest import client_of, committed, finished, python, start

from unveil.errors import UnveilError
from unveil.run.store import Store, is_refusal


def test_the_default_store_lies_in_the_main_checkout(tmp_path: Path) -> None:
    main = committed(tmp_path / "main")
    store = Store.locate(committed(main / ".dvc" / "tmp" / "exps" / "tmpabc"))
    assert store == Store(f"sqlite:///{main}/mlflow.db", main / "mlruns", main / "mlflow.db")


def test_mlflow_tracking_uri_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = committed(tmp_path / "main")
    copy = committed(main / ".dvc" / "tmp" / "exps" / "tmpabc")
    for uri, expected, artifacts in (
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", None),
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000", None),
        ("sqlite:////elsewhere/runs.db", "sqlite:////elsewhere/runs.db", Path("/elsewhere/mlruns")),
        # Relative to the main checkout, or every temporary copy would have a store of its own.
        ("sqlite:///runs.db", f"sqlite:///{main}/runs.db", main / "mlruns"),
        ("mlruns", f"file://{main}/mlruns", None),
        ("postgresql://user@host/runs", "postgresql://user@host/runs", main / "mlruns"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = Store.locate(copy)
        assert (store.uri, store.artifacts) == (expected, artifacts)


def test_what_a_proxy_refuses_is_tried_again_and_what_mlflow_refuses_is_not() -> None:
    assert is_refusal(RestException({"error_code": "BAD_REQUEST", "message": "no"}))
    assert is_refusal(MlflowException("a value too long", INVALID_PARAMETER_VALUE))
    assert not is_refusal(RestException({"message": "of another program"}))
    assert not is_refusal(MlflowException("failed with error code 400. Response body: '<html>'", BAD_REQUEST))


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
        ("http://me:1/hid@den@127.0.0.1:1/runs", "http://127.0.0.1:1/runs"),
        ("http://127.0.0.1:1/team@home", "http://home"),  # it might be a password
    ],
)
def test_a_password_is_shown_to_nobody(uri: str, shown: str) -> None:
    store = Store(uri, None, None)
    assert store.shown == shown
    for error in (OSError(f"no answer from {uri}"), OSError(f"out-of-date database schema in {uri}")):
        assert "hidden" not in str(store.cannot_open(error))
        assert shown in str(store.cannot_open(error))


def test_an_address_where_no_store_can_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for uri, words in {
        "nosuchdatabase://db/runs": "MLFLOW_TRACKING_URI",
        "postgresql://me:x@[bad/x": "MLFLOW_TRACKING_URI",
        "postgresql://h:notaport/x": "MLFLOW_TRACKING_URI",
        "sqlite:///file/mlflow.db": "file: found a file, expected a folder",
    }.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UnveilError, match=words) as caught:
            Store.locate(tmp_path).open()
        assert "\n" not in str(caught.value)


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
    (project / "packaged").mkdir(exist_ok=True)
    (project / "packaged" / "config.json").write_text("{}")
    run = start(project)
    run.log_artifact(project / "note.txt", "notes")
    model_id = run.log_model("denoiser", project / "packaged", {}, {})
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
    served = MlflowClient(Store.locate(folder).uri)
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
