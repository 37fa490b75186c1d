"""What an evaluation card states, from what an evaluation used and found."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unveil.data.pixels import ROUNDING
from unveil.data.protocols import PROTOCOLS
from unveil.data.shards import ShardIndex
from unveil.evaluation.card.card import AtSize, BySize, Metric
from unveil.evaluation.features.extraction import Extractor
from unveil.evaluation.images.sets import SampleFile, SetSizes
from unveil.evaluation.metrics.distances import INCEPTION_SCORE_SPLITS
from unveil.evaluation.metrics.manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS
from unveil.evaluation.metrics.measurement import Asked, Measured

OTHER_SECTIONS = ("source", "protocol", "image_size", "shards", "model", "config")
"""Facts of the samples that do not stand under sampling."""


def metrics_of(found: Sequence[Measured], metrics: Mapping[str, float | int]) -> list[Metric]:
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
            n_controls=measured.control_images,
        )
        for measured in found
        for name in measured.names
    ]
    if "bits_per_dim" in metrics:
        listed.append(Metric.of("bits_per_dim", metrics, int(metrics["num_likelihood"])))
    return listed


def by_size_of(measured: Measured) -> BySize | None:
    """The Fréchet distance at several N, None if that was not asked for."""
    part = measured.by_size
    if part is None:
        return None
    points = tuple(AtSize(images=n, distance=d) for n, d in zip(part.sizes, part.distances, strict=True))
    return BySize(metric=measured.features.frechet, points=points, extrapolation=part.infinity)


def memorization_of(found: Sequence[Measured]) -> dict[str, Any] | None:
    """Sentences and numbers on copies, of all networks; None if nobody looked for them."""
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


def data_choices(index: ShardIndex, splits: tuple[str, str], sizes: SetSizes) -> dict[str, Any]:
    """The real images; ``splits`` of the reference and of the held-out ones."""

    def split(name: str, taken: int) -> dict[str, str | int]:
        return {"name": name, "images": index.num_images(name), "taken": taken}

    return {
        "source": index.source,
        "protocol": index.protocol,
        "decoder": PROTOCOLS[index.protocol].decoder,
        "image_size": index.image_size,
        "reference": split(splits[0], sizes.reference),
        "held_out": split(splits[1], sizes.held_out),
        "shards": index.digest(),
        "shard_hashes": {shard.file: shard.sha256 for name in splits for shard in index.splits[name]},
        "order": "evenly spaced over the split in the order of ids: place floor(i images / taken)",
    }


def feature_choices(extractor: Extractor, device: torch.device) -> dict[str, Any]:
    """The feature network."""
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


def model_choices(samples: SampleFile) -> dict[str, Any]:
    """The model, as far as its samples say."""
    known = {"weights_sha256": samples.facts["model"]} if samples.facts.get("model") else {}
    return known | (samples.facts.get("config") or {})


def sampling_choices(samples: SampleFile, count: int) -> dict[str, Any]:
    """How the samples were made, and which ``count`` of them are used."""
    rest = {key: value for key, value in samples.facts.items() if key not in OTHER_SECTIONS}
    if samples.foreign:
        return {"images": f"the first {count} of {samples.total}", **rest, "images_sha256": samples.images_sha256}
    used = f"{count} of {samples.total}, those with the smallest ids"
    return {"images": used, **rest, "guidance": "none", "rounding": ROUNDING, "images_sha256": samples.images_sha256}


def evaluation_choices(asked: Asked, words: Mapping[str, str]) -> dict[str, Any]:
    """How the metrics were computed; ``words`` on each control."""
    return {
        "seed": asked.seed,
        "kid_subsets": asked.kid_subsets,
        "kid_subset_size": asked.kid_subset_size,
        "interval_splits": asked.interval_splits,
        "neighbours": {"precision_recall": PRECISION_NEIGHBOURS, "density_coverage": DENSITY_NEIGHBOURS},
        "inception_score_splits": INCEPTION_SCORE_SPLITS,
        "controls": dict(words),
    }


def unknown_of(samples: SampleFile, unchecked: tuple[str, ...]) -> list[str]:
    """What another generator's samples do not say."""
    found = []
    if unchecked:
        found.append(f"The samples do not say their {', '.join(unchecked)}, so these could not be compared.")
    if left_out := samples.facts.get("left_out"):
        found.append(f"Left out: {left_out}.")
    return found
