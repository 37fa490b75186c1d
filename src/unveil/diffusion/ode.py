"""An adaptive solver of ordinary differential equations, for samplers and likelihoods.

Every row of a batch has its own time and its own step, so that the result of a row does not depend on the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.diffusion.denoiser import expand

Field = Callable[[Tensor, Tensor], Tensor]
"""Right-hand side ``dy/dt = f(t, y)``: maps times [B] and states [B, ...] to slopes [B, ...]."""

# Dormand and Prince 1980, table 2, RK5(4)7M: nodes, stages, and the difference of the orders 5 and 4.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
ERROR_EXPONENT = -1 / 5  # the error of a step is of order 5 in its length

SAFETY = 0.9  # of the step that the error would just allow; Hairer, Norsett and Wanner, Solving ODEs I, sec. II.4
EPSILON = torch.finfo(torch.float64).eps  # of the times
LEAST_FACTOR, GREATEST_FACTOR = 0.2, 10.0  # by which a step may shrink or grow
MOST_STEPS = 10_000  # tried before it is given up


class Solution(NamedTuple):
    """States at the end, of the start's shape and dtype, and evaluations that each row needed, int64 [B].

    The batch took the greatest of these, because finished rows wait for the others.
    """

    y: Tensor
    nfe: Tensor


def rk45(f: Field, y0: Tensor, t0: float, t1: float, rtol: float = 1e-5, atol: float = 1e-5) -> Solution:
    """Dormand and Prince's method of order 5 with an error estimate of order 4.

    A step is accepted if the root mean square, over the elements of its row, of
    ``error / (atol + rtol max(|y|, |y_next|))`` is below 1. Controller and first step are those of Hairer, Norsett
    and Wanner (Solving ODEs I, sec. II.4), so that one row takes the steps of ``scipy.integrate.RK45``.

    The states ``y0``, float [B, ...], are those at ``t0``: float64 if the tolerances are below float32's precision.
    To an end ``t1`` below ``t0`` the time runs backwards.

    Raises:
        ArithmeticError: if a step became too short to advance the time (the slope is not finite or jumps), or if
            ``MOST_STEPS`` were not enough.
    """
    rows = len(y0)
    direction = 1.0 if t1 >= t0 else -1.0
    t = torch.full((rows,), t0, dtype=torch.float64, device=y0.device)
    y, slope = y0, f(t, y0)
    nfe = torch.full((rows,), 2, device=y0.device)
    step = _first_step(f, t, y, slope, abs(t1 - t0), direction, rtol, atol)
    shrunk = torch.zeros(rows, dtype=torch.bool, device=y0.device)
    for _ in range(MOST_STEPS):
        active = direction * (t1 - t) > 0
        if not active.any():
            return Solution(y, nfe)
        stuck = active & ~(step >= 10 * EPSILON * t.abs())  # a step that is not a number is stuck too
        if stuck.any():
            raise ArithmeticError(f"no step is short enough at t = {t[stuck][0]:.6g}: the slope is not smooth there")
        left = direction * (t1 - t)
        last = step >= left
        length = torch.where(active, torch.minimum(step, left), 0.0)
        y_next, slope_next, error = _step(f, t, y, slope, direction * length)
        nfe += torch.where(active, len(NODES) - 1, 0)
        ratio = _norm(error, y, y_next, rtol, atol)
        accepted = active & (ratio < 1)
        t = torch.where(accepted, torch.where(last, t1, t + direction * length), t)
        y = torch.where(expand(accepted, y), y_next, y)
        slope = torch.where(expand(accepted, y), slope_next, slope)
        # After a rejected step the next one must not grow at once.
        greatest = torch.where(accepted & ~shrunk, GREATEST_FACTOR, 1.0)
        factor = torch.minimum((SAFETY * ratio**ERROR_EXPONENT).nan_to_num(LEAST_FACTOR), greatest)
        step = torch.where(active, length * factor.clamp_min(LEAST_FACTOR), step)
        shrunk = active & ~accepted
    raise ArithmeticError(f"not at t = {t1:g} after {MOST_STEPS} steps")


def _step(f: Field, t: Tensor, y: Tensor, slope: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States and slopes one step ahead, and the estimated error of the states."""
    column = expand(step, y).to(y.dtype)
    slopes = [slope]
    y_next = y
    for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
        y_next = y + column * _combined(weights, slopes)
        slopes.append(f(t + node * step, y_next))
    return y_next, slopes[-1], column * _combined(ERROR, slopes)


def _combined(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return torch.stack([weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]).sum(0)


def _norm(values: Tensor, y: Tensor, y_next: Tensor, rtol: float, atol: float) -> Tensor:
    """Root mean square of every row, in units of what is tolerated: float64 [B]."""
    scale = atol + rtol * torch.maximum(y.abs(), y_next.abs())
    return (values / scale).double().flatten(1).square().mean(1).sqrt()


def _first_step(
    f: Field, t: Tensor, y: Tensor, slope: Tensor, span: float, direction: float, rtol: float, atol: float
) -> Tensor:
    """Lengths [B] at which an explicit Euler step would change the slope little (Hairer et al., sec. II.4)."""
    size, speed = _norm(y, y, y, rtol, atol), _norm(slope, y, y, rtol, atol)
    small = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp_max(span)
    ahead = f(t + direction * small, y + expand(direction * small, y).to(y.dtype) * slope)
    bend = _norm(ahead - slope, y, y, rtol, atol) / small
    steepest = torch.maximum(speed, bend)
    fitting = torch.where(steepest <= 1e-15, (small * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / 5))
    return torch.minimum(100 * small, fitting).clamp_max(span)
