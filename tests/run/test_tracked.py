"""unveil.run.tracked: what a run keeps, and what happens when the store does not answer."""

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from tests.run.conftest import KnownRun, client_of, finished, history, python, start

from unveil.errors import UnveilError
from unveil.run.calls import Rows


def model_folder(project: Path) -> Path:
    folder = project / "packaged"
    (folder / "code").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "code" / "model.py").write_text("pass")
    return folder


def files_of(model: LoggedModel) -> set[str]:
    place = Path(unquote(urlsplit(model.artifact_location).path))
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


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


def test_a_model_is_a_folder_linked_to_its_run(project: Path) -> None:
    folder = model_folder(project)
    train = start(project)
    model_id = train.log_model("denoiser-x.y/z", folder, {"network.channels": 128}, {"key": "value"}, step=640)
    train.finish("FINISHED")
    assert model_id is not None

    client = client_of(project)
    model = client.get_logged_model(model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("denoiser-x-y-z", "READY", train.run_id)
    assert model.params == {"network.channels": "128"}
    assert model.tags["key"] == "value"
    outputs = client.get_run(train.run_id).outputs
    assert outputs is not None
    assert [(output.model_id, output.step) for output in outputs.model_outputs] == [(model_id, 640)]
    assert files_of(model) == {"config.json", "code/model.py"}


def test_metrics_reach_the_model_and_the_data_set(project: Path) -> None:
    train = start(project)
    model_id = train.log_model("denoiser", model_folder(project), {}, {})
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
    assert run.log_model("denoiser", model_folder(project), {}, {}) is None
    started = time.monotonic()
    run.finish("FINISHED")
    assert time.monotonic() - started < 8
    *_, last = capsys.readouterr().err.splitlines()
    named = r"\d+ metric values, 1 tags, artifact \S*weights, model denoiser, status FINISHED"
    end = "`unveil sync` uploads that when it does"
    assert re.fullmatch(f"warning: MLflow's store did not answer, and is without: {named}; {end}", last)


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
    assert run.log_model("denoiser", model_folder(project), {}, {}) is not None
    run.finish("FINISHED")
    (model,) = client_of(project).search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    assert model.status == "READY"
    assert files_of(model) == {"config.json", "code/model.py"}


def test_a_row_that_is_refused_takes_no_other_with_it(project: Path) -> None:
    run = start(project)
    with pytest.raises(MlflowException):
        Rows(run_id=run.run_id, kind="tags", rows=[("a", "1"), ("no*name", "2"), ("b", "3")]).make(run.client)
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


@pytest.mark.parametrize("case", ["finished", "other parameters", "no such run", "deleted"])
def test_a_run_that_cannot_be_gone_on_with_leaves_both_as_they_are(project: Path, case: str) -> None:
    first = start(project, lr=1)
    first.finish("FINISHED" if case == "finished" else "KILLED")
    if case == "deleted":
        client_of(project).delete_run(first.run_id)
    second = start(project, lr=2 if case == "other parameters" else 1)
    wanted = "0" * 32 if case == "no such run" else first.run_id
    assert second.take_over(wanted, {}, {"lr": 2 if case == "other parameters" else 1}) is None
    second.log_metrics({"loss": 1.0}, step=1)
    second.finish("FINISHED")
    assert history(project, second, "loss") == [(1, 1.0)]
    assert client_of(project).get_run(second.run_id).info.status == "FINISHED"
    assert client_of(project).get_run(first.run_id).info.status == ("FINISHED" if case == "finished" else "KILLED")


@pytest.mark.parametrize("refused", ["delete_run", "update_run"])
def test_who_may_not_do_everything_goes_on_all_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    first, second = start(project), start(project)
    first.finish("KILLED")
    empty = second.run_id
    with monkeypatch.context() as patch:
        refusing(patch, second, refused)
        assert second.take_over(first.run_id, {}, {}) == frozenset()
        second.log_metrics({"loss": 1.0}, step=1)
    second.finish("FINISHED")
    assert history(project, first, "loss") == [(1, 1.0)]
    assert client_of(project).get_run(first.run_id).info.status == "FINISHED"
    if refused == "delete_run":
        assert client_of(project).get_run(empty).info.status == "KILLED"


def test_without_tracking_everything_is_accepted_and_mlflow_is_not_imported(tmp_path: Path, repository: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from unveil.run.tracked import TrackedRun

        run = TrackedRun()
        run.log_params({"a": 1}); run.log_metrics({"b": 2}); run.set_tags({"c": "d"})
        run.log_artifact(Path("nowhere")); run.log_dataset("g", "h", "i", "j")
        Path("k").write_text("{}")
        assert run.log_model("l", Path("k"), {}, {}) is None and not run.link_model("m")
        run.finish("FAILED", "e", "f")
        print("mlflow" in sys.modules, sorted(path.name for path in Path.cwd().iterdir()))
    """
    assert finished(python(code, tmp_path, repository)) == "False ['k']\n"


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
        Path("model").mkdir()
        run.log_model("denoiser", Path("model"), {}, {})
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
