"""A real MLflow server that goes away, or falls silent, while a stage trains."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.pipeline.conftest import Project, Smoke
from tests.pipeline.servers import Server, mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server")]
SETTINGS = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    places = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{tmp_path}/mlruns",
    }
    with mlflow_server(tmp_path, places) as found:
        yield found


@pytest.fixture
def project(smoke: Smoke, tmp_path: Path) -> Project:
    found = smoke.copy(tmp_path / "unveil")
    found.set_params("  images: 512 ", "  images: 1024 ")
    return found


def started(project: Project, server: Server, points: int) -> subprocess.Popen[str]:
    """The train stage, once it has printed so many points."""
    process = subprocess.Popen(
        [sys.executable, "stages/train.py"],
        cwd=project.root,
        env=SETTINGS | {"MLFLOW_TRACKING_URI": server.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        points -= " images  loss " in line
        if points == 0:
            return process
    raise AssertionError(process.communicate()[1])


def sync(project: Project, server: Server) -> str:
    """What ``unveil sync`` prints; it has to succeed."""
    code = "import sys; sys.path.insert(0, 'src'); from unveil.cli.main import app; app()"
    return project.command("env", f"MLFLOW_TRACKING_URI={server.address}", sys.executable, "-c", code, "sync")


def check_whole(project: Project, server: Server, status: str) -> None:
    """The server has all of the one run: its end, every point of its curves once, and if it ended well the model."""
    client = MlflowClient(server.address)
    (run,) = client.search_runs(["1"])
    assert run.info.status == status
    with (project.root / "plots/train/curves.csv").open() as table:
        images = [int(row["images"]) for row in csv.DictReader(table)]
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == images and len({point.timestamp for point in points}) > 1
    assert {"curves.csv", "images"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    (model,) = client.search_logged_models(["1"])
    assert run.outputs is not None and [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert str(model.status) == "READY"
    assert "MLmodel" in {item.path for item in client.list_logged_model_artifacts(model.model_id)}


def test_what_a_server_missed_arrives_by_sync(project: Project, server: Server) -> None:
    process = started(project, server, points=4)
    server.kill()
    begun = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert time.monotonic() - begun < 90  # of which the training itself is a few seconds, or many on a busy machine
    first, last = said.splitlines()
    assert first.startswith("warning: MLflow did not take the ")
    lost = r"\d+ metric values, .*artifact .*curves\.csv.*, model denoiser, .*status FINISHED"
    assert re.search(f"{lost}; `unveil sync` uploads that", last)
    server.start()
    assert "model denoiser" in sync(project, server)
    check_whole(project, server, "FINISHED")
    assert sync(project, server) == "nothing waits to be uploaded\n"
    check_whole(project, server, "FINISHED")


@pytest.mark.long
def test_what_a_server_missed_arrives_by_itself_when_it_is_back(project: Project, server: Server) -> None:
    project.set_params("  images: 1024 ", "  images: 8192 ")
    process = started(project, server, points=4)
    server.kill()
    time.sleep(5)
    server.start()
    _, said = process.communicate(timeout=600)
    assert (process.returncode, len(said.splitlines())) == (0, 1), said
    check_whole(project, server, "FINISHED")
    assert not list(project.root.glob(".unveil/outbox/*"))


@pytest.mark.long
def test_what_a_killed_stage_could_not_upload_arrives_with_the_next(project: Project, server: Server) -> None:
    project.set_params("  images: 1024 ", "  images: 8192 ")  # so that it is not done before it is killed
    process = started(project, server, points=4)
    server.kill()
    time.sleep(3)
    process.kill()
    process.communicate(timeout=60)
    assert list(project.root.glob(".unveil/outbox/*/calls.jsonl"))
    server.start()
    last = started(project, server, points=1)
    last.communicate(timeout=120)
    assert last.returncode == 0 and not list(project.root.glob(".unveil/outbox/*"))
    check_whole(project, server, "FINISHED")


def test_a_signal_is_obeyed_although_the_server_is_silent(project: Project, server: Server) -> None:
    process = started(project, server, points=4)
    server.send(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    while not list(project.root.glob(".unveil/checkpoints/*/step-*")) and process.poll() is None:
        time.sleep(0.05)
    assert time.monotonic() - begun < 15
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 40
    assert "status KILLED; `unveil sync` uploads that" in said
    assert said.splitlines()[-1].startswith("error: train was stopped by SIGTERM; ")
