"""Which of several processes this is: by the environment, and without PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.rank import (
    ERROR_FILE,
    NEEDED,
    first_error,
    is_launched,
    is_main_process,
    leave_error,
    local_rank,
    world_size,
)

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def _environment(monkeypatch: pytest.MonkeyPatch, without: str | None = None) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    if without is not None:
        monkeypatch.delenv(without)


def test_the_launcher_says_which_one_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch)
    assert (is_launched(), is_main_process(), world_size(), local_rank()) == (True, False, 4, 1)
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()


@pytest.mark.parametrize("missing", NEEDED)
def test_where_something_is_missing_there_is_one_process(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell on a cluster, where some of these names are set for other reasons."""
    _environment(monkeypatch, missing)
    assert (is_launched(), is_main_process(), world_size(), local_rank()) == (False, True, 1, 0)


def test_of_several_processes_the_first_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert leave_error("alone") and first_error() is None
    _environment(monkeypatch)
    monkeypatch.delenv(ERROR_FILE, raising=False)
    assert leave_error("under another launcher") and first_error() is None
    for rank, line, is_first in (("1", "cause", True), ("1", "cause", True), ("0", "effect", False)):
        (tmp_path / rank).mkdir(exist_ok=True)
        monkeypatch.setenv(ERROR_FILE, str(tmp_path / rank / "error.json"))
        assert (leave_error(line), first_error()) == (is_first, "cause")
    assert json.loads((tmp_path / "0" / "error.json").read_text())["message"] == "effect"  # for torchrun's report


def test_the_frame_of_a_stage_starts_without_pytorch() -> None:
    code = "import sys, unveil.run.stage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
