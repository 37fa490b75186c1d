"""Grids: the noise levels that a sampler visits, from the largest down to 0.

Each is a float64 tensor of ``steps + 1`` decreasing values, the last of which is 0 (the clean image).
"""

import math

import numpy as np
import torch
from torch import Tensor

from unveil.diffusion.paths import DiscreteVP, NoisePath


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras et al.'s grid (2206.00364, eq. 5): evenly spaced in ``sigma^(1/rho)``."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    # Not high + ramp (low - high): where low is tiny, that rounds to 0 at the end.
    return _with_zero(((1 - ramp) * high + ramp * low) ** rho)


def log_linear(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in ln(sigma): a geometric sequence, as the noise levels of NCSN (1907.05600, sec. 4.3)."""
    return _with_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64).exp())


def uniform_t(steps: int, sigma_max: float, path: NoisePath) -> Tensor:
    """Evenly spaced in the path's own time, from the time of ``sigma_max`` down to 0.

    Where time 0 still has noise (the vp paths of T timesteps and ve), it is visited too, before the clean image.

    Raises:
        ValueError: if the path has no time above 0 for ``sigma_max``.
    """
    start = float(path.t(torch.tensor(sigma_max, dtype=torch.float64)))
    least = float(path.sigma(torch.zeros((), dtype=torch.float64)))
    if not start > 0:
        raise ValueError(f"sigma_max is {sigma_max:g}, expected a number above {least:g}, where the path begins")
    if least > 0:
        return _with_zero(path.sigma(torch.linspace(start, 0, steps, dtype=torch.float64)))
    return path.sigma(torch.linspace(start, 0, steps + 1, dtype=torch.float64))


def ddim_timesteps(steps: int, timesteps: int, spacing: str) -> Tensor:
    """The discrete timesteps of DDIM, decreasing (``quad`` has some more than once): int64 [steps].

    Args:
        steps: how many.
        timesteps: T of the path.
        spacing: ``leading`` 0, T//n, 2 T//n ... (DDIM's code, 2010.02502); ``trailing`` ends at T - 1
            (2305.08891, table 2); ``linspace`` both ends; ``quad`` whole parts of even squares from 0 to 0.8 T
            (DDIM's code, for CIFAR-10), which go down from there, not from T - 1.

    Raises:
        ValueError: for another spacing, for more steps than timesteps, or for one step of a spacing that holds t = 0:
            sampling would start there, where there is no noise.
    """
    if steps > timesteps:
        raise ValueError(f"{steps} steps, but the path has {timesteps} timesteps")
    if steps == 1 and spacing in ("leading", "linspace", "quad"):
        raise ValueError(f"1 step of spacing {spacing} is t = 0, where there is no noise to start from; take 2 or more")
    if spacing == "leading":
        chosen = torch.arange(steps) * (timesteps // steps)
    elif spacing == "trailing":
        chosen = (timesteps - torch.arange(steps, dtype=torch.float64) * timesteps / steps).round().long().flip(0) - 1
    elif spacing == "linspace":
        chosen = torch.linspace(0, timesteps - 1, steps, dtype=torch.float64).round().long()
    elif spacing == "quad":
        chosen = torch.from_numpy((np.linspace(0, math.sqrt(timesteps * 0.8), steps) ** 2).astype(np.int64))
    else:
        raise ValueError(f"spacing is {spacing!r}, expected leading, trailing, linspace or quad")
    return chosen.flip(0)


def ddim(steps: int, path: DiscreteVP, spacing: str) -> Tensor:
    """The noise levels of DDIM's timesteps; see :func:`ddim_timesteps`."""
    return _with_zero(path.sigmas[ddim_timesteps(steps, path.timesteps, spacing)])


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
