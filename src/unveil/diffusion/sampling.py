"""Sampling many images: noise that belongs to an image, not to a batch, and samplers by name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.diffusion import grids, samplers
from unveil.diffusion.config import Sampler, SamplerName
from unveil.diffusion.denoiser import DenoiserFunction, expand
from unveil.diffusion.paths import DiscreteVP, NoisePath
from unveil.diffusion.samplers import Churn, Counted, NoiseSource, SamplerFunction, Step
from unveil.seeds import image_seed
from unveil.workers import ALONE, Workers

Watch = Callable[[Sequence[int], int, Step], object]
"""Told of a step: the numbers of the batch's images, the step's number, and the step."""


def build_grid(config: Sampler, path: NoisePath) -> Tensor:
    """The noise levels that ``config`` names: float64 [steps + 1], decreasing to 0; ddim-quad has some twice.

    >>> from unveil.diffusion.paths import VPLinear
    >>> sampler = Sampler(sampler="heun", steps=3, grid="log-linear", sigma_min=0.1, sigma_max=10.0)
    >>> build_grid(sampler, VPLinear())
    tensor([10.0000,  1.0000,  0.1000,  0.0000], dtype=torch.float64)

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


def clipped(denoiser: DenoiserFunction) -> DenoiserFunction:
    """A denoiser whose estimates are clipped to [-1, 1], as DDPM's code does in every step."""
    return lambda x, sigma: denoiser(x, sigma).clamp(-1, 1)


def dynamically_thresholded(denoiser: DenoiserFunction, percentile: float) -> DenoiserFunction:
    """A denoiser with dynamic thresholding (Imagen, 2205.11487, sec. 2.3).

    Of each estimate s is the ``percentile`` (a share, such as 0.995) of its absolute pixel values; if it is above 1,
    the estimate is clipped to [-s, s] and divided by s. Where clipping leaves whole areas saturated, this pulls
    them back into the range.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        estimate = denoiser(x, sigma)
        if not len(estimate):
            return estimate
        # By image: of more than 16 million numbers at once torch.quantile refuses to find one.
        limits = torch.stack([image.abs().flatten().quantile(percentile) for image in estimate])
        limit = expand(limits.clamp_min(1), estimate)
        return estimate.clamp(-limit, limit) / limit

    return denoise


def run_sampler(
    config: Sampler, denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor, noise: NoiseSource
) -> Iterator[Step]:
    """Run the sampler that ``config`` names from ``x`` at noise level ``sigmas[0]``."""
    counted = denoiser if isinstance(denoiser, Counted) else Counted(denoiser)
    if config.threshold == "clip":
        counted = Counted(clipped(counted), counted)
    elif config.threshold == "dynamic":
        counted = Counted(dynamically_thresholded(counted, config.threshold_percentile), counted)
    return build_sampler(config)(counted, sigmas, x, noise)


class SampleNoise:
    """Unit Gaussian noise of which image i's part is a function of (seed, i) and the number of the draw alone.

    It is drawn on the CPU, so that it is the same on every device, and by NumPy: PyTorch's CPU generator takes
    only the low 32 bits of a seed, and among 50,000 images two would start from the same noise.
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
def draw(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    ids: Sequence[int],
    shape: Sequence[int],
    *,
    path: NoisePath | None = None,
    device: torch.device | str | None = None,
    condition: Any = None,
    start: Tensor | None = None,
    sigmas: Tensor | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    workers: Workers = ALONE,
) -> Iterator[Step]:
    """Draw one batch of images, yielding every step; the first has the start as both x and the estimate, at NFE 0.

    What image i becomes depends on (seed, i) alone, but for rounding.

    >>> from unveil.diffusion.paths import EDM
    >>> def shrunk(x, sigma):  # E[x0 | x] of data N(0, 0.25): any function of x and sigma will do
    ...     return x / (1 + 4 * sigma[:, None, None, None] ** 2)
    >>> sampler = Sampler(sampler="heun", steps=6, grid="karras", sigma_min=0.01)
    >>> *_, last = draw(shrunk, sampler, seed=0, ids=[3, 8], shape=(3, 16, 16), path=EDM())
    >>> last.x.shape, last.sigma, last.nfe
    (torch.Size([2, 3, 16, 16]), 0.0, 11)

    Args:
        denoiser: called as ``(x, sigma)``, and with ``condition`` as a third argument if there is one; one that is made
            of several networks is a :class:`Counted` with them, so that each is counted.
        sampler: which, and on which grid.
        seed: of all images.
        ids: numbers of the images of this batch.
        shape: of one image.
        path: on which the denoiser was trained, which says how strong the first noise is; None = the denoiser's own,
            its attribute ``path``.
        device: where to draw; None = where the denoiser's parameters or the start are, or the CPU.
        condition: what the network is told, a row an image; it is sliced as the batch is.
        start: the caller's own x at ``sigmas[0]``, float [B, ...], in the place of noise.
        sigmas: the caller's own levels, in the place of the grid that ``sampler`` names.
        context: entered around the network only, for mixed precision.
        workers: threads that share the images of the batch.

    Raises:
        ValueError: if the grid is none, or is of another path.
        ArithmeticError: if rk45 finds no step that is short enough.
    """
    network = denoiser if isinstance(denoiser, Counted) else Counted(denoiser)
    path = getattr(network.denoiser, "path", None) if path is None else path
    if device is None:
        parameters: Iterable[Tensor] = getattr(network.denoiser, "parameters", tuple)()
        device = next((tensor.device for tensor in (*parameters, start) if tensor is not None), "cpu")
    noise = SampleNoise(seed, ids, shape, device)
    if path is not None:
        sigmas = build_grid(sampler, path) if sigmas is None else sigmas
        start = noise() * path.start_scale(sigmas[0]).item() if start is None else start
    if sigmas is None or start is None:
        raise ValueError("path: found none, expected one, or both a start and sigmas")
    bound = bind(network, len(ids), condition, context, workers)
    yield Step(start, start, sigmas[0].item(), 0)
    yield from run_sampler(sampler, bound, sigmas, start, noise)


def bind(
    network: Counted,
    rows: int,
    condition: Any = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    workers: Workers = ALONE,
) -> Counted:
    """The network as samplers call it with so many images: ``(x, sigma)``, tied to what else :func:`draw` is given."""
    if condition is not None and len(condition) not in (0, rows):
        raise ValueError(f"condition: found {len(condition)} rows, expected one for each of {rows} images")

    def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
        size = max(-(-len(x) // workers.count), 1)

        @torch.inference_mode()
        def evaluate_part(first: int) -> Tensor:
            here = slice(first, first + size)
            with context():
                return network(x[here], sigma[here], None if condition is None else condition[here])

        return torch.cat(workers.map(evaluate_part, range(0, max(len(x), 1), size)))

    return Counted(evaluate, network)


class NotDrawn(ArithmeticError):
    """Images that are no images.

    Args:
        ids: their numbers.
        cause: of rk45, which finds out first; None = they are not finite.
    """

    def __init__(self, ids: Sequence[int], cause: ArithmeticError | None = None) -> None:
        self.cause = cause
        self.why = "are not finite numbers" if cause is None else f"cannot be drawn by rk45 ({cause})"
        super().__init__(f"samples {ids[0]} to {ids[-1]} {self.why}")


def batches(count: int, size: int) -> list[range]:
    """The numbers of ``count`` images in batches of ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def draw_batches(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    shape: Sequence[int],
    parts: Iterable[Sequence[int]],
    watch: Watch = lambda ids, number, step: None,
    tell: Callable[[Sequence[int]], Any] = lambda ids: None,
    **how: Any,
) -> Iterator[tuple[Sequence[int], Step]]:
    """Of each batch the numbers of its images and their last step; image i is a function of (seed, i) alone.

    ``parts`` has the numbers of each batch's images, as :func:`batches` makes them. ``watch`` is told of every step,
    from number 0, the start. ``tell`` gives the condition of a batch. ``how`` is what else :func:`draw` takes.

    Raises:
        NotDrawn: if the images of a batch cannot be drawn, or are not finite.
    """
    for ids in parts:
        try:
            for number, step in enumerate(draw(denoiser, sampler, seed, ids, shape, condition=tell(ids), **how)):
                watch(ids, number, step)
        except ArithmeticError as error:
            raise NotDrawn(ids, error) from None
        if not torch.isfinite(step.x).all():
            raise NotDrawn(ids)
        yield ids, step
