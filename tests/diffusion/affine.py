"""What a sampler makes of a denoiser."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction
from unveil.diffusion.samplers import SamplerFunction, Step


def last(steps: Iterator[Step]) -> Step:
    """The result of a sampler."""
    *_, step = steps
    return step


def exact_moments(
    sampler: SamplerFunction, denoiser: DenoiserFunction, sigmas: Tensor, start_mean: float, start_std: float
) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler draws with an affine denoiser, without drawing anything.

    With such a denoiser the result is affine in the start and in every draw of noise. Row 0 of the batch goes
    through with none of them, row 1 with the start alone, row 2 + k with the k-th draw alone.
    """
    draws = iter(range(len(sigmas)))

    def noise() -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(2 + next(draws)), rows).double()

    rows = 2 + len(sigmas)
    start = torch.full((rows,), start_mean, dtype=torch.float64)
    start[1] += start_std
    result = last(sampler(denoiser, sigmas, start, noise)).x
    return float(result[0]), float((result[1:] - result[0]).square().sum().sqrt())
