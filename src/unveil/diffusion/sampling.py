"""Sampling many images: noise that belongs to an image, not to a batch, and samplers by name."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unveil.diffusion import grids, samplers
from unveil.diffusion.choices import GridName, SamplerName, Threshold, Variance
from unveil.diffusion.denoiser import DenoiserFunction
from unveil.diffusion.paths import DiscreteVP, NoisePath
from unveil.diffusion.samplers import Churn, NoiseSource, SamplerFunction, Step
from unveil.diffusion.thresholding import clipped, dynamically_thresholded
from unveil.seeds import image_seed
from unveil.workers import ALONE, Workers


@dataclass(frozen=True)
class Sampler:
    """A sampler, its grid and their numbers; see params.yaml for each."""

    sampler: SamplerName
    steps: int
    grid: GridName
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    eta: float = 0.0
    variance: Variance = "small"
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    snr: float = 0.16
    corrector_steps: int = 1
    rtol: float = 1e-3
    atol: float = 1e-3
    threshold: Threshold = "none"
    threshold_percentile: float = 0.995

    @property
    def nfe(self) -> int | None:
        """Network evaluations for an image; None where they depend on the image, or on which timesteps are equal."""
        if self.sampler == "rk45" or self.grid == "ddim-quad":
            return None
        if self.sampler == "heun":
            return 2 * self.steps - 1
        if self.sampler == "predictor-corrector":
            return self.steps + self.corrector_steps * (self.steps - 1)
        return self.steps


def build_grid(config: Sampler, path: NoisePath) -> Tensor:
    """The noise levels that ``config`` names: float64 [steps + 1], decreasing to 0; ddim-quad has some twice.

    Raises:
        ValueError: if the grid belongs to another path, or starts where there is no noise.
    """
    if config.grid == "karras":
        return grids.karras(config.steps, config.sigma_min, config.sigma_max, config.rho)
    if config.grid == "log-linear":
        return grids.log_linear(config.steps, config.sigma_min, config.sigma_max)
    if config.grid == "uniform-t":
        return grids.uniform_t(config.steps, config.sigma_max, path)
    if not isinstance(path, DiscreteVP):
        raise ValueError(
            f"grid {config.grid} visits the timesteps of a path that has T of them; "
            f"the model was trained on {type(path).__name__}, whose time is continuous"
        )
    return grids.ddim(config.steps, path, config.grid.removeprefix("ddim-"))


def build_sampler(config: Sampler) -> SamplerFunction:
    """The sampler that ``config`` names, with its own numbers."""
    churn = Churn(config.s_churn, config.s_tmin, config.s_tmax, config.s_noise)
    built: dict[SamplerName, SamplerFunction] = {
        "ddpm": partial(samplers.ddpm, variance=config.variance),
        "ddim": partial(samplers.ddim, eta=config.eta),
        "euler": partial(samplers.euler, churn=churn),
        "heun": partial(samplers.heun, churn=churn),
        "euler-maruyama": samplers.euler_maruyama,
        "predictor-corrector": partial(
            samplers.predictor_corrector, snr=config.snr, corrector_steps=config.corrector_steps
        ),
        "dpmpp-2m": samplers.dpmpp_2m,
        "dpmpp-2m-sde": samplers.dpmpp_2m_sde,
        "rk45": partial(samplers.rk45, rtol=config.rtol, atol=config.atol),
    }
    return built[config.sampler]


def run_sampler(
    config: Sampler, denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource
) -> Iterator[Step]:
    """Run the sampler that ``config`` names from ``x`` at noise level ``sigmas[0]``."""
    if config.threshold == "clip":
        denoiser = clipped(denoiser)
    elif config.threshold == "dynamic":
        denoiser = dynamically_thresholded(denoiser, config.threshold_percentile)
    return build_sampler(config)(denoiser, sigmas, x, noise)


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
        self.generators = [np.random.default_rng(image_seed("sample", seed, number)) for number in ids]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> Tensor:
        """The next draw: float32 [len(ids), *shape]."""
        noise = [generator.standard_normal(self.shape, np.float32) for generator in self.generators]
        return torch.from_numpy(np.array(noise, np.float32).reshape(-1, *self.shape)).to(self.device)


@torch.inference_mode()
def sample_steps(
    denoiser: DenoiserFunction,
    path: NoisePath,
    config: Sampler,
    noise: SampleNoise,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    workers: Workers = ALONE,
) -> Iterator[Step]:
    """Sample one batch, yielding every step; the first has the start as both x and the estimate, at NFE 0.

    Args:
        denoiser: of the trained model.
        path: of the trained model; it says how strong the first noise is.
        config: sampler and grid.
        noise: of the batch; its first draw is the start.
        context: entered around the network only, for mixed precision.
        workers: threads that share the images of the batch.
    """

    @torch.inference_mode()
    def evaluate_part(part: tuple[Tensor, Tensor]) -> Tensor:
        with context():
            return denoiser(*part)

    def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
        parts = zip(x.chunk(workers.count), sigma.chunk(workers.count), strict=True)
        return torch.cat(workers.map(evaluate_part, list(parts)))

    sigmas = build_grid(config, path)
    x = noise() * path.start_scale(sigmas[0]).item()
    yield Step(x, x, sigmas[0].item(), 0)
    yield from run_sampler(config, evaluate, sigmas, x, noise)
