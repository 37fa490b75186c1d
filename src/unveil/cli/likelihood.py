"""``unveil likelihood``: how many bits a model needs for an image that it has not seen."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import unveil
from unveil.errors import UnveilError
from unveil.layout import MODELS, SHARDS
from unveil.progress import Passing, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unveil.diffusion.denoiser import Denoiser
    from unveil.diffusion.likelihood import BitsPerDim, LikelihoodConfig

CPU_BATCH = 8  # more gain nothing there, and the values do not depend on it


def likelihood(
    images: Annotated[int, typer.Option(min=2, help="Images of the split, evenly spread over it.")] = 64,
    probes: Annotated[int, typer.Option(min=1, max=1000, help="Random vectors that estimate a trace.")] = 1,
    models: Annotated[Path, typer.Option(help="Folder of the model.")] = MODELS,
    weights: Annotated[str, typer.Option(help="Which average: ema, half-life:<images> or power:<deviation>.")] = "ema",
    shards: Annotated[Path, typer.Option(help="Folder of the shards.")] = SHARDS,
    split: Annotated[str, typer.Option(help="Of the shards; the model should not have seen it.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of dequantization and probes.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once, on CUDA.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write a JSON file with what made the number.")] = None,
) -> None:
    """Say a model's bits per dimension of images, an upper bound: lower is better.

    By the probability-flow ODE (Score SDE, 2011.13456, app. D.2), with its standard error and network evaluations.
    """
    from unveil.data.shards import ShardIndex, verify
    from unveil.diffusion.likelihood import LikelihoodConfig
    from unveil.evaluation.images.sets import load_real
    from unveil.evaluation.metrics.distances import significant
    from unveil.files import destination, file_digest, write_json
    from unveil.model import WEIGHTS_FILE, load_denoiser
    from unveil.precision import resolve_device, set_tf32
    from unveil.run.checkout import code_commit
    from unveil.weights import parse_weights

    if device not in ("auto", "cpu", "cuda"):
        raise UnveilError(f"--device: found {device}, expected auto, cpu or cuda")
    if (chosen := parse_weights(weights)) is None:
        raise UnveilError(f"--weights: found {weights}, expected ema, half-life:<images> or power:<deviation>")
    if out is not None:
        destination(out)
    index = ShardIndex.load(shards)
    if split not in index.splits:
        raise UnveilError(f"--split: found {split}, expected one of {', '.join(index.splits)}")
    verify(shards, (split,))
    where = resolve_device(device)
    set_tf32(False, where)
    denoiser = load_denoiser(models, where, chosen)
    unseen = load_real(shards, index, split, images)
    config = LikelihoodConfig(seed=seed, probes=probes)
    say(f"likelihood of {images:,} images: minutes on a CPU, by the size of the network")
    found = measure(denoiser, unseen, config, batch_size if where.type == "cuda" else CPU_BATCH, where)
    numbers = {
        "bits_per_dim": significant(found.mean),
        "bits_per_dim_stderr": significant(found.stderr),
        "bits_per_dim_nfe": significant(float(found.nfe.double().mean())),
    }
    say(
        f"{found.mean:.4f} ± {found.stderr:.4f} bits per dimension, an upper bound, lower is better: {images:,} images "
        f"of the {split} split, {numbers['bits_per_dim_nfe']:.4g} network evaluations each"
    )
    if out is not None:
        model = {"folder": models.as_posix(), "sha256": file_digest(models / WEIGHTS_FILE), "weights": weights}
        data: dict[str, object] = {"source": index.source, "protocol": index.protocol, "image_size": index.image_size}
        data |= {"shards": index.digest(), "split": split, "images": images}
        method = {**asdict(config), "device": where.type, "dtype": "float32"}
        code = {"commit": code_commit(Path.cwd()), "unveil": unveil.__version__, "torch": version("torch")}
        write_json(out, {**numbers, "model": model, "data": data, "method": method, "code": code})


def measure(
    denoiser: "Denoiser", images: "Tensor", config: "LikelihoodConfig", batch_size: int, device: "torch.device"
) -> "BitsPerDim":
    """Bits per dimension of images, uint8 [N, 3, H, W]; a line says how far it is.

    Raises:
        UnveilError: if the ODE of some image cannot be solved.
    """
    import torch

    from unveil.diffusion.likelihood import BitsPerDim, bits_per_dim

    parts: list[BitsPerDim] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        done = start + len(batch)
        try:
            parts.append(bits_per_dim(denoiser, denoiser.path, batch, config, start, device))
        except ArithmeticError as error:
            where = f"likelihood of the images {start} to {done - 1}"
            raise UnveilError(f"{where}: {error}; train a model whose loss is finite") from None
        say(Passing(f"likelihood of {done} of {len(images)} images"))
    return BitsPerDim(torch.cat([part.values for part in parts]), torch.cat([part.nfe for part in parts]))
