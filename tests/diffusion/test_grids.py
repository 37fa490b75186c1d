"""Grids: which noise levels a sampler visits."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from unveil.diffusion import grids
from unveil.diffusion.paths import EDM, VE, VPSDE, DiscreteVP, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid

STEPS = [1, 2, 7, 10, 18, 50, 99, 100]


def _is_a_grid(sigmas: Tensor, steps: int) -> None:
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_even_in_the_rho_th_root(steps: int, rho: float) -> None:
    sigmas = grids.karras(steps, 0.002, 80.0, rho)
    _is_a_grid(sigmas, steps)
    assert sigmas[0] == pytest.approx(80.0)
    if steps > 1:
        assert sigmas[-2] == pytest.approx(0.002)
        spacing = (sigmas[:-1] ** (1 / rho)).diff()
        torch.testing.assert_close(spacing, spacing.mean().expand(steps - 1))


@pytest.mark.parametrize("rho", [0.2, 0.5, 1.0, 100.0])
def test_karras_ends_at_sigma_min_however_far_the_other_end(rho: float) -> None:
    for low, high in ((0.002, 80.0), (1e-8, 1e8)):
        sigmas = grids.karras(18, low, high, rho)
        _is_a_grid(sigmas, 18)
        assert sigmas[-2] == pytest.approx(low)


@pytest.mark.parametrize(
    ("path", "sigma_max"), [(VE(1.0, 50.0), 0.5), (VE(1.0, 50.0), 1.0), (VPLinear(), 0.005)], ids=str
)
def test_uniform_t_cannot_rise(path: NoisePath, sigma_max: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number above .*, where the path begins"):
        grids.uniform_t(5, sigma_max, path)


@pytest.mark.parametrize("steps", STEPS)
def test_log_linear_has_equal_ratios(steps: int) -> None:
    sigmas = grids.log_linear(steps, 0.002, 80.0)
    _is_a_grid(sigmas, steps)
    assert sigmas[0] == pytest.approx(80.0)
    if steps > 1:
        assert sigmas[-2] == pytest.approx(0.002)
        ratios = sigmas[1:-1] / sigmas[:-2]
        torch.testing.assert_close(ratios, ratios.mean().expand(steps - 1))


def test_karras_tends_to_log_linear_as_rho_grows() -> None:
    torch.testing.assert_close(
        grids.karras(20, 0.01, 10.0, rho=1e6), grids.log_linear(20, 0.01, 10.0), rtol=1e-4, atol=0.0
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("path", [Flow(), EDM(), VPSDE(), SubVP()], ids=str)
def test_uniform_t_is_even_in_the_paths_time_down_to_0(path: NoisePath, steps: int) -> None:
    sigmas = grids.uniform_t(steps, 50.0, path)
    _is_a_grid(sigmas, steps)
    assert sigmas[0] == pytest.approx(50.0)
    t = path.t(sigmas)
    torch.testing.assert_close(t.diff(), (-t[0] / steps).expand(steps))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("path", [VE(), VPLinear(), VPCosine(), VPSigmoid()], ids=str)
def test_uniform_t_visits_the_first_time_of_a_path_that_has_noise_there(path: NoisePath, steps: int) -> None:
    sigmas = grids.uniform_t(steps, 50.0, path)
    _is_a_grid(sigmas, steps)
    assert sigmas[0] == pytest.approx(50.0)
    if steps > 1:
        assert sigmas[-2] == pytest.approx(path.sigma_range()[0])
        t = path.t(sigmas[:-1])
        torch.testing.assert_close(t.diff(), (-t[0] / (steps - 1)).expand(steps - 1))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("timesteps", "steps"), [(1000, n) for n in (*STEPS[1:], 250, 333, 999, 1000)] + [(500, 50), (7, 3)]
)
def test_ddims_timesteps_are_diffusers(timesteps: int, steps: int, spacing: str) -> None:
    scheduler = DDIMScheduler(timesteps, timestep_spacing=spacing, steps_offset=0)
    scheduler.set_timesteps(steps)
    expected = np.asarray(scheduler.timesteps)
    found = grids.ddim_timesteps(steps, timesteps, spacing)
    assert found.tolist() == expected.tolist()
    _is_a_grid(grids.ddim(steps, VPLinear(timesteps), spacing), steps)


def test_the_noise_levels_of_ddim_are_those_of_its_timesteps() -> None:
    t = torch.tensor([80.0, 60.0, 40.0, 20.0, 0.0], dtype=torch.float64)
    paths: list[DiscreteVP] = [VPLinear(100), VPCosine(100), VPSigmoid(100)]
    for path in paths:
        torch.testing.assert_close(grids.ddim(5, path, "leading")[:-1], path.sigma(t))


def test_an_unknown_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match="leading, trailing, linspace or quad"):
        grids.ddim_timesteps(10, 1000, "quadratic")


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 2), (1000, 10), (1000, 20), (1000, 100), (1000, 1000), (7, 5)])
def test_quad_timesteps_are_ddims_even_squares(timesteps: int, steps: int) -> None:
    """2010.02502, appendix D.2 and its code: ``floor(c i^2)`` from 0, with c such that the last is near 0.8 T."""
    found = grids.ddim_timesteps(steps, timesteps, "quad").flip(0)
    exact = 0.8 * timesteps * (torch.arange(steps, dtype=torch.float64) / (steps - 1)) ** 2
    assert found[0] == 0 and found[-1] == int(0.8 * timesteps) and (found.diff() >= 0).all()
    assert ((found <= exact + 1e-9) & (found > exact - 1 - 1e-9)).all()
    assert grids.ddim(steps, VPLinear(timesteps), "quad").shape == (steps + 1,)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "quad"])
def test_one_step_from_where_there_is_no_noise_is_refused(spacing: str) -> None:
    with pytest.raises(ValueError, match="t = 0, where there is no noise to start from"):
        grids.ddim_timesteps(1, 1000, spacing)
    assert grids.ddim_timesteps(1, 1000, "trailing").tolist() == [999]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quad"])
def test_more_steps_than_timesteps_are_refused(spacing: str) -> None:
    with pytest.raises(ValueError, match="11 steps, but the path has 10"):
        grids.ddim_timesteps(11, 10, spacing)
