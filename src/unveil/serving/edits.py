"""Edits of given images by a model at work: the functions of :mod:`unveil.diffusion.editing`, with what a request says.

Images are uint8 [3, H, W] of the model's size. All yield steps on the CPU, the last of which has the results: images
first, first + 1, ... of the request's seed. They raise, when the steps are asked for, as ``Studio.steps`` does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unveil.data.pixels import to_float
from unveil.diffusion import editing
from unveil.diffusion.config import Sampler
from unveil.diffusion.samplers import Step
from unveil.diffusion.sampling import draw
from unveil.serving.request import Request
from unveil.serving.studio import Studio, checked


def inpaint(
    studio: Studio, request: Request, image: Tensor, mask: Tensor, resamplings: int, jump: int
) -> Iterator[Step]:
    """Paint anew what is True in ``mask``, bool [H, W]; see :func:`unveil.diffusion.editing.inpaint`."""
    images, sampler = _repeated(studio, image, request.count), request.only(Sampler)
    how = {**studio.how(request), "resamplings": resamplings, "jump": jump, "ids": request.ids}
    steps = editing.inpaint(studio.denoiser(request), sampler, request.seed, images, mask.to(studio.device), **how)
    return checked(steps, request.ids)


def change(
    studio: Studio, request: Request, image: Tensor, known: Sequence[str] = (), strength: float = 1.0
) -> Iterator[Step]:
    """Give an image the attributes of the request; ``known`` are those that it has, if they are to be told.

    Up without guidance, down with that of the request; see :func:`unveil.diffusion.editing.edit`.
    """
    images, sampler = _repeated(studio, image, request.count), request.only(Sampler)
    before = request.replace(attributes=tuple(known), guidance=1.0)
    how = {**studio.how(request), "known": studio.condition(before), "strength": strength, "ids": request.ids}
    inverse = studio.denoiser(before)
    steps = editing.edit(studio.denoiser(request), sampler, request.seed, images, inverse=inverse, **how)
    return checked(steps, request.ids)


def interpolate(studio: Studio, request: Request, first: Tensor, second: Tensor) -> Iterator[Step]:
    """As many images as the request says from one to another, both included, by way of their noise, without guidance.

    Its steps are first those of the two, then those of all.
    """
    plain, sampler = request.replace(guidance=1.0), request.only(Sampler)
    denoiser, images = studio.denoiser(plain), torch.stack([first, second])
    ends = plain.replace(count=2)

    def steps() -> Iterator[Step]:
        given = to_float(images).to(studio.device)
        for step in editing.invert(denoiser, sampler, plain.seed, given, ids=ends.ids, **studio.how(ends)):
            yield step
        start, nfe = editing.interpolate(step.x[0], step.x[1], plain.count), step.nfe
        for down in draw(denoiser, sampler, plain.seed, plain.ids, studio.shape, start=start, **studio.how(plain)):
            yield replace(down, nfe=nfe + down.nfe)

    return checked(steps(), plain.ids)


def vary(studio: Studio, request: Request, image: Tensor, strength: float) -> Iterator[Step]:
    """Images like this one; see :func:`unveil.diffusion.editing.vary`."""
    images, how = _repeated(studio, image, request.count), {**studio.how(request), "ids": request.ids}
    denoiser, sampler = studio.denoiser(request), request.only(Sampler)
    return checked(editing.vary(denoiser, sampler, request.seed, images, strength, **how), request.ids)


def _repeated(studio: Studio, image: Tensor, count: int) -> Tensor:
    return to_float(image).to(studio.device).expand(count, *image.shape)
