"""From the parameters of a training to its parts, and from its end to the model on disk."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.averages import FOLDER, Averages, write_averages
from unveil.data.augmentation import LABELS
from unveil.data.batches import StreamedSplit, load_attributes, load_split, open_batches
from unveil.data.shards import ShardIndex
from unveil.diffusion.config import Diffusion
from unveil.diffusion.loss import build_loss
from unveil.distributed import Processes
from unveil.errors import UnveilError, line_for_user
from unveil.files import file_digest
from unveil.model import WEIGHTS_FILE, ModelConfig, save_model
from unveil.networks.config import Network, UNetConfig
from unveil.training.checkpoint import Checkpoints
from unveil.training.config import Training
from unveil.training.loop import Trainer
from unveil.weights import WeightsChoice
from unveil.workers import workers


def model_config(
    settings: Training, network: Network, diffusion: Diffusion, index: ShardIndex, arithmetic: Mapping[str, Any]
) -> ModelConfig:
    """What config.json says of the model."""
    labels = LABELS if settings.augment else 0
    left_out = {"network", "diffusion", "device", "loader", "compile", "channels_last", "attributes"}
    return ModelConfig(
        network=UNetConfig(
            image_size=index.image_size, **dict(network), augment_labels=labels, attributes=settings.attributes
        ),
        diffusion=diffusion,
        data={
            "source": index.source,
            "protocol": index.protocol,
            "image_size": index.image_size,
            "shards": index.digest(),
        },
        training={**settings.model_dump(exclude=left_out | settings.unread()), **arithmetic},
    )


def shared_images(settings: Training, dropout: float, processes: Processes) -> int:
    """Images that threads may share: none with several processes, dropout or compiled code."""
    alone = processes.count > 1 or dropout or settings.compile
    return 0 if alone else settings.batch_size // settings.gradient_accumulation


def refuse_constant(shards: Path, names: Sequence[str]) -> None:
    """Refuse an attribute of which there is nothing to learn. Raises UnveilError that names those."""
    shares = (load_attributes(shards, "train", names) > 0).float().mean(dim=0).tolist() if names else []
    for value, words in ((0.0, "no image"), (1.0, "every image")):
        if same := [name for name, share in zip(names, shares, strict=True) if share == value]:
            raise UnveilError(
                f"params.yaml: train.attributes: found {', '.join(same)}, which {words} of the train split has, "
                "expected attributes that some have and others have not; leave it out"
            )


@contextmanager
def built_trainer(
    settings: Training,
    config: ModelConfig,
    shards: Path,
    device: torch.device,
    checkpoints: Checkpoints,
    processes: Processes,
) -> Iterator[Trainer]:
    """A trainer of the model that ``config`` describes, with fresh weights; its threads end with the block.

    Raises:
        UnveilError: if there are more processes than images in a batch, or too few images.
    """
    if settings.batch_size < processes.count:
        raise UnveilError(
            f"params.yaml: train.batch_size: found {settings.batch_size}, expected at least the number of processes, "
            f"{processes.count}; raise it, or start fewer"
        )
    refuse_constant(shards, settings.attributes)
    torch.manual_seed(settings.seed)
    denoiser = config.build().to(device)
    if config.training["channels_last"]:
        denoiser.to(memory_format=torch.channels_last)
    part = processes.part(settings.batch_size)
    flip = settings.horizontal_flip
    batches = open_batches(
        shards,
        "train",
        settings.loader,
        settings.batch_size,
        settings.seed,
        flip,
        device,
        part,
        settings.attributes,
    )
    held_out = None
    if settings.validate_every_images:
        held_out = load_split(shards, "valid", settings.validation_images).to(device)
    training = settings.only(Training).replace(precision=config.training["precision"])
    products = config.training["optimizer_precision"]
    with workers(device, shared_images(settings, config.network.dropout, processes)) as threads:
        loss = build_loss(config.diffusion)
        yield Trainer(denoiser, loss, batches, training, checkpoints, held_out, processes, threads, products)


def describe(trainer: Trainer, images: int) -> str:
    """The line that a training of so many images begins with."""
    size = sum(parameter.numel() for parameter in trainer.parameters)
    streamed = isinstance(trainer.batches.split, StreamedSplit)
    where = "streamed from disk" if streamed else f"in the memory of {trainer.device}"
    many = f" in {trainer.processes.count} processes" if trainer.processes.count > 1 else ""
    precision = f"{trainer.config.precision} on {trainer.device}{many}"
    return f"{size:,} parameters, {precision}; {images:,} images {where}"


def failures(trainer: Trainer) -> list[str]:
    """Lines on what of the scratch could not be written since they were last asked for."""
    lines = [f"not kept: {line_for_user(error) or error}; the training goes on" for error in trainer.failures]
    trainer.failures.clear()
    return lines


def saved_so_far(trainer: Trainer) -> str:
    """What is kept of a training that was interrupted."""
    if trainer.saved_step != trainer.step and trainer.processes.is_main:
        return f"the last checkpoint is {trainer.saved}, of step {trainer.saved_step:,} of {trainer.step:,}"
    return f"{trainer.saved} has all {trainer.images_seen:,} images so far: run the same command to go on"


def keep_model(folder: Path, trainer: Trainer, config: ModelConfig) -> Averages:
    """Write the trained model with what is kept of the other averages of its weights.

    Returns:
        these.
    """
    with trainer.averaged() as network:
        save_model(folder, network, replace(config, training={**config.training, "images_seen": trainer.images_seen}))
    profiles, scratch = trainer.config.ema_profiles, trainer.checkpoints
    snapshots = scratch.snapshots() if profiles and scratch is not None else []
    digest = file_digest(folder / WEIGHTS_FILE)  # so that those of an earlier model are refused
    others = _further_averages(trainer)
    rampup = trainer.config.ema_rampup
    return write_averages(folder / FOLDER, trainer.images_seen, rampup, others, profiles, snapshots, digest)


def _further_averages(trainer: Trainer) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The network's state with the average of each further half-life, one at a time."""
    for half_life in trainer.config.ema_more_half_lives:
        with trainer.averaged(WeightsChoice("half-life", half_life)) as network:
            yield half_life, network.state_dict()
