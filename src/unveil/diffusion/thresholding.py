"""Thresholding: keeping a denoiser's estimates within the range of images, [-1, 1], while sampling."""

import torch
from torch import Tensor

from unveil.diffusion.denoiser import DenoiserFunction, expand


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
