"""Samplers: on data whose denoiser is known they draw the data, at their order, and count what they ask for."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import get_args

import pytest
import torch
from tests.diffusion.affine import exact_moments, last
from torch import Tensor, nn

from unveil.diffusion import grids, samplers
from unveil.diffusion.closed_form import Mixture, gaussian
from unveil.diffusion.config import Sampler, SamplerName, Threshold
from unveil.diffusion.denoiser import Denoiser, expand
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps, Parameterization, V, Velocity
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid
from unveil.diffusion.samplers import Churn, NoiseSource, SamplerFunction
from unveil.diffusion.sampling import draw, run_sampler
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet

MEAN, STD = 0.3, 0.6
GAUSSIAN = gaussian(MEAN, STD).denoise

FIRST_ORDER: dict[str, SamplerFunction] = {
    "ddim": samplers.ddim,
    "ddim eta 0.5": partial(samplers.ddim, eta=0.5),
    "ddim eta 1": partial(samplers.ddim, eta=1.0),
    "ddpm small": partial(samplers.ddpm, variance="small"),
    "ddpm large": partial(samplers.ddpm, variance="large"),
    "euler": samplers.euler,
    "euler-maruyama": samplers.euler_maruyama,
    "predictor": partial(samplers.predictor_corrector, corrector_steps=0),
}
SECOND_ORDER: dict[str, SamplerFunction] = {
    "heun": samplers.heun,
    "heun churned": partial(samplers.heun, churn=Churn(10.0)),
    "dpmpp-2m": samplers.dpmpp_2m,
    "dpmpp-2m-sde": samplers.dpmpp_2m_sde,
}
LINEAR = FIRST_ORDER | SECOND_ORDER  # with an affine denoiser, in the start and in every draw
ALL = LINEAR | {"predictor-corrector": samplers.predictor_corrector, "rk45": partial(samplers.rk45, rtol=1e-4)}
DETERMINISTIC = ("ddim", "euler", "heun", "dpmpp-2m", "rk45")

GRIDS: dict[str, Callable[[int], Tensor]] = {
    "karras": lambda steps: grids.karras(steps, 0.002, 80.0),
    "uniform-t": lambda steps: grids.uniform_t(steps, 80.0, Flow()),
    "all timesteps": lambda steps: grids.ddim(steps, VPLinear(steps, 0.1 / steps, 15 / steps), "leading"),
}
PATHS: dict[str, tuple[NoisePath, Tensor]] = {  # each with a grid of its own
    "vp-linear": (VPLinear(200, 5e-4, 0.1), grids.ddim(200, VPLinear(200, 5e-4, 0.1), "leading")),
    "vp-cosine": (VPCosine(200), grids.ddim(200, VPCosine(200), "trailing")),
    "vp-sigmoid": (VPSigmoid(), grids.karras(200, 0.03, 80.0)),
    "vp-sde": (VPSDE(), grids.uniform_t(200, VPSDE().sigma_range()[1], VPSDE())),
    "sub-vp": (SubVP(), grids.log_linear(200, 0.01, SubVP().sigma_range()[1])),
    "ve": (VE(), grids.uniform_t(200, 100.0, VE())),
    "edm": (EDM(), grids.karras(200, 0.002, 80.0)),
    "flow": (Flow(), grids.uniform_t(200, 80.0, Flow())),
}


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def gaussian_noise(like: Tensor, seed: int) -> NoiseSource:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def bent_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """Some smooth function that belongs to no data set."""
    return (x / (1 + expand(sigma, x)) + 0.3 * x.roll(1, -1)).tanh()


def source_for(name: str, like: Tensor, seed: int) -> NoiseSource:
    return no_noise if name in DETERMINISTIC else gaussian_noise(like, seed)


# ------------------------------------------------------------------------- the data, exactly


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", LINEAR)
def test_gaussian_data_come_out_as_they_are(name: str, grid: str) -> None:
    """The moments are computed, not drawn: see exact_moments. At first order, twice the steps halve the error."""
    errors = []
    for steps in (250, 500):
        sigmas = GRIDS[grid](steps)
        start_std = math.hypot(STD, float(sigmas[0]))
        mean, std = exact_moments(LINEAR[name], GAUSSIAN, sigmas, MEAN, start_std)
        assert mean == pytest.approx(MEAN, abs=1e-9)
        errors.append(std / STD - 1)
    assert abs(errors[1]) < 0.03
    if name in SECOND_ORDER:
        assert abs(errors[1]) < 0.001
    else:
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LINEAR)
def test_pure_noise_becomes_gaussian_data(name: str, path: str) -> None:
    """From the noise that each path starts from, in which next to nothing of the data is left."""
    start, grid = PATHS[path][0].start_scale(PATHS[path][1][0]), PATHS[path][1]
    mean, std = exact_moments(LINEAR[name], GAUSSIAN, grid, 0.0, float(start))
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, rel=0.05)


MIXTURE = Mixture(
    [0.3, 0.7], [[-0.9, 0.4], [0.7, -0.3]], [[[0.03, 0.02], [0.02, 0.04]], [[0.05, -0.02], [-0.02, 0.02]]]
)


@pytest.mark.parametrize("path", ["vp-linear", "edm", "flow"])  # a sampler sees no path, only its grid
@pytest.mark.parametrize("name", ALL)
def test_a_mixture_keeps_its_weights_means_and_covariances(name: str, path: str) -> None:
    """An "image" is 250 points of the plane, so that the norms of the corrector's step are those of many numbers."""
    start, sigmas = torch.zeros(6, 250, 2, dtype=torch.float64), PATHS[path][1]
    count = start[..., 0].numel()
    start = PATHS[path][0].start_scale(sigmas[0]) * gaussian_noise(start, 1)()
    samples = last(ALL[name](MIXTURE.denoise, sigmas, start, source_for(name, start, 2))).x.reshape(-1, 2)
    upper = samples[:, 0] - samples[:, 1] > 0  # the line through the origin: both components are 4 deviations away
    assert upper.double().mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / count))
    for part, mean, covariance in zip(
        (samples[~upper], samples[upper]), MIXTURE.means, MIXTURE.covariances, strict=True
    ):
        scale = covariance.trace().item()
        torch.testing.assert_close(part.mean(0), mean, rtol=0.0, atol=4 * math.sqrt(scale / len(part)))
        # The last term allows for the length of the steps, the others for the number of samples.
        torch.testing.assert_close(
            part.T.cov(), covariance, rtol=0.0, atol=4 * scale / math.sqrt(len(part)) + 0.06 * scale
        )


def test_the_denoiser_of_the_mixture_is_the_gradient_of_its_density() -> None:
    """Tweedie: ``D = x + sigma^2 grad ln p``, with p from torch's distributions."""
    x = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma = torch.tensor([0.05, 0.2, 0.5, 2.0, 30.0], dtype=torch.float64)
    noise = sigma.square()[:, None, None, None, None] * torch.eye(2, dtype=torch.float64)
    parts = torch.distributions.MultivariateNormal(MIXTURE.means, MIXTURE.covariances + noise)
    log_density = (parts.log_prob(x[:, :, None]) + MIXTURE.weights.log()).logsumexp(-1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    found = MIXTURE.denoise(x, sigma)
    torch.testing.assert_close(found, x + sigma.square()[:, None, None] * gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", LINEAR)
def test_many_samples_have_the_computed_moments(name: str) -> None:
    count, sigmas = 20_000, grids.karras(60, 0.002, 80.0)
    start_std = math.hypot(STD, 80.0)
    noise = gaussian_noise(torch.empty(count, dtype=torch.float64), seed=0)
    samples = last(LINEAR[name](GAUSSIAN, sigmas, MEAN + start_std * noise(), noise)).x
    mean, std = exact_moments(LINEAR[name], GAUSSIAN, sigmas, MEAN, start_std)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(count))
    assert samples.std().item() == pytest.approx(std, abs=4 * std / math.sqrt(2 * count))


# ------------------------------------------------------------------------------------- order

ENDS = 20.0, 0.05  # of grids that do not end at 0, whose last interval has its own error


def even_grid(steps: int) -> Tensor:
    return torch.logspace(math.log10(ENDS[0]), math.log10(ENDS[1]), steps + 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp-2m", 2)], ids=lambda value: str(value)
)
def test_the_error_falls_at_the_samplers_order(name: str, order: int) -> None:
    """Against the exact solution of the probability-flow ODE: ``(x - mean) / sqrt(std^2 + sigma^2)`` is constant."""
    start = torch.tensor([-30.0, 0.0, 12.0], dtype=torch.float64)
    exact = MEAN + (start - MEAN) * math.hypot(STD, ENDS[1]) / math.hypot(STD, ENDS[0])
    errors = []
    for steps in (100, 200, 400):
        found = last(LINEAR[name](GAUSSIAN, even_grid(steps), start, no_noise)).x
        errors.append((found - exact).abs().max().item())
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("name", LINEAR)
def test_the_distribution_converges_at_the_samplers_weak_order(name: str) -> None:
    """The standard deviation that comes out, computed without drawing, against the exact one at the grid's end."""
    exact = math.hypot(STD, ENDS[1])
    errors = []
    for steps in (200, 400):
        _, std = exact_moments(LINEAR[name], GAUSSIAN, even_grid(steps), MEAN, math.hypot(STD, ENDS[0]))
        errors.append(abs(std - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2 if name in SECOND_ORDER else 1, abs=0.1)


def test_rk45_keeps_to_its_tolerance() -> None:
    """Its error falls with the tolerance, and with it its evaluations rise slowly, as those of order 5 do."""
    start = torch.tensor([[-30.0], [0.0], [12.0]], dtype=torch.float64)
    exact = MEAN + (start - MEAN) * math.hypot(STD, ENDS[1]) / math.hypot(STD, ENDS[0])
    sigmas = torch.tensor([*ENDS, 0.0], dtype=torch.float64)
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        before_last, _ = samplers.rk45(GAUSSIAN, sigmas, start, no_noise, tolerance, tolerance)
        errors.append((before_last.x - exact).abs().max().item())
        evaluations.append(before_last.nfe)
        assert errors[-1] < 30 * tolerance
    assert evaluations == sorted(evaluations) and evaluations[-1] < 12 * evaluations[0]


def test_of_rk45s_grid_only_the_ends_count() -> None:
    start = torch.tensor([[-30.0], [12.0]], dtype=torch.float64)
    coarse, fine = (last(samplers.rk45(GAUSSIAN, grids.karras(n, 0.01, 20.0), start, no_noise)) for n in (2, 50))
    assert torch.equal(coarse.x, fine.x) and coarse.nfe == fine.nfe
    with pytest.raises(ValueError, match="2 steps or more"):
        last(samplers.rk45(GAUSSIAN, grids.karras(1, 0.01, 20.0), start, no_noise))


# -------------------------------------------------------------------------------- identities


class Optimal(nn.Module):
    """The network with which a parameterization on a path makes the exact denoiser of the mixture."""

    def __init__(self, parameterization: Parameterization, path: NoisePath, sigmas: Tensor) -> None:
        super().__init__()
        self.parameterization, self.path, self.sigmas = parameterization, path, sigmas

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        sigma = self.sigmas[(self.path.c_noise(self.sigmas) - c_noise[0]).abs().argmin()].expand(len(x))
        c_skip, c_out, c_in = (expand(c, x) for c in self.parameterization.coefficients(sigma, self.path))
        return (MIXTURE.denoise(x / c_in, sigma) - c_skip * x / c_in) / c_out


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["heun", "predictor-corrector"])
def test_all_parameterizations_of_one_denoiser_give_the_same_samples(name: str, path: str) -> None:
    noise_path = PATHS[path][0]
    least, greatest = noise_path.sigma_range()
    sigmas = grids.karras(12, max(least, 0.01), min(greatest, 40.0))
    start = sigmas[0] * gaussian_noise(torch.empty(2, 4, 2, dtype=torch.float64), 0)()
    kinds: list[Parameterization] = [Eps(), V(), X0(), EDMPreconditioning(0.5), Velocity()]
    networks = [Denoiser(Optimal(kind, noise_path, sigmas[:-1]), noise_path, kind) for kind in kinds]
    expected = last(ALL[name](MIXTURE.denoise, sigmas, start, gaussian_noise(start, 1))).x
    for denoiser in networks:
        found = last(ALL[name](denoiser, sigmas, start, gaussian_noise(start, 1))).x
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("grid", GRIDS)
def test_ddpm_is_ddim_with_eta_1(grid: str) -> None:
    sigmas = GRIDS[grid](20)
    x = sigmas[0] * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ddpm = samplers.ddpm(bent_denoiser, sigmas, x, gaussian_noise(x, 1), "small")
    ddim = samplers.ddim(bent_denoiser, sigmas, x, gaussian_noise(x, 1), eta=1.0)
    for a, b in zip(ddpm, ddim, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-10, atol=1e-10)


def test_ddim_without_noise_is_eulers_method() -> None:
    sigmas = grids.karras(9, 0.01, 10.0)
    x = torch.tensor([[7.0, -3.0]], dtype=torch.float64)
    for a, b in zip(
        samplers.ddim(bent_denoiser, sigmas, x, no_noise),
        samplers.euler(bent_denoiser, sigmas, x, no_noise),
        strict=True,
    ):
        torch.testing.assert_close(a.x, b.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("second", "first"), [("dpmpp-2m", "ddim"), ("dpmpp-2m-sde", "ddim eta 1")])
def test_multistep_samplers_begin_and_end_as_their_first_order_ones(second: str, first: str) -> None:
    """Two intervals have no estimate to extrapolate from: the first has none before it, the last goes to 0."""
    sigmas = torch.tensor([10.0, 2.0, 0.0], dtype=torch.float64)
    x = torch.tensor([[7.0, -3.0]], dtype=torch.float64)
    for a, b in zip(*(ALL[n](bent_denoiser, sigmas, x, gaussian_noise(x, 3)) for n in (second, first)), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-12)


def test_the_large_variance_is_ddpms_beta() -> None:
    """One step from t to t - 1, with a denoiser that finds nothing, in DDPM's own frame, on every path with betas."""
    one, nothing = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for path in (VPLinear(), VPCosine(), VPSigmoid()):
        betas = torch.tensor(path.betas(), dtype=torch.float64)
        for t in (1, 500, 999):
            sigmas = path.sigmas[[t, t - 1]]
            drawn = last(samplers.ddpm(lambda x, sigma: nothing, sigmas, nothing, lambda: one, "large")).x
            torch.testing.assert_close(path.alpha(sigmas[1]) ** 2 * drawn**2, betas[t : t + 1], rtol=1e-6, atol=0.0)


def test_churn_is_edms() -> None:
    """2206.00364, algorithm 2, lines 4 to 6: gamma, where it acts, and its limit."""
    churn = Churn(s_churn=4.0, s_tmin=0.5, s_tmax=10.0, s_noise=1.1)
    assert churn.raised(5.0, 20) == pytest.approx(5.0 * 1.2)
    assert churn.raised(5.0, 2) == pytest.approx(5.0 * math.sqrt(2))
    assert (churn.raised(0.4, 20), churn.raised(11.0, 20), Churn().raised(5.0, 20)) == (0.4, 11.0, 5.0)
    x, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    added = churn.add(x, 5.0, 6.0, lambda: one).item()
    assert added == pytest.approx(1.1 * math.sqrt(36 - 25))
    assert churn.add(x, 5.0, 5.0, no_noise) is x


# --------------------------------------------------------------------------------- bookkeeping

CONFIGS = [
    *(
        Sampler(sampler=name, steps=steps, grid="karras")
        for name in ("heun", "ddim", "ddpm", "euler")
        for steps in (6, 1)
    ),
    Sampler(sampler="ddim", steps=6, grid="karras", eta=0.5),
    Sampler(sampler="ddpm", steps=6, grid="karras", variance="large"),
    Sampler(sampler="heun", steps=6, grid="karras", s_churn=2.0, s_tmin=1.0, s_tmax=50.0),
    Sampler(sampler="euler", steps=6, grid="karras", s_churn=2.0),
    Sampler(sampler="euler-maruyama", steps=6, grid="karras"),
    Sampler(sampler="predictor-corrector", steps=6, grid="karras"),
    Sampler(sampler="predictor-corrector", steps=6, grid="karras", corrector_steps=3),
    Sampler(sampler="dpmpp-2m", steps=6, grid="karras"),
    Sampler(sampler="dpmpp-2m-sde", steps=6, grid="karras"),
]


def draws(config: Sampler, sigmas: list[float]) -> int:
    """How often a sampler draws noise."""
    between = config.steps - 1
    if config.s_churn:
        return sum(config.s_tmin <= sigma <= config.s_tmax for sigma in sigmas[:-1])
    if config.sampler == "predictor-corrector":
        return between * (1 + config.corrector_steps)
    stochastic = config.sampler in ("ddpm", "euler-maruyama", "dpmpp-2m-sde") or config.eta > 0
    return between if stochastic else 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.sampler} {c.steps} {c.s_churn} {c.corrector_steps}")
def test_evaluations_and_noise_are_counted(config: Sampler) -> None:
    sigmas = grids.karras(config.steps, 0.002, 80.0)
    asked: list[float] = []
    drawn = 0

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (2,) and (sigma == sigma[0]).all()
        asked.append(sigma[0].item())
        return GAUSSIAN(x, sigma)

    def noise() -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.full((2,), 0.5, dtype=torch.float64)

    x = torch.tensor([5.0, -5.0], dtype=torch.float64)
    reached = []
    for step in run_sampler(config, denoiser, sigmas, x, noise):
        reached.append(step.sigma)
        assert step.nfe == len(asked)
        assert step.x.shape == step.denoised.shape == x.shape
    assert reached == sigmas[1:].tolist()
    assert len(asked) == config.nfe
    assert min(asked) > 0  # never at 0, where there is nothing to ask
    assert drawn == draws(config, sigmas.tolist())
    if not config.s_churn:
        assert set(asked) <= set(sigmas[:-1].tolist())


def test_rk45_counts_the_evaluations_of_the_image_that_needs_most() -> None:
    asked = 0

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return MIXTURE.denoise(x, sigma)

    x = 40.0 * gaussian_noise(torch.empty(6, 3, 2, dtype=torch.float64), 0)()
    config = Sampler(sampler="rk45", steps=4, grid="karras", sigma_min=0.01, sigma_max=40.0)
    sigmas = grids.karras(4, 0.01, 40.0)
    together = list(run_sampler(config, denoiser, sigmas, x, no_noise))
    assert config.nfe is None
    assert together[-1].nfe == asked and [step.sigma for step in together] == [pytest.approx(0.01), 0.0]
    alone = [last(run_sampler(config, MIXTURE.denoise, sigmas, image[None], no_noise)) for image in x]
    assert max(step.nfe for step in alone) == together[-1].nfe > min(step.nfe for step in alone)
    torch.testing.assert_close(torch.cat([step.x for step in alone]), together[-1].x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_between_equal_noise_levels_nothing_is_done(name: str) -> None:
    """DDIM's quad timesteps repeat some."""
    sigmas = grids.ddim(20, VPLinear(100), "quad")
    once = torch.tensor(sorted(set(sigmas.tolist()), reverse=True), dtype=torch.float64)
    assert len(once) < len(sigmas)
    x = once[0] * gaussian_noise(torch.empty(2, 5, dtype=torch.float64), 0)()
    expected = list(ALL[name](bent_denoiser, once, x, source_for(name, x, 1)))
    for grid in (sigmas, torch.cat([once[:1], once, once[-1:]])):
        found = list(ALL[name](bent_denoiser, grid, x, source_for(name, x, 1)))
        assert [(step.sigma, step.nfe) for step in found] == [(step.sigma, step.nfe) for step in expected]
        assert torch.equal(found[-1].x, expected[-1].x) and torch.isfinite(found[-1].x).all()


def test_levels_that_a_number_can_hardly_tell_apart_divide_by_nothing() -> None:
    sigmas = torch.tensor([3.0, 1 + 2**-52, 1.0, 0.3, 0.0], dtype=torch.float64)
    for sampler in (samplers.dpmpp_2m, samplers.dpmpp_2m_sde):
        step = last(sampler(bent_denoiser, sigmas, torch.ones(1, 2, dtype=torch.float64), lambda: torch.zeros(1, 2)))
        assert step.nfe == 3 and torch.isfinite(step.x).all()


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([1.0, 2.0, 0.0], "1 before 2"),
        ([0.0, 1.0], "0 before 1"),
        ([2.0, 0.0, -1.0], "0 before -1"),
        ([math.inf, 1.0, 0.0], "inf before 1"),
        ([2.0, math.nan, 0.0], "2 before nan"),
        ([2.0], "1 that do not fall"),
        ([], "0 that do not fall"),
        ([2.0, 2.0], "2 that do not fall"),
        ([0.0, 0.0], "2 that do not fall"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_what_is_no_grid_is_refused_by_every_sampler(name: str, sigmas: list[float], words: str) -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    grid = torch.tensor(sigmas, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"sigmas: found {words}, expected finite levels that fall"):
        list(ALL[name](GAUSSIAN, grid, x, lambda: torch.zeros_like(x)))


@pytest.mark.parametrize("threshold", ["none", "clip", "dynamic"])
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_of_no_images_every_sampler_makes_none(name: SamplerName, threshold: Threshold) -> None:
    """With a network too, whose stem has to be told."""
    for image_size in (8, 16):
        network = UNet(
            UNetConfig(
                image_size=image_size,
                channels=32,
                channel_multipliers=(1,),
                blocks=1,
                attention_resolutions=(8,),
                stem=image_size // 8,
            )
        )
        config = Sampler(sampler=name, steps=3, grid="karras", threshold=threshold)
        step = last(draw(Denoiser(network, EDM(), EDMPreconditioning()), config, 0, [], (3, image_size, image_size)))
        assert step.x.shape == step.denoised.shape == (0, 3, image_size, image_size)


@pytest.mark.parametrize("name", ALL)
def test_the_start_is_left_as_it_was(name: str) -> None:
    x = torch.full((2, 1), 80.0)
    step = last(ALL[name](GAUSSIAN, grids.karras(3, 0.002, 80.0), x, lambda: torch.ones(2, 1)))
    assert x.tolist() == [[80.0], [80.0]]
    assert step.x.dtype == torch.float32
