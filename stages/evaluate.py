"""Stage 5: how far the samples are from real images, with everything that made the number."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import unveil
from unveil.data.shards import ShardIndex, verify
from unveil.diffusion.denoiser import Denoiser
from unveil.distributed import joined, local_device
from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card, notes_on
from unveil.evaluation.card.figures import (
    for_figure,
    neighbours_figure,
    summary,
    write_by_nfe,
    write_by_size,
    write_comparison,
    write_distances,
    write_precision_recall,
)
from unveil.evaluation.card.markdown import render
from unveil.evaluation.card.statement import (
    by_size_of,
    data_choices,
    evaluation_choices,
    feature_choices,
    memorization_of,
    metrics_of,
    model_choices,
    sampling_choices,
    unknown_of,
)
from unveil.evaluation.choices import LEAST_IMAGES
from unveil.evaluation.features.cache import FeatureCache
from unveil.evaluation.features.extraction import FEATURE_SETS, load_extractor
from unveil.evaluation.images.chosen import RealImages, damaged_sets, four_sets
from unveil.evaluation.images.sets import (
    SampleFile,
    check_same_data,
    count_shared,
    load_real,
    load_samples,
    real_parts,
    set_sizes,
)
from unveil.evaluation.metrics.likelihood import measure_likelihood
from unveil.evaluation.metrics.measurement import (
    LEAST_FOR_INTERVAL,
    Asked,
    extract_sets,
    measure,
)
from unveil.evaluation.metrics.memorization import Copies, to_show
from unveil.files import atomic_path, destination, file_digest, write_json, write_text
from unveil.layout import MODELS, RAW, SAMPLE_RECORD, SHARDS
from unveil.layout import SAMPLES as OWN_SAMPLES
from unveil.model import WEIGHTS_FILE, load_denoiser
from unveil.params import Evaluate
from unveil.precision import resolve_device, set_tf32
from unveil.run.checkout import code_commit
from unveil.run.launch import start_processes
from unveil.run.stage import Run, stage
from unveil.weights import WeightsChoice, parse_weights

SHOWN_SAMPLES = 4  # of those nearest to training images, and as many drawn evenly

app = typer.Typer(add_completion=False)


class Outputs:
    """Where everything is written: the project, or a folder of its own for another generator's samples."""

    def __init__(self, folder: Path) -> None:
        self.metrics = folder / "metrics" / "evaluate.json"
        self.record = folder / "metrics" / "run.json"
        self.card = folder / "reports" / "card.json"
        self.page = folder / "reports" / "card.md"
        self.plots = folder / "plots" / "evaluate"
        for path in (self.metrics, self.record, self.card, self.page):
            destination(path)
        destination(self.plots, folder=True)


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
        own = samples.resolve() == OWN_SAMPLES.resolve()
        if not own and out.resolve() == Path.cwd():
            raise UnveilError(
                f"--samples {samples}: found no --out, expected a folder for its card, so that the pipeline's own is "
                "not replaced"
            )
        evaluate(run, held, OWN_SAMPLES if own else samples, protocol, Outputs(out))


def evaluate(run: Run, held: ExitStack, path: Path, protocol: str | None, outputs: Outputs) -> None:
    """The stage: read, extract, measure, write."""
    settings = run.params.evaluate
    if path == OWN_SAMPLES:
        run.follow(SAMPLE_RECORD)
    index = ShardIndex.load(SHARDS)
    samples = load_samples(path, settings.num_images, protocol)
    unchecked = check_same_data(path, samples, SHARDS, index)
    splits = (settings.reference_split, settings.held_out_split)
    asks = max(settings.metrics, key=lambda name: LEAST_IMAGES[name])
    if settings.num_images < LEAST_IMAGES[asks]:
        raise UnveilError(
            f"evaluate.num_images: found {settings.num_images}, expected {LEAST_IMAGES[asks]} or more for {asks}"
        )
    sizes = set_sizes(
        SHARDS,
        index,
        splits,
        settings.num_images,
        settings.reference_images,
        settings.kid_subset_size,
        LEAST_IMAGES[asks],
    )
    verify(SHARDS, splits)
    name = f"{index.source}-{index.image_size}-{index.protocol}"
    run.add_input(SHARDS.as_posix(), index.digest(), dataset=name, context="evaluation")
    run.add_input(path.as_posix(), samples.sha256)

    shared = count_shared(SHARDS, index, (splits[1], sizes.held_out), (splits[0], sizes.reference))
    device = local_device(resolve_device(settings.device))
    set_tf32(False, device)
    processes = held.enter_context(joined(device))
    weights = run.locate(settings.weights)
    if len(settings.features) > 1 and weights is not None and not weights.is_dir():
        raise UnveilError(
            f"evaluate.weights: found {settings.weights}, expected a folder with the weights of "
            f"{', '.join(settings.features)}"
        )
    extractors = [load_extractor(features, weights, key="evaluate.weights") for features in settings.features]
    real = RealImages(SHARDS, index, splits, sizes, load_real(SHARDS, index, splits[1], sizes.held_out))
    damaged = damaged_sets(real, RAW, settings.controls, settings.control_images, settings.seed)
    notes = [
        *notes_on(sizes, FEATURE_SETS[settings.features[0]], shared),
        *unknown_of(samples, unchecked),
        *damaged.left_out,
    ]
    if settings.interval_splits and sizes.samples < LEAST_FOR_INTERVAL:
        notes.append(f"Fewer than {LEAST_FOR_INTERVAL} samples have no interval.")
    for note in notes:
        run.say(f"note: {note}")
    likelihood = _likelihood(run, samples, index, device) if settings.likelihood_images and processes.is_main else {}
    asked = Asked(
        settings.metrics,
        settings.kid_subsets,
        settings.kid_subset_size,
        settings.interval_splits,
        settings.seed,
        shared,
        index.num_images("train"),
    )
    limit = round(settings.cache_gib * 2**30)
    cache = FeatureCache(run.project / ".unveil" / "features", limit, processes, run.say)
    sets = {**four_sets(real, samples, settings.seed), **damaged.sets}
    found = []
    for extractor in extractors:
        layers = extract_sets(sets, extractor, cache, settings.batch_size, device, processes, run.say, settings.metrics)
        if layers is not None:
            run.say(f"{extractor.features.name}: {', '.join(settings.metrics)}")
            found.append(measure(layers, extractor.features, asked))
    if not processes.is_main:
        return
    counts = {"num_samples": sizes.samples, "num_reference": sizes.reference, "num_held_out": sizes.held_out}
    values = {key: value for measured in found for key, value in measured.values.items()}
    metrics: dict[str, float | int] = {**values, **likelihood, **counts}
    card = Card.of(
        metrics_of(found, metrics),
        {
            "data": data_choices(index, splits, sizes),
            "features": {extractor.features.name: feature_choices(extractor, device) for extractor in extractors},
            "model": model_choices(samples),
            "sampling": sampling_choices(samples, settings.num_images),
            "evaluation": evaluation_choices(asked, damaged.words) | _likelihood_choices(settings, likelihood),
            "code": {"commit": code_commit(run.root)},
        },
        by_size=[part for measured in found if (part := by_size_of(measured)) is not None],
        memorization=memorization_of(found),
        lossy=[str(samples.facts["lossy"])] if samples.facts.get("lossy") else [],
        notes=[*notes, *(note for measured in found if measured.by_size for note in measured.by_size.notes)],
        environment=_environment(run),
        cost=_cost(run),
    )
    _write(run, outputs, card, metrics, found[0].copies, samples.images, real)


def _write(
    run: Run,
    outputs: Outputs,
    card: Card,
    metrics: Mapping[str, float | int],
    copies: Copies | None,
    samples: Tensor,
    real: RealImages,
) -> None:
    """All files, each whole, then the MLflow run."""
    plots = outputs.plots
    write_json(outputs.metrics, dict(metrics))
    card.save(outputs.card)
    write_text(outputs.page, render(card))
    written = [plots / "distances.json", plots / "by_nfe.csv", plots / "by_size.csv", plots / "precision_recall.csv"]
    write_distances(written[0], card)
    write_by_nfe(written[1], card)
    write_by_size(written[2], card.by_size[0] if card.by_size else None)
    write_precision_recall(written[3], card)
    (plots / "neighbours.png").unlink(missing_ok=True)  # of an earlier run, if this one has none
    written.append(plots / "real-and-samples.png")
    write_comparison(written[-1], for_figure(real.held_out), for_figure(samples), card)
    if copies is not None:
        written.append(plots / "neighbours.png")
        _write_neighbours(written[-1], copies, samples, real)

    run.log_metrics(metrics, model=True)
    for path in (outputs.metrics, outputs.card, outputs.page):
        run.log_artifact(path)
    for path in written:
        run.log_artifact(path, folder="plots")
    run.write_record(outputs.record)
    run.say(summary(card))


def _write_neighbours(path: Path, copies: Copies, samples: Tensor, real: RealImages) -> None:
    """The samples nearest to training images and some drawn evenly, each beside its nearest training images."""
    shown = to_show(copies.neighbours, SHOWN_SAMPLES)
    rows = [*shown.nearest.tolist(), *shown.even.tolist()]
    indices = torch.from_numpy(copies.neighbours.indices[rows])
    training = _rows(real_parts(SHARDS, real.index, real.splits[0], real.sizes.reference), indices)
    with atomic_path(path) as temporary:
        figure = neighbours_figure(samples[rows], training, copies.neighbours.distances[rows])
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _rows(parts: Iterator[Tensor], indices: Tensor) -> Tensor:
    """The images at these places of the parts in a row: uint8 [..., 3, H, W], without all of them at once."""
    found: Tensor | None = None
    start = 0
    for part in parts:
        if found is None:
            found = torch.empty(*indices.shape, *part.shape[1:], dtype=part.dtype)
        here = (indices >= start) & (indices < start + len(part))
        found[here] = part[indices[here] - start]
        start += len(part)
    assert found is not None  # a split has images
    return found


def _likelihood(run: Run, samples: SampleFile, index: ShardIndex, device: torch.device) -> dict[str, float | int]:
    settings = run.params.evaluate
    denoiser = model_of(samples, device)
    unseen = load_real(SHARDS, index, settings.held_out_split, settings.likelihood_images)
    return measure_likelihood(
        denoiser, unseen, settings.likelihood_probes, settings.seed, settings.batch_size, device, run.say
    )


def _likelihood_choices(settings: Evaluate, found: Mapping[str, float | int]) -> dict[str, Any]:
    if not found:
        return {"likelihood_images": 0}
    asked = {"likelihood_images": settings.likelihood_images, "likelihood_probes": settings.likelihood_probes}
    return asked | {"bits_per_dim_nfe": found["bits_per_dim_nfe"]}


def model_of(samples: SampleFile, device: torch.device) -> Denoiser:
    """The model in ``models/``. Raises UnveilError unless it is the one that the samples are of."""
    weights = MODELS / WEIGHTS_FILE
    if samples.foreign:
        raise UnveilError(
            "evaluate.likelihood_images: expected 0 for samples of another generator: a likelihood needs the model"
        )
    denoiser = load_denoiser(MODELS, device, parse_weights(samples.facts.get("weights", "ema")) or WeightsChoice())
    if file_digest(weights) != samples.facts.get("model"):
        raise UnveilError(
            f"{weights}: not the model that {OWN_SAMPLES} is of; run `dvc repro sample`, "
            "or set evaluate.likelihood_images to 0"
        )
    return denoiser


def _environment(run: Run) -> dict[str, Any]:
    packages = ("torch", "torch-fidelity", "numpy", "scipy")
    found: dict[str, Any] = {"unveil": unveil.__version__, "python": platform.python_version()}
    found |= {package: version(package) for package in packages}
    machine = {key.removeprefix("unveil."): value for key, value in run.record["machine"].items()}
    found |= {key: value for key, value in machine.items() if not key.startswith("version.")}
    return found | {
        key: run.record[key] for key in ("git_commit", "git_dirty", "dvc_exp_name") if run.record[key] is not None
    }


def _cost(run: Run) -> dict[str, Any]:
    """Seconds of each stage, and of training what its curve says, which holds the time before an interruption."""
    found: dict[str, Any] = {}
    for name, record in run.record["upstream"].items():
        if record.get("seconds"):
            found[f"{name}_seconds"] = record["seconds"]
        if name == "train" and "minutes" in record["metrics"]:
            found["train_loop_minutes"] = record["metrics"]["minutes"]
        if name in ("train", "sample") and "images_per_second" in record["metrics"]:
            found[f"{name}_images_per_second"] = record["metrics"]["images_per_second"]
    return found | {"evaluate_seconds": round(run.seconds, 1)}


if __name__ == "__main__":
    app()
