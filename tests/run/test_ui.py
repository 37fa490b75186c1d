"""unveil.run.ui: MLflow's pages are for this machine and this store."""

import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from unveil.errors import UnveilError
from unveil.run.store import Store
from unveil.run.ui import ui_command


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
