"""The exponential moving average of the weights, which is what samples are made with."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def decay(batch_size: int, half_life_images: float) -> float:
    """Decay a step for a half-life in images: 2006.11239's 0.9999 at batch 128 is a half-life of 887,184 images."""
    return float(0.5 ** (batch_size / half_life_images)) if half_life_images > 0 else 0.0


class EMA:
    """Average of parameters with a half-life measured in images, so that it does not depend on the batch size.

    Args:
        parameters: of the network; copied.
        half_life_images: images after which a weight's share has halved; 0 keeps the raw weights.
        rampup: the half-life is at most this share of the images seen (as EDM's code does); 0 = no limit.
    """

    def __init__(self, parameters: Iterable[Tensor], half_life_images: float, rampup: float) -> None:
        self.parameters = [parameter.detach().clone() for parameter in parameters]
        self.half_life_images = half_life_images
        self.rampup = rampup

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], batch_size: int, images_seen: int) -> None:
        """Move the average towards ``parameters`` after a step of ``batch_size`` images."""
        half_life = self.half_life_images
        if self.rampup > 0:
            half_life = min(half_life, self.rampup * images_seen)
        torch._foreach_lerp_(self.parameters, list(parameters), 1 - decay(batch_size, half_life))

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the average into ``parameters``."""
        for target, average in zip(parameters, self.parameters, strict=True):
            target.copy_(average)
