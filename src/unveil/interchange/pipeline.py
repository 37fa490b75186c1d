"""diffusers' pipeline folders: ``model_index.json``, a U-Net and a scheduler, as JSON and safetensors."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from unveil.averages import FOLDER, write_averages
from unveil.data.shards import ShardIndex
from unveil.diffusion.config import Diffusion, Variance
from unveil.errors import UnveilError
from unveil.files import atomic_directory, atomic_path, destination, file_digest, read_json, write_json
from unveil.interchange import scheduler as schedulers
from unveil.interchange import unet2d
from unveil.interchange.scheduler import Clipping, Sampling, Scheduler, SchedulerName
from unveil.interchange.unet2d import MEND, Theirs, UNet2D
from unveil.model import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, load_denoiser, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network, misfit
from unveil.tensors import load_shapes, load_tensors, save_tensors

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
RECORD = "run.json"
WRITTEN_FOR = "0.32.0"  # a version of diffusers that reads what is written; newer ones do too


class Index(Theirs):
    """A model_index.json of a U-Net and a scheduler alone."""

    unet: tuple[str, Literal["UNet2DModel"]]
    scheduler: tuple[str, Literal["DDPMScheduler", "DDIMScheduler"]]


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline folder holds, in our terms.

    Attributes:
        network: of the U-Net.
        diffusion: path and parameterization.
        weights: under our names, float32.
        sampling: how its scheduler samples.
        weights_sha256: of the file of weights.
    """

    network: UNetConfig
    diffusion: Diffusion
    weights: dict[str, Tensor]
    sampling: Sampling
    weights_sha256: str


def read_pipeline(folder: Path) -> Pipeline:
    """Read a pipeline folder; the U-Net and the scheduler may lie in folders of their own or beside the index.

    Raises:
        UnveilError: if something is missing or damaged, or is what this project has not; the line names it.
    """
    if not folder.is_dir():
        raise UnveilError(f"{folder}: no such folder, expected one with diffusers' {INDEX}")
    read_json(folder / INDEX, Index, MEND)
    unet_folder, scheduler_folder = (
        part if (part := folder / name).is_dir() else folder for name in ("unet", "scheduler")
    )
    network_file, scheduler_file = unet_folder / "config.json", scheduler_folder / "scheduler_config.json"
    network = unet2d.to_config(read_json(network_file, UNet2D, MEND), str(network_file))
    if network.image_channels != 3:
        raise UnveilError(
            f"{network_file}: in_channels: found {network.image_channels}, expected 3: the images here are RGB"
        )
    scheduler = read_json(scheduler_file, Scheduler, MEND)
    return Pipeline(
        network=network,
        diffusion=schedulers.to_diffusion(scheduler, str(scheduler_file)),
        sampling=schedulers.to_sampling(scheduler),
        weights=_load_weights(unet_folder, network),
        weights_sha256=file_digest(unet_folder / WEIGHTS),
    )


def import_pipeline(folder: Path, models: Path, shards: Path, *, force: bool = False) -> Pipeline:
    """Make a pipeline folder the project's model: its weights, ``config.json``, ``run.json`` and no averages.

    Args:
        folder: of the pipeline.
        models: where train writes.
        shards: the images that the model's samples are to be compared with; their facts go into config.json.
        force: replace the model that is there.

    Raises:
        UnveilError: as :func:`read_pipeline`, or if a model is there already, or if the shards have another size.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if (models / file).exists() and not force:
            raise UnveilError(f"{models / file}: there already; give --force to replace it, or another --models")
    pipeline = read_pipeline(folder)
    index = ShardIndex.load(shards)
    if index.image_size != pipeline.network.image_size:
        raise UnveilError(
            f"{shards}: images of {index.image_size} pixels, expected {pipeline.network.image_size}, the model's; "
            f"set preprocess.image_size to {pipeline.network.image_size} and run `dvc repro preprocess`"
        )
    data = {key: getattr(index, key) for key in ("source", "protocol", "image_size")} | {"shards": index.digest()}
    origin = {"imported_from": folder.name, "weights_sha256": pipeline.weights_sha256}
    network = build_network(pipeline.network)
    network.load_state_dict(pipeline.weights)
    with _replacing(models) as temporary:
        save_model(temporary, network, ModelConfig(pipeline.network, pipeline.diffusion, data, origin))
        digest = file_digest(temporary / WEIGHTS_FILE)
        write_averages(temporary / FOLDER, 0, 0.0, [], [], [], digest)  # none, in place of another model's
        write_json(temporary / RECORD, {"stage": "import", **origin})  # else the record of another model stayed there
    return pipeline


@contextmanager
def _replacing(models: Path) -> Iterator[Path]:
    """Yield an empty folder in ``models``; if the block succeeds, its files replace the model's.

    The configuration goes first and comes last: killed between, there is no model, rather than two halves of two.
    Other files in ``models`` stay.
    """
    whole = models / ".import"
    try:
        with atomic_directory(whole) as temporary:
            yield temporary
        averages = destination(models / FOLDER, folder=True)
        files = {name: destination(models / name) for name in (WEIGHTS_FILE, RECORD, CONFIG_FILE)}
        files[CONFIG_FILE].unlink(missing_ok=True)
        with atomic_directory(averages) as temporary:
            shutil.copytree(whole / FOLDER, temporary, dirs_exist_ok=True)
        for name, file in files.items():
            with atomic_path(file) as temporary:
                shutil.copyfile(whole / name, temporary)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def export_pipeline(
    models: Path,
    folder: Path,
    scheduler: SchedulerName = "ddpm",
    *,
    threshold: Clipping = "none",
    variance: Variance = "small",
) -> ModelConfig:
    """Write a trained model as a folder that ``DDPMPipeline`` or ``DDIMPipeline`` opens.

    Args:
        models: where train wrote.
        folder: to be made.
        scheduler: which of the two.
        threshold: whether the scheduler is to clip the denoised image in every step; ddpm alone.
        variance: of ddpm.

    Returns:
        what was exported.

    Raises:
        UnveilError: if the folder is there already, or if diffusers cannot represent the model.
    """
    if folder.exists() or folder.is_symlink():
        raise UnveilError(f"{folder}: already there, expected a folder to be made; give another, or remove it")
    model = ModelConfig.load(models)
    denoiser = load_denoiser(models)  # and if it can, its configuration is that of a network
    version = {"_diffusers_version": WRITTEN_FOR}
    unet_config = unet2d.from_config(model.network) | version
    scheduler_config = schedulers.from_diffusion(model.diffusion, scheduler, threshold=threshold, variance=variance)
    index = {
        "_class_name": schedulers.CLASSES[scheduler].replace("Scheduler", "Pipeline"),
        **version,
        "scheduler": ["diffusers", schedulers.CLASSES[scheduler]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    weights = unet2d.from_weights(denoiser.network.state_dict())
    with atomic_directory(folder) as temporary:
        write_json(temporary / INDEX, index)
        write_json(temporary / "unet" / "config.json", unet_config)
        save_tensors(temporary / "unet" / WEIGHTS, weights, {"format": "pt"})
        write_json(temporary / "scheduler" / "scheduler_config.json", scheduler_config | version)
    return model


def _load_weights(folder: Path, config: UNetConfig) -> dict[str, Tensor]:
    """The weights under our names; their shapes are compared before their values are read."""
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLED).exists():
        raise UnveilError(
            f"{folder / PICKLED}: a pickle, which can run any code and is never opened here; expected {WEIGHTS}. "
            "Where you trust it, convert it with diffusers: "
            "DiffusionPipeline.from_pretrained(folder).save_pretrained(new_folder)"
        )
    try:
        wrong = misfit(config, unet2d.to_weights(load_shapes(path, MEND), config, str(path)))
    except ValueError as error:
        raise UnveilError(f"{folder / 'config.json'}: {error}") from None
    if wrong is not None:
        raise UnveilError(f"{path}: {wrong} by its config.json; {MEND}")
    return unet2d.to_weights(load_tensors(path, MEND), config, str(path))
