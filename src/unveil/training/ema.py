"""Moving averages of the weights: the one that samples are made with, and others that are kept beside it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unveil.posthoc import exponent
from unveil.weights import WeightsChoice


def decay(batch_size: int, half_life_images: float) -> float:
    """Decay a step for a half-life in images: 2006.11239's 0.9999 at batch 128 is a half-life of 887,184 images."""
    return float(0.5 ** (batch_size / half_life_images)) if half_life_images > 0 else 0.0


class Average(ABC):
    """An average of parameters, ``a <- d a + (1 - d) w`` after every step; what ``d`` is, a subclass says.

    Args:
        parameters: of the network; copied.
    """

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

    Args:
        parameters: of the network; copied.
        half_life_images: images after which a weight's share has halved; 0 keeps the raw weights.
        rampup: the half-life is at most this share of the images seen (as EDM's code does); 0 = no limit.
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

    Args:
        parameters: of the network; copied.
        sigma_rel: standard deviation of the profile relative to the training's length, in (0, 12 ** -0.5].
    """

    def __init__(self, parameters: Iterable[Tensor], sigma_rel: float) -> None:
        super().__init__(parameters)
        self.sigma_rel = sigma_rel
        self.gamma = exponent(sigma_rel)

    def decay(self, batch_size: int, images_seen: int) -> float:
        return float((1 - batch_size / images_seen) ** (self.gamma + 1))


class FurtherAverages:
    """Averages that are kept beside the model's own, each by its name in ``sample.weights``.

    Args:
        parameters: of the network.
        half_lives: of exponential averages, in images.
        rampup: theirs, see :class:`EMA`.
        profiles: relative standard deviations of power-function averages.
    """

    def __init__(
        self, parameters: Sequence[Tensor], half_lives: Sequence[int], rampup: float, profiles: Sequence[float]
    ) -> None:
        self.half_lives = {number: EMA(parameters, number, rampup) for number in half_lives}
        self.profiles = {deviation: PowerAverage(parameters, deviation) for deviation in profiles}

    def update(self, parameters: Sequence[Tensor], batch_size: int, images_seen: int) -> None:
        """Move all of them after a step."""
        for average in (*self.half_lives.values(), *self.profiles.values()):
            average.update(parameters, batch_size, images_seen)

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name and number, for a checkpoint: themselves, not copies."""
        named: dict[WeightsChoice, Average] = {WeightsChoice("half-life", n): own for n, own in self.half_lives.items()}
        named |= {WeightsChoice("power", deviation): own for deviation, own in self.profiles.items()}
        return {f"{name}.{n}": tensor for name, own in named.items() for n, tensor in enumerate(own.parameters)}
