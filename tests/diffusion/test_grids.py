"""Grids: which noise levels a sampler visits."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from unveil.diffusion import grids
from unveil.diffusion.paths import Flow, VPLinear

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


@pytest.mark.parametrize("steps", STEPS)
def test_uniform_t_is_even_in_rectified_flows_time(steps: int) -> None:
    sigmas = grids.uniform_t(steps, 80.0)
    _is_a_grid(sigmas, steps)
    assert sigmas[0] == pytest.approx(80.0)
    t = Flow().t(sigmas)
    torch.testing.assert_close(t.diff(), torch.full((steps,), -80 / 81 / steps, dtype=torch.float64))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("timesteps", "steps"), [(1000, n) for n in (*STEPS, 250, 333, 999, 1000)] + [(500, 50), (7, 3)]
)
def test_ddims_timesteps_are_diffusers(timesteps: int, steps: int, spacing: str) -> None:
    scheduler = DDIMScheduler(timesteps, timestep_spacing=spacing, steps_offset=0)
    scheduler.set_timesteps(steps)
    expected = np.asarray(scheduler.timesteps)
    found = grids.ddim_timesteps(steps, timesteps, spacing)
    assert found.tolist() == expected.tolist()
    _is_a_grid(grids.ddim(steps, VPLinear(timesteps), spacing), steps)


def test_the_noise_levels_of_ddim_are_those_of_its_timesteps() -> None:
    path = VPLinear(100)
    t = torch.tensor([80.0, 60.0, 40.0, 20.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(grids.ddim(5, path, "leading")[:-1], path.sigma(t))


def test_an_unknown_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match="leading, trailing or linspace"):
        grids.ddim_timesteps(10, 1000, "quadratic")
