"""Stage 5: how far the samples are from real images, with everything that made the number."""

import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
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
from unveil.evaluation.card import AtSize, BySize, Card, Metric, notes_on
from unveil.evaluation.controls import CONTROLS, REREAD, check_archive, mistake_of, other_protocol, reread
from unveil.evaluation.feature_cache import FeatureCache
from unveil.evaluation.features import FEATURE_SETS, Extractor, load_extractor
from unveil.evaluation.figures import (
    for_figure,
    neighbours_figure,
    summary,
    write_by_nfe,
    write_by_size,
    write_comparison,
    write_distances,
    write_precision_recall,
)
from unveil.evaluation.likelihood import measure_likelihood
from unveil.evaluation.manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS
from unveil.evaluation.markdown import render
from unveil.evaluation.measurement import (
    HELD_OUT,
    NOISE,
    REFERENCE,
    SAMPLES,
    UNDAMAGED,
    Asked,
    ImageSet,
    Measured,
    extract_sets,
    measure,
)
from unveil.evaluation.memorization import Copies, to_show
from unveil.evaluation.sets import (
    SampleFile,
    SetSizes,
    check_same_data,
    count_shared,
    load_ids,
    load_real,
    load_samples,
    real_parts,
    set_sizes,
    spread,
    uniform_noise,
)
from unveil.files import atomic_path, file_digest, write_json, write_text
from unveil.launch import start_processes
from unveil.params import Evaluate
from unveil.stage import Run, stage
from unveil.training.checkpoint import WEIGHTS_FILE, load_denoiser
from unveil.training.choices import WeightsChoice, parse_weights
from unveil.training.precision import resolve_device

RAW = Path("data/raw")
SHARDS = Path("data/shards")
MODELS = Path("models")
OWN_SAMPLES = Path("samples/samples.safetensors")
SAMPLES_RECORD = Path("samples/run.json")
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


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="The parameters of all stages.")] = Path("params.yaml"),
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
        if samples != OWN_SAMPLES and out.resolve() == Path.cwd():
            raise UnveilError(
                f"--samples {samples}: found no --out, expected a folder for its card, so that the pipeline's own is "
                "not replaced"
            )
        evaluate(run, held, samples, protocol, Outputs(out))


def evaluate(run: Run, held: ExitStack, path: Path, protocol: str | None, outputs: Outputs) -> None:
    """The stage: read, extract, measure, write."""
    settings = run.params.evaluate
    if path == OWN_SAMPLES:
        run.follow(SAMPLES_RECORD)
    index = ShardIndex.load(SHARDS)
    samples = load_samples(path, settings.num_images, protocol)
    unchecked = check_same_data(path, samples, SHARDS, index)
    reference, held_out = splits = (settings.reference_split, settings.held_out_split)
    sizes = set_sizes(SHARDS, index, splits, settings.num_images, settings.reference_images, settings.kid_subset_size)
    verify(SHARDS, splits)
    name = f"{index.source}-{index.image_size}-{index.protocol}"
    run.add_input(SHARDS.as_posix(), index.digest(), dataset=name, context="evaluation")
    run.add_input(path.as_posix(), samples.sha256)

    shared = count_shared(SHARDS, index, (held_out, sizes.held_out), (reference, sizes.reference))
    notes = [*notes_on(sizes, FEATURE_SETS[settings.features[0]], shared), *_unknown(samples, unchecked)]
    for note in notes:
        run.say(f"note: {note}")
    device = local_device(resolve_device(settings.device))
    processes = held.enter_context(joined(device))
    extractors = [
        load_extractor(features, run.locate(settings.weights), key="evaluate.weights") for features in settings.features
    ]
    likelihood = _likelihood(run, samples, index, device) if settings.likelihood_images and processes.is_main else {}
    real = load_real(SHARDS, index, held_out, sizes.held_out)
    damaged, words, left_out = _controls(settings, index, real, sizes)
    for line in left_out:
        run.say(f"note: {line}")
    sets = {**_sets(settings, index, sizes, samples, real), **damaged}
    asked = Asked(
        settings.metrics,
        settings.kid_subsets,
        settings.kid_subset_size,
        settings.interval_splits,
        settings.seed,
        shared,
    )
    cache = FeatureCache(run.project / ".unveil" / "features", processes=processes, say=run.say)
    found = []
    for extractor in extractors:
        layers = extract_sets(sets, extractor, cache, settings.batch_size, device, processes, run.say)
        if layers is not None:
            run.say(f"{extractor.features.name}: {', '.join(settings.metrics)}")
            found.append(measure(layers, extractor.features, asked))
    if not processes.is_main:
        return
    counts = {"num_samples": sizes.samples, "num_reference": sizes.reference, "num_held_out": sizes.held_out}
    values = {key: value for measured in found for key, value in measured.values.items()}
    metrics: dict[str, float | int] = {**values, **likelihood, **counts}
    notes += left_out
    notes += [note for measured in found if measured.by_size for note in measured.by_size.notes]
    card = Card.of(
        _listed(found, metrics),
        {
            "data": _data(index, settings, sizes),
            "features": {extractor.features.name: _features(extractor, device) for extractor in extractors},
            "model": _model(samples),
            "sampling": _sampling(samples, settings.num_images),
            "evaluation": _evaluation(settings, words),
            "code": {"commit": _code_commit()},
        },
        by_size=[part for measured in found if (part := _by_size(measured)) is not None],
        memorization=_memorization(found),
        lossy=[str(samples.facts["lossy"])] if samples.facts.get("lossy") else [],
        notes=notes,
        environment=_environment(run),
        cost=_cost(run),
    )
    shown = for_figure(real), for_figure(samples.images)
    _write(run, outputs, card, metrics, found, shown, samples.images, index, sizes)


def _write(
    run: Run,
    outputs: Outputs,
    card: Card,
    metrics: Mapping[str, float | int],
    found: list[Measured],
    shown: tuple[Tensor, Tensor],
    samples: Tensor,
    index: ShardIndex,
    sizes: SetSizes,
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
    written.append(plots / "real-and-samples.png")
    write_comparison(written[-1], *shown, card)
    if (copies := found[0].copies) is not None:
        written.append(plots / "neighbours.png")
        _write_neighbours(written[-1], copies, samples, index, sizes)

    run.log_metrics(metrics, model=True)
    for path in (outputs.metrics, outputs.card, outputs.page):
        run.log_artifact(path)
    for path in written:
        run.log_artifact(path, folder="plots")
    run.write_record(outputs.record)
    run.say(summary(card))


def _write_neighbours(path: Path, copies: Copies, samples: Tensor, index: ShardIndex, sizes: SetSizes) -> None:
    """The samples nearest to training images and some drawn evenly, each beside its nearest training images."""
    shown = to_show(copies.neighbours, SHOWN_SAMPLES)
    rows = [*shown.nearest.tolist(), *shown.even.tolist()]
    indices = torch.from_numpy(copies.neighbours.indices[rows])
    training = _rows(real_parts(SHARDS, index, "train", sizes.reference), indices)
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


def _sets(
    settings: Evaluate, index: ShardIndex, sizes: SetSizes, samples: SampleFile, real: Tensor
) -> dict[str, ImageSet]:
    """The four sets that every distance is made of."""
    count, reference, held_out = settings.num_images, settings.reference_split, settings.held_out_split
    noise = {"noise": "uniform", "seed": settings.seed, "count": count, "size": index.image_size}
    return {
        SAMPLES: ImageSet("samples", {"sha256": samples.images_sha256}, count, lambda: [samples.images]),
        HELD_OUT: ImageSet(
            f"real, {held_out} split", _of_split(index, held_out, sizes.held_out), sizes.held_out, lambda: [real]
        ),
        REFERENCE: ImageSet(
            f"real, {reference} split",
            _of_split(index, reference, sizes.reference),
            sizes.reference,
            lambda: real_parts(SHARDS, index, reference, sizes.reference),
        ),
        NOISE: ImageSet("uniform noise", noise, count, lambda: [uniform_noise(count, index.image_size, settings.seed)]),
    }


def _of_split(index: ShardIndex, split: str, count: int) -> dict[str, Any]:
    return {"shards": [shard.sha256 for shard in index.splits[split]], "count": count}


def _controls(
    settings: Evaluate, index: ShardIndex, real: Tensor, sizes: SetSizes
) -> tuple[dict[str, ImageSet], dict[str, str], list[str]]:
    """The damaged held-out images by name, what each stands for, and what could not be made."""
    count = min(settings.control_images or sizes.held_out, sizes.held_out)
    places = torch.from_numpy(spread(len(real), count))
    chosen = real[places]
    base = _of_split(index, settings.held_out_split, sizes.held_out) | {"of": count}
    found: dict[str, ImageSet] = {}
    words: dict[str, str] = {}
    left_out = []

    def add(name: str, title: str, facts: Mapping[str, Any], make: Callable[[], Tensor]) -> None:
        found[name] = ImageSet(title, base | dict(facts), count, lambda: [make()])

    for name in settings.controls:
        if name == REREAD:
            other = other_protocol(index.protocol)
            ids = load_ids(SHARDS, index, settings.held_out_split, sizes.held_out)[places]
            try:
                check_archive(RAW, index, ids, chosen)
            except UnveilError as error:
                left_out.append(f"The control {name} was left out: {error}.")
                continue
            add(name, f"protocol {other}", {"protocol": other}, partial(reread, RAW, index, ids, other))
            words[name] = mistake_of(index.protocol, other)
        else:
            control = CONTROLS[name]
            facts = {"control": control.title, "seed": settings.seed}
            add(name, control.title, facts, partial(control.make, chosen, settings.seed))
            words[name] = f"{control.title}. {control.mistake}"
    if found:
        words[UNDAMAGED] = f"The same {count:,} images as they are."
    return found, words, left_out


def _likelihood(run: Run, samples: SampleFile, index: ShardIndex, device: torch.device) -> dict[str, float | int]:
    settings = run.params.evaluate
    denoiser = model_of(samples, device)
    unseen = load_real(SHARDS, index, settings.held_out_split, settings.likelihood_images)
    return measure_likelihood(
        denoiser, unseen, settings.likelihood_probes, settings.seed, settings.batch_size, device, run.say
    )


def model_of(samples: SampleFile, device: torch.device) -> Denoiser:
    """The model in ``models/``. Raises UnveilError unless it is the one that the samples are of."""
    weights = MODELS / WEIGHTS_FILE
    denoiser = load_denoiser(MODELS, device, parse_weights(samples.facts.get("weights", "ema")) or WeightsChoice())
    if file_digest(weights) != samples.facts.get("model"):
        raise UnveilError(
            f"{weights}: not the model that {OWN_SAMPLES} is of; run `dvc repro sample`, "
            "or set evaluate.likelihood_images to 0"
        )
    return denoiser


def _unknown(samples: SampleFile, unchecked: tuple[str, ...]) -> list[str]:
    """What another generator's samples do not say."""
    found = []
    if unchecked:
        found.append(f"The samples do not say their {', '.join(unchecked)}, so these could not be compared.")
    if left_out := samples.facts.get("left_out"):
        found.append(f"Left out: {left_out}.")
    return found


def _listed(found: list[Measured], metrics: Mapping[str, float | int]) -> list[Metric]:
    """The metrics of the card, those of the first network first."""
    n, n_reference = int(metrics["num_samples"]), int(metrics["num_reference"])
    listed = [
        Metric.of(
            name,
            metrics,
            n,
            None if name == "inception_score" else n_reference,
            controls=measured.controls.get(name),
            features=measured.features.name,
        )
        for measured in found
        for name in measured.names
    ]
    if "bits_per_dim" in metrics:
        listed.append(Metric.of("bits_per_dim", metrics, int(metrics["num_likelihood"])))
    return listed


def _by_size(measured: Measured) -> BySize | None:
    part = measured.by_size
    if part is None:
        return None
    points = tuple(AtSize(images=n, distance=d) for n, d in zip(part.sizes, part.distances, strict=True))
    return BySize(metric=measured.features.frechet, points=points, extrapolation=part.infinity)


def _memorization(found: list[Measured]) -> dict[str, Any] | None:
    sentences: list[str] = []
    numbers: dict[str, float | int] = {}
    for measured in found:
        if (copies := measured.copies) is None:
            continue
        start = "" if len(found) == 1 else f"{measured.features.name}: "
        sentences += [start + line for line in (*copies.memorization.sentences, *copies.duplicates.sentences)]
        end = measured.features.suffix
        numbers |= {
            f"nearer_to_training{end}": copies.memorization.nearer.found,
            f"near_duplicates{end}": copies.duplicates.near.found,
            f"exact_duplicates{end}": copies.duplicates.exact,
        }
    return {"sentences": sentences, "numbers": numbers} if sentences else None


def _data(index: ShardIndex, settings: Evaluate, sizes: SetSizes) -> dict[str, Any]:
    def split(name: str, taken: int) -> dict[str, str | int]:
        return {"name": name, "images": index.num_images(name), "taken": taken}

    used = (settings.reference_split, settings.held_out_split)
    return {
        "source": index.source,
        "protocol": index.protocol,
        "image_size": index.image_size,
        "reference": split(settings.reference_split, sizes.reference),
        "held_out": split(settings.held_out_split, sizes.held_out),
        "shards": index.digest(),
        "shard_hashes": {shard.file: shard.sha256 for name in used for shard in index.splits[name]},
        "order": "evenly spaced over the split in the order of ids: place floor(i images / taken)",
    }


def _features(extractor: Extractor, device: torch.device) -> dict[str, Any]:
    features = extractor.features
    return {
        "extractor": features.extractor,
        "title": features.title,
        "layer": features.layer,
        "dimension": features.dimension,
        "preprocessing": features.preprocessing,
        "weights_file": extractor.weights_file,
        "weights_sha256": extractor.weights_sha256,
        "weights_hash_published": extractor.weights_published,
        "device": device.type,
        "dtype": extractor.precision,
    }


def _model(samples: SampleFile) -> dict[str, Any]:
    known = {"weights_sha256": samples.facts["model"]} if samples.facts.get("model") else {}
    return known | (samples.facts.get("config") or {})


def _sampling(samples: SampleFile, count: int) -> dict[str, Any]:
    said = ("source", "protocol", "image_size", "shards", "model", "config")  # in other sections
    rest = {key: value for key, value in samples.facts.items() if key not in said}
    if samples.foreign:
        return {"images": f"the first {count} of {samples.total}", **rest, "images_sha256": samples.images_sha256}
    used = f"{count} of {samples.total}, those with the smallest ids"
    return {"images": used, **rest, "guidance": "none", "images_sha256": samples.images_sha256}


def _evaluation(settings: Evaluate, words: Mapping[str, str]) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "kid_subsets": settings.kid_subsets,
        "kid_subset_size": settings.kid_subset_size,
        "interval_splits": settings.interval_splits,
        "neighbours": {"precision_recall": PRECISION_NEIGHBOURS, "density_coverage": DENSITY_NEIGHBOURS},
        "inception_score_splits": 10,
        "likelihood_images": settings.likelihood_images,
        "controls": dict(words),
    }


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


def _code_commit() -> str | None:
    """The last commit that changed the code: unlike HEAD, no function of commits that change nothing."""
    code = ("src", "stages")
    try:
        commit = subprocess.run(
            ("git", "log", "-1", "--format=%H", "--", *code), capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ("git", "status", "--porcelain", "--", *code), capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with uncommitted changes" if commit and changed else commit or None


if __name__ == "__main__":
    app()
