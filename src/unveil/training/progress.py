"""The curves of a training: what happens between two points, and what a point says of it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

import torch
from torch import Tensor

SIGMA_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Where the intervals of noise levels meet, for the loss of each."""
SIGMA_BINS = ("below_0.03", *(f"{a:g}_to_{b:g}" for a, b in pairwise(SIGMA_EDGES)), "above_30")


DIVERGED = 20.0  # times the running median of the loss
MEDIAN_POINTS = 50
FEWEST_POINTS = 5  # before which the loss is not judged


@dataclass(frozen=True)
class Progress:
    """The state of training at one point of the curves.

    Attributes:
        images: images seen.
        loss: mean over the images since the last point.
        grad_norm: mean norm of the gradient, before clipping, since the last point; without the steps that
            fp16's scaling left out because their gradient overflowed.
        lr: learning rate of the last step.
        images_per_second: since the last point.
        seconds_left: estimate at the mean speed of this process.
        preview: whether a preview grid is due.
        loss_by_sigma: mean loss of the images of each interval of noise levels, named by its ends (see
            :data:`SIGMA_EDGES`), those without images left out.
        validation_loss: of the averaged weights on held-out images, None where it was not due.
        minutes: spent on training so far, before an interruption too.
    """

    images: int
    loss: float
    grad_norm: float
    lr: float
    images_per_second: float
    seconds_left: float
    preview: bool
    loss_by_sigma: Mapping[str, float] = field(default_factory=dict)
    validation_loss: float | None = None
    minutes: float = 0.0


@dataclass
class Record:
    """Loss and noise level of every image, and norm of every step's gradient, since the last point."""

    losses: list[Tensor] = field(default_factory=list)
    sigmas: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)

    def add(self, losses: Tensor, sigma: Tensor, norm: Tensor) -> None:
        self.losses.append(losses)
        self.sigmas.append(sigma)
        self.norms.append(norm)

    def mean_loss(self) -> float:
        return torch.cat(self.losses).mean().item()

    def mean_norm(self) -> float:
        norms = torch.stack(self.norms)
        return norms[norms.isfinite()].mean().item()

    def by_sigma(self) -> dict[str, float]:
        losses, sigmas = torch.cat(self.losses), torch.cat(self.sigmas)
        bins = torch.bucketize(sigmas, torch.tensor(SIGMA_EDGES, device=sigmas.device))
        counts = torch.bincount(bins, minlength=len(SIGMA_BINS)).tolist()
        sums = torch.bincount(bins, losses.double(), minlength=len(SIGMA_BINS)).tolist()
        return {name: total / count for name, total, count in zip(SIGMA_BINS, sums, counts, strict=True) if count}

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {f"since.{name}": torch.stack(values) for name, values in vars(self).items() if values}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "Record":
        """As ``tensors`` wrote it."""
        return cls(*(list(tensors.get(f"since.{part.name}", torch.empty(0)).to(device)) for part in fields(cls)))


def failure(loss: float, points: Sequence[Progress], parameters: Sequence[Tensor]) -> str | None:
    """What shows, in the mean loss since the last point, that a training has failed; None if nothing does."""
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    if not torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).all():
        return "the weights became infinite or NaN"  # the next loss will show it, but a checkpoint must not
    if len(points) < FEWEST_POINTS:
        return None
    usual = statistics.median(point.loss for point in points[-MEDIAN_POINTS:])
    if loss > DIVERGED * usual:
        return f"the loss rose to {loss:.4g}, more than {DIVERGED:g} times its running median of {usual:.4g},"
    return None
