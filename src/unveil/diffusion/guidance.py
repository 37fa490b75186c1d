"""Guidance: a denoiser pushed away from a worse one, as a denoiser that every sampler takes.

With the model's estimate ``D`` and a guide's ``G``, both of the same noisy image, the guided estimate is
``G + w (D - G)``: w = 1 is the model, w = 0 the guide, and above 1 what tells the two apart is exaggerated.

| guide | name | source |
| --- | --- | --- |
| the same model, told nothing | classifier-free guidance | 2207.12598, eq. 6, whose w is ours less 1 |
| a worse version of the model | autoguidance | 2406.02507, eq. 3 |
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unveil.diffusion.config import Guidance
from unveil.diffusion.denoiser import expand
from unveil.diffusion.paths import NoisePath
from unveil.diffusion.samplers import Counted


class Guided:
    """A denoiser and its guide as one; called as either is, ``(x, sigma, condition)``.

    >>> model = lambda x, sigma, condition=None: torch.full_like(x, 0.0 if condition is None else 1.0)
    >>> guided = Guided(model, Guidance(guidance=3.0))
    >>> guided(torch.zeros(1, 3, 8, 8), torch.ones(1), "told").mean()
    tensor(3.)

    Only what is needed is evaluated: the model alone at scale 1 and outside the interval, the guide alone at scale 0.

    Args:
        denoiser: of the model.
        guidance: scale, interval and rescaling.
        guide: None = the model itself, told nothing.
        tell: whether the guide is told the condition.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        guidance: Guidance,
        guide: Callable[..., Tensor] | None = None,
        tell: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.guide = denoiser if guide is None else guide
        self.guidance = guidance
        self.tell = tell

    @property
    def path(self) -> NoisePath | None:
        """The model's noise path, if it says one."""
        path: NoisePath | None = getattr(_inner(self.denoiser), "path", None)
        return path

    def parameters(self) -> Iterator[Tensor]:
        """Of the model, which tell where it computes."""
        yield from getattr(_inner(self.denoiser), "parameters", tuple)()

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        """Estimate the clean images [B, ...] of x [B, ...] at sigma [B]."""
        inside = in_interval(sigma, self.guidance.guidance_interval)
        if self.guidance.guidance == 1 or not inside.any():
            return self._model(x, sigma, condition)
        if inside.all():
            return self._guided(x, sigma, condition)
        estimate = torch.empty_like(x)
        for here, estimated in ((inside, self._guided), (~inside, self._model)):
            estimate[here] = estimated(x[here], sigma[here], None if condition is None else condition[here])
        return estimate

    def _model(self, x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        return self._call(self.denoiser, x, sigma, condition)

    def _guided(self, x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        scale = self.guidance.guidance
        guide = self._call(self.guide, x, sigma, condition if self.tell else None)
        if scale == 0:
            return guide
        model = self._model(x, sigma, condition)
        return rescaled(guide + scale * (model - guide), model, self.guidance.guidance_rescale)

    @staticmethod
    def _call(denoiser: Callable[..., Tensor], x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        return denoiser(x, sigma) if condition is None else denoiser(x, sigma, condition)


def in_interval(sigma: Tensor, interval: Sequence[float]) -> Tensor:
    """Where a guide has a say, bool [B]: at levels above the least and up to the greatest; [] = everywhere.

    At other levels guidance costs variety or does nothing (2404.07724, eq. 5).
    """
    if not interval:
        return torch.ones_like(sigma, dtype=torch.bool)
    least, greatest = interval
    return (sigma > least) & (sigma <= greatest)


def rescaled(guided: Tensor, model: Tensor, share: float) -> Tensor:
    """The guided estimate with ``share`` of the way to the standard deviation that the model's own has, by image.

    Large scales saturate colours, and this takes it back (2305.08891, eq. 15 and 16; there of v).
    """
    if share == 0:
        return guided
    ratio = model.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1).clamp_min(torch.finfo(guided.dtype).tiny)
    return guided * expand(share * ratio + (1 - share), guided)


def guided(
    denoiser: Callable[..., Tensor],
    guidance: Guidance,
    guide: Callable[..., Tensor] | None = None,
    tell: bool = False,
) -> Counted:
    """A :class:`Guided` of these arguments, of which every evaluation of either network is counted."""
    model, other = Counted(denoiser), None if guide is None else Counted(guide)
    return Counted(Guided(model, guidance, other, tell), model, *([] if other is None else [other]))


def _inner(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return denoiser.denoiser if isinstance(denoiser, Counted) else denoiser
