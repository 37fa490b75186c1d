"""A real MLflow server that goes away, or falls silent, while a stage trains."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.pipeline.conftest import Project, Smoke

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server")]
SETTINGS = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@dataclass
class Server:
    """An ``mlflow server`` with its workers."""

    address: str
    process: subprocess.Popen[bytes]

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "mlruns"), "--port", str(port), "--workers", "1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=SETTINGS, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    found = Server(f"http://127.0.0.1:{port}", process)
    try:
        until = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{found.address}/health", timeout=5):
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield found
    finally:
        found.send(signal.SIGKILL)
        process.wait(30)


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


def test_a_training_outlives_its_server_and_names_what_is_lost(project: Project, server: Server) -> None:
    process = started(project, server, points=4)
    server.send(signal.SIGKILL)
    begun = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert time.monotonic() - begun < 90  # of which the training itself is a few seconds, or many on a busy machine
    first, last = said.splitlines()
    assert first.startswith("warning: MLflow did not take the ")
    lost = r"\d+ metric values, artifact .*curves\.csv.*, model denoiser, .*end of the run \(FINISHED\)"
    assert re.search(lost, last)
    assert (project.root / "models" / "run.json").is_file()


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
    assert "end of the run (KILLED)" in said
    assert said.splitlines()[-1].startswith("error: train was stopped by SIGTERM; ")
