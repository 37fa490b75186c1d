"""Moving averages of the weights: the one that samples are made with, and others that are kept beside it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unveil.posthoc import exponent
from unveil.training.config import Training
from unveil.weights import WeightsChoice


def decay(batch_size: int, half_life_images: float) -> float:
    """Decay a step for a half-life in images: 2006.11239's 0.9999 at batch 128 is a half-life of 887,184 images."""
    return float(0.5 ** (batch_size / half_life_images)) if half_life_images > 0 else 0.0


class Average(ABC):
    """An average of parameters, ``a <- d a + (1 - d) w`` after every step. What ``d`` is, a subclass says."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [parameter.detach().clone() for parameter in parameters]

    @abstractmethod
    def decay(self, batch_size: int, images_seen: int) -> float:
        """Share in [0, 1) of the old average after a step of ``batch_size`` images that ends at ``images_seen``."""

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], batch_size: int, images_seen: int) -> None:
        """Move the average towards ``parameters`` after a step of ``batch_size`` images."""
        torch._foreach_lerp_(self.parameters, list(parameters), 1 - self.decay(batch_size, images_seen))

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the average into ``parameters``."""
        for target, average in zip(parameters, self.parameters, strict=True):
            target.copy_(average)


class EMA(Average):
    """Exponential average with a half-life measured in images, so that it does not depend on the batch size.

    A half-life of 0 keeps the raw weights. It is at most ``rampup`` of the images seen, as in EDM's code; 0 = no limit.
    """

    def __init__(self, parameters: Iterable[Tensor], half_life_images: float, rampup: float) -> None:
        super().__init__(parameters)
        self.half_life_images = half_life_images
        self.rampup = rampup

    def decay(self, batch_size: int, images_seen: int) -> float:
        half_life = self.half_life_images
        if self.rampup > 0:
            half_life = min(half_life, self.rampup * images_seen)
        return decay(batch_size, half_life)


class PowerAverage(Average):
    """Average whose weight of time ``t'`` is proportional to ``t' ** gamma`` (EDM2, 2312.02696, appendix C).

    Its decay ``(1 - batch_size / images_seen) ** (gamma + 1)`` (eq. 127) forgets the initial weights in the first
    step, and makes it the exact integral of the profile over weights that are constant between steps.
    ``sigma_rel`` is the profile's standard deviation relative to the training's length, in (0, 12 ** -0.5].
    """

    def __init__(self, parameters: Iterable[Tensor], sigma_rel: float) -> None:
        super().__init__(parameters)
        self.gamma = exponent(sigma_rel)

    def decay(self, batch_size: int, images_seen: int) -> float:
        return float((1 - batch_size / images_seen) ** (self.gamma + 1))


def build_averages(config: Training, parameters: Sequence[Tensor]) -> dict[WeightsChoice, Average]:
    """All that ``config`` wants, by what they are called in ``sample.weights``; the model's own, ``ema``, is first."""
    half_lives = {WeightsChoice(): config.ema_half_life_images}
    half_lives |= {WeightsChoice("half-life", number): number for number in config.ema_more_half_lives}
    return {
        **{name: EMA(parameters, images, config.ema_rampup) for name, images in half_lives.items()},
        **{WeightsChoice("power", value): PowerAverage(parameters, value) for value in config.ema_profiles},
    }
