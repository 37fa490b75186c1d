"""The curves of a training: what happens between two points, and what a point says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

SIGMA_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Where the intervals of noise levels meet, for the loss of each."""
SIGMA_BINS = ("below_0.03", *(f"{a:g}_to_{b:g}" for a, b in pairwise(SIGMA_EDGES)), "above_30")


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
        parts = {"losses": self.losses, "sigmas": self.sigmas, "norms": self.norms}
        return {f"since.{name}": torch.stack(values) for name, values in parts.items() if values}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "Record":
        """As ``tensors`` wrote it."""
        parts = ("losses", "sigmas", "norms")
        return cls(*(list(tensors.get(f"since.{name}", torch.empty(0)).to(device)) for name in parts))
