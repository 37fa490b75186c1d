"""Objectives: how noise levels are drawn, and that the weighted error of D is each paper's own loss."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch import Tensor, nn

from unveil.diffusion.closed_form import gaussian
from unveil.diffusion.denoiser import Denoiser, expand
from unveil.diffusion.loss import Draws, Loss, Penalty
from unveil.diffusion.objectives import (
    P2,
    EDMObjective,
    FlowMatching,
    Likelihood,
    MinSNR,
    Objective,
    Simple,
)
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps, Parameterization, V, Velocity
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid

DRAWS = 100_000
UNLIKELY = 1e-4  # of the draws if the density is right; the seed is fixed, so a test does not fail now and then


OBJECTIVES: list[Objective] = [
    *(
        kind(path)
        for path in (VPLinear(), VPCosine(50), VPSDE(), SubVP(), VE(), Flow())
        for kind in (Simple, MinSNR, P2)
    ),
    *(Likelihood(path) for path in (VPLinear(), VPSigmoid(), VPSDE(), SubVP(), VE(), Flow())),
    EDMObjective(),
    FlowMatching(),
    FlowMatching(times="uniform"),
]


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


@pytest.mark.parametrize("path", [VPSDE(), SubVP(), VE(), Flow()], ids=str)
def test_uniform_times_are_uniform_between_the_ends_of_a_continuous_path(path: NoisePath) -> None:
    least, greatest = path.t_range()
    for objective in (Simple(path), MinSNR(path), P2(path)):
        t = path.t(_draws(objective).double())
        assert kstest(((t - least) / (greatest - least)).numpy(), "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize("path", [VPLinear(), VPCosine(), VPSDE(), SubVP(), VE(), Flow()], ids=str)
def test_likelihood_draws_log_uniform_noise_levels(path: NoisePath) -> None:
    least, greatest = path.sigma_range()
    place = (_draws(Likelihood(path)).double() / least).log() / math.log(greatest / least)
    assert kstest(place.numpy(), "uniform").pvalue > UNLIKELY


def test_flow_draws_uniform_times() -> None:
    t = Flow().t(_draws(FlowMatching(times="uniform")).double())
    assert 0.001 <= t.min() + 1e-7 and t.max() - 1e-7 <= 0.999
    assert kstest(((t - 0.001) / 0.998).clamp(0, 1).numpy(), "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize(
    "objective",
    [EDMObjective(-1.2, 3.0, ends=(0.01, 2.0)), FlowMatching(0.0, 3.0, ends=(0.01, 2.0))],
    ids=["edm", "flow"],
)
def test_what_is_drawn_beyond_the_ends_of_a_path_is_moved_to_them(objective: EDMObjective | FlowMatching) -> None:
    inside, free = _draws(objective), _draws(replace(objective, ends=None))
    assert torch.equal(inside, free.clamp(0.01, 2.0)) and not torch.equal(inside, free)
    uniform = _draws(FlowMatching(times="uniform", ends=(0.01, 2.0)))
    assert uniform.min() >= 0.01 - 1e-9 and uniform.max() == 2.0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
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
    loss = Loss(Simple(path))(Denoiser(network, path, Eps()), x0, Draws(path.sigmas[t], noise))
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
    torch.testing.assert_close(Loss(objective)(denoiser, x0, Draws(t / (1 - t), noise)), expected)


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
    loss = Loss(EDMObjective(sigma_data=d))(denoiser, x0, Draws(sigma, noise))
    torch.testing.assert_close(loss, expected)


def test_min_snr_is_the_papers_weight_of_each_prediction() -> None:
    """2303.09556, sec. 3.4: min(SNR, gamma) on x0, min(SNR, gamma) / SNR on the noise; it is 1 where noise prevails."""
    objective, sigma = MinSNR(VPLinear(), 5.0), torch.tensor([0.01, 0.3, 5**-0.5, 1.0, 100.0], dtype=torch.float64)
    expected = torch.tensor([5, 5, 5, 1, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(objective.weight(sigma), expected)
    on_noise = objective.weight(sigma) * sigma**2
    torch.testing.assert_close(on_noise, torch.tensor([5e-4, 0.45, 1, 1, 1], dtype=torch.float64))


def test_p2_is_the_papers_factor_on_the_error_of_the_noise() -> None:
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    alpha_bar = 1 / (1 + sigma**2)
    factor = 1 / (0.7 + alpha_bar / (1 - alpha_bar)) ** 0.5  # 2204.00227, on Simple's weight
    torch.testing.assert_close(P2(VPLinear(), 0.7, 0.5).weight(sigma) * sigma**2, factor)
    torch.testing.assert_close(P2(VPLinear(), 1.0, 0.0).weight(sigma), Simple(VPLinear()).weight(sigma))


@pytest.mark.parametrize("path", [VPLinear(), VPCosine(), VPSDE(), SubVP(), VE(), Flow()], ids=str)
def test_likelihood_is_the_integral_of_the_bound(path: NoisePath) -> None:
    """For data N(0, s^2) the bound's integral is the information between x at the two ends (2107.00630, app. E)."""
    s = 0.5
    least, greatest = path.sigma_range()
    information = 0.5 * (math.log1p((s / least) ** 2) - math.log1p((s / greatest) ** 2))
    objective = Likelihood(path)
    sigma = _draws(objective).double()
    error = objective.weight(sigma) * s**2 * sigma**2 / (s**2 + sigma**2)
    span = math.log(greatest / least)
    scatter = span * error.std().item() / DRAWS**0.5
    assert error.mean().item() * span == pytest.approx(information, abs=4 * scatter)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_best_denoiser_has_the_least_loss(objective: Objective) -> None:
    """For data N(mu, s^2) the least error at sigma is s^2 sigma^2 / (s^2 + sigma^2)."""
    mean, std = 0.3, 0.6
    generator = torch.Generator().manual_seed(5)
    x0, noise = torch.randn(2, 20_000, 4, generator=generator, dtype=torch.float64)
    x0, sigma = mean + std * x0, objective.sample_sigma(20_000, generator).double()
    best = gaussian(mean, std).denoise
    loss = Loss(objective)(best, x0, Draws(sigma, noise))
    least = objective.weight(sigma) * std**2 * sigma**2 / (std**2 + sigma**2)
    assert (loss - least).mean().abs() < 4 * (loss - least).std() / 20_000**0.5
    for other in (gaussian(mean, 0.5).denoise, gaussian(mean, 0.7).denoise, gaussian(0.2, std).denoise):
        assert Loss(objective)(other, x0, Draws(sigma, noise)).mean() > loss.mean()


PARAMETERIZATIONS: list[Parameterization] = [Eps(), V(), X0(), EDMPreconditioning(), Velocity()]


class _Linear(nn.Module):
    """The smallest network that can learn: a share of its input and a constant, by noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        nn.init.normal_(self.layer.weight)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        places = torch.stack([c_noise / 1000, (c_noise / 300).sin(), (c_noise / 300).cos()], 1)
        share, constant = self.layer(places).unbind(1)
        return share[:, None] * x + constant[:, None]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_everything_trains(objective: Objective) -> None:
    for parameterization in PARAMETERIZATIONS:
        torch.manual_seed(0)
        denoiser = Denoiser(_Linear(), getattr(objective, "path", EDM()), parameterization)
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(1)
        sigma, (x0, noise) = objective.sample_sigma(256, generator), torch.randn(2, 256, 4, generator=generator)
        losses = []
        for _ in range(10):
            loss = Loss(objective)(denoiser, 0.4 + 0.2 * x0, Draws(sigma, noise)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert math.isfinite(losses[-1]) and losses[-1] < 0.95 * losses[0], parameterization


def test_input_perturbation_is_adm_ips(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """2301.11706, algorithm 1: it sees y = sqrt(abar) x0 + sqrt(1 - abar) (n + gamma xi), and its target is n."""
    x0, noise = images
    path, gamma = VPLinear(), 0.1
    xi = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.tensor([0, 1, 10, 100, 500, 900, 998, 999])
    alpha_bar = expand(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t], x0)
    predicted = network(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * (noise + gamma * xi), t.double())
    expected = (predicted - noise).square().mean((1, 2, 3))
    denoiser = Denoiser(network, path, Eps())
    loss = Loss(Simple(path))(denoiser, x0, Draws(path.sigmas[t], noise, gamma * xi))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
    plain = Loss(Simple(path))(denoiser, x0, Draws(path.sigmas[t], noise))
    assert torch.equal(Loss(Simple(path))(denoiser, x0, Draws(path.sigmas[t], noise, 0 * xi)), plain)


def test_a_perfect_denoiser_has_no_loss(images: tuple[Tensor, Tensor]) -> None:
    x0, noise = images
    sigma = torch.full((8,), 2.0, dtype=torch.float64)
    for objective, penalty in itertools.product(OBJECTIVES, (Penalty(), Penalty(0.02), Penalty(0.0, 4.0))):
        loss = Loss(objective, penalty)(lambda x, sigma: x0, x0, Draws(sigma, noise))
        assert loss.tolist() == [0.0] * 8
