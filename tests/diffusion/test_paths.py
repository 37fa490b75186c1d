"""Noise paths: time and noise level invert each other, and DDPM's path is DDPM's process."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from unveil.diffusion.paths import EDM, Flow, NoisePath, VPLinear, final_signal_to_noise

VP = [VPLinear(), VPLinear(500), VPLinear(10, 0.01, 0.5), VPLinear(2, 0.1, 0.2)]
PATHS: list[NoisePath] = [*VP, EDM(), Flow()]


def _times(path: NoisePath) -> Tensor:
    """Times over the whole of a path, whole and broken ones."""
    if isinstance(path, VPLinear):
        return torch.linspace(0, path.timesteps - 1, 997, dtype=torch.float64)
    return torch.linspace(0.001, 0.999 if isinstance(path, Flow) else 100, 997, dtype=torch.float64)


def _alphas_bar(path: VPLinear) -> list[float]:
    """DDPM's products (2006.11239, eq. 4), by logarithms that are summed without rounding."""
    slope = (path.beta_end - path.beta_start) / (path.timesteps - 1)
    logs = [math.log1p(-(path.beta_start + slope * i)) for i in range(path.timesteps)]
    return [math.exp(math.fsum(logs[: i + 1])) for i in range(path.timesteps)]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_time_and_noise_level_invert_each_other(path: NoisePath) -> None:
    t = _times(path)
    sigma = path.sigma(t)
    torch.testing.assert_close(path.t(sigma), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.sigma(path.t(sigma)), sigma, rtol=1e-9, atol=0.0)
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_shape_and_type_are_kept(path: NoisePath) -> None:
    for dtype in (torch.float32, torch.float64):
        sigma = torch.tensor([[0.5], [1.0]], dtype=dtype)
        for method in (path.t, path.alpha, path.c_noise, path.start_scale, path.sigma):
            assert method(sigma).shape == (2, 1)
            assert method(sigma).dtype == dtype


@pytest.mark.parametrize("path", VP, ids=str)
def test_at_whole_times_the_vp_path_is_ddpms_process(path: VPLinear) -> None:
    expected = torch.tensor(_alphas_bar(path), dtype=torch.float64)
    for t in (torch.arange(path.timesteps), torch.arange(path.timesteps, dtype=torch.float64)):
        sigma = path.sigma(t).double()
        tolerance = 1e-6 if t.dtype == torch.int64 else 1e-10
        torch.testing.assert_close(1 / (1 + sigma**2), expected, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(path.sigma(torch.arange(path.timesteps).double()), path.sigmas, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("timesteps", [1000, 500])
def test_the_vp_path_equals_diffusers(timesteps: int) -> None:
    scheduler = DDPMScheduler(timesteps, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    path = VPLinear(timesteps)
    alphas_bar = path.alpha(path.sigmas) ** 2
    torch.testing.assert_close(alphas_bar.float(), scheduler.alphas_cumprod, rtol=2e-5, atol=0.0)


def test_between_whole_times_the_vp_path_is_even_in_the_logarithm() -> None:
    path = VPLinear(10)
    t = torch.tensor([3.0, 3.25, 3.5, 3.75, 4.0], dtype=torch.float64)
    steps = path.sigma(t).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(4))


def test_outside_its_range_the_vp_path_stays_at_its_ends() -> None:
    path = VPLinear(100)
    least, greatest = path.sigmas[0], path.sigmas[-1]
    assert path.t(torch.stack([least / 2, least, greatest, 2 * greatest])).tolist() == [0, 0, 99, 99]
    ends = path.sigma(torch.tensor([-3.0, 0.0, 99.0, 200.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.stack([least, least, greatest, greatest]))


def test_alpha_and_noise_share_what_each_path_shares() -> None:
    """Of ``x_t = alpha x0 + s n``, vp keeps alpha^2 + s^2, flow keeps alpha + s, edm keeps alpha."""
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    for path in VP:
        alpha = path.alpha(sigma)
        torch.testing.assert_close(alpha**2 + (alpha * sigma) ** 2, torch.ones_like(sigma))
    alpha = Flow().alpha(sigma)
    torch.testing.assert_close(alpha + alpha * sigma, torch.ones_like(sigma))
    torch.testing.assert_close(alpha * sigma, Flow().t(sigma))
    assert EDM().alpha(sigma).tolist() == [1.0] * 50


def test_the_network_is_told_timesteps_thousandths_or_a_quarter_of_the_logarithm() -> None:
    path = VPLinear()
    told = path.c_noise(path.sigmas.float())  # as training draws them
    torch.testing.assert_close(told, torch.arange(1000.0), rtol=0.0, atol=1e-3)
    t = torch.linspace(0.01, 0.99, 20, dtype=torch.float64)
    torch.testing.assert_close(Flow().c_noise(t / (1 - t)), 1000 * t)
    torch.testing.assert_close(EDM().c_noise((4 * t).exp()), t)


def test_sampling_starts_from_noise_of_the_strength_that_each_path_ends_with() -> None:
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    for path in PATHS[:-2]:  # unit variance in the network's frame, which is the whole of x_T
        torch.testing.assert_close(path.alpha(sigma) * path.start_scale(sigma), torch.ones_like(sigma))
    for path in PATHS[-2:]:
        torch.testing.assert_close(path.start_scale(sigma), sigma)


def test_what_is_left_of_the_image_at_the_end() -> None:
    last = _alphas_bar(VPLinear())[-1]
    assert final_signal_to_noise(VPLinear()) == pytest.approx(last / (1 - last))
    assert last == pytest.approx(4e-5, rel=0.02)  # 2305.08891, table 1: sqrt is 0.006353, the square 4.04e-5
    assert final_signal_to_noise(VPLinear(500)) > 100 * final_signal_to_noise(VPLinear())
