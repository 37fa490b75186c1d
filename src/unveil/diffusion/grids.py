"""Grids: the noise levels that a sampler visits, from the largest down to 0.

Each is a float64 tensor of ``steps + 1`` decreasing values, the last of which is 0 (the clean image).
"""

import torch
from torch import Tensor

from unveil.diffusion.paths import Flow, VPLinear


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras et al.'s grid (2206.00364, eq. 5): evenly spaced in ``sigma^(1/rho)``."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _with_zero((high + ramp * (low - high)) ** rho)


def uniform_t(steps: int, sigma_max: float, path: Flow | None = None) -> Tensor:
    """Evenly spaced in rectified flow's time, from the time of ``sigma_max`` down to 0."""
    path = path or Flow()
    start = float(path.t(torch.tensor(sigma_max, dtype=torch.float64)))
    return path.sigma(torch.linspace(start, 0, steps + 1, dtype=torch.float64))


def ddim_timesteps(steps: int, timesteps: int, spacing: str) -> Tensor:
    """The discrete timesteps of DDIM, decreasing: int64 [steps].

    Args:
        steps: how many.
        timesteps: T of the path.
        spacing: ``leading`` 0, T//n, 2 T//n ... (DDIM's code, 2010.02502); ``trailing`` ends at T - 1
            (2305.08891, table 2); ``linspace`` both ends.
    """
    if spacing == "leading":
        chosen = torch.arange(steps) * (timesteps // steps)
    elif spacing == "trailing":
        chosen = (timesteps - torch.arange(steps, dtype=torch.float64) * timesteps / steps).round().long().flip(0) - 1
    elif spacing == "linspace":
        chosen = torch.linspace(0, timesteps - 1, steps, dtype=torch.float64).round().long()
    else:
        raise ValueError(f"spacing is {spacing!r}, expected leading, trailing or linspace")
    return chosen.flip(0)


def ddim(steps: int, path: VPLinear, spacing: str) -> Tensor:
    """The noise levels of DDIM's timesteps; see :func:`ddim_timesteps`."""
    return _with_zero(path.sigmas[ddim_timesteps(steps, path.timesteps, spacing)])


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
