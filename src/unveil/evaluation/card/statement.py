"""What an evaluation card states, from what an evaluation used and found."""

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import torch

import unveil
from unveil.data.pixels import ROUNDING
from unveil.data.protocols import PROTOCOLS
from unveil.evaluation.card.card import AtSize, BySize
from unveil.evaluation.card.sentences import on_duplicates, on_training
from unveil.evaluation.features.extraction import Extractor
from unveil.evaluation.features.published import FEATURE_SETS
from unveil.evaluation.images.chosen import RealImages
from unveil.evaluation.images.foreign import SampleFile
from unveil.evaluation.metrics.distances import INCEPTION_SCORE_SPLITS
from unveil.evaluation.metrics.manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS
from unveil.evaluation.metrics.measurement import Asked
from unveil.evaluation.metrics.metric import Found
from unveil.evaluation.metrics.uncertainty import FrechetBySize

OTHER_SECTIONS = ("source", "protocol", "image_size", "shards", "model", "config")
"""Facts of the samples that do not stand under sampling."""


def by_size_of(metric: str, part: FrechetBySize) -> BySize:
    """The distance of this name at several N."""
    points = tuple(AtSize(images=n, distance=d) for n, d in zip(part.sizes, part.distances, strict=True))
    return BySize(metric=metric, points=points, extrapolation=part.infinity)


def memorization_of(found: Mapping[str, Found]) -> dict[str, Any] | None:
    """Sentences and numbers on copies, of all networks; None if nobody looked for them."""
    sentences: list[str] = []
    numbers: dict[str, float | int] = {}
    for name, part in found.items():
        if (copies := part.copies) is None:
            continue
        start, end = "" if len(found) == 1 else f"{name}: ", FEATURE_SETS[name].suffix
        sentences += [start + line for line in (*on_training(copies.of_training), *on_duplicates(copies.duplicates))]
        numbers |= {
            f"nearer_to_training{end}": copies.of_training.nearer.found,
            f"near_duplicates{end}": copies.duplicates.near.found,
            f"exact_duplicates{end}": copies.duplicates.exact,
        }
    return {"sentences": sentences, "numbers": numbers} if sentences else None


def choices_of(
    samples: SampleFile,
    real: RealImages,
    extractors: Iterable[Extractor],
    asked: Asked,
    controls: Mapping[str, str],
    device: torch.device,
) -> dict[str, Any]:
    """Everything that made the numbers, but for the code, as ``Choices`` has it; ``controls`` are words on each."""
    return {
        "data": _data(real),
        "features": {extractor.features.name: _features(extractor, device) for extractor in extractors},
        "model": model_choices(samples),
        "sampling": sampling_choices(samples, real.sizes.samples),
        "evaluation": {
            "seed": asked.seed,
            "kid_subsets": asked.kid_subsets,
            "kid_subset_size": asked.kid_subset_size,
            "interval_splits": asked.interval_splits,
            "neighbours": {"precision_recall": PRECISION_NEIGHBOURS, "density_coverage": DENSITY_NEIGHBOURS},
            "inception_score_splits": INCEPTION_SCORE_SPLITS,
            "controls": dict(controls),
        },
    }


def _data(real: RealImages) -> dict[str, Any]:
    index, taken = real.index, (real.sizes.reference, real.sizes.held_out)
    reference, held_out = (
        {"name": name, "images": index.num_images(name), "taken": count}
        for name, count in zip(real.splits, taken, strict=True)
    )
    return {
        "source": index.source,
        "protocol": index.protocol,
        "decoder": PROTOCOLS[index.protocol].decoder,
        "image_size": index.image_size,
        "reference": reference,
        "held_out": held_out,
        "shards": index.digest(),
        "shard_hashes": {shard.file: shard.sha256 for name in real.splits for shard in index.shards(name)},
        "order": "evenly spaced over the split in the order of ids: place floor(i images / taken)",
    }


def _features(extractor: Extractor, device: torch.device) -> dict[str, Any]:
    stated = ("extractor", "title", "layer", "dimension", "preprocessing")
    return {key: getattr(extractor.features, key) for key in stated} | {
        "weights_file": extractor.weights_file,
        "weights_sha256": extractor.weights_sha256,
        "weights_hash_published": extractor.weights_published,
        "device": device.type,
        "dtype": extractor.precision,
    }


def model_choices(samples: SampleFile) -> dict[str, Any]:
    """The model, as far as its samples say."""
    known = {"weights_sha256": samples.facts["model"]} if samples.facts.get("model") else {}
    return known | (samples.facts.get("config") or {})


def sampling_choices(samples: SampleFile, count: int) -> dict[str, Any]:
    """How the samples were made, and which ``count`` of them are used."""
    rest = {key: value for key, value in samples.facts.items() if key not in OTHER_SECTIONS}
    if samples.foreign:
        used = f"the first {count} of {samples.total}"
    else:
        used = f"{count} of {samples.total}, those with the smallest ids"
        rest |= {"guidance": rest.get("guidance", "none"), "rounding": ROUNDING}
    return {"images": used, **rest, "images_sha256": samples.images_sha256}


def environment_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and hardware; ``record`` is that of the stage's run."""
    packages = {package: version(package) for package in ("torch", "torch-fidelity", "numpy", "scipy")}
    machine = {key.removeprefix("unveil."): value for key, value in record["machine"].items()}
    return {
        "unveil": unveil.__version__,
        "python": platform.python_version(),
        **packages,
        **{key: value for key, value in machine.items() if not key.startswith("version.")},
        **{key: record[key] for key in ("git_commit", "git_dirty", "dvc_exp_name") if record[key] is not None},
    }


def cost_of(upstream: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Seconds of each stage, and of training what its curve says, which holds the time before an interruption."""
    found: dict[str, Any] = {}
    for name, record in upstream.items():
        metrics = record.get("metrics", {})
        stated = {
            f"{name}_seconds": record.get("seconds") or None,
            "train_loop_minutes": metrics.get("minutes") if name == "train" else None,
            f"{name}_images_per_second": metrics.get("images_per_second") if name in ("train", "sample") else None,
        }
        found |= {key: value for key, value in stated.items() if value is not None}
    return found | {"evaluate_seconds": round(seconds, 1)}
