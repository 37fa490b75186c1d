"""The optimizer, and how its learning rate goes."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from unveil.training.choices import OptimizerName, ScheduleName


def build_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """Adam (1412.6980), or AdamW (1711.05101) with its decoupled weight decay; fused, one kernel for all weights.

    Raises:
        ValueError: if Adam is to decay weights, which its scaling would distort.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    if weight_decay:
        raise ValueError(f"weight_decay is {weight_decay} with adam; expected 0, or adamw")
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)


def learning_rate(
    schedule: ScheduleName, lr: float, images_seen: int, *, warmup_images: int, images: int, reference_images: int
) -> float:
    """Learning rate of the step that ends at ``images_seen``: linear warm-up to ``lr``, times a schedule.

    Args:
        schedule: ``constant``; ``cosine``, half a wave from the end of warm-up to 0 at the end of training
            (1608.03983, eq. 5, without restarts); ``inverse-sqrt``, constant up to ``reference_images`` and then
            ``sqrt(reference_images / images_seen)`` (EDM2, 2312.02696, eq. 67).
        lr: the greatest.
        images_seen: images seen with this step.
        warmup_images: length of the warm-up.
        images: length of training.
        reference_images: of ``inverse-sqrt``.
    """
    rate = lr * min(1.0, images_seen / max(warmup_images, 1))
    if schedule == "cosine":
        done = (images_seen - warmup_images) / max(images - warmup_images, 1)
        return rate * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    if schedule == "inverse-sqrt":
        return rate * math.sqrt(min(1.0, reference_images / images_seen)) if images_seen else rate
    return rate
