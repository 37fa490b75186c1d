"""Objectives: at which noise levels to train, and how much an error of the denoiser counts there.

Every one is ``E[ weight(sigma) |D(x0 + sigma n; sigma) - x0|^2 ]`` with its own density of sigma. SNR is the
signal-to-noise ratio ``alpha^2 / s^2 = 1 / sigma^2``.
"""

from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor

from unveil.diffusion.choices import FlowTimes
from unveil.diffusion.denoiser import DenoiserFunction, expand
from unveil.diffusion.paths import DiscreteVP, Flow, NoisePath

Ends = tuple[float, float]
"""The least and the greatest noise level of a path; what is drawn beyond them is moved to them."""


class Objective(Protocol):
    """A density of noise levels and a weight."""

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise levels: float32 [count], on the generator's device."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of D at sigma, of sigma's shape."""


@dataclass(frozen=True)
class UniformTimes:
    """The density of DDPM and Score SDE: times of the path are uniform, whole timesteps on a discrete one."""

    path: NoisePath

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of uniform times."""
        device = generator.device
        if isinstance(self.path, DiscreteVP):
            t = torch.randint(self.path.timesteps, (count,), generator=generator, device=device)
            return self.path.sigmas.to(device)[t].float()
        least, greatest = self.path.t_range()
        share = torch.rand(count, generator=generator, device=device)
        return self.path.sigma(least + (greatest - least) * share.double()).float()


@dataclass(frozen=True)
class Simple(UniformTimes):
    """DDPM's L_simple (2006.11239, eq. 14): t uniform, squared error of the noise.

    An error e of the predicted noise is an error ``-sigma e`` of D, hence the weight ``1 / sigma^2``. On a continuous
    path this is Score SDE's loss with lambda = s^2 (2011.13456, eq. 7).
    """

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return sigma.square().reciprocal()


@dataclass(frozen=True)
class MinSNR(UniformTimes):
    """Min-SNR-gamma (Hang et al., 2303.09556, sec. 3.4): as Simple, but small sigma counts no more than 1 / gamma^1/2.

    Attributes:
        gamma: greatest weight of the squared error of D; the paper takes 5.
    """

    gamma: float = 5.0

    def weight(self, sigma: Tensor) -> Tensor:
        """min(SNR, gamma): the paper's weight of the error of x0, which is the error of D."""
        return sigma.square().reciprocal().clamp_max(self.gamma)


@dataclass(frozen=True)
class P2(UniformTimes):
    """Perception-prioritised weighting (Choi et al., 2204.00227): less weight where only details are lost.

    Attributes:
        k: keeps the weight finite at small SNR; the paper takes 1.
        gamma: strength; 0 is Simple, the paper takes 0.5 or 1.
    """

    k: float = 1.0
    gamma: float = 1.0

    def weight(self, sigma: Tensor) -> Tensor:
        """SNR / (k + SNR)^gamma: the paper's factor on Simple's weight."""
        ratio = sigma.square().reciprocal()
        return ratio / (self.k + ratio).pow(self.gamma)


@dataclass(frozen=True)
class Likelihood:
    """The likelihood bound itself (Song et al., 2101.09258, theorem 1), importance-sampled.

    In the common frame their weight g(t)^2 makes the bound ``integral of E|D - x0|^2 / sigma^2 d ln(sigma)`` on every
    path, and their importance sampling (density of t as g^2 / s^2) draws ln(sigma) uniformly. The loss is
    the mean over ln(sigma), so the bound, in nats, is the loss times the pixels times ``ln(greatest / least)``.
    """

    path: NoisePath

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Log-uniform noise levels between the path's ends."""
        least, greatest = self.path.sigma_range()
        share = torch.rand(count, generator=generator, device=generator.device)
        return (log(least) + log(greatest / least) * share.double()).exp().float()

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return sigma.square().reciprocal()


@dataclass(frozen=True)
class EDMObjective:
    """Karras et al.'s (2206.00364, table 1): ln(sigma) normal, and a unit weight on the network's own error.

    Attributes:
        p_mean, p_std: of ln(sigma).
        sigma_data: standard deviation of the data.
        ends: of the path; None = no ends.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    ends: Ends | None = None

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Log-normal noise levels."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return _within((self.p_mean + self.p_std * normal).exp(), self.ends)

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + d^2) / (sigma d)^2 with d = sigma_data: the inverse square of c_out."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


@dataclass(frozen=True)
class FlowMatching:
    """Squared error of rectified flow's velocity ``n - x0`` (2210.02747; 2403.03206, sec. 3.1).

    An error e of D is an error ``-e / t`` of the velocity, hence the weight ``1 / t^2``, which is held
    below ``t_min`` as in 2511.13720. Here t is always rectified flow's ``sigma / (1 + sigma)``, whatever the path.

    Attributes:
        logit_mean, logit_std: ``t = sigmoid(logit_mean + logit_std n)``, if times are logit-normal.
        t_min: below it the weight stays as at t_min.
        times: density of t; uniform ones keep to ``Flow().t_range()``.
        ends: of the path; None = no ends.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    t_min: float = 0.05
    times: FlowTimes = "logit-normal"
    ends: Ends | None = None

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of the times; of logit-normal ones, ``sigma = t / (1 - t)`` is log-normal."""
        if self.times == "uniform":
            return _within(UniformTimes(Flow()).sample_sigma(count, generator), self.ends)
        normal = torch.randn(count, generator=generator, device=generator.device)
        return _within((self.logit_mean + self.logit_std * normal).exp(), self.ends)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / max(t, t_min)^2."""
        return Flow().t(sigma).clamp_min(self.t_min).square().reciprocal()


@dataclass(frozen=True)
class Penalty:
    """How much an error of the denoised image counts: its pixels, and the differences of neighbouring ones.

    Attributes:
        huber_scale: 0 = squared error, whose best D is the mean of the clean images that x may have come from. Else
            the pseudo-Huber loss ``2 c (sqrt(e^2 + c^2) - c)`` of an error e of a pixel, with
            ``c = huber_scale (1 + sigma^2)``: ``e^2`` for errors far below c, ``2 c |e|`` far above. Small errors of
            large surfaces count more beside those of edges; the best D lies between the mean and the median, which
            are one where little is uncertain. Where much is, at large sigma, a median would draw the common images
            too often: there c is beyond all errors (2403.16728 lets c depend on the noise level too). All of it is
            divided by ``(1 + sigma^2)^(1/2)``, or these large squares would leave the small sigmas no part of the step.
        difference_weight: how often the errors of the differences between a pixel and its right and lower neighbour
            count, each as those of the pixels do (1511.05440, eq. 6, is the like). A faint texture on a flat
            surface is small in the pixels and large in their differences. The best D of squared errors stays the
            same: differences are linear in the image.
    """

    huber_scale: float = 0.0
    difference_weight: float = 0.0

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
            growth = expand(1 + sigma.square(), error)
            c = self.huber_scale * growth
            square = 2 * c * square / (((square + c.square()).sqrt() + c) * growth.sqrt())
        return square.flatten(1).mean(1)


SQUARED = Penalty()


def denoising_loss(
    denoiser: DenoiserFunction,
    objective: Objective,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    perturbation: Tensor | None = None,
    penalty: Penalty = SQUARED,
) -> Tensor:
    """Weighted error of every image, averaged over its pixels.

    Args:
        denoiser: the denoiser to judge.
        objective: gives the weight.
        x0: images in [-1, 1], float32 [B, C, H, W].
        sigma: noise levels, float32 [B].
        noise: unit Gaussian noise n of x0's shape.
        perturbation: input perturbation (2301.11706, alg. 1): the ``gamma xi`` that is added to the noise of the
            input, ``x = x0 + sigma (n + gamma xi)``, while n stays the noise to be found. So D should give
            ``x - sigma n``. None = none.
        penalty: of an error.

    Returns:
        float32 [B].
    """
    target = x0 if perturbation is None else x0 + expand(sigma, x0) * perturbation
    error = denoiser(target + expand(sigma, x0) * noise, sigma) - target
    return objective.weight(sigma) * penalty(error, sigma)


def nearest_noise(x0: Tensor, candidates: Tensor) -> Tensor:
    """For each image [B, ...] the nearest of its candidates of noise [k, B, ...]: [B, ...].

    Immiscible diffusion (2406.12303; the nearest of k draws, 2505.18521): the noise that an image is trained at lies on
    its side, so that the paths from noise to different images cross less, and pure noise says more of its image. All
    draws together are no longer independent of the images, so the likelihood bound does not hold.
    """
    chosen = (candidates - x0).flatten(2).square().sum(2).argmin(0)
    return candidates[chosen, torch.arange(len(x0), device=x0.device)]


def _within(sigma: Tensor, ends: Ends | None) -> Tensor:
    return sigma if ends is None else sigma.clamp(*ends)
