"""The closed forms against integration, differentiation and PyTorch's distributions."""

import math

import pytest
import torch
from torch import Tensor

from unveil.diffusion.closed_form import Mixture, gaussian, ring

LINE = Mixture([0.35, 0.65], [-0.9, 0.5], [0.12, 0.2])
PLANE = Mixture([0.3, 0.7], [[-0.9, 0.4], [0.7, -0.3]], [[[0.03, 0.02], [0.02, 0.04]], [[0.05, -0.02], [-0.02, 0.02]]])
RING = ring([0.3, 0.1, 0.25, 0.35], radius=1.2, std=0.1)
CLEAN = torch.linspace(-4, 4, 40_001, dtype=torch.float64)
SIGMAS = [0.03, 0.2, 0.7, 3.0, 20.0]


def _prior(x: Tensor) -> Tensor:
    """The density of LINE, written down a second time."""
    parts = zip((0.35, 0.65), (-0.9, 0.5), (0.12, 0.2), strict=True)
    return torch.stack([w * (-(((x - m) / s) ** 2) / 2).exp() / (s * math.sqrt(2 * math.pi)) for w, m, s in parts]).sum(
        0
    )


@pytest.mark.parametrize("sigma", SIGMAS)
def test_on_the_line_both_are_those_of_numerical_integration(sigma: float) -> None:
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64) * (1 + sigma)
    kernel = torch.exp(-0.5 * ((x[:, None] - CLEAN) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    density = torch.trapezoid(_prior(CLEAN) * kernel, CLEAN)
    mean = torch.trapezoid(_prior(CLEAN) * kernel * CLEAN, CLEAN) / density
    level = torch.full_like(x, sigma)
    torch.testing.assert_close(LINE.log_density(x, level).exp(), density, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(LINE.denoise(x, level), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("data", [PLANE, RING], ids=["plane", "ring"])
def test_in_the_plane_the_denoiser_follows_the_gradient_of_the_density(data: Mixture, sigma: float) -> None:
    """Which is PyTorch's: ``D = x + sigma^2 grad ln p`` (Tweedie's formula)."""
    x = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    noise = sigma**2 * torch.eye(2, dtype=torch.float64)
    parts = torch.distributions.MultivariateNormal(data.means, data.covariances + noise)
    log_density = (parts.log_prob(x[..., None, :]) + data.weights.log()).logsumexp(-1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(data.log_density(x, sigma), log_density, rtol=1e-9, atol=1e-9)
    found = data.denoise(x, torch.full((2,), sigma, dtype=torch.float64))
    torch.testing.assert_close(found, x + sigma**2 * gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("data", [LINE, gaussian(0.3, 0.6), PLANE], ids=["line", "gaussian", "plane"])
def test_each_image_has_its_own_noise_level(data: Mixture) -> None:
    x = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 10.0])
    together = data.denoise(x, sigma)
    assert together.dtype == torch.float32
    for image, level, found in zip(x, sigma, together, strict=True):
        torch.testing.assert_close(found, data.denoise(image[None], level[None])[0])


def test_draws_have_the_moments_of_the_mixture_and_follow_from_the_seed() -> None:
    drawn = PLANE.draw(20_000, seed=1)
    mean = PLANE.weights @ PLANE.means
    offsets = PLANE.means - mean
    covariance = torch.einsum("k,kij->ij", PLANE.weights, PLANE.covariances + offsets[:, :, None] * offsets[:, None])
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0.0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.0, atol=0.03)
    assert torch.equal(drawn, PLANE.draw(20_000, seed=1)) and not torch.equal(drawn, PLANE.draw(20_000, seed=2))
    assert LINE.draw(7, seed=1).shape == (7,)


def test_the_ring_is_round_and_begins_at_its_top() -> None:
    torch.testing.assert_close(RING.means.norm(dim=1), torch.full((4,), 1.2, dtype=torch.float64))
    torch.testing.assert_close(RING.means[0], torch.tensor([0.0, 1.2], dtype=torch.float64))
