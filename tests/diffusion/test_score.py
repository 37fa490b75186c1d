"""The score view: the gradient of the log density, and Langevin dynamics that keep a density."""

import math

import pytest
import torch

from unveil.diffusion.closed_form import gaussian
from unveil.diffusion.samplers import langevin_step, score

MEAN, STD = 0.3, 0.6


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma = torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)
    density = torch.distributions.Normal(MEAN, (STD**2 + sigma**2).sqrt()[:, None])
    (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    found = score(gaussian(MEAN, STD).denoise)(x, sigma)
    torch.testing.assert_close(found, gradient)


def test_langevin_steps_have_the_papers_size() -> None:
    """2011.13456, algorithm 4: ``e = 2 (r |z| / |g|)^2``, with the norms of each image."""
    generator = torch.Generator().manual_seed(0)
    x, gradient, noise = torch.randn(3, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    found = langevin_step(x, gradient, noise, 0.16, 1.0)
    for image in range(2):
        size = 2 * (0.16 * noise[image].square().sum().sqrt() / gradient[image].square().sum().sqrt()) ** 2
        expected = x[image] + size * gradient[image] + (2 * size).sqrt() * noise[image]
        torch.testing.assert_close(found[image], expected)


def test_the_bound_of_a_langevin_step_is_far_from_any_exact_score() -> None:
    generator = torch.Generator().manual_seed(0)
    for variance, sigma in ((0.25, 20.0), (0.25, 0.1), (1.0, 1.0), (1.0, 80.0)):
        total = variance + sigma**2
        x = total**0.5 * torch.randn((64, 3, 4, 4), generator=generator, dtype=torch.float64)
        gradient, noise = -x / total, torch.randn(x.shape, generator=generator, dtype=x.dtype)
        size = 2 * (0.16 * noise.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)).square()[:, None, None, None]
        expected = x + size * gradient + (2 * size).sqrt() * noise
        torch.testing.assert_close(langevin_step(x, gradient, noise, 0.16, sigma), expected)


@pytest.mark.parametrize("snr", [0.1, 0.16, 0.3])
def test_langevin_dynamics_come_to_rest_at_the_density(snr: float) -> None:
    """From a wrong spread, at one noise level, to the variance S / (1 - snr^2) that steps of this size have.

    In many dimensions |z|^2 / |g|^2 is the variance V of x, nearly a constant, so that a step is
    ``V <- (1 - e / S)^2 V + 2 e`` with ``e = 2 snr^2 S^2 / V``; at rest ``V (1 - snr^2) = S``, up to snr^4.
    """
    sigma, count, size = 0.8, 40, 400
    generator = torch.Generator().manual_seed(0)
    level = torch.full((count,), sigma, dtype=torch.float64)
    gradient_of = score(gaussian(MEAN, STD).denoise)
    x = 3 * torch.randn(count, size, generator=generator, dtype=torch.float64)
    steps = round(4 / snr**2)
    for _ in range(steps):
        noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
        x = langevin_step(x, gradient_of(x, level), noise, snr, sigma)
    exact = STD**2 + sigma**2
    assert float(x.mean()) == pytest.approx(MEAN, abs=5 * math.sqrt(exact / (count * size)) + 3 * math.exp(-4))
    assert float(x.var()) / exact == pytest.approx(1 / (1 - snr**2), rel=0.04)


@pytest.mark.parametrize("sigma", [1e-8, 1e-5, 1e-3, 0.1, 10.0])
def test_where_nothing_is_known_of_the_score_a_langevin_step_is_bounded(sigma: float) -> None:
    """Pixels in [-1, 1] vary by 1 + sigma^2 at most; a tenth of that score gives e = 200 snr^2 (1 + sigma^2)."""
    x, noise = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for gradient in (torch.zeros_like(x), 1e-30 * noise):
        step = langevin_step(x, gradient, noise, 0.16, sigma) - x
        assert (step.norm() / noise.norm()).item() <= 20 * 0.16 * math.sqrt(1 + sigma**2) * (1 + 1e-5)


@pytest.mark.parametrize("sigma", [1e-8, 1e-6, 1e-5, 1e-4, 1e-3])
def test_in_float32_the_corrector_keeps_to_the_noise_level_although_d_minus_x_is_rounded(sigma: float) -> None:
    """Of one image alone, mu, the score is -n / sigma: a step moves x by about 2 snr sigma, or by rounding."""
    generator = torch.Generator().manual_seed(0)
    mu, n, noise = torch.randn(3, 4, 3, 16, 16, generator=generator)
    x = mu + sigma * n
    gradient = score(lambda x, sigma: x - (x - mu))(x, torch.full((4,), sigma))
    moved = (langevin_step(x, gradient, noise, 0.16, sigma) - x).abs().max().item()
    assert moved < 2 * sigma + 2 * torch.finfo(torch.float32).eps


def test_an_images_langevin_step_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient, noise = torch.randn(3, 5, 3, 4, 4, generator=generator)
    together = langevin_step(x, gradient, noise, 0.2, 1.0)
    for image in range(5):
        only = slice(image, image + 1)
        alone = langevin_step(x[only], gradient[only], noise[only], 0.2, 1.0)
        torch.testing.assert_close(alone[0], together[image])
