"""Stage 4: draw samples from the model."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from unveil.data.pixels import to_uint8
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.design import Diffusion, denoiser_values
from unveil.diffusion.samplers import Step
from unveil.diffusion.sampling import SampleNoise, Sampler, sample_steps
from unveil.distributed import joined, local_device
from unveil.errors import UnveilError
from unveil.figures import emergence, save_grid
from unveil.files import file_digest
from unveil.layout import GRID, MODELS, SAMPLE_RECORD, SAMPLES, TRAIN_RECORD, TRAJECTORY
from unveil.params import Sample
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.progress import Passing, renews
from unveil.run.launch import start_processes
from unveil.run.stage import Run, stage
from unveil.tensors import save_tensors
from unveil.training.averages import Averages
from unveil.training.checkpoint import ModelConfig, load_denoiser
from unveil.training.choices import WeightsChoice
from unveil.workers import ALONE, Workers, workers

TRAJECTORY_FACES = 4
TRAJECTORY_COLUMNS = 10
STEP_SECONDS = 15  # between two lines about the steps of one batch
app = typer.Typer(add_completion=False)


def sampler_config(settings: Sample) -> Sampler:
    """The sampler's part of the parameters."""
    return Sampler(**{field.name: getattr(settings, field.name) for field in fields(Sampler)})


def batches(
    denoiser: Denoiser,
    config: Sampler,
    settings: Sample,
    image_size: int,
    precision: str,
    device: torch.device,
    say: Callable[[str], None],
    part: slice = slice(None),
    threads: Workers = ALONE,
) -> Iterator[tuple[list[int], list[Step], Step]]:
    """Of each batch the ids, the strip's few faces at every step (of the first batch alone), and the last step.

    ``part`` chooses among the batches, which hold the same images whoever draws them.
    """
    shape = (3, image_size, image_size)
    for start in range(0, settings.num_samples, settings.batch_size)[part]:
        ids = list(range(start, min(start + settings.batch_size, settings.num_samples)))
        noise = SampleNoise(settings.seed, ids, shape, device)
        strip: list[Step] = []
        steps = sample_steps(denoiser, denoiser.path, config, noise, lambda: autocast(precision, device), threads)
        try:
            for step in reported(steps, f"samples {start:,} to {ids[-1]:,}: step {{:,}} of {config.steps:,}", say):
                if start == 0:  # a thousand steps of a whole batch would not fit into memory
                    shown = slice(None, TRAJECTORY_FACES)
                    strip.append(replace(step, x=step.x[shown].cpu(), denoised=step.denoised[shown].cpu()))
        except ArithmeticError as error:  # of rk45, whose steps find out first
            raise _not_drawn(
                ids,
                f"cannot be drawn by rk45 ({error})",
                f"raise sample.rtol and sample.atol, {config.rtol:g} and {config.atol:g}, which may be beyond "
                f"{precision}; if that does not help, train again",
            ) from None
        yield ids, strip, step


def _not_drawn(ids: Sequence[int], why: str, mend: str) -> UnveilError:
    return UnveilError(f"{MODELS}/model.safetensors: samples {ids[0]} to {ids[-1]} {why}; {mend}")


def check_diffusion(model: Diffusion, params: Diffusion) -> None:
    """Raise UnveilError if the model's denoiser is another than train.diffusion says, against which grids were checked.

    Only the values that the model's path and parameterization read count.
    """
    is_so = denoiser_values(model)
    if wrong := [name for name, value in is_so.items() if getattr(params, name) != value]:
        found = ", ".join(f"train.diffusion.{name} {getattr(params, name)}" for name in wrong)
        expected = ", ".join(f"{name} {is_so[name]}" for name in wrong)
        raise UnveilError(
            f"params.yaml: found {found}, expected {expected}, as {MODELS}/config.json says of the model; "
            "write that, or train again"
        )


def reported(steps: Iterator[Step], line: str, say: Callable[[str], None]) -> Iterator[Step]:
    """The steps; says ``line`` with their number whenever a while has passed, for grids that are long."""
    said = time.perf_counter()
    for number, step in enumerate(steps):  # number 0 is the start
        if time.perf_counter() - said >= (0.2 if renews() else STEP_SECONDS):
            said = time.perf_counter()
            say(Passing(line.format(number)))
        yield step


def progress(run: Run, done: int, total: int, started: float) -> None:
    """Print the speed and the time left."""
    speed = done / (time.perf_counter() - started)
    minutes, seconds = divmod(round((total - done) / speed), 60)
    run.say(Passing(f"{done:>7,} of {total:,} samples  {speed:6.1f} images/s  {minutes}:{seconds:02d} left"))


def averages_facts(choice: WeightsChoice) -> dict[str, str]:
    """Which stored averages another one than the model's own was made from."""
    return {} if choice.kind == "ema" else {"averages": Averages.beside(MODELS / "model.safetensors").digest()}


def save_samples(images: Tensor, facts: dict[str, object]) -> None:
    """Write the images, their ids and, as metadata, everything that made them.

    All facts stand under one key: safetensors writes several in random order, and equal samples must be equal bytes.
    """
    metadata = {"facts": json.dumps(facts)}
    save_tensors(SAMPLES, {"images": images, "ids": torch.arange(len(images))}, metadata)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The file of parameters.", readable=False)] = Path("params.yaml"),
) -> None:
    """Draw samples from the model, with a grid of them and a strip of faces emerging from noise."""
    start_processes(__file__, params)
    with stage("sample", params) as run, ExitStack() as held:
        settings = run.params.sample
        run.follow(TRAIN_RECORD)
        model = ModelConfig.load(MODELS)
        check_diffusion(model.diffusion, Diffusion(**run.params.train.diffusion.model_dump()))
        device = local_device(resolve_device(settings.device))
        set_tf32(False, device)  # fp32 is meant as such; bf16 and fp16 are faster still
        processes = held.enter_context(joined(device))
        part = processes.part(-(-settings.num_samples // settings.batch_size))
        precision = resolve_precision(settings.precision, device)
        choice = settings.average
        denoiser = load_denoiser(MODELS, device, choice)
        weights = file_digest(MODELS / "model.safetensors")
        run.add_input("models/model.safetensors", weights)
        config = sampler_config(settings)
        image_size = model.network.image_size

        images: list[Tensor] = []
        nfe, started = 0, time.perf_counter()
        threads = held.enter_context(workers(device, settings.batch_size))
        for ids, strip, last in batches(
            denoiser, config, settings, image_size, precision, device, run.say, part, threads
        ):
            if not torch.isfinite(last.x).all():
                raise _not_drawn(ids, "are not finite numbers", "train again, or set sample.precision to fp32")
            if ids[0] == 0:
                faces = min(TRAJECTORY_FACES, len(ids))
                columns = min(TRAJECTORY_COLUMNS, len(strip))
                save_grid(emergence(strip, faces, columns), columns, TRAJECTORY)
            images.append(to_uint8(last.x).cpu())
            nfe = max(nfe, last.nfe)  # rk45: of the image that needed most
            progress(run, ids[-1] + 1, min(part.stop * settings.batch_size, settings.num_samples), started)
        nothing = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
        together = processes.gather(torch.cat([nothing, *images]))
        nfe = int(processes.agree(nfe)[0])
        seconds = time.perf_counter() - started
        if together is None:  # another process has all of them
            return
        save_samples(
            together,
            {
                **model.data,
                "model": weights,
                "weights": str(choice),
                **averages_facts(choice),
                "config": {key: value for key, value in model.to_dict().items() if key not in ("format", "data")},
                "seed": settings.seed,
                "precision": precision,
                "nfe": nfe,
                **vars(config),
            },
        )
        save_grid(together[: settings.grid_rows * settings.grid_columns], settings.grid_columns, GRID)
        run.log_metrics(
            {"nfe": nfe, "num_samples": len(together), "images_per_second": len(together) / seconds},
            model=True,
        )
        run.log_artifact(GRID)
        run.log_artifact(TRAJECTORY)
        run.say(f"{SAMPLES}: {len(together):,} samples, {nfe} network evaluations each; look at {GRID}")
        run.write_record(SAMPLE_RECORD)


if __name__ == "__main__":
    app()
