"""Which of several processes this is: by the environment, and without PyTorch."""

import subprocess
import sys

import pytest

from unveil.rank import NEEDED, is_launched, is_main_process, local_rank, world_size

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


def test_the_frame_of_a_stage_starts_without_pytorch() -> None:
    code = "import sys, unveil.run.stage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
