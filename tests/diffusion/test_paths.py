"""Noise paths: time and noise level invert each other, and DDPM's path is DDPM's process."""

import math
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unveil.diffusion.config import Diffusion
from unveil.diffusion.design import build_path
from unveil.diffusion.paths import (
    EDM,
    VE,
    VPSDE,
    DiscreteVP,
    Flow,
    NoisePath,
    SubVP,
    VPCosine,
    VPLinear,
    VPSigmoid,
)
from unveil.params import load_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"

VP = [VPLinear(), VPLinear(500), VPLinear(10, 0.01, 0.5), VPLinear(2, 0.1, 0.2)]
DISCRETE: list[DiscreteVP] = [*VP, VPCosine(), VPCosine(50, 0.1), VPSigmoid(), VPSigmoid(100, 0.0, 3.0, 0.5)]
PATHS: list[NoisePath] = [*DISCRETE, VPSDE(), SubVP(), SubVP(0.5, 10.0), VE(), VE(0.002, 378.0), EDM(), Flow()]


def _times(path: NoisePath) -> Tensor:
    """Times over the whole of a path, whole and broken ones."""
    return torch.linspace(*path.t_range(), 997, dtype=torch.float64)


def paths() -> st.SearchStrategy[NoisePath]:
    """Any path that params.yaml takes."""
    timesteps = st.integers(2, 1500)
    return st.one_of(
        st.builds(VPLinear, timesteps, st.floats(1e-6, 1e-3), st.floats(2e-3, 0.02)),
        st.builds(VPCosine, timesteps, st.floats(1e-3, 1)),
        st.builds(VPSigmoid, timesteps, st.floats(-4, 0), st.floats(1, 4), st.floats(0.5, 10)),
        st.builds(VPSDE, st.floats(1e-2, 10), st.floats(10.1, 40)),
        st.builds(SubVP, st.floats(1e-2, 10), st.floats(10.1, 40)),
        st.builds(VE, st.floats(1e-4, 1), st.floats(1.1, 1e4)),
        st.builds(EDM),
        st.builds(Flow),
    )


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


@settings(max_examples=150, deadline=None)
@given(path=paths(), share=st.floats(0, 1))
def test_time_and_noise_level_invert_each_other_anywhere(path: NoisePath, share: float) -> None:
    least, greatest = path.t_range()
    t = torch.tensor([least + share * (greatest - least)], dtype=torch.float64)
    sigma = path.sigma(t)
    assert path.t(sigma).item() == pytest.approx(t.item(), rel=1e-9, abs=1e-9)
    assert path.sigma(path.t(sigma)).item() == pytest.approx(sigma.item(), rel=1e-9)
    assert path.sigma_range()[0] * (1 - 1e-9) <= sigma.item() <= path.sigma_range()[1] * (1 + 1e-9)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_range_of_sigma_is_that_of_the_times(path: NoisePath) -> None:
    ends = path.sigma(torch.tensor(path.t_range(), dtype=torch.float64)).tolist()
    assert path.sigma_range() == pytest.approx(tuple(ends), rel=1e-12)
    assert 0 < path.sigma_range()[0] < 0.4 < path.sigma_range()[1]


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


@pytest.mark.parametrize("timesteps", [1000, 100])
def test_the_cosine_path_equals_diffusers(timesteps: int) -> None:
    """Which has the offset 0.008 and the greatest beta 0.999 too, and computes in float32."""
    scheduler = DDPMScheduler(timesteps, beta_schedule="squaredcos_cap_v2")
    path = VPCosine(timesteps)
    torch.testing.assert_close(torch.tensor(path.betas()), scheduler.betas, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close((path.alpha(path.sigmas) ** 2).float(), scheduler.alphas_cumprod, rtol=1e-3, atol=1e-9)


def test_the_cosine_path_is_a_squared_cosine_until_its_betas_are_clipped() -> None:
    path = VPCosine(200, 0.02)
    f = [math.cos((t / 200 + 0.02) / 1.02 * math.pi / 2) ** 2 for t in range(201)]  # 2102.09672, eq. 17
    expected = torch.tensor(f[1:], dtype=torch.float64) / f[0]
    torch.testing.assert_close((path.alpha(path.sigmas) ** 2)[:-1], expected[:-1], rtol=1e-9, atol=0.0)
    assert path.betas()[-1] == 0.999 and max(path.betas()[:-1]) < 0.999
    assert (path.alpha(path.sigmas) ** 2)[-1] == pytest.approx(0.001 * expected[-2].item(), rel=1e-9)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.5), (-3.0, 3.0, 0.9)])
def test_the_sigmoid_path_is_a_piece_of_the_logistic_function(start: float, end: float, tau: float) -> None:
    path = VPSigmoid(200, start, end, tau)

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x / tau))

    low, high = logistic(start), logistic(end)
    gamma = [(high - logistic(start + (end - start) * t / 200)) / (high - low) for t in range(1, 201)]
    expected = torch.tensor(gamma, dtype=torch.float64)
    torch.testing.assert_close((path.alpha(path.sigmas) ** 2)[:-1], expected[:-1], rtol=1e-9, atol=0.0)
    assert path.betas()[-1] == 0.999 and max(path.betas()[:-1]) < 0.999


def test_sub_vp_is_score_sdes_marginal() -> None:
    """2011.13456, eq. 29: mean exp(-B/2), standard deviation 1 - exp(-B), as in its code."""
    path = SubVP(0.1, 20.0)
    t = torch.linspace(1e-3, 1, 101, dtype=torch.float64)
    log_mean = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
    mean, std = log_mean.exp(), 1 - (2 * log_mean).exp()
    sigma = path.sigma(t)
    torch.testing.assert_close(path.alpha(sigma), mean, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(path.alpha(sigma) * sigma, std, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(path.c_noise(sigma), 999 * t, rtol=1e-9, atol=0.0)


def test_vp_sde_is_score_sdes_marginal_and_the_limit_of_ddpms_chain() -> None:
    """2011.13456, eq. 29, as in its code; the same sigma is up to 3.4 of the chain's 1000 timesteps away."""
    path, chain = VPSDE(0.1, 20.0), VPLinear()
    t = torch.linspace(1e-3, 1, 101, dtype=torch.float64)
    log_mean = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
    sigma = path.sigma(t)
    torch.testing.assert_close(path.alpha(sigma), log_mean.exp(), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(path.alpha(sigma) * sigma, (1 - (2 * log_mean).exp()).sqrt(), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(path.c_noise(sigma), 999 * t, rtol=1e-9, atol=0.0)
    apart = (path.c_noise(chain.sigmas) - torch.arange(1000)).abs()
    assert apart.max().item() == pytest.approx(3.4, abs=0.05)
    finer = VPLinear(100_000, 1e-6, 2e-4)
    assert (path.t(finer.sigmas) - torch.linspace(0, 1, 100_000)).abs().max() < 1e-4


def test_the_noise_of_ve_is_score_sdes_on_pixels_twice_as_far_apart() -> None:
    """Its 0.01 and 50 are for pixels in [0, 1] (app. C; 2006.09011); ours lie in [-1, 1]."""
    assert VE().sigma_range() == (2 * 0.01, 2 * 50.0)
    config = Diffusion(path="ve", parameterization="eps", objective="simple")
    assert (
        build_path(config)
        == VE()
        == build_path(Diffusion(**load_params(SHIPPED).train.diffusion.model_dump() | {"path": "ve"}))
    )


def test_ve_is_score_sdes_geometric_sequence() -> None:
    path = VE(0.01, 50.0)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = path.sigma(t)
    torch.testing.assert_close(sigma, 0.01 * (50.0 / 0.01) ** t)
    torch.testing.assert_close(path.c_noise(sigma), (0.5 * sigma).log())
    assert path.alpha(sigma).tolist() == [1.0] * 11


@pytest.mark.parametrize("path", [VPSDE(), SubVP(), VE(), Flow(), EDM()], ids=str)
def test_continuous_paths_go_on_beyond_their_range(path: NoisePath) -> None:
    """A sampler may visit any sigma; what the network makes of it is another matter."""
    sigma = torch.tensor([path.sigma_range()[0] / 2, path.sigma_range()[1] * 2], dtype=torch.float64)
    torch.testing.assert_close(path.sigma(path.t(sigma)), sigma, rtol=1e-9, atol=0.0)


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
    preserving: list[NoisePath] = [*DISCRETE, VPSDE()]
    for path in preserving:
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
    for path in PATHS[:-4]:  # unit variance in the network's frame, which is the whole of x_T
        torch.testing.assert_close(path.alpha(sigma) * path.start_scale(sigma), torch.ones_like(sigma))
    for path in PATHS[-4:]:
        torch.testing.assert_close(path.start_scale(sigma), sigma)


def test_what_is_left_of_the_image_at_the_end() -> None:
    last = _alphas_bar(VPLinear())[-1]
    assert VPLinear().sigma_range()[1] ** -2 == pytest.approx(last / (1 - last))
    assert last == pytest.approx(4e-5, rel=0.02)  # 2305.08891, table 1: sqrt is 0.006353, the square 4.04e-5
    assert VPLinear(500).sigma_range()[1] < 0.1 * VPLinear().sigma_range()[1]
