"""Stage 3: train the denoiser."""

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from unveil.data.shards import ShardIndex, verify
from unveil.distributed import joined, local_device
from unveil.errors import line_for_user
from unveil.layout import CHECKPOINTS, MODELS, PREPROCESS_RECORD, SHARDS, TRAIN_PLOTS, TRAIN_RECORD
from unveil.model import ModelConfig
from unveil.precision import resolve_device, resolve_training
from unveil.run.launch import start_processes
from unveil.run.signals import Terminated, signals_noted
from unveil.run.stage import Run, stage
from unveil.training import curves
from unveil.training.assembly import built_trainer, describe, failures, keep_model, model_config, saved_so_far
from unveil.training.checkpoint import Checkpoints, checkpoints_for
from unveil.training.compilation import compile_network
from unveil.training.loop import Trainer
from unveil.training.preview import draw_preview
from unveil.training.progress import Progress
from unveil.training.usage import usage

app = typer.Typer(add_completion=False)


def begin(run: Run, trainer: Trainer, index: ShardIndex, checkpoints: Checkpoints) -> None:
    """Say and log what is trained, and take up what an interrupted training left."""
    if trainer.held_out is not None and index.train_holds == "all":
        run.tag("unveil.validation", "trained on too")
        run.say(f"protocol {index.protocol} trains on all images: the validation loss is of images seen")
    if run.params.train.compile and (reason := compile_network(trainer.network, trainer.device)):
        run.say(f"train.compile: {reason}, so the network runs as it is")
    run.log_metrics({"parameters": sum(parameter.numel() for parameter in trainer.parameters)})
    run.say(describe(trainer, index.num_images("train")))
    if trainer.resume():
        run.say(f"going on from step {trainer.step:,} in {checkpoints.folder}, at {trainer.images_seen:,} images")
    run.go_on(checkpoints.noted())
    for point in trainer.points:  # so that the run has the whole curve, also where its store was away
        run.log_metrics(curves.metrics(point), step=point.images)
    if trainer.processes.is_main:
        checkpoints.note(run.record["run_id"])


def report(run: Run, point: Progress) -> None:
    """Log a point of the curves, and print it."""
    run.log_metrics(curves.metrics(point), step=point.images)
    run.say(curves.line(point))


def train(run: Run, trainer: Trainer, size: int) -> None:
    """Train to the end; raises Terminated, with a checkpoint of that moment, if any process gets a signal first."""
    with signals_noted() as noted:
        for point in trainer.run(stop=lambda: bool(noted)):
            if not trainer.processes.is_main:
                continue
            if noted:  # the checkpoint comes first
                run.hurry()
            report(run, point)
            run.log_metrics(usage(trainer.device) | {"images_seen": point.images}, step=point.images)
            for failure in failures(trainer):
                run.say(failure)
            if point.preview:
                try:
                    run.log_image("preview", draw_preview(trainer, size, TRAIN_PLOTS / "previews"), point.images)
                except OSError as error:
                    run.say(f"no preview: {line_for_user(error) or error}; the training goes on")
    if not trainer.finished:
        for failure in failures(trainer):
            run.say(failure)
        raise Terminated(noted[0] if noted else signal.SIGTERM, f"; {saved_so_far(trainer)}")


def finish(run: Run, trainer: Trainer, config: ModelConfig) -> None:
    """Write the model, its averages, its curves and its record."""
    for table in curves.write_curves(trainer.points, TRAIN_PLOTS):
        run.log_artifact(table)
    stored = keep_model(MODELS, trainer, config)
    if kept := stored.choices():
        run.say(f"{stored.folder}: {', '.join(map(str, kept))}; {len(stored.snapshots)} snapshots")
    run.log_model(MODELS, step=trainer.images_seen)
    run.say(f"{MODELS}: trained on {trainer.images_seen:,} images, last loss {trainer.points[-1].loss:.4f}")
    run.write_record(TRAIN_RECORD)


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
        name = f"{index.source}-{index.image_size}-{index.protocol}"
        run.add_input(SHARDS.as_posix(), index.digest(), dataset=name, context="training")
        device = local_device(resolve_device(settings.device))
        chosen = resolve_training(settings.precision, settings.optimizer, settings.tf32, settings.channels_last, device)
        for name, value in chosen.items():
            run.tag(f"unveil.{name}", str(value).lower())
        config = model_config(settings, settings.network, settings.diffusion, index, chosen)
        processes = held.enter_context(joined(device))
        scratch = checkpoints_for(run.project / CHECKPOINTS, config.to_dict(), run.record["code"], processes)
        checkpoints = held.enter_context(scratch)
        trainer = held.enter_context(built_trainer(settings, config, SHARDS, device, checkpoints, processes))
        begin(run, trainer, index, checkpoints)
        train(run, trainer, index.image_size)
        if processes.is_main:
            finish(run, trainer, config)
            checkpoints.remove()


if __name__ == "__main__":
    app()
