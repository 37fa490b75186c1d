"""Data whose denoiser and density are known exactly: what a sampler or a likelihood should find, in tests and figures.

For Gaussian data the posterior mean is linear in x (the Wiener filter); for a mixture of Gaussians it is the average of
those of the components. No stage uses this.
"""

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from unveil.diffusion.denoiser import expand


class Mixture:
    """A mixture of K Gaussians in d dimensions; :func:`gaussian` has one component.

    >>> two = Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    >>> x, sigma = torch.tensor([[0.0], [2.0]]), torch.tensor([0.5, 0.1])
    >>> two.denoise(x, sigma)
    tensor([[0.0000],
            [1.5000]])

    Args:
        weights: of the components, [K], sum 1.
        means: [K, d], or [K]: then each number of an x of any shape is a point of the line by itself.
        spreads: standard deviations [K], in all directions, or covariance matrices [K, d, d].

    Attributes:
        weights, means, covariances: these parameters, float64 [K], [K, d] and [K, d, d].
    """

    def __init__(
        self, weights: Sequence[float] | Tensor, means: Sequence[object] | Tensor, spreads: Sequence[object] | Tensor
    ) -> None:
        self.weights, self.means, spread = (
            torch.as_tensor(values, dtype=torch.float64) for values in (weights, means, spreads)
        )
        self._is_elementwise = self.means.ndim == 1
        if self._is_elementwise:
            self.means = self.means[:, None]
        identity = torch.eye(self.means.shape[1], dtype=torch.float64)
        self.covariances = spread if spread.ndim == 3 else spread.square()[:, None, None] * identity
        # In the directions of its axes a component is independent Gaussians, also with noise.
        self._variances, self._axes = torch.linalg.eigh(self.covariances)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``E[x0 | x]``, by which this is a denoiser.

        Given the component k, ``x0`` and ``x`` are jointly Gaussian: ``E[x0 | x, k] = mu_k + C_k (C_k + sigma^2 I)^-1
        (x - mu_k)``. These are averaged with the probabilities of the components given x (Bishop, Pattern Recognition
        and Machine Learning, 2006, equations 2.81 and 2.192).

        Args:
            x: float [B, ..., d], or of any shape [B, ...] where each number is a point.
            sigma: [B], or of the shape of x without d; 0 or more.

        Returns:
            the shape and type of x.
        """
        offsets, noisy, log_joint = self._components(x, sigma)
        gain = self._variances.to(x) / noisy
        parts = self.means.to(x) + torch.einsum("kij,...kj->...ki", self._axes.to(x), gain * offsets)
        return (log_joint.softmax(-1)[..., None] * parts).sum(-2).reshape(x.shape)

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Natural logarithm of the density of ``x0 + sigma n`` at x, in the shape of x without d.

        >>> gaussian(0.0, 3.0).log_density(torch.tensor([0.0, 5.0]), 4.0)  # N(0, 5^2)
        tensor([-2.5284, -3.0284])
        """
        return self._components(x, torch.as_tensor(sigma, dtype=x.dtype, device=x.device))[2].logsumexp(-1)

    def draw(self, count: int, seed: int) -> Tensor:
        """``count`` samples without noise, float64 [count, d] or [count]; they follow from the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        scaled = self._variances[chosen].sqrt() * noise
        samples = self.means[chosen] + torch.einsum("bij,bj->bi", self._axes[chosen], scaled)
        return samples[:, 0] if self._is_elementwise else samples

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets from each mean along its axes and their variances [..., K, d], and ln(weight times density) [..., K].

        The variances are those of x, so with the noise.
        """
        points = x[..., None] if self._is_elementwise else x
        offsets = torch.einsum("kij,...ki->...kj", self._axes.to(x), points[..., None, :] - self.means.to(x))
        noisy = self._variances.to(x) + expand(sigma, offsets).square()
        log_densities = -(offsets.square() / noisy + (2 * pi * noisy).log()).sum(-1) / 2
        return offsets, noisy, self.weights.log().to(x) + log_densities


def gaussian(mean: float, std: float) -> Mixture:
    """Independent numbers from N(mean, std^2): its denoiser takes images of any shape.

    >>> gaussian(0.0, 1.0).denoise(torch.full((1, 3, 1, 1), 2.0), torch.ones(1)).flatten()
    tensor([1., 1., 1.])
    """
    return Mixture([1.0], [mean], [std])


def ring(weights: Sequence[float], radius: float, std: float) -> Mixture:
    """Round Gaussians in the plane, evenly around a circle from its top on, of one standard deviation."""
    angles = 2 * pi * torch.arange(len(weights), dtype=torch.float64) / len(weights) + pi / 2
    return Mixture(weights, radius * torch.stack([angles.cos(), angles.sin()], -1), [std] * len(weights))
