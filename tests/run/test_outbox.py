"""unveil.run.outbox: what a store does not take lies in files, survives the process, and arrives once."""

import json
import math
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from tests.run.conftest import KnownRun, client_of, python, start
from typer.testing import CliRunner, Result

from unveil.cli.main import app
from unveil.errors import UnveilError
from unveil.layout import OUTBOX
from unveil.run import writer
from unveil.run.calls import Call, CopiedFile, ModelFolder, Rows, named
from unveil.run.outbox import Outbox
from unveil.run.store import Store

WRITERS = ("log_batch", "log_artifact", "log_text", "set_tag", "log_inputs", "log_outputs", "finalize_logged_model")
ENDS = ("set_terminated", "update_run", "delete_run")


def cut_off(run: KnownRun) -> None:
    """From now on the store takes everything, and says so of nothing; the end of a run it does not take at all."""
    run._ended.set()  # no system metrics besides
    run._sampler.join()
    run._writer.ask(bool)  # which comes after what the sampler wrote
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


def test_a_training_that_is_gone_on_with_takes_up_what_waits(here: Path, repository: Path) -> None:
    run_id, _ = of_a_process(here, repository, "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)
    run = start(here)
    assert run.take_over(run_id, {}, {"late": 1}) == frozenset({10, 20})
    run.finish("FINISHED")
    check_everything(here, run_id, "FINISHED")
    assert not list((here / OUTBOX).iterdir())


def test_what_fails_stays(here: Path, repository: Path, tmp_path: Path) -> None:
    run_id, _ = of_a_process(here, repository, "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)
    file = here / OUTBOX / run_id / "calls.jsonl"
    client_of(here).delete_run(run_id)
    done = sync()
    assert done.exit_code == 1 and "MLflow did not take the metric values" in done.stderr
    assert f"{run_id}: 4 metric values, " in done.stderr and len(file.read_text().splitlines()) > 3
    experiment = client_of(here).get_run(run_id).info.experiment_id
    for other in ("0" * 32, client_of(here).create_run(experiment).info.run_id):
        (here / OUTBOX / other).mkdir()
        file = here / OUTBOX / other / "calls.jsonl"
        file.write_text("{}\n")
    said = sync().stderr
    assert "set MLFLOW_TRACKING_URI to the run's store" in said and f"{file}:1: found {{}}" in said


def kept(project: Path, run_id: str, *lost: Call) -> Path:
    """The lines of an outbox with a tag, and these."""
    file = project / OUTBOX / run_id / "calls.jsonl"
    file.parent.mkdir(parents=True)
    calls = (*lost, Rows(run_id=run_id, kind="tags", rows=[("late", "yes")]))
    file.write_text("".join(call.model_dump_json(exclude_none=True) + "\n" for call in calls))
    return file


def test_a_damaged_outbox_and_lost_files_hold_up_nothing_else(here: Path) -> None:
    runs = sorted([start(here), start(here)], key=lambda run: run.run_id)
    for run in runs:
        run.finish("FINISHED")
    client, (first, second) = runs[0].client, (run.run_id for run in runs)
    damaged = kept(here, first)
    damaged.write_text((good := damaged.read_text()) + "{}\n")
    lost = CopiedFile(run_id=second, path=here / "gone.csv")
    kept(here, second, lost, ModelFolder(run_id=second, name="m", path=here / "gone", params={}, tags={}, step=0))
    done = sync()
    assert done.exit_code == 1 and done.stderr.count("\n") == 3
    assert f"run {first}: {damaged}:2: found {{}}" in done.stderr and "; remove this line alone\n" in done.stderr
    assert f"run {second}: lost, since their files are gone from " in done.stderr
    assert "artifact gone.csv, model m\n" in done.stderr
    assert client.get_run(second).data.tags["late"] == "yes"
    assert not client.search_logged_models([runs[0].experiment_id], f"source_run_id = '{second}'")
    damaged.write_text(good)
    assert sync().exit_code == 0 and client.get_run(first).data.tags["late"] == "yes"
    assert not list((here / OUTBOX).iterdir())


def test_what_another_command_has_uploaded_meanwhile_is_no_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(here)
    run.finish("FINISHED")
    kept(here, run.run_id)
    opened, other = Store.open, list[Result]()

    def late(store: Store) -> Any:
        monkeypatch.setattr(Store, "open", opened)
        other.append(sync())
        return opened(store)

    monkeypatch.setattr(Store, "open", late)
    done = sync()
    assert other[0].output == f"run {run.run_id}: uploaded 1 tags\n"
    assert (done.exit_code, done.output) == (0, "")
    assert not list((here / OUTBOX).iterdir())


class Bad(BaseHTTPRequestHandler):
    """A server that knows a run, and does to everything else what ``how`` says."""

    how = "well"
    silence = threading.Event()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.how == "hang":
            self.silence.wait()
        elif self.how == "slow":
            time.sleep(0.4)
        if self.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        run = {"info": {"run_id": "a" * 32, "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/a"}, "data": {}}
        answer = json.dumps({"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}, "run": run}).encode()
        self.send_response(500 if self.how == "500" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bad]]:
    """All waiting is shorter by a factor of ten; a request may still take its ten seconds."""
    for name, seconds in {"LATE": 0.1, "WAIT": 0.5, "TOTAL": 6.0, "END": 1.0, "RETRY": 2.0}.items():
        monkeypatch.setattr(writer, f"{name}_SECONDS", seconds)

    class Chosen(Bad):
        silence = threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Chosen) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        yield Chosen
        Chosen.silence.set()
        server.shutdown()


@pytest.mark.parametrize("how", ["500", "hang", "reset", "slow"])
def test_a_bad_server_takes_a_stage_no_more_than_a_minute(here: Path, bad: type[Bad], how: str) -> None:
    run = start(here)
    bad.how = how
    begun = time.monotonic()
    (here / "packaged").mkdir()
    for name in ("table.csv", "packaged/config.json"):
        (here / name).write_text("{}")
    for step in range(60):
        run.log_metrics({"loss": 1.0}, step=step)
        run.log_artifact(here / "table.csv")
        run.set_tags({"a": "b"})
        run.link_model("m-1")
    run.log_model("denoiser", here / "packaged", {}, {})
    run.finish("FINISHED")
    assert time.monotonic() - begun < 6 + 5  # the minute, and the end of the system metrics
    waiting = named(Outbox(here / OUTBOX / run.run_id).calls())
    assert waiting.endswith("status FINISHED") and "model denoiser" in waiting


@pytest.mark.parametrize("how", ["500", "hang", "reset"])
def test_a_stage_that_starts_at_a_bad_server_is_refused_in_one_line(here: Path, bad: type[Bad], how: str) -> None:
    bad.how = how
    begun = time.monotonic()
    with pytest.raises(UnveilError, match=r"store http://127\.0\.0\.1:\d+ cannot be opened: [^\n]*$"):
        start(here)
    assert time.monotonic() - begun < 10
