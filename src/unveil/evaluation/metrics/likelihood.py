"""How many bits the model needs for a real image that it has not seen."""

from collections.abc import Callable

import torch
from torch import Tensor

from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.likelihood import BitsPerDim, LikelihoodConfig, bits_per_dim
from unveil.errors import UnveilError
from unveil.evaluation.metrics.distances import significant
from unveil.progress import Passing

CPU_BATCH = 8  # more gain nothing there, and the values do not depend on it


def measure_likelihood(
    denoiser: Denoiser,
    images: Tensor,
    probes: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, float | int]:
    """The metrics ``bits_per_dim``, ``bits_per_dim_stderr``, ``bits_per_dim_nfe`` (a mean) and ``num_likelihood``.

    Args:
        denoiser: of the trained model, on ``device``.
        images: held-out ones, uint8 [N, 3, H, W], N >= 2.
        probes: for the trace.
        seed: of dequantization and probes.
        batch_size: on CUDA.
        device: the denoiser's.
        say: is told how far it is.

    Raises:
        UnveilError: if the ODE of some image cannot be solved.
    """
    size = batch_size if device.type == "cuda" else CPU_BATCH
    config = LikelihoodConfig(seed=seed, probes=probes)
    parts: list[BitsPerDim] = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        try:
            parts.append(bits_per_dim(denoiser, denoiser.path, batch, config, start, device))
        except ArithmeticError as error:
            raise UnveilError(
                f"likelihood of the held-out images {start} to {start + len(batch) - 1}: {error}; "
                "set evaluate.likelihood_images to 0, or train a model whose loss is finite"
            ) from None
        say(Passing(f"likelihood of {start + len(batch)} of {len(images)} images"))
    found = BitsPerDim(torch.cat([part.values for part in parts]), torch.cat([part.nfe for part in parts]))
    return {
        "bits_per_dim": significant(found.mean),
        "bits_per_dim_stderr": significant(found.stderr),
        "bits_per_dim_nfe": significant(float(found.nfe.double().mean())),
        "num_likelihood": len(images),
    }
