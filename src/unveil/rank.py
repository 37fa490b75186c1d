"""Which of several processes this is, as ``accelerate launch`` and ``torchrun`` write it into the environment.

They set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Where one that is needed to meet the others is
missing, there is one process. Nothing here needs PyTorch.
"""

import json
import os
import time
from pathlib import Path

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable that names where torchrun looks for the error of this process, beside the folders of its siblings."""


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
    """Leave the line to torchrun and to the other processes here; whether this one is the first that fails."""
    if (files := _error_files()) is None:
        return True
    own, first = files
    if not own.exists():
        own.write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
    try:
        first.symlink_to(own)
    except FileExistsError:
        return first.samefile(own)
    return True


def first_error() -> str | None:
    """What the first process that failed left: the cause of what befell this one."""
    if (files := _error_files()) is None or not (path := files[1]).exists():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["message"])


def _error_files() -> tuple[Path, Path] | None:
    """Of this process, and of the first one here that failed."""
    named = os.environ.get(ERROR_FILE) if is_launched() else None
    return (Path(named), Path(named).parents[1] / "first.json") if named else None
