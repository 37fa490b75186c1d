"""The best average of the weights: the Fréchet distance of each, on one trained model with its snapshots.

All points have the sampler, the seed, the requests, the guidance, the number of images and the real images of the
evaluation, so that only the weights differ, and that of ``ema`` is the evaluation's own number. Each point is kept as
soon as it is measured: a search that was stopped goes on.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from unveil.averages import FOLDER, Averages
from unveil.data.pixels import to_uint8
from unveil.data.shards import ShardIndex
from unveil.diffusion.config import Guidance, Sampler
from unveil.diffusion.sampling import NotDrawn, batches, build_grid, draw_batches
from unveil.errors import UnveilError
from unveil.evaluation.features.extraction import Extractor, extract_layers, load_extractor
from unveil.evaluation.features.published import FEATURE_SETS
from unveil.evaluation.images.sets import real_parts
from unveil.evaluation.metrics.distances import Statistics, frechet_distance, significant, statistics
from unveil.files import atomic_path, file_digest, write_json, write_text
from unveil.generation import asking, load_guided, rows_for
from unveil.ledger import Ledger
from unveil.model import WEIGHTS_FILE, ModelConfig
from unveil.params import Params
from unveil.posthoc import ExponentialProfile, deviation
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.progress import ProgressLine, Say
from unveil.progress import images as in_words
from unveil.weights import WEIGHTS, WeightsChoice, parse_weights

DEVIATIONS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.075, 0.09, 0.11, 0.13, 0.16, 0.20, 0.25)
OWN = WeightsChoice()


@dataclass(frozen=True)
class SearchPoint:
    """One measurement.

    Attributes:
        weights: as ``sample.weights`` names them.
        deviation: standard deviation of the average's profile, relative to the length of training; None if unknown.
        error: of the profile's reconstruction, relative to its norm; 0 of stored ones.
        distance: of the samples.
        seconds: that it took.
    """

    weights: str
    deviation: float | None
    error: float
    distance: float
    seconds: float


@dataclass
class Search:
    """A model, its averages, real images, and the points measured so far, which live in ``out/points.json``.

    Args:
        models: folder of the trained model.
        shards: folder of the shards that it was trained on.
        out: folder of the results.
        images: samples of each point, >= 2.

    Raises:
        UnveilError: if the model, its averages or the shards are missing or do not belong together.
    """

    models: Path
    shards: Path
    out: Path
    params: InitVar[Params]
    images: int
    seed: int
    say: Say

    def __post_init__(self, params: Params) -> None:
        self.sample, self.evaluate = params.sample, params.evaluate
        self.sampler, self.guidance = self.sample.only(Sampler), self.sample.only(Guidance)
        self.features = self.evaluate.features[0]
        self.metric = FEATURE_SETS[self.features].frechet
        self.model = ModelConfig.load(self.models)
        self.averages = Averages.beside(self.models / WEIGHTS_FILE)
        self.stored = [choice for choice in self.averages.choices() if choice.kind == "half-life"]
        self.index = ShardIndex.load(self.shards)
        self.split = self.evaluate.reference_split
        self.reference_images = self.evaluate.reference_images or self.index.num_images(self.split)
        if self.model.data.get("shards") != self.index.digest():
            raise UnveilError(
                f"{self.models}/config.json: trained on shards {str(self.model.data.get('shards'))[:12]}, but "
                f"{self.shards}/index.json has {self.index.digest()[:12]}; a distance between the two means nothing"
            )
        self.device = resolve_device(self.sample.device)
        set_tf32(False, self.device)
        self.precision = resolve_precision(self.sample.precision, self.device)
        facts = {
            "model": file_digest(self.models / WEIGHTS_FILE),
            "averages": self.averages.digest(),
            "shards": self.index.digest(),
            "precision": self.precision,
            "sampler": self.sampler.model_dump(),
            "images": self.images,
            "seed": self.seed,
            "features": self.features,
            "reference_split": self.split,
            "reference_images": self.evaluate.reference_images,
        }
        if self.model.network.attributes or self.guidance.guides:
            facts |= {"attributes": list(self.sample.attributes), "guidance": self.guidance.model_dump(mode="json")}
        self.ledger = Ledger(self.out / "points.json", facts, SearchPoint)
        self.points = self.ledger.points

    @cached_property
    def extractor(self) -> Extractor:
        """The feature network."""
        return load_extractor(self.features, self.evaluate.weights)

    @cached_property
    def real(self) -> Statistics:
        """Of the real images' features."""
        self.say(f"features of {self.reference_images:,} real images of the {self.split} split")
        parts = real_parts(self.shards, self.index, self.split, self.reference_images)
        return self._statistics(parts, self.reference_images)

    def candidates(self) -> list[WeightsChoice]:
        """The model's own average, the stored half-lives, and the profiles that the snapshots reach, in that order.

        Raises:
            UnveilError: if there is none but the model's own.
        """
        powers = self._reached() if self.averages.snapshots else []
        if not self.stored and not powers:
            raise UnveilError(
                f"{self.models / FOLDER}: found no averages, expected some beside the model's own; train with "
                "train.ema_profiles or train.ema_more_half_lives"
            )
        return [OWN, *self.stored, *powers]

    def run(self, choices: Sequence[WeightsChoice]) -> None:
        """Measure what is not known yet.

        Raises:
            UnveilError: before anything is measured, if one of them cannot be had or the sampler's grid is not the
                path's; later, if samples cannot be drawn or are not finite numbers.
        """
        for choice in choices:
            self._error(choice)
        for number, choice in enumerate(choices, start=1):
            if any(point.weights == str(choice) for point in self.points):
                continue
            point = self.measure(choice)
            self.ledger.add(point)
            self.say(
                f"{number:>3} of {len(choices)}  {point.weights:<18} {self.metric} "
                f"{point.distance:9.4g}  {point.seconds:6.1f} s"
            )

    def measure(self, choice: WeightsChoice) -> SearchPoint:
        """Sample with one average, and measure."""
        real, started = self.real, time.perf_counter()
        distance = significant(frechet_distance(self._statistics(self._samples(choice), self.images), real))
        seconds = round(time.perf_counter() - started, 1)
        return SearchPoint(str(choice), self._deviation(choice), self._error(choice), distance, seconds)

    def _samples(self, choice: WeightsChoice) -> list[Tensor]:
        """Batches of images, uint8."""
        size = self.model.network.image_size
        denoiser, _ = load_guided(self.models, self.device, choice, self.guidance)
        rows = rows_for(self.sample.attributes, self.model.network.attributes, self.models, self.shards)
        try:
            path: Any = getattr(denoiser.denoiser, "path", None)
            build_grid(self.sampler, path)
        except ValueError as error:
            raise UnveilError(f"sample.grid: {error}; write what the model in {self.models} has") from None
        images = []
        progress = ProgressLine(f"{choice}: samples", self.images, self.say, describe=in_words)
        parts = batches(self.images, self.sample.batch_size)
        context = lambda: autocast(self.precision, self.device)  # noqa: E731
        how: dict[str, Any] = {"context": context, "tell": asking(rows, self.seed, self.device)}
        try:
            for ids, last in draw_batches(denoiser, self.sampler, self.seed, (3, size, size), parts, **how):
                images.append(to_uint8(last.x).cpu())
                progress.add(len(ids))
        except NotDrawn as error:
            mend = "" if error.cause else "; leave it out, or set sample.precision to fp32"
            raise UnveilError(f"{self.models}: samples of {choice} {error.why}{mend}") from None
        return images

    def _statistics(self, parts: Iterable[Tensor], count: int) -> Statistics:
        extractor, size = self.extractor, self.evaluate.batch_size
        layers = extract_layers(parts, extractor, size, self.device, count, self.say)
        return statistics(layers[extractor.features.layer])

    def _reached(self) -> list[WeightsChoice]:
        least, greatest = self.averages.deviations()
        if beyond := [value for value in DEVIATIONS if not least <= value <= greatest]:
            names = ", ".join(str(WeightsChoice("power", value)) for value in beyond)
            self.say(f"left out, beyond what the snapshots reach ({least:.3g} to {greatest:.3g}): {names}")
        values = sorted({*DEVIATIONS, *(profile.sigma_rel for profile in self.averages.profiles)})
        return [WeightsChoice("power", value) for value in values if least <= value <= greatest]

    def _error(self, choice: WeightsChoice) -> float:
        """Of the reconstruction. Raises UnveilError if it is too large, or there is nothing to make it from."""
        if choice.kind == "snapshot":
            raise UnveilError(f"--weights: found {choice}, expected averages of the whole training; leave it out")
        own = WeightsChoice("half-life", self.model.training.get("ema_half_life_images", 0))
        if choice in (OWN, own, *self.stored):
            return 0.0
        return significant(self.averages.reconstruction(choice).error)

    def _deviation(self, choice: WeightsChoice) -> float | None:
        if choice.kind == "power":
            return choice.value
        half_life = choice.value if choice.kind == "half-life" else self.model.training.get("ema_half_life_images")
        return half_life_deviation(half_life, self.averages.ema_rampup, self.averages.images)


def half_life_deviation(half_life: float | None, rampup: float, images: int) -> float | None:
    """Relative standard deviation of an exponential average's profile at the end of training; None if unknown."""
    if half_life is None or images <= 0:
        return None
    if half_life == 0:
        return 0.0
    try:
        return significant(deviation(ExponentialProfile(images, half_life, rampup)))
    except ValueError:  # without a ramp, or with a steep one, what is left of the initial weights has no profile
        return None


def choices_of(text: str) -> list[WeightsChoice]:
    """The averages in a list with commas between them.

    Raises:
        UnveilError: if one is no name of weights.
    """
    found = {name: parse_weights(name) for part in text.split(",") if (name := part.strip())}
    choices = [choice for choice in found.values() if choice is not None]
    if not found or len(choices) < len(found):
        wrong = next((name for name, choice in found.items() if choice is None), text)
        raise UnveilError(f"--weights: found {wrong!r}, expected {WEIGHTS}, with commas between several")
    return list(dict.fromkeys(choices))


def best_of(points: Sequence[SearchPoint]) -> SearchPoint:
    """The point of the least distance; of equal ones the first measured."""
    return min(points, key=lambda point: point.distance)


def verdict(points: Sequence[SearchPoint], name: str) -> str:
    """Which weights to sample with, and how far they are from the model's own."""
    best = best_of(points)
    own = next((point for point in points if point.weights == str(OWN)), None)
    if own is best:
        return (
            f"Best: the model's own average, {name} {best.distance:.4g}. Keep `weights: ema` in params.yaml's sample."
        )
    gain = f", {1 - best.distance / own.distance:.1%} below the model's own {own.distance:.4g}" if own else ""
    return (
        f"Best: {best.weights}, {name} {best.distance:.4g}{gain}. In params.yaml's sample, write "
        f"`weights: {best.weights}`. Another --seed tells how much of a small difference is chance."
    )


def table(points: Sequence[SearchPoint]) -> str:
    """The points as a Markdown table, narrow profiles first."""
    rows = ["| weights | relative deviation | error of the profile | distance |", "| --- | ---: | ---: | ---: |"]
    best = best_of(points)
    for point in sorted(points, key=lambda point: (point.deviation is None, point.deviation or 0.0)):
        spread = "" if point.deviation is None else f"{point.deviation:.3f}"
        distance = f"**{point.distance:.4g}**" if point is best else f"{point.distance:.4g}"
        rows.append(f"| {point.weights} | {spread} | {point.error:.1%} | {distance} |")
    return "\n".join(rows)


def write_report(search: Search) -> str:
    """Write ``averages.md``, ``averages.png`` and ``best.json`` beside the points; return the text."""
    points, name, sampler = search.points, search.metric, search.sampler
    facts = (
        f"`{name}` of {search.images:,} samples against {search.reference_images:,} real images of the "
        f"{search.split} split, by the average of the weights that they are drawn with; "
        f"{sampler.sampler}, {sampler.steps} steps, seed {search.seed}, {search.precision}; "
        f"{search.averages.images:,} images of training, {len(search.averages.snapshots)} snapshots."
    )
    text = "\n\n".join([facts, table(points), verdict(points, name)])
    write_text(search.out / "averages.md", text + "\n")
    write_json(search.out / "best.json", {"features": name, **asdict(best_of(points))})
    with atomic_path(search.out / "averages.png") as temporary:
        draw(points, name).savefig(temporary, format="png")
    return text


def draw(points: Sequence[SearchPoint], name: str) -> Figure:
    """Distance against relative deviation: a line of power functions, and a mark for each half-life."""
    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    placed = sorted((point.deviation, point.distance, point.weights) for point in points if point.deviation is not None)
    for kind, label, color, marker, width in (
        ("power", "power functions", "#0072b2", "o", 1.3),
        ("half-life", "half-lives", "#d55e00", "s", 0),
        ("ema", "the model's own", "#222222", "D", 0),
    ):
        line = [(spread, distance) for spread, distance, weights in placed if weights.partition(":")[0] == kind]
        if line:
            axes.plot(*zip(*line, strict=True), label=label, color=color, marker=marker, linewidth=width)
    best = best_of(points)
    if best.deviation is not None:
        axes.plot(best.deviation, best.distance, "o", markersize=12, fillstyle="none", color="#222222", label="best")
    axes.set_xlabel("standard deviation of the average, relative to the length of training")
    axes.set_ylabel(name)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
