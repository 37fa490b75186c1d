"""Everything that is measured on the features of one network: one pass a set, then all metrics that are asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from unveil.distributed import Processes
from unveil.evaluation.choices import MetricName
from unveil.evaluation.features.cache import FeatureCache
from unveil.evaluation.features.extraction import Extractor, FeatureSet, feature_facts, features_of
from unveil.evaluation.images.sets import spread
from unveil.evaluation.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_stderr,
    significant,
    statistics,
)
from unveil.evaluation.metrics.manifold import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    DensityCoverage,
    PrecisionRecall,
    ball_radii,
    density_coverage,
    density_coverage_stderr,
    precision_recall,
    precision_recall_stderr,
)
from unveil.evaluation.metrics.memorization import Copies, find_copies
from unveil.evaluation.metrics.uncertainty import LEVEL, FrechetBySize, frechet_by_size, frechet_interval, has_limit

SAMPLES, REFERENCE, HELD_OUT, NOISE = "samples", "reference", "held_out", "noise"
LEAST_FOR_INTERVAL = 24  # samples
UNDAMAGED = "undamaged"
"""Name, among the controls, of the same real images as they are."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one kind.

    Attributes:
        title: for a line of progress.
        facts: which images they are, as JSON can hold it: equal facts, equal images.
        count: how many.
        parts: gives them anew each time, uint8 [n, 3, size, size] at a time.
    """

    title: str
    facts: Mapping[str, Any]
    count: int
    parts: Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        metrics: names.
        kid_subsets: random subsets of KID.
        kid_subset_size: images in each.
        interval_splits: random halvings for intervals and the extrapolation, which fewer than
            ``LEAST_FOR_INTERVAL`` samples do not get; 0 = neither. The limit needs N >= 8 D (``has_limit``).
        seed: of all subsets.
        shared: held-out images that the model was trained on.
        training_total: images that the model was trained on, of which the reference may be a part; None = it is all.
    """

    metrics: Sequence[MetricName]
    kid_subsets: int
    kid_subset_size: int
    interval_splits: int
    seed: int
    shared: int = 0
    training_total: int | None = None


@dataclass(frozen=True)
class Measured:
    """What was found on one network's features.

    Attributes:
        features: the network's.
        values: flat, as metrics/evaluate.json has them. ``<name>`` is of the samples, ``<name>_floor`` of held-out
            real images, ``<name>_noise`` of uniform noise, ``<name>_fraction`` where the samples lie on the way from
            floor (0) to noise (1), left out where there is no way; ``_stderr``, ``_low`` and ``_high`` are the
            standard error and the 95 % interval.
        names: of the metrics, in the order in which a reader wants them.
        controls: by metric and control.
        control_images: of each control, undamaged ones too; None without controls.
        by_size: the Fréchet distance at several N.
        copies: of training images and of each other.
    """

    features: FeatureSet
    values: dict[str, float]
    names: tuple[str, ...]
    controls: dict[str, dict[str, float]] = field(default_factory=dict)
    by_size: FrechetBySize | None = None
    copies: Copies | None = None
    control_images: int | None = None


def extract_sets(
    sets: Mapping[str, ImageSet],
    extractor: Extractor,
    cache: FeatureCache,
    batch_size: int,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
    metrics: Sequence[MetricName],
) -> dict[str, dict[str, Tensor]] | None:
    """The features of every set, by set and layer, at rank 0, and None elsewhere.

    What ``cache`` has is not computed. Every process calls it with the same sets. Logits, half as large as Inception's
    features, are left out unless ``metrics`` have the Inception Score.
    """
    chosen = extractor.features.layers if "inception-score" in metrics else (extractor.features.layer,)
    found = {}
    for name, images in sets.items():

        def compute(images: ImageSet = images) -> dict[str, Tensor] | None:
            say(f"{extractor.features.name}: features of {images.count:,} images, {images.title}")
            return features_of(images.parts(), images.count, extractor, batch_size, device, processes, say)

        layers = cache.get_or(feature_facts(extractor, device, images.facts), compute)
        found[name] = None if layers is None else {layer: layers[layer] for layer in chosen}
        del layers  # which would hold the others while the next set is computed
    present = {name: layers for name, layers in found.items() if layers is not None}
    return present if processes.is_main else None


def measure(layers: Mapping[str, dict[str, Tensor]], features: FeatureSet, asked: Asked) -> Measured:
    """All metrics that are asked for.

    Args:
        layers: the features by set and layer: ``samples``, ``reference``, ``held_out``, ``noise``, and any others as
            controls, whose names are theirs. A control is made of the held-out images at ``spread(held out, its N)``.
            They are taken out of it, so that the memory of a set is free when the last metric has seen it.
        features: what they are.
        asked: for.

    Raises:
        UnveilError: for sets that are too small, or features that are not finite.
    """
    sets = {name: found.pop(features.layer) for name, found in layers.items()}
    values: dict[str, float] = {}
    if len(sets[SAMPLES]) < LEAST_FOR_INTERVAL:
        asked = replace(asked, interval_splits=0)
    found = Measured(features, values, _names(features, asked, sets[SAMPLES]))
    copies: Copies | None = None
    by_size: FrechetBySize | None = None
    if "kernel" in asked.metrics:
        _kernel(sets, found, asked)
    if "frechet" in asked.metrics:
        by_size = _frechet(sets, found, asked)
    sets.pop(NOISE, None)
    _manifold(sets, found, asked)
    if "inception-score" in asked.metrics and features.logits is not None:
        _inception_score({name: rows[features.logits] for name, rows in layers.items()}, found, asked)
    if "memorization" in asked.metrics:
        copies = find_copies(
            sets[SAMPLES], sets[REFERENCE], sets[HELD_OUT], asked.seed, asked.shared, asked.training_total
        )
        values[features.metric("nearer_to_training")] = copies.memorization.nearer.found
        values[features.metric("near_duplicates")] = copies.duplicates.near.found
    rounded = {name: significant(values[name]) for name in sorted(values)}
    images = next((len(rows) for rows in _controls(sets).values()), None)
    return Measured(features, rounded, found.names, found.controls, by_size, copies, images)


def _names(features: FeatureSet, asked: Asked, samples: Tensor) -> tuple[str, ...]:
    """Of the metrics that a card lists."""
    limit = [f"{features.frechet}_infinity"] if asked.interval_splits and has_limit(*samples.shape) else []
    names: list[str] = []
    if "frechet" in asked.metrics:
        names += [features.frechet, *limit]
    if "kernel" in asked.metrics:
        names.append(features.kernel)
    if "precision-recall" in asked.metrics:
        names += [features.metric("precision"), features.metric("recall")]
    if "density-coverage" in asked.metrics:
        names += [features.metric("density"), features.metric("coverage")]
    if "inception-score" in asked.metrics and features.logits is not None:
        names.append("inception_score")
    return tuple(names)


def _controls(sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features of each control, and of the same images undamaged."""
    named = (SAMPLES, REFERENCE, HELD_OUT, NOISE)
    controls = {name: rows for name, rows in sets.items() if name not in named}
    if not controls:
        return {}
    held_out, count = sets[HELD_OUT], len(next(iter(controls.values())))
    return {UNDAMAGED: held_out[torch.from_numpy(spread(len(held_out), count))], **controls}


def _frechet(sets: dict[str, Tensor], found: Measured, asked: Asked) -> FrechetBySize | None:
    """Of noise no more than the statistics is needed, and by no metric that follows: its features go."""
    name, values = found.features.frechet, found.values
    noise, reference = statistics(sets.pop(NOISE)), statistics(sets[REFERENCE])
    values[f"{name}_noise"] = frechet_distance(noise, reference)
    for end, other in (("", SAMPLES), ("_floor", HELD_OUT)):
        values[name + end] = frechet_distance(statistics(sets[other]), reference)
    if (share := fraction(values, name)) is not None:
        values[f"{name}_fraction"] = share
    controls = _controls(sets)
    _control(found, name, {key: frechet_distance(statistics(rows), reference) for key, rows in controls.items()})
    if not asked.interval_splits:
        return None
    interval = frechet_interval(sets[SAMPLES], reference, asked.seed, asked.interval_splits)
    by_size = frechet_by_size(sets[SAMPLES], reference, interval, asked.seed)
    values |= {f"{name}_stderr": interval.stderr, f"{name}_low": interval.low, f"{name}_high": interval.high}
    limit = f"{name}_infinity"
    limits = (by_size.infinity, by_size.stderr, by_size.low, by_size.high)
    for end, value in zip(("", "_stderr", "_low", "_high"), limits, strict=True):
        if value is not None:
            values[limit + end] = value
    return by_size


def _kernel(sets: Mapping[str, Tensor], found: Measured, asked: Asked) -> None:
    name, values, reference = found.features.kernel, found.values, sets[REFERENCE]

    def distance(rows: Tensor, size: int = asked.kid_subset_size) -> float:
        return kernel_distance(rows, reference, asked.kid_subsets, size, asked.seed).mean

    own = kernel_distance(sets[SAMPLES], reference, asked.kid_subsets, asked.kid_subset_size, asked.seed)
    values |= {name: own.mean, f"{name}_std": own.std}
    stderr = kernel_stderr(sets[SAMPLES], reference, own, asked.kid_subsets)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * stderr  # normal, as a mean over many pairs of images
    values |= {f"{name}_stderr": stderr, f"{name}_low": own.mean - reach, f"{name}_high": own.mean + reach}
    values |= {f"{name}_floor": distance(sets[HELD_OUT]), f"{name}_noise": distance(sets[NOISE])}
    # Controls may be fewer than a subset, whose size does not bias the distance.
    controls = _controls(sets).items()
    _control(found, name, {key: distance(rows, min(len(rows), asked.kid_subset_size)) for key, rows in controls})


def _manifold(sets: Mapping[str, Tensor], found: Measured, asked: Asked) -> None:
    """Precision and recall, density and coverage, those that are asked for."""
    samples, reference, values = sets[SAMPLES], sets[REFERENCE], found.values
    neighbours = {"precision-recall": PRECISION_NEIGHBOURS, "density-coverage": DENSITY_NEIGHBOURS}
    asked_for = [count for name, count in neighbours.items() if name in asked.metrics]
    if not asked_for:
        return
    radii = ball_radii(reference, *asked_for)

    def put(end: str, pair: PrecisionRecall | DensityCoverage) -> None:
        values.update({found.features.metric(name) + end: value for name, value in asdict(pair).items()})

    def put_controls(pairs: Mapping[str, PrecisionRecall | DensityCoverage]) -> None:
        for name in asdict(next(iter(pairs.values()))) if pairs else ():
            _control(found, found.features.metric(name), {key: getattr(pair, name) for key, pair in pairs.items()})

    controls = _controls(sets)
    if "precision-recall" in asked.metrics:
        near = radii[PRECISION_NEIGHBOURS]
        put("", precision_recall(samples, reference))
        put("_floor", precision_recall(sets[HELD_OUT], reference))
        put("_stderr", precision_recall_stderr(samples, reference, asked.seed, radii=near))
        put_controls({key: precision_recall(rows, reference, radii=near) for key, rows in controls.items()})
    if "density-coverage" in asked.metrics:
        wide = radii[DENSITY_NEIGHBOURS]
        put("", density_coverage(samples, reference, radii=wide))
        put("_floor", density_coverage(sets[HELD_OUT], reference, radii=wide))
        put("_stderr", density_coverage_stderr(samples, reference, asked.seed, radii=wide))
        put_controls({key: density_coverage(rows, reference, radii=wide) for key, rows in controls.items()})


def _inception_score(logits: Mapping[str, Tensor], found: Measured, asked: Asked) -> None:
    name, score = "inception_score", inception_score(logits[SAMPLES], asked.seed)
    found.values.update({name: score.mean, f"{name}_std": score.std})
    found.values[f"{name}_floor"] = inception_score(logits[HELD_OUT], asked.seed).mean
    _control(found, name, {key: inception_score(rows, asked.seed).mean for key, rows in _controls(logits).items()})


def _control(found: Measured, name: str, values: Mapping[str, float]) -> None:
    """Note the controls of a metric, if there are any."""
    if values:
        found.controls[name] = {control: significant(value) for control, value in values.items()}


def fraction(values: Mapping[str, float], name: str) -> float | None:
    """``(samples - floor) / (noise - floor)`` of a distance, or None without a way to divide by."""
    way = values[f"{name}_noise"] - values[f"{name}_floor"]
    return (values[name] - values[f"{name}_floor"]) / way if way > 0 else None
