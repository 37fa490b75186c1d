"""Objectives: how noise levels are drawn, and that the weighted error of D is each paper's own loss."""

import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch import Tensor, nn

from unveil.diffusion.denoiser import Denoiser, expand
from unveil.diffusion.objectives import EDMObjective, FlowMatching, Objective, Simple, denoising_loss
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps
from unveil.diffusion.paths import EDM, Flow, VPLinear

DRAWS = 100_000
UNLIKELY = 1e-4  # of the draws if the density is right; the seed is fixed, so a test does not fail now and then


def _draws(objective: Objective, seed: int = 0, count: int = DRAWS) -> Tensor:
    return objective.sample_sigma(count, torch.Generator().manual_seed(seed))


class _Network(nn.Module):
    """Any network: a convolution, a bend, and the noise level mixed in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1).double()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.conv(x + expand(c_noise, x).sin()).tanh()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return _Network()


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(8, 2, 5, 5, generator=generator, dtype=torch.float64) * 2 - 1
    return x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------- noise levels


def test_simple_draws_every_timestep_as_often_as_any_other() -> None:
    path = VPLinear(50)
    sigma = _draws(Simple(path))
    places = torch.searchsorted(path.sigmas.float(), sigma)
    assert torch.equal(path.sigmas.float()[places], sigma)
    assert chisquare(places.bincount(minlength=50).numpy()).pvalue > UNLIKELY


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 0.3)])
def test_edm_draws_log_normal_noise_levels(mean: float, std: float) -> None:
    sigma = _draws(EDMObjective(mean, std))
    assert kstest(sigma.double().log().numpy(), norm(mean, std).cdf).pvalue > UNLIKELY


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.8)])
def test_flow_draws_logit_normal_times(mean: float, std: float) -> None:
    t = Flow().t(_draws(FlowMatching(mean, std)).double())
    assert 0 < t.min() < t.max() < 1
    assert kstest(t.logit().numpy(), norm(mean, std).cdf).pvalue > UNLIKELY


@pytest.mark.parametrize("objective", [Simple(VPLinear()), EDMObjective(), FlowMatching()], ids=str)
def test_the_generator_alone_decides_the_draws(objective: Objective) -> None:
    assert torch.equal(_draws(objective, seed=3, count=9), _draws(objective, seed=3, count=9))
    assert not torch.equal(_draws(objective, seed=3, count=9), _draws(objective, seed=4, count=9))
    sigma = _draws(objective, count=9)
    assert sigma.shape == (9,) and sigma.dtype == torch.float32 and (sigma > 0).all()
    assert objective.weight(sigma).shape == (9,)


# -------------------------------------------------------------------------------------- losses


def test_simple_is_ddpms_error_of_the_predicted_noise(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x0, noise = images
    path = VPLinear()
    t = torch.tensor([0, 1, 10, 100, 500, 900, 998, 999])
    alpha_bar = expand(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t], x0)
    predicted = network(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, t.double())
    expected = (predicted - noise).square().mean((1, 2, 3))  # 2006.11239, eq. 14
    loss = denoising_loss(Denoiser(network, path, Eps()), Simple(path), x0, path.sigmas[t], noise)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)


def test_flow_is_the_error_of_the_velocity(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x0, noise = images
    path, objective = Flow(), FlowMatching(t_min=0.05)
    t = torch.tensor([0.051, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99], dtype=torch.float64)
    x_t = (1 - expand(t, x0)) * x0 + expand(t, x0) * noise
    denoiser = Denoiser(network, path, X0())
    image = denoiser(x_t / (1 - expand(t, x0)), t / (1 - t))
    velocity = (x_t - image) / expand(t, x0)  # 2511.13720: v from a predicted image
    expected = (velocity - (noise - x0)).square().mean((1, 2, 3))
    torch.testing.assert_close(denoising_loss(denoiser, objective, x0, t / (1 - t), noise), expected)


def test_flow_holds_its_weight_at_small_times() -> None:
    objective = FlowMatching(t_min=0.1)
    t = torch.tensor([1e-6, 0.05, 0.0999, 0.1, 0.2], dtype=torch.float64)
    expected = torch.tensor([100, 100, 100, 100, 25], dtype=torch.float64)
    torch.testing.assert_close(objective.weight(t / (1 - t)), expected)


def test_edm_is_the_networks_own_error(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x0, noise = images
    d = 0.5
    sigma = torch.logspace(-2, 1.9, 8, dtype=torch.float64)
    s = expand(sigma, x0)
    x = x0 + s * noise
    target = (x0 - d**2 / (s**2 + d**2) * x) / (s * d / (s**2 + d**2).sqrt())  # 2206.00364, eq. 8
    predicted = network(x / (s**2 + d**2).sqrt(), sigma.log() / 4)
    expected = (predicted - target).square().mean((1, 2, 3))
    denoiser = Denoiser(network, EDM(), EDMPreconditioning(d))
    loss = denoising_loss(denoiser, EDMObjective(sigma_data=d), x0, sigma, noise)
    torch.testing.assert_close(loss, expected)


def test_a_perfect_denoiser_has_no_loss(images: tuple[Tensor, Tensor]) -> None:
    x0, noise = images
    sigma = torch.full((8,), 2.0, dtype=torch.float64)
    for objective in (Simple(VPLinear()), EDMObjective(), FlowMatching()):
        assert denoising_loss(lambda x, sigma: x0, objective, x0, sigma, noise).tolist() == [0.0] * 8
