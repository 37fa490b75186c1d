"""Run the train stage again and again, kill it at random moments, and let the last run end. For ``test_kill.py``.

    python kill.py KILLS SEED

The processes are forks of this one, which has imported everything, MLflow and what PyTorch's optimizers need too, and
computed nothing: a start costs no seconds.
"""

import os
import random
import signal
import sys
import time

import torch
import torch._dynamo
from mlflow.store.tracking import sqlalchemy_store  # noqa: F401
from mlflow.system_metrics import system_metrics_monitor  # noqa: F401

from stages import train


def start() -> tuple[int, int]:
    """Fork a run of the stage; returns its process and the reading end of its output."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.dup2(writing, 1)
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    train.app([], standalone_mode=True)
    os._exit(0)


def main(kills: int, seed: int) -> int:
    """Kill so many runs a moment after one of their first lines, and report how the last one ended."""
    moments = random.Random(seed)
    for _ in range(kills):
        process, output = start()
        lines = moments.randint(1, 5)
        while lines > 0 and (text := os.read(output, 65536)):
            lines -= text.count(b"\n")
        time.sleep(moments.uniform(0.0, 0.1))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        print("killed" if os.WIFSIGNALED(status) else f"ended with {status}", flush=True)
        os.close(output)
    process, output = start()
    while text := os.read(output, 65536):
        os.write(1, text)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
