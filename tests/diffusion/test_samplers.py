"""Samplers: on data whose denoiser is known they draw the data, at their order; on any other they are the peers'."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tests.diffusion.closed_forms import Sampler, exact_moments, gaussian_denoiser, last, mixture_denoiser
from torch import Tensor, nn

from unveil.diffusion import grids, samplers
from unveil.diffusion.denoiser import Denoiser, DenoiserFunction, expand
from unveil.diffusion.parameterizations import Eps
from unveil.diffusion.paths import EDM, Flow, NoisePath, VPLinear
from unveil.diffusion.samplers import NoiseSource
from unveil.diffusion.sampling import SamplerConfig, run_sampler
from unveil.diffusion.thresholding import clipped

MEAN, STD = 0.3, 0.6
GAUSSIAN = gaussian_denoiser(MEAN, STD)

FIRST_ORDER: dict[str, Sampler] = {
    "ddim": samplers.ddim,
    "ddim eta 0.5": partial(samplers.ddim, eta=0.5),
    "ddim eta 1": partial(samplers.ddim, eta=1.0),
    "ddpm small": partial(samplers.ddpm, variance="small"),
    "ddpm large": partial(samplers.ddpm, variance="large"),
}
ALL = FIRST_ORDER | {"heun": samplers.heun}

GRIDS: dict[str, Callable[[int], Tensor]] = {
    "karras": lambda steps: grids.karras(steps, 0.002, 80.0),
    "uniform-t": lambda steps: grids.uniform_t(steps, 80.0, Flow()),
    "all timesteps": lambda steps: grids.ddim(steps, VPLinear(steps, 0.1 / steps, 15 / steps), "leading"),
}


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def gaussian_noise(like: Tensor, seed: int) -> NoiseSource:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def bent_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """Some smooth function that belongs to no data set."""
    return (x / (1 + expand(sigma, x)) + 0.3 * x.roll(1, -1)).tanh()


# ------------------------------------------------------------------------- the data, exactly


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ALL)
def test_gaussian_data_come_out_as_they_are(name: str, grid: str) -> None:
    """The moments are computed, not drawn: see exact_moments. At first order, twice the steps halve the error."""
    errors = []
    for steps in (250, 500):
        sigmas = GRIDS[grid](steps)
        start_std = math.hypot(STD, float(sigmas[0]))
        mean, std = exact_moments(ALL[name], GAUSSIAN, sigmas, MEAN, start_std)
        assert mean == pytest.approx(MEAN, abs=1e-9)
        errors.append(std / STD - 1)
    assert abs(errors[1]) < 0.03
    if name == "heun":
        assert abs(errors[1]) < 0.001
    else:
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    ("path", "grid"),
    [
        (VPLinear(), grids.ddim(1000, VPLinear(), "leading")),
        (EDM(), grids.karras(400, 0.002, 80.0)),
        (Flow(), grids.uniform_t(400, 80.0, Flow())),
    ],
    ids=["vp-linear", "edm", "flow"],
)
@pytest.mark.parametrize("name", ALL)
def test_pure_noise_becomes_gaussian_data(name: str, path: NoisePath, grid: Tensor) -> None:
    """From the noise that each path starts from, in which nothing of the data is left."""
    mean, std = exact_moments(ALL[name], GAUSSIAN, grid, 0.0, float(path.start_scale(grid[0])))
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, rel=0.025)


@pytest.mark.parametrize("name", ALL)
def test_many_samples_have_the_computed_moments(name: str) -> None:
    count, sigmas = 20_000, grids.karras(60, 0.002, 80.0)
    start_std = math.hypot(STD, 80.0)
    noise = gaussian_noise(torch.empty(count, dtype=torch.float64), seed=0)
    samples = last(ALL[name](GAUSSIAN, sigmas, MEAN + start_std * noise(), noise)).x
    mean, std = exact_moments(ALL[name], GAUSSIAN, sigmas, MEAN, start_std)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(count))
    assert samples.std().item() == pytest.approx(std, abs=4 * std / math.sqrt(2 * count))


@pytest.mark.parametrize("name", ALL)
def test_a_mixture_keeps_its_weights_and_its_widths(name: str) -> None:
    weights, means, std, count = [0.3, 0.7], [-1.0, 0.8], 0.1, 20_000
    sigmas = grids.karras(150, 0.005, 80.0)
    noise = gaussian_noise(torch.empty(count, dtype=torch.float64), seed=1)
    samples = last(ALL[name](mixture_denoiser(weights, means, std), sigmas, 80.0 * noise(), noise)).x
    upper = samples > 0
    assert upper.double().mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / count) + 0.005)
    for part, mean in ((samples[~upper], -1.0), (samples[upper], 0.8)):
        assert part.mean().item() == pytest.approx(mean, abs=0.01)
        assert part.std().item() == pytest.approx(std, rel=0.08)


@pytest.mark.parametrize(("sampler", "order"), [(samplers.ddim, 1), (samplers.heun, 2)], ids=["ddim", "heun"])
def test_the_error_falls_at_the_samplers_order(sampler: Sampler, order: int) -> None:
    """Against the exact solution of the probability-flow ODE for Gaussian data, on a grid that does not end at 0.

    There ``(x - mean) / sqrt(std^2 + sigma^2)`` stays what it is.
    """
    start = torch.tensor([-30.0, 0.0, 12.0], dtype=torch.float64)
    exact = MEAN + (start - MEAN) * math.hypot(STD, 0.05) / math.hypot(STD, 20.0)
    errors = []
    for steps in (100, 200, 400):
        sigmas = torch.logspace(math.log10(20.0), math.log10(0.05), steps + 1, dtype=torch.float64)
        errors.append((last(sampler(GAUSSIAN, sigmas, start, no_noise)).x - exact).abs().max().item())
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.1)


# -------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("grid", GRIDS)
def test_ddpm_is_ddim_with_eta_1(grid: str) -> None:
    sigmas = GRIDS[grid](20)
    x = sigmas[0] * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ddpm = samplers.ddpm(bent_denoiser, sigmas, x, gaussian_noise(x, 1), "small")
    ddim = samplers.ddim(bent_denoiser, sigmas, x, gaussian_noise(x, 1), eta=1.0)
    for a, b in zip(ddpm, ddim, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-10, atol=1e-10)


def test_ddim_without_noise_is_eulers_method() -> None:
    sigmas, x = grids.karras(9, 0.01, 10.0), torch.full((1, 2), 7.0, dtype=torch.float64)
    expected = x
    for sigma, sigma_next in pairwise(sigmas):
        slope = (expected - bent_denoiser(expected, sigma[None])) / sigma
        expected = expected + (sigma_next - sigma) * slope
    torch.testing.assert_close(last(samplers.ddim(bent_denoiser, sigmas, x, no_noise)).x, expected)


def test_the_large_variance_is_ddpms_beta() -> None:
    """One step from t to t - 1, with a denoiser that finds nothing, in DDPM's own frame."""
    path = VPLinear()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    one, nothing = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in (1, 500, 999):
        sigmas = path.sigmas[[t, t - 1]]
        drawn = last(samplers.ddpm(lambda x, sigma: nothing, sigmas, nothing, lambda: one, "large")).x
        torch.testing.assert_close(path.alpha(sigmas[1]) ** 2 * drawn**2, betas[t : t + 1], rtol=1e-8, atol=0.0)


# --------------------------------------------------------------------------------- bookkeeping

CONFIGS = [
    SamplerConfig("heun", 6, "karras"),
    SamplerConfig("ddim", 6, "karras"),
    SamplerConfig("ddim", 6, "karras", eta=0.5),
    SamplerConfig("ddpm", 6, "karras", variance="small"),
    SamplerConfig("ddpm", 6, "karras", variance="large"),
    SamplerConfig("heun", 1, "karras"),
    SamplerConfig("ddpm", 1, "karras"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_evaluations_and_noise_are_counted(config: SamplerConfig) -> None:
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
        return torch.zeros(2, dtype=torch.float64)

    x = torch.tensor([5.0, -5.0], dtype=torch.float64)
    reached = []
    for step in run_sampler(config, denoiser, sigmas, x, noise):
        reached.append(step.sigma)
        assert step.nfe == len(asked)
        assert step.x.shape == step.denoised.shape == x.shape
    assert reached == sigmas[1:].tolist()
    assert len(asked) == config.nfe
    assert set(asked) <= set(sigmas[:-1].tolist())  # never at 0, where there is nothing to ask
    assert drawn == (config.steps - 1 if config.sampler == "ddpm" or config.eta > 0 else 0)


@pytest.mark.parametrize("name", ALL)
def test_the_start_is_left_as_it_was(name: str) -> None:
    x = torch.full((2,), 80.0)
    step = last(ALL[name](GAUSSIAN, grids.karras(3, 0.002, 80.0), x, lambda: torch.ones(2)))
    assert x.tolist() == [80.0, 80.0]
    assert step.x.dtype == torch.float32


@pytest.mark.parametrize("name", ["ddim", "ddpm small", "heun"])
def test_clipped_estimates_end_in_range(name: str) -> None:
    def far(x: Tensor, sigma: Tensor) -> Tensor:
        return 3 * x.sign()

    x = torch.tensor([-50.0, 50.0])
    step = last(ALL[name](clipped(far), grids.karras(5, 0.002, 80.0), x, lambda: torch.zeros(2)))
    torch.testing.assert_close(step.x, torch.tensor([-1.0, 1.0]))
    assert step.denoised.tolist() == [-1.0, 1.0]
    config = SamplerConfig("ddim", 5, "karras", threshold="clip")
    assert torch.equal(last(run_sampler(config, far, grids.karras(5, 0.002, 80.0), x, no_noise)).x, x.sign())


# ------------------------------------------------------------------------------------- peers


class BentNoise(nn.Module):
    """About the noise in data of unit variance, bent: a smooth function of the image and of the timestep."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        share = expand(t, x) / 1000
        strength = (1 - (-0.1 * share - 10 * share**2).exp()).sqrt()
        return strength * (x + 0.3 * (x + x.roll(1, -1)).sin() + 0.1 * (5 * share).cos())


def theirs(scheduler: DDIMScheduler | DDPMScheduler, start: Tensor, steps: int, **options: Any) -> Iterator[Tensor]:
    """Images ``x_t`` of diffusers' loop, in DDPM's frame."""
    network, x = BentNoise(), start
    scheduler.set_timesteps(steps)
    if x.dtype == torch.float64:  # their table is float32, where 1 - alpha_bar has lost half of its digits at t = 0
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    for t in scheduler.timesteps:
        predicted = network(x, t.expand(len(x)).to(x.dtype))
        x = scheduler.step(predicted, t, x, return_dict=False, **options)[0]
        yield x


def ours(sampler: Sampler, sigmas: Tensor, path: VPLinear, start: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
    """The same in our frame, brought back to DDPM's by alpha."""
    x = start * path.start_scale(sigmas[0]).to(start.dtype)
    for step in sampler(Denoiser(BentNoise(), path, Eps()), sigmas, x, noise):
        yield step.x * path.alpha(torch.tensor(step.sigma, dtype=torch.float64)).to(start.dtype)


def start(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(7)).to(dtype)


def compare(expected: Iterator[Tensor], found: Iterator[Tensor], steps: int) -> None:
    count = 0
    for theirs_x, ours_x in zip(expected, found, strict=True):
        tolerance = 1e-10 if ours_x.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(ours_x, theirs_x, rtol=tolerance, atol=tolerance)
        count += 1
    assert count == steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    # At fewer steps, diffusers' linspace visits timesteps that are not the ones it steps to.
    ("spacing", "steps"),
    [("leading", 2), ("leading", 50), ("leading", 33), ("trailing", 50), ("trailing", 20), ("linspace", 1000)],
)
def test_ddim_is_diffusers(spacing: str, steps: int, eta: float, dtype: torch.dtype) -> None:
    path = VPLinear()
    scheduler = DDIMScheduler(
        1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing=spacing,
    )
    x = start(dtype)
    expected = theirs(scheduler, x, steps, eta=eta, generator=torch.Generator().manual_seed(5))
    sampler = partial(samplers.ddim, eta=eta)
    found = ours(sampler, grids.ddim(steps, path, spacing), path, x, gaussian_noise(x, 5))
    compare(expected, found, steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1000, 100, 33])
def test_ddpm_is_diffusers(steps: int, variance: Literal["small", "large"], dtype: torch.dtype) -> None:
    path = VPLinear()
    scheduler = DDPMScheduler(
        1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type=f"fixed_{variance}",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=0,
    )
    x = start(dtype)
    expected = theirs(scheduler, x, steps, generator=torch.Generator().manual_seed(5))
    sampler: Sampler = partial(samplers.ddpm, variance=variance)
    found = ours(sampler, grids.ddim(steps, path, "leading"), path, x, gaussian_noise(x, 5))
    compare(expected, found, steps)


def test_ddpm_is_diffusers_with_clipping() -> None:
    path = VPLinear()
    scheduler = DDPMScheduler(1000, variance_type="fixed_small", clip_sample=True, timestep_spacing="leading")
    x = start(torch.float64)
    expected = theirs(scheduler, x, 100, generator=torch.Generator().manual_seed(5))

    def clipped_ddpm(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource):
        return samplers.ddpm(clipped(denoiser), sigmas, x, noise, "small")

    found = ours(clipped_ddpm, grids.ddim(100, path, "leading"), path, x, gaussian_noise(x, 5))
    compare(expected, found, 100)
