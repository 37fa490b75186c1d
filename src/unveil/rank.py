"""Which of several processes this is, as ``accelerate launch`` and ``torchrun`` write it into the environment.

They set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Where one that is needed to meet the others is
missing, there is one process. Nothing here needs PyTorch.
"""

import os

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_launched() -> bool:
    """Whether torchrun or accelerate started this process: all that describes its place is in the environment."""
    return all(os.environ.get(name) for name in NEEDED)


def is_main_process() -> bool:
    """Whether this process prints, tracks and writes: the first of those that were started, or the only one."""
    return not is_launched() or os.environ["RANK"] == "0"


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or 0) if is_launched() else 0
