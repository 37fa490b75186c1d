"""Stage 4: draw samples from the model."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer

from unveil.data.shards import INDEX_FILE, ShardIndex
from unveil.diffusion.config import Diffusion, Guidance, Sampler
from unveil.diffusion.samplers import Counted
from unveil.diffusion.sampling import NotDrawn, batches
from unveil.distributed import joined, local_device
from unveil.errors import UnveilError
from unveil.figures import emergence, save_grid
from unveil.generation import Watch, asking, at_scale, generate, load_guided, rows_for, save_scales
from unveil.layout import BY_GUIDANCE, GRID, MODELS, SAMPLE_RECORD, SAMPLES, SHARDS, TRAIN_RECORD, TRAJECTORY
from unveil.model import WEIGHTS_FILE, ModelConfig
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.run.launch import start_processes
from unveil.run.stage import stage
from unveil.tensors import save_tensors
from unveil.workers import workers

COLUMNS = 10
app = typer.Typer(add_completion=False)


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
        precision, guidance = resolve_precision(settings.precision, device), settings.only(Guidance)
        locate = lambda path: run.locate(path) or path  # noqa: E731
        told_any = bool(model.network.attributes)
        chosen = settings.scales if told_any or settings.guide is not None else ()
        scales = [at_scale(guidance, scale, told_any) for scale in chosen]
        denoiser, guide = load_guided(MODELS, device, settings.average, guidance, locate=locate)
        facts = model.facts(MODELS, settings.average)
        run.add_input((MODELS / WEIGHTS_FILE).as_posix(), facts["model"])
        if (SHARDS / INDEX_FILE).exists():  # which a model of somebody else's has not
            run.add_input(SHARDS.as_posix(), ShardIndex.load(SHARDS).digest())
        sampler = settings.only(Sampler)
        rows = rows_for(settings.attributes, model.network.attributes, MODELS, SHARDS)
        tell = asking(rows, settings.seed, device)
        shape = (3, model.network.image_size, model.network.image_size)
        started, watch = time.perf_counter(), Watch(sampler.steps, run.say)
        how = {
            "tell": tell,
            "context": lambda: autocast(precision, device),
            "workers": held.enter_context(workers(device, settings.batch_size)),
        }

        def drawn(denoiser: Counted, count: int, watch: Watch) -> tuple[torch.Tensor | None, int]:
            parts = (every := batches(count, settings.batch_size))[processes.part(len(every))]
            images, nfe = generate(denoiser, sampler, settings.seed, shape, parts, run.say, watch, **how)
            return processes.gather(images), int(processes.agree(nfe)[0])

        try:
            together, nfe = drawn(denoiser, settings.num_samples, watch)
            seconds = time.perf_counter() - started
            at_scales = (load_guided(MODELS, device, settings.average, scale, locate=locate)[0] for scale in scales)
            scaled = [drawn(one, settings.guidance_images, Watch(sampler.steps, run.say))[0] for one in at_scales]
        except NotDrawn as error:
            raise refusal(error, sampler, precision) from None
        if watch.strip:
            columns = min(COLUMNS, len(watch.strip))
            save_grid(emergence(watch.strip, len(watch.strip[0].x), columns), columns, TRAJECTORY)
        if together is None:  # another process has all of them
            return
        facts |= {"seed": settings.seed, "precision": precision, "nfe": nfe, **sampler.read_values(), **guide}
        tensors = {"images": together, "ids": torch.arange(len(together))}
        if (asked := tell(range(len(together)))) is not None and asked.attributes is not None:
            facts |= {"attributes": list(model.network.attributes), "asked": list(settings.attributes)}
            tensors |= {"attributes": asked.attributes.cpu()}
        # Under one key: safetensors writes several in random order, and equal samples must be equal bytes.
        save_tensors(SAMPLES, tensors, {"facts": json.dumps(facts)})
        save_scales(BY_GUIDANCE, scaled, scales, tell(range(settings.guidance_images)), facts)
        save_grid(together[: settings.grid_rows * settings.grid_columns], settings.grid_columns, GRID)
        counts = {"nfe": nfe, "num_samples": len(together), "images_per_second": len(together) / seconds}
        run.log_metrics(counts, model=True)
        for picture in (GRID, TRAJECTORY):
            run.log_artifact(picture)
            run.log_image(picture.stem, picture)
        run.say(f"{SAMPLES}: {len(together):,} samples, {nfe} network evaluations each; look at {GRID}")
        run.write_record(SAMPLE_RECORD)


if __name__ == "__main__":
    app()
