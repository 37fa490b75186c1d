"""A stage starts itself in as many processes as params.yaml asks for, so that plain ``dvc repro`` uses all GPUs.

``python -m unveil.run.launch`` is torchrun, with its options, for those processes: only its account of a failure is
another, because the stage has said in one line what was wrong.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, parse_args, run

from unveil.errors import UnveilError
from unveil.params import load_params
from unveil.rank import is_launched
from unveil.run.orphans import follow

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
    options = ["--standalone", f"--nproc-per-node={count}"]
    if any("--shutdown-timeout" in action.option_strings for action in get_args_parser()._actions):
        options.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")  # older versions of PyTorch have their 30 s
    sys.stdout.flush()
    runner = [sys.executable, "-m", "unveil.run.launch", *options]
    os.execv(sys.executable, [*runner, script, "--params", str(params), *arguments])


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments, and return what the first process that failed ended with, as a shell has it.

    A process that fails says why itself; of one that was killed, that is printed.
    """
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    follow()
    with TemporaryDirectory(prefix="unveil-") as folder:
        try:
            run(parse_args([f"--log-dir={folder}", *arguments]))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return failure.exitcode
            sys.stderr.write(f"error: process {rank} was killed by {failure.signal_name()}\n")
            return 128 - failure.exitcode
        except SignalException as error:
            return 128 + signal.Signals(error.sigval).value
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
