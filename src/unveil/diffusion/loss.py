"""The loss of a denoiser: what is drawn for it, and how much an error counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unveil.diffusion.config import Diffusion
from unveil.diffusion.denoiser import expand
from unveil.diffusion.objectives import Objective, build_objective


@dataclass(frozen=True)
class Penalty:
    """How much an error of the denoised image counts: its pixels, and the differences of neighbouring ones.

    Attributes:
        huber_scale: 0 = squared error, whose best D is the mean of the clean images that x may have come from. Else
            the pseudo-Huber loss ``2 c (sqrt(e^2 + c^2) - c)`` of an error e of a pixel, with
            ``c = huber_scale (1 + sigma^2)^huber_growth``: ``e^2`` for errors far below c, ``2 c |e|`` far above. Small
            errors of large surfaces count more beside those of edges; the best D lies between the mean and the median,
            which are one where little is uncertain. Where much is, at large sigma, a median would draw the common
            images too often: there c is beyond all errors (2403.16728 lets c depend on the noise level too). All of it
            is divided by ``(1 + sigma^2)^(huber_growth / 2)``, or these large squares would leave the small sigmas no
            part of the step.
        difference_weight: how often the errors of the differences between a pixel and its right and lower neighbour
            count, each as those of the pixels do (1511.05440, eq. 6, is the like). A faint texture on a flat
            surface is small in the pixels and large in their differences. The best D of squared errors stays the
            same: differences are linear in the image.
        huber_growth: how c grows with sigma; 0 = one c at all noise levels.
    """

    huber_scale: float = 0.0
    difference_weight: float = 0.0
    huber_growth: float = 1.0

    def __call__(self, error: Tensor, sigma: Tensor) -> Tensor:
        """The penalty of each image: of errors [B, C, H, W], or [B, ...] without differences, at sigma [B]; [B]."""
        found = self._mean(error, sigma)
        if self.difference_weight:
            rows, columns = error.diff(dim=2), error.diff(dim=3)
            found = found + self.difference_weight * (self._mean(rows, sigma) + self._mean(columns, sigma))
        return found

    def _mean(self, error: Tensor, sigma: Tensor) -> Tensor:
        square = error.square()
        if self.huber_scale:  # 2 c (sqrt(e^2 + c^2) - c), without a difference of nearly equal numbers
            growth = expand((1 + sigma.square()).pow(self.huber_growth), error)
            c = self.huber_scale * growth
            square = 2 * c * square / (((square + c.square()).sqrt() + c) * growth.sqrt())
        return square.flatten(1).mean(1)


SQUARED = Penalty()


@dataclass(frozen=True)
class Draws:
    """What is random about the loss of n images; ``draws[here]`` is that of some of them.

    Attributes:
        sigma: noise levels, float32 [n].
        noise: unit Gaussian noise, float32 [n, C, H, W].
        perturbation: added to the noise of the input alone, float32 [n, C, H, W]; None = none.
    """

    sigma: Tensor
    noise: Tensor
    perturbation: Tensor | None = None

    def __getitem__(self, here: slice | Tensor) -> "Draws":
        perturbation = None if self.perturbation is None else self.perturbation[here]
        return Draws(self.sigma[here], self.noise[here], perturbation)


@dataclass(frozen=True)
class Loss:
    """Weighted error of denoised images: ``weight(sigma) penalty(D(x0 + sigma n; sigma) - x0)``.

    >>> from unveil.diffusion.objectives import EDMObjective
    >>> loss, images = Loss(EDMObjective()), torch.zeros(2, 3, 8, 8)
    >>> draws = loss.draw(images, torch.Generator().manual_seed(0))
    >>> loss(lambda x, sigma: torch.zeros_like(x), images, draws)
    tensor([0., 0.])

    Attributes:
        objective: density and weight of the noise levels.
        penalty: of an error.
        noise_candidates: draws of noise of which an image takes the nearest, see :func:`nearest_noise`; 1 = the only.
        input_perturbation: gamma of input perturbation (2301.11706, alg. 1): ``x = x0 + sigma (n + gamma xi)`` with xi
            as n, while n stays the noise to be found. So D should give ``x - sigma n``. 0 = none.
    """

    objective: Objective
    penalty: Penalty = SQUARED
    noise_candidates: int = 1
    input_perturbation: float = 0.0

    def plain(self) -> "Loss":
        """With noise that is independent of the images and nothing added to it: for images that are not trained on."""
        return replace(self, noise_candidates=1, input_perturbation=0.0)

    def draw(
        self, images: Tensor, generator: torch.Generator, count: int | None = None, part: slice = slice(None)
    ) -> Draws:
        """Draw noise levels and noise.

        Args:
            images: float32 [n, C, H, W] in [-1, 1].
            generator: on their device.
            count: size of the batch of which they are a part; None = they are all of it.
            part: which of the batch they are. An image's draws do not depend on how the batch is divided.
        """
        count = len(images) if count is None else count
        sigma = self.objective.sample_sigma(count, generator)[part]
        shape = (self.noise_candidates, count, *images.shape[1:])
        noise = nearest_noise(images, _normal(shape, generator)[:, part])
        if not self.input_perturbation:
            return Draws(sigma, noise)
        return Draws(sigma, noise, (self.input_perturbation * _normal(shape[1:], generator))[part])

    def __call__(
        self, denoiser: Callable[..., Tensor], images: Tensor, draws: Draws, condition: Any | None = None
    ) -> Tensor:
        """The loss of every image, averaged over its pixels: float32 [n].

        Args:
            denoiser: the denoiser to judge; called with x and sigma, and with the condition if there is one.
            images: float32 [n, C, H, W] in [-1, 1].
            draws: of these images.
            condition: what the network is told of them.
        """
        sigma = expand(draws.sigma, images)
        target = images if draws.perturbation is None else images + sigma * draws.perturbation
        told = () if condition is None else (condition,)
        error = denoiser(target + sigma * draws.noise, draws.sigma, *told) - target
        return self.objective.weight(draws.sigma) * self.penalty(error, draws.sigma)


def build_loss(config: Diffusion) -> Loss:
    """The loss that ``config`` names, with its objective. Raises ValueError as :func:`build_objective` does."""
    penalty = Penalty(config.huber_scale, config.difference_weight, config.huber_growth)
    return Loss(build_objective(config), penalty, config.noise_candidates, config.input_perturbation)


def nearest_noise(x0: Tensor, candidates: Tensor) -> Tensor:
    """For each image [B, ...] the nearest of its candidates of noise [k, B, ...]: [B, ...].

    Immiscible diffusion (2406.12303; the nearest of k draws, 2505.18521): the noise that an image is trained at lies on
    its side, so that the paths from noise to different images cross less, and pure noise says more of its image. All
    draws together are no longer independent of the images, so the likelihood bound does not hold.
    """
    if len(candidates) == 1:
        return candidates[0]
    chosen = (candidates - x0).flatten(2).square().sum(2).argmin(0)
    return candidates[chosen, torch.arange(len(x0), device=x0.device)]


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
