"""Parity: the same network and the same noise through diffusers' schedulers give the same trajectories."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import Tensor, nn

from unveil.diffusion import grids, samplers
from unveil.diffusion.denoiser import Denoiser, DenoiserFunction, expand
from unveil.diffusion.parameterizations import Eps
from unveil.diffusion.paths import DiscreteVP, VPCosine, VPLinear
from unveil.diffusion.samplers import NoiseSource, SamplerFunction, Step
from unveil.diffusion.sampling import clipped


class BentNoise(nn.Module):
    """About the noise in data of unit variance, bent: a smooth function of the image and of the timestep."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        share = expand(t, x) / 1000
        strength = (1 - (-0.1 * share - 10 * share**2).exp()).sqrt()
        return strength * (x + 0.3 * (x + x.roll(1, -1)).sin() + 0.1 * (5 * share).cos())


def gaussian_noise(like: Tensor, seed: int) -> NoiseSource:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def theirs(scheduler: DDIMScheduler | DDPMScheduler, start: Tensor, steps: int, **options: Any) -> Iterator[Tensor]:
    """Images ``x_t`` of diffusers' loop, in DDPM's frame."""
    network, x = BentNoise(), start
    scheduler.set_timesteps(steps)
    if getattr(scheduler.config, "timestep_spacing", "") == "linspace" and steps < 1000:
        # Its stride is T // steps, by which it would leave the timesteps that it visits; so, it is theirs.
        scheduler.num_inference_steps = steps - 1  # type: ignore[assignment]
        assert 1000 // (steps - 1) == 999 // (steps - 1) == 999 / (steps - 1)
    if x.dtype == torch.float64:  # their table is float32, where 1 - alpha_bar has lost half of its digits at t = 0
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    for t in scheduler.timesteps:
        predicted = network(x, t.expand(len(x)).to(x.dtype))
        x = scheduler.step(predicted, t, x, return_dict=False, **options)[0]
        yield x


def ours(
    sampler: SamplerFunction, sigmas: Tensor, path: DiscreteVP, start: Tensor, noise: NoiseSource
) -> Iterator[Tensor]:
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
    ("spacing", "steps"),
    [("leading", 2), ("leading", 50), ("leading", 33), ("trailing", 50), ("trailing", 20), ("linspace", 28)],
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


@pytest.mark.parametrize(("steps", "dtype"), [(1000, torch.float64), (33, torch.float64), (33, torch.float32)], ids=str)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_diffusers(steps: int, dtype: torch.dtype, variance: Literal["small", "large"]) -> None:
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
    sampler: SamplerFunction = partial(samplers.ddpm, variance=variance)
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


def test_ddpm_on_the_cosine_path_is_diffusers() -> None:
    path = VPCosine(100)
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", variance_type="fixed_small", clip_sample=False)
    scheduler.alphas_cumprod = (1 + path.sigmas.square()).reciprocal()  # in float64; equal to theirs, as asserted
    torch.testing.assert_close(
        scheduler.alphas_cumprod.float(), DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    )
    x, network = start(torch.float64), BentNoise()
    found = ours(samplers.ddpm, grids.ddim(100, path, "leading"), path, x, gaussian_noise(x, 5))
    scheduler.set_timesteps(100)
    generator = torch.Generator().manual_seed(5)

    def theirs_on_cosine(x: Tensor) -> Iterator[Tensor]:
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(len(x)).double()), t, x, generator=generator).prev_sample
            yield x

    compare(theirs_on_cosine(x), found, 100)


# ----------------------------------------------- schedulers that work in the common frame, or with sigmas of their own

BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
Spacing = Literal["trailing", "karras"]


def options(spacing: Spacing) -> dict[str, Any]:
    return BETAS | ({"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": "trailing"})


def common_start(sigmas: Tensor) -> Tensor:
    return sigmas[0] * start(torch.float32)


def predicted(x: Tensor, sigma: Tensor, path: DiscreteVP) -> Tensor:
    """What the network says in the common frame: the noise."""
    return BentNoise()(x * path.alpha(sigma), path.t(sigma).expand(len(x)))


def compare_steps(expected: Iterator[Tensor], found: Iterator[Step]) -> None:
    """In DDPM's frame, where the images have about unit variance at every level."""
    for theirs_x, step in zip(expected, found, strict=True):
        scale = (1 + step.sigma**2) ** -0.5
        torch.testing.assert_close(step.x * scale, theirs_x * scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_euler_is_diffusers(spacing: Spacing, steps: int) -> None:
    path = VPLinear()
    scheduler = EulerDiscreteScheduler(1000, **options(spacing))
    scheduler.set_timesteps(steps)
    x = common_start(scheduler.sigmas)

    def peer(x: Tensor) -> Iterator[Tensor]:
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            torch.testing.assert_close(scheduler.scale_model_input(x, t), x * path.alpha(sigma))
            x = scheduler.step(predicted(x, sigma, path), t, x).prev_sample
            yield x

    denoiser = Denoiser(BentNoise(), path, Eps())
    compare_steps(peer(x), samplers.euler(denoiser, scheduler.sigmas, x, gaussian_noise(x, 0)))


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_heun_is_diffusers(spacing: Spacing, steps: int) -> None:
    path = VPLinear()
    scheduler = HeunDiscreteScheduler(1000, **options(spacing))
    scheduler.set_timesteps(steps)
    levels = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])  # they hold most twice
    x = common_start(levels)

    def peer(x: Tensor) -> Iterator[Tensor]:
        for number, t in enumerate(scheduler.timesteps):
            # They visit each level between the ends twice: at an interval's end, and at the start of the next.
            sigma = levels[(number + 1) // 2]
            x = scheduler.step(predicted(x, sigma, path), t, x).prev_sample
            if number % 2 == 1 or number == len(scheduler.timesteps) - 1:
                yield x

    denoiser = Denoiser(BentNoise(), path, Eps())
    compare_steps(peer(x), samplers.heun(denoiser, levels, x, gaussian_noise(x, 0)))


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize(
    ("algorithm", "sampler"),
    [("dpmsolver++", samplers.dpmpp_2m), ("sde-dpmsolver++", samplers.dpmpp_2m_sde)],
    ids=["ode", "sde"],
)
def test_dpm_solver_is_diffusers(algorithm: Any, sampler: SamplerFunction, spacing: Spacing, steps: int) -> None:
    """It works in DDPM's frame, and rounds the timestep that it tells a network: here the network is told sigma."""
    path = VPLinear()
    scheduler = DPMSolverMultistepScheduler(1000, algorithm_type=algorithm, solver_order=2, **options(spacing))
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas
    x, generator = common_start(sigmas), torch.Generator().manual_seed(5)

    def peer(x: Tensor) -> Iterator[Tensor]:
        for t, sigma, sigma_next in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
            seen = x * path.alpha(sigma)
            seen = scheduler.step(predicted(x, sigma, path), t, seen, generator=generator).prev_sample
            x = seen / path.alpha(sigma_next)
            yield x

    denoiser = Denoiser(BentNoise(), path, Eps())
    compare_steps(peer(x), sampler(denoiser, sigmas, x, gaussian_noise(x, 5)))
