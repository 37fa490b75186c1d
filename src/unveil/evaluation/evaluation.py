"""An evaluation, whole: images, features, metrics, card. It returns values; the stage says, logs and writes them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unveil.data.order import spread
from unveil.data.shards import ShardIndex, verify
from unveil.distributed import Processes
from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card
from unveil.evaluation.card.figures import (
    COLUMNS,
    neighbours_figure,
    plot_data,
    save_figure,
    write_comparison,
    write_controls,
)
from unveil.evaluation.card.sentences import notes_on, on_limit, unknown_of
from unveil.evaluation.card.statement import by_size_of, choices_of, memorization_of
from unveil.evaluation.config import Evaluation
from unveil.evaluation.features.cache import FeatureCache
from unveil.evaluation.features.extraction import Extractor, load_extractor
from unveil.evaluation.features.published import FEATURE_SETS
from unveil.evaluation.images.chosen import Damaged, RealImages, damaged_sets, four_sets
from unveil.evaluation.images.foreign import SampleFile
from unveil.evaluation.images.labelled import Labelled, load_labelled
from unveil.evaluation.images.scales import NO_SCALES, ScaleSamples, load_scales, set_name
from unveil.evaluation.images.sets import check_same_data, count_shared, load_real, load_samples, real_parts, set_sizes
from unveil.evaluation.metrics.attributes import attribute_metrics
from unveil.evaluation.metrics.copies import Copies, to_show
from unveil.evaluation.metrics.guidance import AtScale
from unveil.evaluation.metrics.measurement import LEAST_FOR_INTERVAL, Asked, extract_sets, measure
from unveil.evaluation.metrics.metric import Found, Metric, flat_metrics
from unveil.evaluation.metrics.registry import METRICS, kind_of
from unveil.evaluation.oracle.classifier import Oracle
from unveil.evaluation.oracle.config import OracleTraining
from unveil.evaluation.oracle.facts import MEND as ORACLE_MEND
from unveil.files import write_text

SHOWN_SAMPLES = 4  # of those nearest to training images, and as many drawn evenly


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and against what."""

    samples: SampleFile
    real: RealImages
    shared: int  # held-out images that the reference has too
    unchecked: tuple[str, ...]  # what the samples do not say, and what therefore could not be compared with the shards

    def notes(self, settings: Evaluation, damaged: Damaged) -> list[str]:
        """What a reader of the distances should be warned of, before they are measured."""
        found = [
            *notes_on(self.real.sizes, FEATURE_SETS[settings.features[0]], self.shared),
            *unknown_of(self.samples, self.unchecked),
            *damaged.left_out,
        ]
        if settings.interval_splits and self.real.sizes.samples < LEAST_FOR_INTERVAL:
            found.append(f"Fewer than {LEAST_FOR_INTERVAL} samples have no interval.")
        return found


@dataclass(frozen=True)
class Requests:
    """What tells whether samples are what was asked for."""

    oracle: Oracle | None = None
    scales: ScaleSamples = NO_SCALES
    labelled: Labelled | None = None

    def choices(self, used: bool) -> dict[str, Any]:
        """What the card says of the evaluation besides; of the oracle where it was ``used``."""
        found: dict[str, Any] = {}
        if used and self.oracle is not None:
            facts = asdict(self.oracle.facts)
            kept = ("weights_sha256", "shards", "held_out", "accuracy", "balanced_accuracy", "settings")
            found["oracle"] = {key: facts[key] for key in kept}
        if self.labelled is not None:
            found["classifier"] = self.labelled.settings.read_values() | {"real": len(self.labelled.real)}
        return found

    def judged(self, images: Tensor, told: Tensor | None, names: Sequence[str]) -> list[Metric]:
        """What the oracle says of images that were told attributes of these names; of others nothing."""
        if self.oracle is None or told is None:
            return []
        facts = self.oracle.facts
        known = {name: answers for name, answers in (facts.attributes or {}).items() if name in names}
        ours, theirs = ([of.index(name) for name in known] for of in (list(names), facts.names))
        if not known or not bool(told[:, ours].any()):
            return []
        return attribute_metrics(self.oracle.says(images)[:, theirs], told[:, ours], known)


NO_REQUESTS = Requests()


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    metrics: dict[str, float | int]  # flat, as metrics/evaluate.json has them
    card: Card  # with everything that made them, without environment and cost
    inputs: Inputs
    controls: Mapping[str, Tensor]  # some held-out images with each mistake, by its title
    copies: Copies | None  # of training images, on the first network; None if nobody looked for them

    def write_plots(self, folder: Path) -> list[Path]:
        """Write the figures and the data of DVC's plots, each whole; their paths."""
        data = plot_data(self.card)
        for name, text in data.items():
            write_text(folder / name, text)
        comparison, neighbours = folder / "real-and-samples.png", folder / "neighbours.png"
        samples, real = self.inputs.samples.images, self.inputs.real
        write_comparison(comparison, real.held_out, samples, self.card)
        written = [*(folder / name for name in data), comparison]
        controls = folder / "controls.png"
        for figure in (controls, neighbours):
            figure.unlink(missing_ok=True)  # of an earlier run, if this one has none
        if self.controls:
            places = spread(len(real.held_out), min(len(real.held_out), COLUMNS))
            write_controls(controls, real.held_out[torch.from_numpy(places)], self.controls)
            written.append(controls)
        if self.copies is None:
            return written
        save_figure(neighbours, _neighbours_figure(self.copies, samples, real))
        return [*written, neighbours]


def read_inputs(settings: Evaluation, shards: Path, path: Path, protocol: str | None = None) -> Inputs:
    """The samples of any generator at ``path``, and which real images of the shards they are compared with.

    ``protocol`` is what the user states for samples that do not say it themselves. Raises UnveilError for what is
    missing, damaged, too little, or does not belong together.
    """
    index = ShardIndex.load(shards)
    samples = load_samples(path, settings.num_images, protocol)
    unchecked = check_same_data(path, samples, shards, index)
    splits = (settings.reference_split, settings.held_out_split)
    asks = max(settings.metrics, key=lambda name: METRICS[name].least)
    least = METRICS[asks].least
    if settings.num_images < least:
        raise UnveilError(f"evaluate.num_images: found {settings.num_images}, expected {least} or more for {asks}")
    counts = (settings.num_images, settings.reference_images, settings.kid_subset_size)
    sizes = set_sizes(shards, index, splits, *counts, least)
    verify(shards, splits)
    shared = count_shared(shards, index, (splits[1], sizes.held_out), (splits[0], sizes.reference))
    real = RealImages(shards, index, splits, sizes, load_real(shards, index, splits[1], sizes.held_out))
    return Inputs(samples, real, shared, unchecked)


def read_requests(
    settings: Evaluation,
    classifier: OracleTraining,
    inputs: Inputs,
    oracle: tuple[Path, Path] | None,
    scales: Path | None,
    device: torch.device,
    say: Callable[[str], None],
) -> Requests:
    """What tells whether these samples are what was asked for.

    ``classifier`` says how one is trained for a score, ``oracle`` are the files of the trained one, ``scales`` is that
    of samples at several scales of guidance; None = there is none.

    Raises UnveilError for files that are missing or damaged, or of other images or models, and for a score that these
    samples cannot have.
    """
    real, samples = inputs.real, inputs.samples
    found = None if oracle is None else Oracle.load(*oracle, device)
    if oracle is not None and found is not None and found.facts.shards != (shards := real.index.digest()):
        raise UnveilError(f"{oracle[0]}: shards are {found.facts.shards}, expected {shards}; {ORACLE_MEND}")
    drawn = NO_SCALES if scales is None else load_scales(scales, samples.facts.get("model"))
    scored = any(METRICS[name].measure_labelled for name in settings.metrics)
    return Requests(found, drawn, load_labelled(samples, real, classifier, device, say) if scored else None)


def load_extractors(settings: Evaluation, weights: Path | None) -> list[Extractor]:
    """The feature networks. Raises UnveilError where one's weights are not there, or one file is given for several."""
    if len(settings.features) > 1 and weights is not None and not weights.is_dir():
        raise UnveilError(
            f"evaluate.weights: found {settings.weights}, expected a folder with the weights of "
            f"{', '.join(settings.features)}"
        )
    return [load_extractor(features, weights, key="evaluate.weights") for features in settings.features]


def evaluate(
    settings: Evaluation,
    inputs: Inputs,
    extractors: list[Extractor],
    raw: Path,
    cache: FeatureCache,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
    code: Mapping[str, Any],
    requests: Requests = NO_REQUESTS,
) -> Evaluated | None:
    """Extract, measure, and state what made the numbers; None elsewhere than at rank 0.

    Of the ``extractors`` the first has the headline. ``raw`` is the folder that download wrote, for the control by
    another protocol; ``say`` is told warnings, and how far it is; ``code`` is what the card says of the code. Scales of
    guidance are measured on the first of the ``extractors``.

    Raises UnveilError for sets that are too small, or features that are not finite.
    """
    real = inputs.real
    damaged = damaged_sets(real, raw, settings.controls, settings.control_images, settings.seed)
    notes = inputs.notes(settings, damaged)
    for note in notes:
        say(f"note: {note}")
    asked = Asked(
        settings.metrics,
        settings.kid_subsets,
        settings.kid_subset_size,
        settings.interval_splits,
        settings.seed,
        inputs.shared,
        real.index.num_images("train"),
        bool(requests.scales.names),
    )
    sets = {**four_sets(real, inputs.samples, settings.seed), **damaged.sets}
    found: dict[str, Found] = {}
    for number, extractor in enumerate(extractors):
        scales = NO_SCALES if number else requests.scales
        chosen = sets | scales.sets()
        layers = extract_sets(chosen, extractor, cache, settings.batch_size, device, processes, say, settings.metrics)
        if layers is not None:
            on_features = (name for name in settings.metrics if METRICS[name].measure is not None)
            say(f"{extractor.features.name}: {', '.join(on_features)}")
            scaled = {scale: layers.pop(set_name(scale))[extractor.features.layer] for scale in scales.images}
            found[extractor.features.name] = measure(layers, extractor.features, asked, scaled)
    if not processes.is_main:
        return None
    first, samples = found[settings.features[0]], inputs.samples
    judged = requests.judged(samples.images, samples.attributes, samples.facts.get("attributes", ()))
    by_guidance = _with_accuracy(first.by_guidance, requests)
    others = [*judged, *_labelled_metrics(requests, asked)]
    choices = choices_of(samples, real, extractors, asked, damaged.words, device) | {"code": dict(code)}
    choices["evaluation"] |= requests.choices(used=bool(judged))
    card = _card(found, choices, notes, samples, others, by_guidance)
    flat = flat_metrics([*(metric for part in found.values() for metric in part.metrics), *others])
    counts = {f"num_{name}": getattr(real.sizes, name) for name in ("samples", "reference", "held_out")}
    shown = damaged_sets(real, raw, settings.controls, COLUMNS, settings.seed).sets.values()
    controls = {part.title: torch.cat(list(part.parts())) for part in shown}
    return Evaluated(flat | counts, card, inputs, controls, first.copies)


def _labelled_metrics(requests: Requests, asked: Asked) -> list[Metric]:
    """The metrics that are of images and their attributes."""
    labelled = requests.labelled
    if labelled is None:
        return []
    entries = [METRICS[name].measure_labelled for name in asked.metrics]
    return [metric for entry in entries if entry is not None for metric in entry(labelled, asked).metrics]


def _with_accuracy(found: Iterable[AtScale], requests: Requests) -> tuple[AtScale, ...]:
    """What was measured at each scale, with what the oracle says of it."""
    scales = requests.scales

    def accuracy(scale: float) -> float | None:
        metrics = requests.judged(scales.images[scale], scales.attributes, scales.names)
        return metrics[0].value if metrics else None

    return tuple(replace(one, accuracy=accuracy(one.scale)) for one in found)


def _card(
    found: Mapping[str, Found],
    choices: Mapping[str, Any],
    notes: list[str],
    samples: SampleFile,
    others: Sequence[Metric],
    by_guidance: Sequence[AtScale],
) -> Card:
    """``others`` are metrics that are on no features."""
    by_size = [(FEATURE_SETS[name], part.by_size) for name, part in found.items() if part.by_size is not None]
    return Card.of(
        [*(metric for part in found.values() for metric in part.metrics if kind_of(metric.name).listed), *others],
        choices,
        by_guidance=[asdict(one) for one in by_guidance],
        by_size=[by_size_of(features.frechet, part) for features, part in by_size],
        memorization=memorization_of(found),
        lossy=[str(samples.facts["lossy"])] if samples.facts.get("lossy") else [],
        notes=[*notes, *(note for features, part in by_size for note in on_limit(part, features.dimension))],
    )


def _neighbours_figure(copies: Copies, samples: Tensor, real: RealImages) -> Figure:
    """The samples nearest to training images and some drawn evenly, each beside its nearest training images."""
    rows = to_show(copies.neighbours, SHOWN_SAMPLES).tolist()
    indices = torch.from_numpy(copies.neighbours.indices[rows])
    training = _rows(real_parts(real.folder, real.index, real.splits[0], real.sizes.reference), indices)
    return neighbours_figure(samples[rows], training, copies.neighbours.distances[rows])


def _rows(parts: Iterable[Tensor], indices: Tensor) -> Tensor:
    """The images at these places of the parts in a row: uint8 [..., 3, H, W], without all of them at once."""
    wanted, places = indices.unique(return_inverse=True)
    found, start = [], 0
    for part in parts:
        here = wanted[(wanted >= start) & (wanted < start + len(part))]
        found.append(part[here - start])
        start += len(part)
    return torch.cat(found)[places]
