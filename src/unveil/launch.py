"""A stage starts itself in as many processes as params.yaml asks for, so that plain ``dvc repro`` uses all GPUs."""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.run import get_args_parser

from unveil.errors import UnveilError
from unveil.params import load_params
from unveil.rank import is_launched

SHUTDOWN_SECONDS = 600  # for a checkpoint after SIGTERM


def processes_here(asked: int, device: str) -> int:
    """How many processes ``launch.processes`` means on this machine: 0 is one for each GPU, or one without a GPU.

    There are never more than GPUs, where these are used.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    return min(asked, gpus) if asked and gpus else asked or max(gpus, 1)


def start_processes(script: str, params: Path, *arguments: str) -> None:
    """Replace this process by torchrun with several of the script, unless it is one of several already.

    Does nothing where one process is asked for, and where params.yaml is wrong: the stage will say what.
    ``arguments`` are the script's others, which each process gets too.
    """
    if is_launched():
        return
    try:
        settings = load_params(params)
    except UnveilError:
        return
    count = processes_here(settings.launch.processes, device=getattr(settings, Path(script).stem).device)
    if count == 1:
        return
    threads = max((os.cpu_count() or 1) // count, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    if any("--shutdown-timeout" in action.option_strings for action in get_args_parser()._actions):
        runner.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")  # older versions of PyTorch have their 30 s
    sys.stdout.flush()
    os.execv(sys.executable, [*runner, script, "--params", str(params), *arguments])
