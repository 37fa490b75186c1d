"""The optimizer, and how its learning rate goes."""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from unveil.training.config import Training
from unveil.workers import ALONE, Workers

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Of the polynomial ``a s + b s^3 + c s^5`` that brings singular values near 1 (Jordan et al. 2024)."""
ITERATIONS = 5
MOMENTUM = 0.95


def build_optimizer(
    config: Training, parameters: Iterable[Tensor], precision: str = "fp32", workers: Workers = ALONE
) -> torch.optim.Optimizer:
    """Adam (1412.6980), AdamW (1711.05101) with its decoupled weight decay, or :class:`Muon`; Adam's steps are fused.

    ``precision`` and ``workers`` are Muon's. The others compute in float32.
    """
    if config.optimizer == "muon":
        return Muon(config, parameters, precision, workers)
    if config.optimizer == "adamw":
        return _adamw(config, parameters)
    return torch.optim.Adam(parameters, lr=config.lr, betas=config.betas, fused=True)


def _adamw(config: Training, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolutions, PyTorch's AdamW for biases, gains and all else of one dimension.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by its momentum made nearly orthogonal:
    all singular values about 1, so that no direction of the gradient is passed over because another is large. Its steps
    are ``0.2 sqrt(max(n, m))`` times that for [n, m], as long as Adam's usually are (2502.16982, eq. 4), so both take
    one learning rate. A convolution's weight [O, I, h, w] counts as the matrix [O, I h w]. The first and the
    last layer, which its authors leave to AdamW, are no exception.

    The steps are those of ``torch.optim.Muon``, which computes them one matrix at a time and always in bf16.

    Args:
        config: of which it reads the learning rate, the weight decay (decoupled, of all) and AdamW's betas; Muon's
            momentum is 0.95, Nesterov's, as published.
        parameters: on their device.
        precision: of the products that make a matrix orthogonal, ``fp32`` or ``bf16``.
        workers: threads that share the matrices.
    """

    def __init__(self, config: Training, parameters: Iterable[Tensor], precision: str, workers: Workers) -> None:
        every = list(parameters)
        super().__init__(every, {"lr": config.lr, "weight_decay": config.weight_decay})
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.workers = workers
        self.matrices = [parameter for parameter in every if parameter.dim() >= 2]
        rest = [parameter for parameter in every if parameter.dim() < 2]
        self._adamw = _adamw(config, rest) if rest else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step with the gradients and the learning rate of this optimizer's group."""
        group = self.param_groups[0]
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in self.matrices:
            if matrix.grad is not None:
                alike[matrix.shape].append(matrix)
        parts = [same[start :: self.workers.count] for same in alike.values() for start in range(self.workers.count)]
        self.workers.map(
            partial(self._move, lr=group["lr"], weight_decay=group["weight_decay"]), [part for part in parts if part]
        )
        if self._adamw is not None:
            self._adamw.state = self.state  # one state, so that a checkpoint is made of this optimizer alone
            self._adamw.param_groups[0] |= {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            self._adamw.step()

    @torch.no_grad()
    def _move(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        """Make the step of matrices of one shape."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, buffers, MOMENTUM)
        steps = orthogonalized(torch.stack([matrix.flatten(1) for matrix in ahead]), self.dtype)
        if weight_decay:
            torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        length = 0.2 * math.sqrt(max(steps.shape[1:]))
        for matrix, step in zip(matrices, steps, strict=True):
            matrix.sub_(step.reshape(matrix.shape), alpha=lr * length)


def orthogonalized(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices [B, n, m] with their singular values brought near 1 (0.68 to 1.2), but for the very smallest.

    Five Newton-Schulz iterations, ``X <- a X + (b G + c G^2) X`` with ``G = X X^T``, on the narrow side. In float32
    the iteration runs on G [n, n] alone: since all its factors are polynomials of G, ``X`` is multiplied once, by
    their product. That takes less than half the work where m is several times n. In bf16 it would lose the
    small singular values, whose squares G holds.

    Args:
        matrices: float32.
        dtype: of the products, float32 or bfloat16.

    Returns:
        of ``dtype``, in the shape of ``matrices``; zeros stay zeros.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT, dtype).mT
    if dtype == torch.float32:
        gram = matrices @ matrices.mT
        square = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp_min(1e-14)  # of the norm
        return _factor(gram / square).div_(square.sqrt()) @ matrices
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)).to(dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _factor(gram: Tensor) -> Tensor:
    """The product of all iterations' factors ``a + b G + c G^2`` for the first G [B, n, n]."""
    a, b, c = NEWTON_SCHULZ
    product = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else product @ factor
        if iteration < ITERATIONS - 1:
            gram = gram @ factor @ factor
    assert product is not None
    return product


def learning_rate(config: Training, images_seen: int) -> float:
    """Learning rate of the step that ends at ``images_seen``: linear warm-up to ``lr``, times a schedule.

    Of ``lr_schedule``: ``constant``; ``cosine``, half a wave from the end of warm-up to 0 at the end of training
    (1608.03983, eq. 5, without restarts); ``inverse-sqrt``, constant up to ``lr_reference_images`` and then
    ``sqrt(lr_reference_images / images_seen)`` (EDM2, 2312.02696, eq. 67).
    """
    warmup = config.warmup_images
    rate = config.lr * min(1.0, images_seen / max(warmup, 1))
    if config.lr_schedule == "cosine":
        done = (images_seen - warmup) / max(config.images - warmup, 1)
        return rate * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    if config.lr_schedule == "inverse-sqrt" and images_seen:
        return rate * math.sqrt(min(1.0, config.lr_reference_images / images_seen))
    return rate
