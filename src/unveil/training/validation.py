"""The loss on held-out images, which tells when a network only gets better at what it was trained on."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from unveil.data.batches import Batch
from unveil.data.pixels import to_float
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.loss import Draws, Loss
from unveil.workers import Workers


def validation_loss(
    denoiser: Denoiser,
    loss: Loss,
    held_out: Batch,
    generator: torch.Generator,
    batch_size: int,
    context: Callable[[], AbstractContextManager[object]],
    workers: Workers,
) -> float:
    """Mean loss of held-out images, of which the network is told nothing.

    Args:
        denoiser: in evaluation mode, with the weights that are to be judged.
        loss: with noise that is independent of the images, see :meth:`unveil.diffusion.loss.Loss.plain`.
        held_out: uint8 images on the denoiser's device.
        generator: of noise levels and noise, on that device.
        batch_size: images at once. It has a part in the draws.
        context: entered around the network, for mixed precision.
        workers: threads that share the batches.
    """

    @torch.no_grad()
    def losses_of(part: tuple[Tensor, Draws]) -> Tensor:
        with context():
            return loss(denoiser, *part)

    losses: list[Tensor] = []
    for images in held_out.images.split(batch_size * workers.count):
        parts = [to_float(part) for part in images.split(batch_size)]
        losses += workers.map(losses_of, [(part, loss.draw(part, generator)) for part in parts])
    return torch.cat(losses).mean().item()
