"""Which of several processes this is, as ``accelerate launch`` and ``torchrun`` write it into the environment.

They set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Where one that is needed to meet the others is
missing, there is one process. Nothing here needs PyTorch.
"""

import os
import time
from pathlib import Path

ERRORS = "UNVEIL_ERRORS"
"""Variable that names the folder of what each process ended with; :mod:`unveil.run.launch` says it once."""
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


def leave_error(line: str) -> bool:
    """Leave the line to the launcher, if it is one that says what its processes ended with."""
    folder = os.environ.get(ERRORS)
    if not (folder and is_launched()):
        return False
    path = Path(folder) / os.environ["RANK"]
    path.with_suffix(".part").write_text(line, encoding="utf-8")
    path.with_suffix(".part").replace(path)
    return True


def error_of_another(patience: float = 0.0) -> str | None:
    """What another process left, if one did within so many seconds: the cause of what befell this one."""
    folder = os.environ.get(ERRORS)
    if not (folder and is_launched()):
        return None
    end = time.monotonic() + patience
    while True:
        if found := left_errors(Path(folder)):
            return found[0]
        if time.monotonic() >= end:
            return None
        time.sleep(0.05)


def left_errors(folder: Path) -> list[str]:
    """The lines that the processes left, each once, in the order of their ranks."""
    files = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    return list(dict.fromkeys(path.read_text(encoding="utf-8") for path in files))
