"""Stage 3: train the denoiser."""

import csv
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from unveil.data.augmentation import LABELS
from unveil.data.batches import StreamBatches, load_split, open_batches
from unveil.data.pixels import to_uint8
from unveil.data.shards import ShardIndex, verify
from unveil.diffusion.design import Diffusion
from unveil.diffusion.loss import build_loss
from unveil.diffusion.paths import NoisePath
from unveil.diffusion.sampling import SampleNoise, Sampler, sample_steps
from unveil.distributed import Processes, joined, local_device
from unveil.errors import UnveilError, line_for_user
from unveil.figures import save_grid
from unveil.files import atomic_path, file_digest
from unveil.layout import CHECKPOINTS, MODELS, PREPROCESS_RECORD, SHARDS, TRAIN_PLOTS, TRAIN_RECORD
from unveil.networks.unet import UNetConfig
from unveil.params import Train
from unveil.precision import (
    autocast,
    optimizer_precision,
    resolve_channels_last,
    resolve_device,
    resolve_precision,
    set_tf32,
)
from unveil.progress import Passing
from unveil.run.launch import start_processes
from unveil.run.signals import Terminated, signals_noted
from unveil.run.stage import Run, stage
from unveil.training.averages import FOLDER, write_averages
from unveil.training.checkpoint import WEIGHTS_FILE, Checkpoints, ModelConfig, claimed_folder, fingerprint, save_model
from unveil.training.compilation import compile_network
from unveil.training.loop import Trainer, Training
from unveil.training.progress import SIGMA_BINS, Progress
from unveil.training.usage import usage
from unveil.workers import workers

PREVIEW_FACES = 24
# A preview need not be good, only quick and on any path: ten Heun steps from nearly pure noise, or from as much of
# it as the path has.
PREVIEW_SAMPLER = Sampler("heun", steps=10, grid="karras", sigma_min=0.03, sigma_max=80.0)
app = typer.Typer(add_completion=False)


def training_config(settings: Train, precision: str, optimizer_precision: str) -> Training:
    """The loop's part of the parameters, with the arithmetic that was chosen."""
    return Training(
        seed=settings.seed,
        images=settings.images,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        warmup_images=settings.warmup_images,
        gradient_clip=settings.gradient_clip,
        ema_half_life_images=settings.ema_half_life_images,
        ema_rampup=settings.ema_rampup,
        precision=precision,
        optimizer_precision=optimizer_precision,
        log_every_images=settings.log_every_images,
        preview_every_images=settings.preview_every_images,
        checkpoint_every_images=settings.checkpoint_every_images,
        validate_every_images=settings.validate_every_images,
        lr_schedule=settings.lr_schedule,
        lr_reference_images=settings.lr_reference_images,
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        gradient_accumulation=settings.gradient_accumulation,
        max_minutes=settings.max_minutes,
        ema_more_half_lives=settings.ema_more_half_lives,
        ema_profiles=settings.ema_profiles,
        snapshot_every_images=settings.snapshot_every_images,
        augment=settings.augment,
    )


def model_config(settings: Train, index: ShardIndex, arithmetic: Mapping[str, Any]) -> ModelConfig:
    """What config.json says of the model."""
    return ModelConfig(
        network=UNetConfig(
            image_size=index.image_size,
            **settings.network.model_dump(),
            augment_labels=LABELS if settings.augment else 0,
        ),
        diffusion=Diffusion(**settings.diffusion.model_dump()),
        data={
            "source": index.source,
            "protocol": index.protocol,
            "image_size": index.image_size,
            "shards": index.digest(),
        },
        training={
            **settings.model_dump(exclude={"network", "diffusion", "device", "loader", "compile", "channels_last"}),
            **arithmetic,
        },
    )


def shared_images(settings: Train, processes: Processes) -> int:
    """Images that threads may share: none with several processes, dropout or compiled code."""
    alone = processes.count > 1 or settings.network.dropout or settings.compile
    return 0 if alone else settings.batch_size // settings.gradient_accumulation


def preview_sampler(path: NoisePath) -> Sampler:
    """The previews' sampler, within the noise levels that the path has and the network is trained on."""
    least, greatest = path.sigma_range()
    sigma_max = min(PREVIEW_SAMPLER.sigma_max, greatest)
    sigma_min = max(min(PREVIEW_SAMPLER.sigma_min, sigma_max / 10), least)
    return replace(PREVIEW_SAMPLER, sigma_min=sigma_min, sigma_max=sigma_max)


def draw_preview(trainer: Trainer, size: int, precision: str, path: Path) -> None:
    """Save the averaged network's samples from noise that is the same in every preview."""
    noise = SampleNoise(0, range(PREVIEW_FACES), (3, size, size), trainer.device)
    denoiser, context = trainer.denoiser, lambda: autocast(precision, trainer.device)
    with trainer.averaged():
        *_, last = sample_steps(
            denoiser, denoiser.path, preview_sampler(denoiser.path), noise, context, trainer.workers
        )
    save_grid(to_uint8(last.x).cpu(), 8, path)


def write_curves(points: Sequence[Progress], path: Path) -> None:
    """Save the curves for `dvc plots`."""
    names = ("images", "loss", "grad_norm", "lr", "images_per_second", "minutes")
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for point in points:
            writer.writerow([point.images, *(format(getattr(point, name), ".6g") for name in names[1:])])


@contextmanager
def checkpoints_for(run: Run, config: ModelConfig, processes: Processes) -> Iterator[Checkpoints]:
    """Scratch checkpoints named by all that decides the weights, the code too, but not the length of training.

    The length is in the name where the learning rate follows it.
    No other training has them within the block, not even one of the same name that runs at once. They
    lie in the main checkout: a temporary copy is gone when its experiment ends, however it ends.
    """
    facts: dict[str, Any] = config.to_dict() | {"code": run.record["code"]}
    length = {"max_minutes"} if config.training["lr_schedule"] == "cosine" else {"max_minutes", "images"}
    facts["training"] = {key: value for key, value in facts["training"].items() if key not in length}
    with ExitStack() as held:
        claimed = None
        if processes.is_main:
            claimed = held.enter_context(claimed_folder(run.project / CHECKPOINTS, fingerprint(facts)))
        yield Checkpoints(Path(processes.from_main(claimed)))


def further_averages(trainer: Trainer) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """The network's state with the average of each further half-life, one at a time."""
    for half_life, average in trainer.further.half_lives.items():
        with trainer.averaged(average) as network:
            yield half_life, network.state_dict()


def write_validation(points: Sequence[Progress], path: Path) -> None:
    """Save the losses on held-out images, for `dvc plots`."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("images", "validation_loss"))
        for point in points:
            if point.validation_loss is not None:
                writer.writerow((point.images, format(point.validation_loss, ".6g")))


def write_loss_by_sigma(points: Sequence[Progress], path: Path) -> None:
    """Save the loss of each interval of noise levels over the last tenth of training, for `dvc plots`."""
    last = [point.loss_by_sigma for point in points[-max(len(points) // 10, 1) :]]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("sigma", "loss"))
        for name in SIGMA_BINS:
            values = [losses[name] for losses in last if name in losses]
            if values:
                writer.writerow((name.replace("_", " "), format(statistics.fmean(values), ".6g")))


def point_metrics(point: Progress) -> dict[str, float]:
    """A point of the curves as MLflow's metrics."""
    values = {
        "loss": point.loss,
        "grad_norm": point.grad_norm,
        "lr": point.lr,
        "images_per_second": point.images_per_second,
        "minutes": point.minutes,
    }
    if point.validation_loss is not None:
        values["validation_loss"] = point.validation_loss
    return values | {f"loss_sigma_{name}": loss for name, loss in point.loss_by_sigma.items()}


def report(run: Run, point: Progress) -> None:
    """Log a point of the curves, and print it."""
    run.log_metrics(point_metrics(point), step=point.images)
    minutes, seconds = divmod(round(point.seconds_left), 60)
    run.say(
        Passing(
            f"{point.images:>9,} images  loss {point.loss:.4f}  {point.images_per_second:6.1f} images/s  "
            f"{minutes}:{seconds:02d} left"
        )
    )


def tell_failures(run: Run, trainer: Trainer) -> None:
    """Say what of the scratch could not be written since the last time."""
    for error in trainer.failures:
        run.say(f"not kept: {line_for_user(error) or error}; the training goes on")
    trainer.failures.clear()


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The file of parameters.", readable=False)] = Path("params.yaml"),
) -> None:
    """Train the denoiser on the train split."""
    start_processes(__file__, params)
    with stage("train", params) as run, ExitStack() as held:
        settings = run.params.train
        run.follow(PREPROCESS_RECORD)
        index = ShardIndex.load(SHARDS)
        verify(SHARDS, ["train", "valid"] if settings.validate_every_images else ["train"])
        run.add_input(
            SHARDS.as_posix(),
            index.digest(),
            dataset=f"{index.source}-{index.image_size}-{index.protocol}",
            context="training",
        )
        device = local_device(resolve_device(settings.device))
        precision = resolve_precision(settings.precision, device)
        arithmetic: dict[str, Any] = {
            "precision": precision,
            "optimizer_precision": optimizer_precision(settings.optimizer, device),
            "tf32": set_tf32(settings.tf32, device),
            "channels_last": resolve_channels_last(settings.channels_last, device),
        }
        config = model_config(settings, index, arithmetic)

        processes = held.enter_context(joined(device))
        if settings.batch_size < processes.count:
            raise UnveilError(
                f"params.yaml: train.batch_size: found {settings.batch_size}, expected at least the number of "
                f"processes, {processes.count}; raise it, or start fewer"
            )

        torch.manual_seed(settings.seed)
        denoiser = config.build().to(device)
        if arithmetic["channels_last"]:
            denoiser.to(memory_format=torch.channels_last)
        batches = open_batches(
            SHARDS,
            "train",
            settings.loader,
            settings.batch_size,
            settings.seed,
            settings.horizontal_flip,
            device,
            processes.part(settings.batch_size),
        )
        checkpoints = held.enter_context(checkpoints_for(run, config, processes))
        held_out = None
        if settings.validate_every_images:
            held_out = load_split(SHARDS, "valid", settings.validation_images).to(device)
            if index.train_holds == "all":
                run.tag("unveil.validation", "trained on too")
                run.say(f"protocol {index.protocol} trains on all images: the validation loss is of images seen")
        trainer = Trainer(
            denoiser,
            build_loss(config.diffusion),
            batches,
            training_config(settings, precision, arithmetic["optimizer_precision"]),
            checkpoints,
            held_out,
            processes,
            held.enter_context(workers(device, shared_images(settings, processes))),
        )
        if settings.compile and (reason := compile_network(denoiser.network, device)):
            run.say(f"train.compile: {reason}, so the network runs as it is")
        size = sum(parameter.numel() for parameter in trainer.parameters)
        run.log_metrics({"parameters": size})
        for name, value in arithmetic.items():
            run.tag(f"unveil.{name}", str(value).lower())
        where = "streamed from disk" if isinstance(batches, StreamBatches) else f"in the memory of {device}"
        count = index.num_images("train")
        many = f" in {processes.count} processes" if processes.count > 1 else ""
        run.say(f"{size:,} parameters, {precision} on {device}{many}; {count:,} images {where}")
        if trainer.resume():
            run.say(f"going on from step {trainer.step:,} in {checkpoints.folder}, at {trainer.images_seen:,} images")
        run.go_on(checkpoints.noted())
        for point in trainer.points:  # so that the run has the whole curve, also where its store was away
            run.log_metrics(point_metrics(point), step=point.images)
        if processes.is_main:
            checkpoints.note(run.record["run_id"])

        with signals_noted() as noted:
            for point in trainer.run(stop=lambda: bool(noted)):
                if not processes.is_main:
                    continue
                if noted:  # the checkpoint comes first
                    run.hurry()
                report(run, point)
                run.log_metrics(usage(device), step=point.images)
                tell_failures(run, trainer)
                if point.preview:
                    preview = TRAIN_PLOTS / "previews" / f"{point.images:09d}.png"
                    try:
                        draw_preview(trainer, index.image_size, precision, preview)
                        run.log_artifact(preview, folder="previews")
                    except OSError as error:
                        run.say(f"no preview: {line_for_user(error) or error}; the training goes on")
        if not trainer.finished:
            tell_failures(run, trainer)
            saved = f"{trainer.saved} has all {trainer.images_seen:,} images so far: run the same command to go on"
            if trainer.saved_step != trainer.step and processes.is_main:
                saved = f"the last checkpoint is {trainer.saved}, of step {trainer.saved_step:,} of {trainer.step:,}"
            raise Terminated(noted[0] if noted else signal.SIGTERM, f"; {saved}")  # a signal of another process
        if not processes.is_main:
            return
        write_curves(trainer.points, TRAIN_PLOTS / "curves.csv")
        write_validation(trainer.points, TRAIN_PLOTS / "validation.csv")
        write_loss_by_sigma(trainer.points, TRAIN_PLOTS / "loss_by_sigma.csv")
        config = replace(config, training={**config.training, "images_seen": trainer.images_seen})
        with trainer.averaged() as network:
            save_model(MODELS, network, config)
        stored = write_averages(
            MODELS / FOLDER,
            trainer.images_seen,
            settings.ema_rampup,
            further_averages(trainer),
            settings.ema_profiles,
            checkpoints.snapshots() if settings.ema_profiles else [],
            file_digest(MODELS / WEIGHTS_FILE),  # so that those of an earlier model are refused
        )
        if kept := stored.choices():
            run.say(f"{stored.folder}: {', '.join(map(str, kept))}; {len(stored.snapshots)} snapshots")
        for name in ("curves.csv", "validation.csv", "loss_by_sigma.csv"):
            run.log_artifact(TRAIN_PLOTS / name)
        run.log_model(MODELS / "config.json", MODELS / "model.safetensors", step=trainer.images_seen)
        run.say(f"{MODELS}: trained on {trainer.images_seen:,} images, last loss {trainer.points[-1].loss:.4f}")
        run.write_record(TRAIN_RECORD)
        checkpoints.remove()


if __name__ == "__main__":
    app()
