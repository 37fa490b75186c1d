"""Several processes of a stage: how many, and what is said when one of them fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unveil.launch import processes_here

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "expected"),
    [
        (0, "auto", 0, 1),
        (0, "auto", 4, 4),
        (0, "cpu", 4, 1),
        (2, "auto", 0, 2),
        (2, "auto", 4, 2),
        (8, "cuda", 4, 4),
        (8, "cpu", 4, 8),
    ],
)
def test_processes_are_as_many_as_asked_but_not_more_than_gpus(
    asked: int, device: str, gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert processes_here(asked, device) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("sys.exit(3 if rank == 1 else time.sleep(60))", 3, ""),
        ("rank == 1 and os.kill(os.getpid(), 9); time.sleep(60)", 137, "error: process 1 was killed by SIGKILL\n"),
        ("", 0, ""),
    ],
)
def test_the_launcher_ends_as_the_process_that_failed(body: str, status: int, said: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys, time\nrank = int(os.environ['RANK'])\n{body}\n")
    command = [sys.executable, "-m", "unveil.launch", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (status, said)
