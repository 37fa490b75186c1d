"""What a training takes of the machine that it runs on."""

import psutil
import torch

GIB = 2**30


def usage(device: torch.device) -> dict[str, float]:
    """Memory and load at the moment, by the names that a tracker shows.

    Returns:
        on a GPU ``gpu_memory_gib``, the most that PyTorch has held there so far, in GiB, and ``gpu_utilization``, the
        share of the last moments in which it computed, in percent, where the driver tells it; on a CPU
        ``memory_gib``, what the process has of the machine's memory.
    """
    if device.type != "cuda":
        return {"memory_gib": psutil.Process().memory_info().rss / GIB}
    found = {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / GIB}
    utilization = _gpu_utilization(device)
    return found if utilization is None else found | {"gpu_utilization": utilization}


def _gpu_utilization(device: torch.device) -> float | None:
    """In percent; None without the package nvidia-ml-py, or where the driver does not say, as of a part of a GPU."""
    try:
        from pynvml import NVMLError
    except ImportError:
        return None
    try:
        return float(torch.cuda.utilization(device))
    except (NVMLError, RuntimeError):
        return None
