"""The optimizer, and how its learning rate goes."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unveil.training.choices import OptimizerName, ScheduleName


def build_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """Adam (1412.6980), AdamW (1711.05101) with its decoupled weight decay, or :class:`Muon`; Adam's steps are fused.

    Raises:
        ValueError: if Adam is to decay weights, which its scaling would distort.
    """
    if name == "muon":
        return Muon(parameters, lr, betas, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    if weight_decay:
        raise ValueError(f"weight_decay is {weight_decay} with adam; expected 0, or adamw or muon")
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)


class Muon(torch.optim.Optimizer):
    """PyTorch's Muon for matrices and convolutions, its AdamW for biases, gains and all else of one dimension.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by its momentum made nearly orthogonal:
    all singular values about 1, so that no direction of the gradient is passed over because another is large. Its steps
    are ``0.2 sqrt(max(n, m))`` times that for [n, m], as long as Adam's usually are (2502.16982, eq. 4), so both take
    one learning rate. A convolution's weight [O, I, h, w] counts as the matrix [O, I h w]. The first and the
    last layer, which its authors leave to AdamW, are no exception.

    Args:
        parameters: on their device and in their layout in memory, which must not change, nor between a checkpoint and
            a resume.
        lr: learning rate.
        betas: AdamW's; Muon's momentum is 0.95, Nesterov's, as published.
        weight_decay: decoupled, of all.

    Raises:
        RuntimeError: if a parameter lies in memory in a way that no matrix shows, as a transposed one.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        every = list(parameters)
        super().__init__(every, {"lr": lr})
        rest = [parameter for parameter in every if parameter.dim() < 2]
        # Of each matrix a view that PyTorch's Muon takes, and the parameter that it shows.
        self._shown = {
            nn.Parameter(_in_order_of(parameter, parameter.detach()).view(len(parameter), -1)): parameter
            for parameter in every
            if parameter.dim() >= 2
        }
        self._parts: list[torch.optim.Optimizer] = []
        if self._shown:
            self._parts.append(
                torch.optim.Muon(self._shown, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=True))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step with the gradients and the learning rate of this optimizer's group."""
        for view, parameter in self._shown.items():
            view.grad = None if parameter.grad is None else _in_order_of(parameter, parameter.grad).flatten(1)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
                for place in group["params"]:  # one state, so that a checkpoint is made of this optimizer alone
                    part.state[place] = self.state[self._shown.get(place, place)]
            part.step()
        for view in self._shown:
            view.grad = None  # else it would outlive ``zero_grad``


def _in_order_of(parameter: Tensor, value: Tensor) -> Tensor:
    """[O, ...] with the other dimensions in the order that they have in the memory of ``parameter``."""
    if parameter.dim() == 4 and not parameter.is_contiguous():  # channels last
        value = value.permute(0, 2, 3, 1)
    return value


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
