"""Everything that is measured on the features of one network: one pass a set, then all metrics that are asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from unveil.data.order import spread
from unveil.distributed import Processes
from unveil.evaluation.features.cache import FeatureCache
from unveil.evaluation.features.extraction import Extractor, feature_facts, features_of
from unveil.evaluation.features.published import FeatureSet
from unveil.evaluation.metrics.distances import significant
from unveil.evaluation.metrics.guidance import measure_scales, scale_metrics
from unveil.evaluation.metrics.manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, ball_radii
from unveil.evaluation.metrics.metric import UNDAMAGED, Found, Metric
from unveil.evaluation.metrics.registry import METRICS, MetricName, kind_of

SAMPLES, REFERENCE, HELD_OUT, NOISE = "samples", "reference", "held_out", "noise"
LEAST_FOR_INTERVAL = 24  # samples

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSet:
    """Images of one kind."""

    title: str
    """For a line of progress."""
    facts: Mapping[str, Any]
    """Which images they are, as JSON can hold it: equal facts, equal images."""
    count: int
    parts: Callable[[], Iterable[Tensor]]
    """Gives them anew each time, uint8 [n, 3, size, size] at a time."""


@dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    metrics: Sequence[MetricName]
    kid_subsets: int
    kid_subset_size: int
    interval_splits: int
    """Random halvings for intervals and the extrapolation, which fewer than ``LEAST_FOR_INTERVAL`` samples do not get;
    0 = neither. The limit needs N >= 8 D (``has_limit``)."""
    seed: int
    shared: int = 0
    """Held-out images that the model was trained on."""
    training_total: int | None = None
    """Images that the model was trained on, of which the reference may be a part; None = it is all."""
    conditional: bool = True
    """Whether the samples at scales of guidance are of a model that is told attributes."""


class Sets:
    """The features [N, D] of one network by set, as the metrics see them.

    Args:
        layers: by set and layer: ``samples``, ``reference``, ``held_out``, ``noise``, and any others as controls, whose
            names are theirs. A control is made of the held-out images at ``spread(held out, its N)``. The features
            are taken out of it, so that the memory of a set is free when the last metric has seen it.
        layer: another than that of the features.
    """

    def __init__(self, features: FeatureSet, layers: Mapping[str, dict[str, Tensor]], layer: str | None = None) -> None:
        self.features = features
        self._layers = layers
        self._damaged = {name: found.pop(layer or features.layer) for name, found in layers.items()}
        self.samples, self.reference, self.held_out, self._noise = map(
            self._damaged.pop, (SAMPLES, REFERENCE, HELD_OUT, NOISE)
        )
        self._control_images = next((len(rows) for rows in self._damaged.values()), None)
        self._radii: dict[int, Tensor] = {}

    def logits(self) -> "Sets":
        """The logits of the same sets, whose features these keep."""
        return Sets(self.features, self._layers, self.features.logits)

    def each(self, value: Callable[[Tensor], T], *, noise: bool = False) -> dict[str, T]:
        """``value`` of the features by set, but for the reference: of the noise if asked for, and of the controls.

        Beside the controls stand the same held-out images as they are, ``UNDAMAGED``.
        """
        found = {SAMPLES: value(self.samples), HELD_OUT: value(self.held_out)}
        if noise:
            found[NOISE] = value(self._noise)
        if self._control_images is not None:
            places = torch.from_numpy(spread(len(self.held_out), self._control_images))
            found[UNDAMAGED] = value(self.held_out[places])
        return found | {name: value(rows) for name, rows in self._damaged.items()}

    def radii(self, neighbours: int) -> Tensor:
        """Of the balls around the reference that reach to so many neighbours, [M]; found once for all metrics."""
        if neighbours not in self._radii:
            others = {count for count in (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS) if count < len(self.reference)}
            self._radii = ball_radii(self.reference, *(others | {neighbours}))
        return self._radii[neighbours]

    def metric(self, name: str, values: Mapping[str, float], **others: float | None) -> Metric:
        """The metric of this name, its numbers rounded to significant digits.

        ``values`` are by set, as ``each`` gives them, or of the samples alone; ``others`` are more numbers of
        ``Metric``, by the names of its fields.
        """
        fields = {SAMPLES: "value", HELD_OUT: "floor", NOISE: "noise"}
        numbers = {fields[key]: value for key, value in values.items() if key in fields} | others
        controls = {key: significant(value) for key, value in values.items() if key not in fields}
        kind = kind_of(name)
        return Metric(
            name=name,
            lower_is_better=kind.lower_is_better,
            n=len(self.samples),
            n_reference=len(self.reference) if kind.has_reference else None,
            controls=controls,
            n_controls=self._control_images if controls else None,
            features=self.features.name,
            **{key: significant(value) for key, value in numbers.items() if value is not None},
        )


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
    features, are left out unless one of ``metrics`` needs them.
    """
    logits = any(METRICS[name].logits for name in metrics)
    chosen = extractor.features.layers if logits else (extractor.features.layer,)
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


def measure(
    layers: Mapping[str, dict[str, Tensor]],
    features: FeatureSet,
    asked: Asked,
    scales: Mapping[float, Tensor] = MappingProxyType({}),
) -> Found:
    """All metrics that are asked for, of features by set and layer, which are taken out: see ``Sets``.

    ``scales`` are the features [n, D] of samples by their scale of guidance.

    Raises UnveilError for sets that are too small, or features that are not finite.
    """
    sets = Sets(features, layers)
    if len(sets.samples) < LEAST_FOR_INTERVAL:
        asked = replace(asked, interval_splits=0)
    chosen = [name for name, entry in METRICS.items() if name in asked.metrics]
    chosen = [name for name in chosen if features.logits is not None or not METRICS[name].logits]
    found = [entry.measure(sets, asked) for entry in map(METRICS.__getitem__, chosen) if entry.measure is not None]
    by_guidance = measure_scales(scales, sets)
    return Found(
        (
            *(metric for part in found for metric in part.metrics),
            *(scale_metrics(by_guidance, sets) if asked.conditional else ()),
        ),
        next((part.by_size for part in found if part.by_size is not None), None),
        next((part.copies for part in found if part.copies is not None), None),
        by_guidance,
    )
