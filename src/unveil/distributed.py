"""Several processes that do one work: which one this is, and what they tell each other.

:mod:`unveil.rank` reads what the launcher says of them; torch.distributed connects them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unveil.errors import line_for_user
from unveil.rank import leave_error, local_rank, world_size

PATIENCE = timedelta(days=2)  # with each other: one may be long at a preview, or have more samples to draw


@dataclass(frozen=True)
class Processes:
    """The processes of a work, as one of them sees them.

    Attributes:
        rank: number of this one, 0 ... count - 1; the one of rank 0 prints, tracks and writes.
        count: how many there are.
        control: the group over which they agree, which is of CPU tensors also on GPUs.
    """

    rank: int = 0
    count: int = 1
    control: Any = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints, tracks and writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of ``count`` things in a row; the shares differ by one at most."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree(self, *values: float) -> list[float]:
        """The greatest of each value over the processes: float64."""
        if self.count == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, dist.ReduceOp.MAX, group=self.control)
        return together.tolist()

    def from_main(self, value: Any) -> Any:
        """What the process of rank 0 has for ``value``; whatever pickle takes, between processes of one work."""
        box = [value]
        if self.count > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, rows: Tensor) -> Tensor | None:
        """The rows of all processes, in the order of their ranks, at rank 0, and None elsewhere: on the CPU."""
        if self.count == 1:
            return rows.cpu()
        parts: list[Any] | None = [None] * self.count if self.is_main else None
        dist.gather_object(rows.cpu().numpy(), parts, group=self.control)
        return torch.cat([torch.from_numpy(part) for part in parts]) if parts is not None else None


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine."""
    if device.type == "cuda" and world_size() > 1:
        return torch.device("cuda", local_rank())
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes, if there are any, and part from them at the end: over NCCL on GPUs, else over gloo."""
    if world_size() == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Processes(dist.get_rank(), dist.get_world_size(), control)
    except Exception as error:  # before the others fail too, since this one has gone
        if (line := line_for_user(error)) is not None:
            leave_error(line)
        raise
    finally:
        dist.destroy_process_group()
