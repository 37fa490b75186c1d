"""The command: where it listens, and what it says of places where it cannot."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unveil.cli.main import app


def test_a_place_where_nobody_can_listen_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, words in (
            (["--port", str(port)], f"port {port} of 127.0.0.1: Address already in use; choose another with --port"),
            (["--host", "no such host"], "--host: found no such host, expected an address of this machine"),
            (["--host", "192.0.2.1"], "port 8000 of 192.0.2.1: "),
        ):
            done = CliRunner().invoke(app, ["play", "--models", str(tmp_path), *arguments])
            assert done.exit_code == 1
            assert words in done.output
            assert len(done.output.splitlines()) == 1


def test_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = CliRunner().invoke(app, ["play", "--models", str(tmp_path / "models"), "--port", str(port)])
    assert done.exit_code == 1
    assert "config.json: not there" in done.output.splitlines()[-1]
