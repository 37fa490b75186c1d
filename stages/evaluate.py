"""Stage 5: how far the samples are from real images, beside the two controls that give it a scale."""

import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

import unveil
from unveil.data.shards import ShardIndex, verify
from unveil.diffusion.denoiser import Denoiser
from unveil.errors import UnveilError
from unveil.evaluation.card import Card, Metric, notes_on
from unveil.evaluation.distances import FourSets, measure
from unveil.evaluation.features import FEATURE_SETS, Extractor, FeatureSet, extract, load_extractor
from unveil.evaluation.figures import for_figure, summary, write_by_nfe, write_comparison, write_distances
from unveil.evaluation.likelihood import measure_likelihood
from unveil.evaluation.markdown import render
from unveil.evaluation.sets import (
    SampleFile,
    SetSizes,
    check_same_data,
    count_shared,
    load_real,
    load_samples,
    real_parts,
    set_sizes,
    uniform_noise,
)
from unveil.files import file_digest, write_json, write_text
from unveil.params import Evaluate
from unveil.stage import stage
from unveil.training.checkpoint import WEIGHTS_FILE, load_denoiser
from unveil.training.precision import resolve_device

SHARDS = Path("data/shards")
MODELS = Path("models")
SAMPLES = Path("samples/samples.safetensors")
SAMPLES_RECORD = Path("samples/run.json")
METRICS = Path("metrics/evaluate.json")
CARD = Path("reports/card.json")
CARD_PAGE = Path("reports/card.md")
DISTANCES = Path("plots/evaluate/distances.json")
BY_NFE = Path("plots/evaluate/by_nfe.csv")
COMPARISON = Path("plots/evaluate/real-and-samples.png")
RECORD = Path("metrics/run.json")

app = typer.Typer(add_completion=False)


@app.command()
def main(params: Path = typer.Option(Path("params.yaml"), help="The parameters of all stages.")) -> None:
    """Measure the distance of the samples from real images, with its floor and its scale."""
    with stage("evaluate", params) as run:
        settings = run.params.evaluate
        count, reference, held_out = settings.num_images, settings.reference_split, settings.held_out_split
        run.follow(SAMPLES_RECORD)
        index = ShardIndex.load(SHARDS)
        samples = load_samples(SAMPLES, count)
        check_same_data(SAMPLES, samples, SHARDS, index)
        subsets, size = settings.kid_subsets, settings.kid_subset_size
        sizes = set_sizes(SHARDS, index, (reference, held_out), count, settings.reference_images, size)
        verify(SHARDS, (reference, held_out))
        name = f"{index.source}-{index.image_size}-{index.protocol}"
        run.add_input(SHARDS.as_posix(), index.digest(), dataset=name, context="evaluation")
        run.add_input(SAMPLES.as_posix(), samples.sha256)

        shared = count_shared(SHARDS, index, (held_out, sizes.held_out), (reference, sizes.reference))
        notes = notes_on(sizes, FEATURE_SETS[settings.features], shared)
        for note in notes:
            run.say(f"note: {note}")
        device = resolve_device(settings.device)
        likelihood: dict[str, float | int] = {}
        if settings.likelihood_images:
            denoiser = model_of(samples, device)
            unseen = load_real(SHARDS, index, held_out, settings.likelihood_images)
            likelihood = measure_likelihood(
                denoiser, unseen, settings.likelihood_probes, settings.seed, settings.batch_size, device, run.say
            )
        extractor = load_extractor(settings.features, run.locate(settings.inception_weights))

        def features_of(what: str, images: int, parts: Iterable[Tensor]) -> Tensor:
            run.say(f"features of {images} images: {what}")
            return torch.cat([extract(part, extractor, settings.batch_size, device) for part in parts])

        real = load_real(SHARDS, index, held_out, sizes.held_out)
        shown = for_figure(real)
        sets = FourSets(
            samples=features_of("samples", count, [samples.images]),
            held_out=features_of(f"real, {held_out} split", sizes.held_out, [real]),
            reference=features_of(
                f"real, {reference} split", sizes.reference, real_parts(SHARDS, index, reference, sizes.reference)
            ),
            noise=features_of("uniform noise", count, [uniform_noise(count, index.image_size, settings.seed)]),
        )
        features = extractor.features
        metrics = measure(sets, features, subsets, size, settings.seed) | likelihood
        card = Card.of(
            _metrics(metrics, features),
            {
                "data": _data(index, settings, sizes),
                "features": _features(extractor, device),
                "model": {"weights_sha256": samples.facts.get("model"), **samples.facts.get("config", {})},
                "sampling": _sampling(samples, count),
                "evaluation": _evaluation(settings),
                "code": {"commit": _code_commit()},
            },
            notes=notes,
            environment=_versions(),
            cost={key: likelihood[key] for key in ("bits_per_dim_nfe",) if key in likelihood},
        )

        write_json(METRICS, metrics)
        card.save(CARD)
        write_text(CARD_PAGE, render(card))
        write_distances(DISTANCES, card)
        write_by_nfe(BY_NFE, card)
        write_comparison(COMPARISON, shown, for_figure(samples.images), metrics, features, held_out)

        run.log_metrics(metrics, model=True)
        run.log_artifact(METRICS)
        run.log_artifact(CARD)
        run.log_artifact(CARD_PAGE)
        run.log_artifact(DISTANCES, folder="plots")
        run.log_artifact(BY_NFE, folder="plots")
        run.log_artifact(COMPARISON, folder="plots")
        run.write_record(RECORD)
        run.say(summary(metrics, features))
        if likelihood:
            run.say(f"bits per dimension: {metrics['bits_per_dim']:.4f} ± {metrics['bits_per_dim_stderr']:.4f}")


def model_of(samples: SampleFile, device: torch.device) -> Denoiser:
    """The model in ``models/``. Raises UnveilError unless it is the one that the samples are of."""
    weights = MODELS / WEIGHTS_FILE
    denoiser = load_denoiser(MODELS, device)
    if file_digest(weights) != samples.facts.get("model"):
        raise UnveilError(
            f"{weights}: not the model that {SAMPLES} is of; run `dvc repro sample`, "
            "or set evaluate.likelihood_images to 0"
        )
    return denoiser


def _metrics(flat: Mapping[str, float | int], features: FeatureSet) -> list[Metric]:
    counts = int(flat["num_samples"]), int(flat["num_reference"])
    found = [Metric.of(name, flat, *counts) for name in (features.frechet, features.kernel)]
    if "bits_per_dim" in flat:
        found.append(Metric.of("bits_per_dim", flat, int(flat["num_likelihood"])))
    return found


def _data(index: ShardIndex, settings: Evaluate, sizes: SetSizes) -> dict[str, Any]:
    def split(name: str, taken: int) -> dict[str, str | int]:
        return {"name": name, "images": index.num_images(name), "taken": taken}

    return {
        "source": index.source,
        "protocol": index.protocol,
        "image_size": index.image_size,
        "reference": split(settings.reference_split, sizes.reference),
        "held_out": split(settings.held_out_split, sizes.held_out),
        "shards": index.digest(),
        "order": "evenly spaced over the split in the order of ids: place floor(i images / taken)",
    }


def _features(extractor: Extractor, device: torch.device) -> dict[str, Any]:
    features = extractor.features
    return {
        "extractor": features.name,
        "layer": features.layer,
        "dimension": features.dimension,
        "preprocessing": features.preprocessing,
        "weights_file": extractor.weights_file,
        "weights_sha256": extractor.weights_sha256,
        "device": device.type,
        "dtype": "float32",
    }


def _sampling(samples: SampleFile, count: int) -> dict[str, Any]:
    said = ("source", "protocol", "image_size", "shards", "model", "config")  # in other sections
    rest = {key: value for key, value in samples.facts.items() if key not in said}
    used = f"{count} of {samples.total}, those with the smallest ids"
    return {"images": used, **rest, "guidance": "none", "images_sha256": samples.images_sha256}


def _evaluation(settings: Evaluate) -> dict[str, Any]:
    found = {
        "seed": settings.seed,
        "kid_subsets": settings.kid_subsets,
        "kid_subset_size": settings.kid_subset_size,
    }
    if settings.likelihood_images:
        found |= {"likelihood_images": settings.likelihood_images, "likelihood_probes": settings.likelihood_probes}
    return found


def _versions() -> dict[str, str]:
    packages = ("torch", "torch-fidelity", "numpy")
    own = {"unveil": unveil.__version__, "python": platform.python_version()}
    return own | {package: version(package) for package in packages}


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
