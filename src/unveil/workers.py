"""Several cores without waiting: threads that each work through a part of a batch.

PyTorch's own threads share every single operation, and wait for each other at its end. With another program on one of
two cores each of the thousands of operations of a step waits for that core: the step takes four times as long. Threads
that work through a part of the batch each wait once a step, and the system moves them to whichever core is free.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

LEAST_PART = 8  # images for which a thread is worth while

Part = TypeVar("Part")
Result = TypeVar("Result")


class Workers:
    """Threads of this process that compute parts of the work at once, or (``pool`` None) the caller's own alone."""

    def __init__(self, pool: ThreadPoolExecutor | None = None, count: int = 1) -> None:
        self._pool = pool
        self.count = count

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """``function`` of every part, in their order. An exception of one is raised here.

        A thread has its own autocast, gradient and inference mode: the function enters what it needs.
        """
        if self._pool is None or len(parts) < 2:
            return [function(part) for part in parts]
        return list(self._pool.map(function, parts))


ALONE = Workers()
"""The caller's own thread."""


@contextmanager
def workers(device: torch.device, images: int) -> Iterator[Workers]:
    """Threads that share batches of so many ``images``, within the block; on a GPU there is the caller's alone.

    The cores that PyTorch would use are divided among them, so that as few as possible stay idle. What the caller's own
    thread computes has as many as each of them.
    """
    threads = torch.get_num_threads()
    counts = range(1, images // LEAST_PART + 1) if device.type == "cpu" else ()
    count = max(counts, key=lambda count: (threads // count * count, count), default=1)
    if count < 2:
        yield ALONE
        return
    each = threads // count
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(count, "unveil", torch.set_num_threads, (each,)) as pool:
            yield Workers(pool, count)
    finally:
        torch.set_num_threads(threads)
