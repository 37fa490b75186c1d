"""Stage 6: how far the samples are from real images, with everything that made the number."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from unveil.distributed import joined, local_device
from unveil.errors import UnveilError
from unveil.evaluation.card.figures import summary
from unveil.evaluation.card.statement import cost_of, environment_of
from unveil.evaluation.evaluation import evaluate, load_extractors, read_inputs, read_requests
from unveil.evaluation.features.cache import FeatureCache
from unveil.files import destination, write_json, write_text
from unveil.layout import (
    BY_GUIDANCE,
    CARD,
    EVALUATE_PLOTS,
    EVALUATE_RECORD,
    METRICS,
    ORACLE,
    ORACLE_RECORD,
    ORACLE_WEIGHTS,
    PAGE,
    RAW,
    SAMPLE_RECORD,
    SHARDS,
)
from unveil.layout import SAMPLES as OWN_SAMPLES
from unveil.precision import resolve_device, set_tf32
from unveil.run.checkout import code_commit
from unveil.run.launch import start_processes
from unveil.run.stage import Run, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The parameters of all stages.", readable=False)] = Path("params.yaml"),
    samples: Annotated[
        Path,
        typer.Option(help="Samples of any generator: .safetensors, .npz, or a folder of images."),
    ] = OWN_SAMPLES,
    protocol: Annotated[
        str | None, typer.Option(help="The protocol of the data that another generator was trained on.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path(),
) -> None:
    """Measure how far the samples are from real images, with everything that made the number."""
    stated = () if protocol is None else ("--protocol", protocol)
    start_processes(__file__, params, "--samples", str(samples), "--out", str(out), *stated)
    with stage("evaluate", params) as run, ExitStack() as held:
        own, here = samples.resolve() == OWN_SAMPLES.resolve(), out.resolve() == Path.cwd()
        if here and not own:
            raise UnveilError(
                f"--samples {samples}: found no --out, expected a folder for its card, so that the pipeline's own is "
                "not replaced"
            )
        for path in (METRICS, EVALUATE_RECORD, CARD, PAGE):
            destination(out / path)
        destination(out / EVALUATE_PLOTS, folder=True)
        run_evaluation(run, held, OWN_SAMPLES if own else samples, protocol, out, page=not here)


def run_evaluation(run: Run, held: ExitStack, path: Path, protocol: str | None, out: Path, page: bool) -> None:
    """Read, evaluate, write below ``out``; the page too where no stage of its own writes it."""
    settings = run.params.evaluate
    if path == OWN_SAMPLES:
        run.follow(SAMPLE_RECORD)
    inputs = read_inputs(settings, SHARDS, path, protocol)
    index = inputs.real.index
    name = f"{index.source}-{index.image_size}-{index.protocol}"
    run.add_input(SHARDS.as_posix(), index.digest(), dataset=name, context="evaluation")
    run.add_input(path.as_posix(), inputs.samples.sha256)
    device = local_device(resolve_device(settings.device))
    set_tf32(False, device)
    processes = held.enter_context(joined(device))
    extractors = load_extractors(settings, run.locate(settings.weights))
    limit = round(settings.cache_gib * 2**30)
    cache = FeatureCache(run.project / ".unveil" / "features", limit, processes, run.say)
    code = {"commit": code_commit(run.root)}
    oracle = (ORACLE, ORACLE_WEIGHTS) if inputs.samples.told and ORACLE.exists() else None
    if oracle is not None:
        run.follow(ORACLE_RECORD)
    scales = BY_GUIDANCE if path == OWN_SAMPLES and BY_GUIDANCE.exists() else None
    requests = read_requests(settings, run.params.oracle, inputs, oracle, scales, device, run.say)
    found = evaluate(settings, inputs, extractors, RAW, cache, device, processes, run.say, code, requests)
    if found is None:
        return
    cost = cost_of(run.record["upstream"], run.seconds)
    card = found.card.model_copy(update={"environment": environment_of(run.record), "cost": cost})
    write_json(out / METRICS, found.metrics)
    card.save(out / CARD)
    written = [METRICS, CARD]
    if page:
        from unveil.evaluation.card.markdown import render

        write_text(out / PAGE, render(card))
        written.append(PAGE)
    plots = found.write_plots(out / EVALUATE_PLOTS)
    run.log_metrics(found.metrics, model=True)
    for file in written:
        run.log_artifact(out / file)
    for file in plots:
        run.log_artifact(file, folder="plots")
        if file.suffix == ".png":
            run.log_image(file.stem, file)
    run.write_record(out / EVALUATE_RECORD)
    run.say(summary(card))


if __name__ == "__main__":
    app()
