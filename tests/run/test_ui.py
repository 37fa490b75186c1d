"""unveil.run.ui: MLflow's pages are for this machine and this store, and have views of its runs."""

import socket
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run, RunData, RunInfo
from mlflow.exceptions import MlflowException
from tests.run.conftest import start

from unveil.errors import UnveilError
from unveil.figures import save_grid
from unveil.run.store import Store
from unveil.run.ui import addresses, ui_command
from unveil.run.views import last_preview


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_pages_are_for_this_machine_and_this_store(tmp_path: Path) -> None:
    port = free_port()
    command, address = ui_command(Store.locate(tmp_path), port)
    assert address == f"http://127.0.0.1:{port}"
    assert not [word for word in command if "sqlite" in word]  # it may hold a password
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == str(port)


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnveilError, match=f"port {port} of 127.0.0.1 is in use; choose another with --port"):
            ui_command(Store.locate(tmp_path), port)


def test_views_are_put_once_beside_those_of_others(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_grid(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 2, project / "preview.png")
    run = start(project)
    run.log_image("preview", project / "preview.png", 64)
    run.log_image("preview", project / "preview.png", 256)
    run.finish("FINISHED")
    store = Store.locate(project)
    client, experiment = store.open()
    client.set_experiment_tag(experiment, "mlflow.sharedViewState.theirs", "a view")
    assert last_preview(client, [run.run_id]) == 256
    found = dict(addresses(store, "http://host", [client.get_run(run.run_id)]))
    assert found["All runs"].startswith(f"http://host/#/experiments/{experiment}/runs?")
    tags = client.get_experiment(experiment).tags
    for address in found.values():
        key = address.partition("viewStateShareKey=")[2]
        assert not key or f"mlflow.sharedViewState.{key}" in tags
    assert tags["mlflow.sharedViewState.theirs"] == "a view"
    for key in list(tags):
        if key.startswith("mlflow.sharedViewState.unveil"):
            client.delete_experiment_tag(experiment, key)
    ids = [sha256(str(number).encode()).hexdigest()[:32] for number in range(1500)]
    many = [Run(RunInfo(name, experiment, "user", "FINISHED", 0, 1, "active"), RunData()) for name in ids]
    with pytest.raises(UnveilError, match=r"Comparison: found .* name fewer runs"):
        addresses(store, "http://host", many)
    assert "mlflow.sharedViewState.unveil-distance" in client.get_experiment(experiment).tags
    assert len(addresses(store, "http://host", [client.get_run(run.run_id)])) == len(found)

    def refuse(*_: object) -> None:
        raise MlflowException("read only")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    again = dict(addresses(store, "http://host"))  # writes nothing
    assert set(found) - set(again) == {"Parameters compared", "Comparison"}
    assert client.get_experiment(experiment).tags == tags
    assert not capsys.readouterr().err
    other = Run(RunInfo("0" * 32, experiment, "user", "FINISHED", 0, 1, "active"), RunData())
    assert set(found) - set(dict(addresses(store, "http://host", [other]))) == {"Comparison"}
    assert "takes no views of the runs: read only" in capsys.readouterr().err
