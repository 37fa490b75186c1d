"""Sampling many images: noise that belongs to an image, not to a batch, and samplers by name."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unveil.diffusion import grids, samplers
from unveil.diffusion.denoiser import DenoiserFunction
from unveil.diffusion.paths import Flow, NoisePath, VPLinear
from unveil.diffusion.samplers import NoiseSource, Step


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler, its grid and their numbers; see params.yaml for each."""

    sampler: Literal["ddpm", "ddim", "heun"]
    steps: int
    grid: Literal["karras", "uniform-t", "ddim-leading", "ddim-trailing", "ddim-linspace"]
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    eta: float = 0.0
    variance: Literal["small", "large"] = "small"
    clip_denoised: bool = False

    @property
    def nfe(self) -> int:
        """Network evaluations for an image."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps


def build_grid(config: SamplerConfig, path: NoisePath) -> Tensor:
    """The noise levels that ``config`` names: float64 [steps + 1], decreasing to 0.

    Raises:
        ValueError: if the grid belongs to another path.
    """
    if config.grid == "karras":
        return grids.karras(config.steps, config.sigma_min, config.sigma_max, config.rho)
    if config.grid == "uniform-t":
        if not isinstance(path, Flow):
            raise ValueError("grid uniform-t is even in the time of path flow; the model was trained on another path")
        return grids.uniform_t(config.steps, config.sigma_max, path)
    if not isinstance(path, VPLinear):
        raise ValueError(f"grid {config.grid} visits timesteps of path vp-linear; the model was trained on another")
    return grids.ddim(config.steps, path, config.grid.removeprefix("ddim-"))


def run_sampler(
    config: SamplerConfig, denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource
) -> Iterator[Step]:
    """Run the sampler that ``config`` names from ``x`` at noise level ``sigmas[0]``."""
    if config.clip_denoised:
        denoiser = samplers.clipped(denoiser)
    if config.sampler == "heun":
        return samplers.heun(denoiser, sigmas, x, noise)
    if config.sampler == "ddim":
        return samplers.ddim(denoiser, sigmas, x, noise, config.eta)
    return samplers.ddpm(denoiser, sigmas, x, noise, config.variance)


class SampleNoise:
    """Unit Gaussian noise of which image i's part is a function of (seed, i) and the number of the draw alone.

    It is drawn on the CPU, so that it is the same on every device, and by NumPy: PyTorch's CPU generator takes
    only the low 32 bits of a seed, and among 50,000 images two would start from the same noise.

    Args:
        seed: of all images.
        ids: numbers of the images of this batch.
        shape: of one image.
        device: where the noise is wanted.
    """

    def __init__(self, seed: int, ids: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [np.random.default_rng(_image_seed(seed, number)) for number in ids]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> Tensor:
        """The next draw: float32 [len(ids), *shape]."""
        noise = [generator.standard_normal(self.shape, np.float32) for generator in self.generators]
        return torch.from_numpy(np.stack(noise)).to(self.device)


@torch.inference_mode()
def sample_steps(
    denoiser: DenoiserFunction,
    path: NoisePath,
    config: SamplerConfig,
    noise: SampleNoise,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Step]:
    """Sample one batch, yielding every step; the first has the start as both x and the estimate, at NFE 0.

    Args:
        denoiser: of the trained model.
        path: of the trained model; it says how strong the first noise is.
        config: sampler and grid.
        noise: of the batch; its first draw is the start.
        context: entered around the network only, for mixed precision.
    """

    def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
        with context():
            return denoiser(x, sigma)

    sigmas = build_grid(config, path)
    x = noise() * path.start_scale(sigmas[0]).item()
    yield Step(x, x, sigmas[0].item(), 0)
    yield from run_sampler(config, evaluate, sigmas, x, noise)


def _image_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"sample {seed} {number}".encode()).digest(), "little")
