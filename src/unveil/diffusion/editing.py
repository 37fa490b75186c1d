"""Editing given images with a denoiser: paint a part anew, go to noise and back otherwise, mix two, vary one.

An image is float [C, H, W] in [-1, 1]. Every function takes any denoiser, ``(x, sigma)`` or with a condition as third
argument, and all but :func:`interpolate` yield the :class:`Step` of a sampler, whose last ``x`` is the result and
whose ``nfe`` counts from the function's own start. What is random about image i depends on (seed, i) alone.

``how`` is, where a function has it, what :func:`unveil.diffusion.sampling.draw` takes too: ``path``, ``sigmas``,
``condition``, ``context`` and ``workers``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unveil.diffusion.config import Sampler
from unveil.diffusion.paths import NoisePath
from unveil.diffusion.samplers import Counted, Step, intervals
from unveil.diffusion.sampling import SampleNoise, bind, build_grid, draw, run_sampler
from unveil.workers import ALONE, Workers

FIXED_POINT_STEPS = 2  # that undo a step of a sampler


@torch.inference_mode()
def inpaint(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    images: Tensor,
    mask: Tensor,
    *,
    resamplings: int = 10,
    jump: int = 1,
    ids: Sequence[int] | None = None,
    **how: Any,
) -> Iterator[Step]:
    """Paint the masked part of images anew, so that it goes with the rest (RePaint, 2201.09865, algorithm 1).

    After every step the known part is that of the images, with noise of the level reached. So that both parts agree,
    ``jump`` steps at a time are taken back, by fresh noise, and done again. A sampler that remembers steps does
    without its memory. The known part of the result is that of ``images``, bit for bit.

    >>> from unveil.diffusion.closed_form import gaussian
    >>> from unveil.diffusion.paths import EDM
    >>> images, left = torch.zeros(1, 3, 2, 2), torch.tensor([True, False])
    >>> sampler = Sampler(sampler="ddpm", steps=5, grid="karras")
    >>> *_, last = inpaint(gaussian(9.0, 0.1).denoise, sampler, 0, images, left, resamplings=2, path=EDM())
    >>> last.x[0, 0].round(), last.nfe
    (tensor([[9., 0.],
            [9., 0.]]), 9)

    Args:
        denoiser: as of :func:`unveil.diffusion.sampling.draw`.
        sampler: which, and on which grid; the paper's is ddpm.
        seed: of all images.
        images: float [B, C, H, W].
        mask: bool, of the images' shape or one that broadcasts to it, such as [H, W]; True = to be painted.
        resamplings: how often each step is done, r of the paper (10 there).
        jump: steps that are done again together, j of the paper (10 there, of 250).
        ids: numbers of the images; None = 0, 1, ...
        **how: what else :func:`draw` takes, see above.

    Raises:
        ValueError: if the sampler is rk45, which chooses its own levels.
    """
    if sampler.sampler == "rk45":
        raise ValueError("sampler: found rk45, which chooses its own levels; expected one that visits those of a grid")
    network, sigmas = _prepared(denoiser, sampler, images, **how)
    grid = intervals(sigmas)
    each = sampler.replace(s_churn=sampler.s_churn / len(grid))  # a share for every step, which is run alone
    noise, nfe = _noise(seed, ids, images), _evaluations(network, images)
    x = torch.where(mask, 0, images) + grid[0][0] * noise()
    yield Step(x, x, grid[0][0], 0)
    for part in _parts(grid, jump):
        top, bottom = part[0][0], part[-1][1]
        for repetition in range(resamplings if bottom else 1):
            if repetition:
                x = x + math.sqrt(top**2 - bottom**2) * noise()
            for sigma, sigma_next in part:
                *_, step = run_sampler(each, network, sigmas.new_tensor([sigma, sigma_next]), x, noise)
                known = images + sigma_next * noise() if sigma_next else images
                x = torch.where(mask, step.x, known)
                yield replace(step, x=x, nfe=nfe())


def _parts(grid: list[tuple[float, float]], jump: int) -> Iterator[list[tuple[float, float]]]:
    """A grid in parts of ``jump`` intervals, counted from the last but one as in RePaint's code; the last is alone."""
    cuts = {0, *range(len(grid) - 1, 0, -jump), len(grid)}
    return (grid[first:end] for first, end in pairwise(sorted(cuts)))


@torch.inference_mode()
def invert(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    images: Tensor,
    *,
    ids: Sequence[int] | None = None,
    **how: Any,
) -> Iterator[Step]:
    """Find noise that becomes the images: the probability-flow ODE, up the grid (DDIM, 2010.02502, sec. 5.4).

    :func:`draw` with the last ``x`` as its ``start`` then returns the images. A solver that went up by itself would not
    do: where two kinds of image part, its smallest error decides for one of them. So every step of ddim, euler or heun
    is undone, by fixed-point steps ``x + wanted - down(x)`` (2309.04907). For the other samplers heun's are.

    The last step down returns ``D(x; sigma)`` and takes the noise of that level away. Many x have one D, of which one
    with noise is wanted: without, the ODE leads to no Gaussian noise, and mixtures of it to no faces. So it begins
    with the images in noise. What the network cannot show is in x then, and added again by each fixed-point step. All
    of it is taken out: amplified on its way up, it would be noise like no other.

    Args:
        denoiser: as of :func:`unveil.diffusion.sampling.draw`.
        sampler: what will draw the noise again, on this grid; 100 steps of ddim go there and back on most images.
        seed: of the noise of the grid's last level above 0.
        images: float [B, C, H, W], at the grid's last level, which is 0 unless ``sigmas`` say otherwise.
        ids: numbers of the images; None = 0, 1, ...
        **how: what else :func:`draw` takes, see above.

    Raises:
        ValueError: if the sampler draws noise on its way.
    """
    if not follows_ode(sampler):
        raise ValueError(
            f"sampler: found {sampler.sampler}, which draws noise on its way; expected one that follows the ODE: ddim "
            "(eta 0), euler (s_churn 0), heun (s_churn 0), dpmpp-2m or rk45"
        )
    network, sigmas = _prepared(denoiser, sampler, images, **how)
    noise, nfe = _noise(seed, ids, images), _evaluations(network, images)
    single = sampler if sampler.sampler in ("ddim", "euler", "heun") else sampler.replace(sampler="heun", s_churn=0.0)

    def down(x: Tensor, sigma: float, sigma_next: float) -> Step:
        *_, step = run_sampler(single, network, sigmas.new_tensor([sigma, sigma_next]), x, noise)
        return step

    x = denoised = images
    yield Step(x, x, sigmas[-1].item(), 0)
    for end, sigma in reversed(intervals(sigmas)):
        wanted, x = x, x + (end / sigma - 1) * (x - denoised) if sigma else x + end * noise()
        for number in range(FIXED_POINT_STEPS):
            step = down(x, end, sigma)
            left, denoised = wanted - step.x, step.denoised
            if sigma or number + 1 < FIXED_POINT_STEPS:
                x = x + left
        if not sigma:
            x = x - FIXED_POINT_STEPS * left
        yield Step(x, denoised, end, nfe())


def follows_ode(sampler: Sampler) -> bool:
    """Whether a sampler draws no noise after its start, so that :func:`invert` can undo it."""
    drawn = {"ddim": sampler.eta, "euler": sampler.s_churn, "heun": sampler.s_churn, "dpmpp-2m": 0, "rk45": 0}
    return not drawn.get(sampler.sampler, 1)


def edit(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    images: Tensor,
    *,
    condition: Any,
    inverse: Callable[..., Tensor] | None = None,
    known: Any = None,
    strength: float = 1.0,
    ids: Sequence[int] | None = None,
    **how: Any,
) -> Iterator[Step]:
    """Go to noise and come back as something else: :func:`invert`, then draw with another condition.

    Args:
        denoiser: for the way down, such as a guided one.
        sampler: one that follows the ODE.
        seed: of the inversion.
        images: float [B, C, H, W].
        condition: what the images shall be.
        inverse: the denoiser for the way up; None = the same.
        known: what the images are, the condition of the way up; None = nothing is told.
        strength: how far up, as a share of the grid's steps in [0, 1]; less keeps more of the images.
        ids: numbers of the images; None = 0, 1, ...
        **how: what else :func:`draw` takes, see above.

    Raises:
        ValueError: if the sampler draws noise on its way.
    """
    _, sigmas = _prepared(denoiser, sampler, images, **how)
    how["sigmas"] = _lowest(sigmas, strength)
    if len(how["sigmas"]) == 1:
        yield Step(images, images, sigmas[-1].item(), 0)
        return
    up = denoiser if inverse is None else inverse
    for step in invert(up, sampler, seed, images, ids=ids, condition=known, **how):
        yield step
    numbers, nfe = range(len(images)) if ids is None else ids, step.nfe
    for down in draw(denoiser, sampler, seed, numbers, images.shape[1:], start=step.x, condition=condition, **how):
        yield replace(down, nfe=nfe + down.nfe)


def _lowest(sigmas: Tensor, strength: float) -> Tensor:
    """The levels of a share of a grid's steps, its last ones."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: found {strength:g}, expected a number in [0, 1]")
    steps = len(sigmas) - 1
    return sigmas[steps - round(strength * steps) :]


def interpolate(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Noise between two, evenly along the great circle: float [count, ...], of which the ends are the two.

    Between independent draws of Gaussian noise a straight line is too short in the middle: there a network has seen
    no such noise (DDIM, 2010.02502, sec. 5.3; White, 1609.04468).

    >>> interpolate(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)
    tensor([[2.0000, 0.0000],
            [1.4142, 1.4142],
            [0.0000, 2.0000]])

    Args:
        first: such as :func:`invert` finds, float of any shape.
        second: of the same shape.
        count: 2 or more.
    """
    share = torch.linspace(0, 1, count, dtype=torch.float64, device=first.device).view(-1, *(1,) * first.ndim)
    a, b = first.double(), second.double()
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).acos()
    if not angle.sin() > 1e-6:  # nearly on one line, or 0: there is no circle
        return ((1 - share) * a + share * b).to(first.dtype)
    return ((((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()).to(first.dtype)


@torch.inference_mode()
def vary(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    images: Tensor,
    strength: float,
    *,
    ids: Sequence[int] | None = None,
    **how: Any,
) -> Iterator[Step]:
    """Images like the given ones: noise up to a level of the grid, then the sampler down (SDEdit, 2108.01073).

    Args:
        denoiser: as of :func:`unveil.diffusion.sampling.draw`.
        sampler: which, and on which grid.
        seed: of all images.
        images: float [B, C, H, W].
        strength: the share of the grid's steps that is done, rounded to whole ones, in [0, 1]. 0 returns the images; 1
            forgets them, and draws the samples of this seed.
        ids: numbers of the images; None = 0, 1, ...
        **how: what else :func:`draw` takes, see above.
    """
    network, sigmas = _prepared(denoiser, sampler, images, **how)
    levels = _lowest(sigmas, strength)
    if len(levels) == len(sigmas):
        yield from draw(denoiser, sampler, seed, range(len(images)) if ids is None else ids, images.shape[1:], **how)
        return
    noise = _noise(seed, ids, images)
    x = images if len(levels) == 1 else images + levels[0].item() * noise()
    yield Step(x, x, levels[0].item(), 0)
    if len(levels) > 1:
        yield from run_sampler(sampler, network, levels, x, noise)


def _noise(seed: int, ids: Sequence[int] | None, images: Tensor) -> SampleNoise:
    return SampleNoise(seed, range(len(images)) if ids is None else ids, images.shape[1:], images.device)


def _evaluations(network: Counted, images: Tensor) -> Callable[[], int]:
    """Says how many evaluations of the network there were from now on, for each image."""
    before = network.images
    return lambda: (network.images - before) // max(len(images), 1)


def _prepared(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    images: Tensor,
    *,
    path: NoisePath | None = None,
    sigmas: Tensor | None = None,
    condition: Any = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    workers: Workers = ALONE,
) -> tuple[Counted, Tensor]:
    """The denoiser as samplers call it, with a count of its own, and the levels of the grid."""
    network = denoiser if isinstance(denoiser, Counted) else Counted(denoiser)
    path = getattr(network.denoiser, "path", None) if path is None else path
    if sigmas is None:
        if path is None:
            raise ValueError("path: found none, expected one, or sigmas")
        sigmas = build_grid(sampler, path)
    return bind(network, len(images), condition, context, workers), sigmas
