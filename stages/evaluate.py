"""Stage 5: how far the samples are from real images, beside the two controls that give it a scale."""

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
import typer
from torch import Tensor

import unveil
from unveil.data.shards import ShardIndex, verify
from unveil.diffusion.denoiser import Denoiser
from unveil.errors import UnveilError
from unveil.evaluation.card import CardFacts, SplitFacts, notes_on, render
from unveil.evaluation.distances import FourSets, measure
from unveil.evaluation.features import FEATURE_SETS, extract, load_extractor
from unveil.evaluation.figures import for_figure, summary, write_comparison, write_distances
from unveil.evaluation.likelihood import measure_likelihood
from unveil.evaluation.sets import (
    SampleFile,
    check_same_data,
    count_shared,
    load_real,
    load_samples,
    real_parts,
    set_sizes,
    uniform_noise,
)
from unveil.files import file_digest, write_json, write_text
from unveil.stage import stage
from unveil.training.checkpoint import WEIGHTS_FILE, load_denoiser
from unveil.training.choices import WeightsChoice, parse_weights
from unveil.training.precision import resolve_device

SHARDS = Path("data/shards")
MODELS = Path("models")
SAMPLES = Path("samples/samples.safetensors")
SAMPLES_RECORD = Path("samples/run.json")
METRICS = Path("metrics/evaluate.json")
CARD = Path("reports/card.md")
DISTANCES = Path("plots/evaluate/distances.json")
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
        card = render(
            CardFacts(
                metrics=metrics,
                features=features,
                weights_file=extractor.weights_file,
                weights_sha256=extractor.weights_sha256,
                source=index.source,
                protocol=index.protocol,
                image_size=index.image_size,
                shards=index.digest(),
                reference=SplitFacts(reference, index.num_images(reference), sizes.reference),
                held_out=SplitFacts(held_out, index.num_images(held_out), sizes.held_out),
                kid_subsets=subsets,
                kid_subset_size=size,
                seed=settings.seed,
                device=device.type,
                samples_sha256=samples.images_sha256,
                samples_total=samples.total,
                samples=samples.facts,
                versions=_versions(),
                commit=_code_commit(),
                notes=notes,
            )
        )

        write_json(METRICS, metrics)
        write_text(CARD, card)
        write_distances(DISTANCES, metrics, features)
        write_comparison(COMPARISON, shown, for_figure(samples.images), metrics, features, held_out)

        run.log_metrics(metrics, model=True)
        run.log_artifact(METRICS)
        run.log_artifact(CARD)
        run.log_artifact(DISTANCES, folder="plots")
        run.log_artifact(COMPARISON, folder="plots")
        run.write_record(RECORD)
        run.say(summary(metrics, features))
        if likelihood:
            run.say(f"bits per dimension: {metrics['bits_per_dim']:.4f} ± {metrics['bits_per_dim_stderr']:.4f}")


def model_of(samples: SampleFile, device: torch.device) -> Denoiser:
    """The model in ``models/``. Raises UnveilError unless it is the one that the samples are of."""
    weights = MODELS / WEIGHTS_FILE
    denoiser = load_denoiser(MODELS, device, parse_weights(samples.facts.get("weights", "ema")) or WeightsChoice())
    if file_digest(weights) != samples.facts.get("model"):
        raise UnveilError(
            f"{weights}: not the model that {SAMPLES} is of; run `dvc repro sample`, "
            "or set evaluate.likelihood_images to 0"
        )
    return denoiser


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
