"""Stage 4: draw samples from the model."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from unveil.data.pixels import to_uint8
from unveil.diffusion.config import Diffusion, Sampler
from unveil.diffusion.samplers import Step
from unveil.diffusion.sampling import NotDrawn, batches, draw_batches
from unveil.distributed import joined, local_device
from unveil.errors import UnveilError
from unveil.figures import emergence, save_grid
from unveil.layout import GRID, MODELS, SAMPLE_RECORD, SAMPLES, TRAIN_RECORD, TRAJECTORY
from unveil.model import WEIGHTS_FILE, ModelConfig, load_denoiser
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.progress import Passing, renews
from unveil.run.launch import start_processes
from unveil.run.stage import stage
from unveil.tensors import save_tensors
from unveil.workers import workers

FACES = 4  # of the strip
COLUMNS = 10
STEP_SECONDS = 15  # between two lines about the steps of one batch
app = typer.Typer(add_completion=False)


def watched(strip: list[Step], steps: int, say: Callable[[str], None]) -> Callable[[Sequence[int], int, Step], None]:
    """Keeps a few faces of every step of the first batch, and now and then says where a long grid is."""
    said = time.perf_counter()

    def watch(ids: Sequence[int], number: int, step: Step) -> None:
        nonlocal said
        now = time.perf_counter()
        due = now - said >= (0.2 if renews() else STEP_SECONDS)
        if number and due:
            say(Passing(f"samples {ids[0]:,} to {ids[-1]:,}: step {number:,} of {steps:,}"))
        said = said if number and not due else now
        if ids[0] == 0:  # a thousand steps of a whole batch would not fit into memory
            strip.append(replace(step, x=step.x[:FACES].cpu(), denoised=step.denoised[:FACES].cpu()))

    return watch


def refusal(error: NotDrawn, sampler: Sampler, precision: str) -> UnveilError:
    """How to mend what could not be drawn."""
    tolerances = f"{sampler.rtol:g} and {sampler.atol:g}, which may be beyond {precision}"
    mend = f"raise sample.rtol and sample.atol, {tolerances}; if that does not help, train again"
    if error.cause is None:
        mend = "train again, or set sample.precision to fp32"
    return UnveilError(f"{MODELS / WEIGHTS_FILE}: {error}; {mend}")


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
        model.check_diffusion(Diffusion(**run.params.train.diffusion.model_dump()), MODELS)
        device = local_device(resolve_device(settings.device))
        set_tf32(False, device)  # fp32 is meant as such; bf16 and fp16 are faster still
        processes = held.enter_context(joined(device))
        precision = resolve_precision(settings.precision, device)
        denoiser = load_denoiser(MODELS, device, settings.average)
        facts = model.facts(MODELS, settings.average)
        run.add_input((MODELS / WEIGHTS_FILE).as_posix(), facts["model"])
        sampler = settings.only(Sampler)
        shape = (3, model.network.image_size, model.network.image_size)
        parts = batches(settings.num_samples, settings.batch_size)
        parts = parts[processes.part(len(parts))]
        images, strip, nfe = [torch.empty(0, *shape, dtype=torch.uint8)], list[Step](), 0
        started = time.perf_counter()
        watch, context = watched(strip, sampler.steps, run.say), lambda: autocast(precision, device)
        how = {"context": context, "workers": held.enter_context(workers(device, settings.batch_size))}
        try:
            for ids, last in draw_batches(denoiser, sampler, settings.seed, shape, parts, watch, **how):
                images.append(to_uint8(last.x).cpu())
                nfe = max(nfe, last.nfe)  # rk45: of the image that needed most
                done, total, seconds = ids[-1] + 1, parts[-1][-1] + 1, time.perf_counter() - started
                left = "{}:{:02d}".format(*divmod(round((total - done) * seconds / done), 60))
                run.say(Passing(f"{done:>7,} of {total:,} samples  {done / seconds:6.1f} images/s  {left} left"))
        except NotDrawn as error:
            raise refusal(error, sampler, precision) from None
        if strip:
            columns = min(COLUMNS, len(strip))
            save_grid(emergence(strip, len(strip[0].x), columns), columns, TRAJECTORY)
        together = processes.gather(torch.cat(images))
        nfe = int(processes.agree(nfe)[0])
        seconds = time.perf_counter() - started
        if together is None:  # another process has all of them
            return
        facts |= {"seed": settings.seed, "precision": precision, "nfe": nfe, **sampler.read_values()}
        # Under one key: safetensors writes several in random order, and equal samples must be equal bytes.
        save_tensors(SAMPLES, {"images": together, "ids": torch.arange(len(together))}, {"facts": json.dumps(facts)})
        save_grid(together[: settings.grid_rows * settings.grid_columns], settings.grid_columns, GRID)
        speed = len(together) / seconds
        run.log_metrics({"nfe": nfe, "num_samples": len(together), "images_per_second": speed}, model=True)
        run.log_artifact(GRID)
        run.log_artifact(TRAJECTORY)
        run.say(f"{SAMPLES}: {len(together):,} samples, {nfe} network evaluations each; look at {GRID}")
        run.write_record(SAMPLE_RECORD)


if __name__ == "__main__":
    app()
