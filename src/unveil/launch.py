"""A stage starts itself in as many processes as params.yaml asks for, so that plain ``dvc repro`` uses all GPUs."""

import os
import sys
from pathlib import Path

import torch

from unveil.errors import UnveilError
from unveil.params import load_params


def processes_here(asked: int) -> int:
    """How many processes ``launch.processes`` means on this machine: 0 is one for each GPU, or one without a GPU."""
    return asked or max(torch.cuda.device_count(), 1)


def start_processes(script: str, params: Path) -> None:
    """Replace this process by torchrun with several of the script, unless it is one of several already.

    Does nothing where one process is asked for, and where params.yaml is wrong: the stage will say what.
    """
    if "WORLD_SIZE" in os.environ:  # accelerate launch, torchrun or SLURM has started this one
        return
    try:
        count = processes_here(load_params(params).launch.processes)
    except UnveilError:
        return
    if count == 1:
        return
    threads = max((os.cpu_count() or 1) // count, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*runner, script, "--params", str(params)])
