"""The best average of the weights: the Fréchet distance of each, on one trained model with its snapshots.

All points have the sampler, the seed, the number of images and the real images of the evaluation, so that only the
weights differ, and that of ``ema`` is the evaluation's own number. Each point is kept as soon as it is measured: a
search that was stopped goes on.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unveil.data.pixels import to_uint8
from unveil.data.shards import ShardIndex
from unveil.diffusion.sampling import SampleNoise, Sampler, build_grid, sample_steps
from unveil.errors import UnveilError
from unveil.evaluation.features.extraction import FEATURE_SETS, Extractor, extract, load_extractor
from unveil.evaluation.images.sets import real_parts
from unveil.evaluation.metrics.distances import Statistics, frechet_distance, significant, statistics
from unveil.files import atomic_path, file_digest, read_json, write_json, write_text
from unveil.params import Params
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.training.averages import FOLDER, Averages
from unveil.training.checkpoint import WEIGHTS_FILE, ModelConfig, load_denoiser
from unveil.training.choices import WEIGHTS, WeightsChoice, parse_weights
from unveil.training.posthoc import ExponentialProfile, deviation

DEVIATIONS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.075, 0.09, 0.11, 0.13, 0.16, 0.20, 0.25)
POINTS_FILE = "points.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What all points share: the sampling and the evaluation.

    Attributes:
        sampler: from noise to images.
        images: samples of each point, >= 2.
        seed: of the samples.
        features: of the distance; a key of ``FEATURE_SETS``.
        reference_split: of the real images.
        reference_images: how many of them; 0 = all.
        precision: of the network's arithmetic.
        device: of everything.
        batch_size: samples at once.
        feature_batch_size: images at once through the feature network, on CUDA only.
        weights: file of Inception's; None = where it is looked for.
    """

    sampler: Sampler
    images: int
    seed: int = 0
    features: str = "efficientnet-lite0"
    reference_split: str = "train"
    reference_images: int = 0
    precision: str = "auto"
    device: str = "auto"
    batch_size: int = 100
    feature_batch_size: int = 64
    weights: Path | None = None

    @classmethod
    def of(cls, params: Params, images: int | None = None, seed: int | None = None) -> "Settings":
        """As the parameters of the stages sample and evaluate are, but for what is given."""
        sample, evaluate = params.sample, params.evaluate
        return cls(
            sampler=Sampler(**{field.name: getattr(sample, field.name) for field in fields(Sampler)}),
            images=images or evaluate.num_images,
            seed=sample.seed if seed is None else seed,
            features=evaluate.features[0],
            reference_split=evaluate.reference_split,
            reference_images=evaluate.reference_images,
            precision=sample.precision,
            device=sample.device,
            batch_size=sample.batch_size,
            feature_batch_size=evaluate.batch_size,
            weights=evaluate.weights,
        )


@dataclass(frozen=True)
class Point:
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
        settings: see there.
        say: takes lines for the user.

    Raises:
        UnveilError: if the model, its averages or the shards are missing or do not belong together.
    """

    models: Path
    shards: Path
    out: Path
    settings: Settings
    say: Say
    points: list[Point] = field(init=False)

    def __post_init__(self) -> None:
        self.model = ModelConfig.load(self.models)
        self.averages = Averages.beside(self.models / WEIGHTS_FILE)
        self.index = ShardIndex.load(self.shards)
        if self.model.data.get("shards") != self.index.digest():
            raise UnveilError(
                f"{self.models}/config.json: trained on shards {str(self.model.data.get('shards'))[:12]}, but "
                f"{self.shards}/index.json has {self.index.digest()[:12]}; a distance between the two means nothing"
            )
        self.device = resolve_device(self.settings.device)
        set_tf32(False, self.device)
        self.precision = resolve_precision(self.settings.precision, self.device)
        left_out = {"batch_size", "feature_batch_size", "device", "weights", "precision"}
        self.facts: dict[str, Any] = {
            "model": file_digest(self.models / WEIGHTS_FILE),
            "averages": self.averages.digest(),
            "shards": self.index.digest(),
            "precision": self.precision,
            **{name: value for name, value in asdict(self.settings).items() if name not in left_out},
        }
        self.points = self._known()

    @cached_property
    def extractor(self) -> Extractor:
        """The feature network."""
        return load_extractor(self.settings.features, self.settings.weights)

    @cached_property
    def real(self) -> Statistics:
        """Of the real images' features."""
        split = self.settings.reference_split
        count = self.settings.reference_images or self.index.num_images(split)
        self.say(f"features of {count:,} real images of the {split} split")
        return statistics(
            torch.cat([self._features(part) for part in real_parts(self.shards, self.index, split, count)])
        )

    def candidates(self) -> list[WeightsChoice]:
        """The model's own average, the stored half-lives, and the profiles that the snapshots reach, in that order.

        Raises:
            UnveilError: if there is none but the model's own.
        """
        stored = [choice for choice in self.averages.choices() if choice.kind == "half-life"]
        powers = list(self._reached(DEVIATIONS)) if self.averages.snapshots else []
        if not stored and not powers:
            raise UnveilError(
                f"{self.models / FOLDER}: found no averages, expected some beside the model's own; train with "
                "train.ema_profiles or train.ema_more_half_lives"
            )
        return [WeightsChoice(), *stored, *powers]

    def _reached(self, deviations: Sequence[float]) -> Iterator[WeightsChoice]:
        least, greatest = self.averages.deviations()
        profiles = {value for value in self.averages.profiles if least <= value <= greatest}
        for value in sorted({*deviations, *profiles}):
            choice = WeightsChoice("power", value)
            if least <= value <= greatest:
                yield choice
        if beyond := [value for value in deviations if not least <= value <= greatest]:
            self.say(
                f"left out, beyond what the snapshots reach ({least:.3g} to {greatest:.3g}): "
                f"{', '.join(str(WeightsChoice('power', value)) for value in beyond)}"
            )

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
            self.points.append(point)
            write_json(self.out / POINTS_FILE, {**self.facts, "points": [asdict(point) for point in self.points]})
            self.say(
                f"{number:>3} of {len(choices)}  {point.weights:<18} {FEATURE_SETS[self.settings.features].frechet} "
                f"{point.distance:9.4g}  {point.seconds:6.1f} s"
            )

    def measure(self, choice: WeightsChoice) -> Point:
        """Sample with one average, and measure."""
        real, started = self.real, time.perf_counter()
        distance = significant(frechet_distance(statistics(self._features(self._sample(choice))), real))
        seconds = round(time.perf_counter() - started, 1)
        return Point(str(choice), self._deviation(choice), self._error(choice), distance, seconds)

    def _sample(self, choice: WeightsChoice) -> Tensor:
        settings, size = self.settings, self.model.network.image_size
        denoiser = load_denoiser(self.models, self.device, choice)
        try:
            build_grid(settings.sampler, denoiser.path)
        except ValueError as error:
            raise UnveilError(f"sample.grid: {error}; write what the model in {self.models} has") from None
        images = []
        for start in range(0, settings.images, settings.batch_size):
            ids = range(start, min(start + settings.batch_size, settings.images))
            noise = SampleNoise(settings.seed, ids, (3, size, size), self.device)
            context = lambda: autocast(self.precision, self.device)  # noqa: E731
            try:
                steps = sample_steps(denoiser, denoiser.path, settings.sampler, noise, context)
                last = deque(steps, maxlen=1).pop()  # a thousand steps of a batch would not fit into memory
            except ArithmeticError as error:  # of rk45
                raise UnveilError(f"{self.models}: samples of {choice} cannot be drawn ({error})") from None
            if not torch.isfinite(last.x).all():
                raise UnveilError(
                    f"{self.models}: samples of {choice} are not finite numbers; leave it out, or set sample.precision "
                    "to fp32"
                )
            images.append(to_uint8(last.x).cpu())
        return torch.cat(images)

    def _features(self, images: Tensor) -> Tensor:
        return extract(images, self.extractor, self.settings.feature_batch_size, self.device)

    def _error(self, choice: WeightsChoice) -> float:
        """Of the reconstruction. Raises UnveilError if it is too large, or there is nothing to make it from."""
        own = WeightsChoice("half-life", self.model.training.get("ema_half_life_images", 0))
        if choice in (WeightsChoice(), own) or choice in [
            known for known in self.averages.choices() if known.kind == "half-life"
        ]:
            return 0.0
        return significant(self.averages.reconstruction(choice).error)

    def _deviation(self, choice: WeightsChoice) -> float | None:
        if choice.kind == "power":
            return choice.value
        half_life = choice.value if choice.kind == "half-life" else self.model.training.get("ema_half_life_images")
        return half_life_deviation(half_life, self.averages.ema_rampup, self.averages.images)

    def _known(self) -> list[Point]:
        """The points of an earlier run with the same facts. Raises UnveilError if those there have other facts."""
        path = self.out / POINTS_FILE
        if not path.exists():
            return []
        found, points = read_points(path)
        facts = json.loads(json.dumps(self.facts))
        if found != facts:
            different = ", ".join(sorted(key for key in facts if found.get(key) != facts[key]))
            raise UnveilError(f"{path}: measured with another {different}; choose another --out, or remove it")
        return points


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


class _PointsFile(BaseModel):
    """Points, and beside them the facts that they were measured with."""

    model_config = ConfigDict(extra="allow")
    points: tuple[Point, ...]


def read_points(path: Path) -> tuple[dict[str, Any], list[Point]]:
    """The facts and the points of a ``points.json``.

    Raises:
        UnveilError: if it is damaged.
    """
    found = read_json(path, _PointsFile, "remove it, and run again")
    return found.model_extra or {}, list(found.points)


def choices_of(text: str) -> list[WeightsChoice]:
    """The averages in a list with commas between them.

    Raises:
        UnveilError: if one is no name of weights.
    """
    found = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        if (choice := parse_weights(name)) is None:
            raise UnveilError(f"--weights: found {name!r}, expected {WEIGHTS}, with commas between several")
        found.append(choice)
    if not found:
        raise UnveilError(f"--weights: found {text!r}, expected {WEIGHTS}, with commas between several")
    return list(dict.fromkeys(found))


def best_of(points: Sequence[Point]) -> Point:
    """The point of the least distance; of equal ones the first measured."""
    return min(points, key=lambda point: point.distance)


def verdict(points: Sequence[Point], name: str) -> str:
    """Which weights to sample with, and how far they are from the model's own."""
    best = best_of(points)
    own = next((point for point in points if point.weights == "ema"), None)
    if own is best:
        return (
            f"Best: the model's own average, {name} {best.distance:.4g}. Keep `weights: ema` in params.yaml's sample."
        )
    gain = f", {1 - best.distance / own.distance:.1%} below the model's own {own.distance:.4g}" if own else ""
    return (
        f"Best: {best.weights}, {name} {best.distance:.4g}{gain}. In params.yaml's sample, write "
        f"`weights: {best.weights}`. Another --seed tells how much of a small difference is chance."
    )


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table, narrow profiles first."""
    rows = [["weights", "relative deviation", "error of the profile", "distance"], ["---", "---:", "---:", "---:"]]
    best = best_of(points)
    for point in sorted(points, key=lambda point: (point.deviation is None, point.deviation or 0.0)):
        spread = "" if point.deviation is None else f"{point.deviation:.3f}"
        distance = f"**{point.distance:.4g}**" if point is best else f"{point.distance:.4g}"
        rows.append([point.weights, spread, f"{point.error:.1%}", distance])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_report(search: Search) -> str:
    """Write ``averages.md``, ``averages.png`` and ``best.json`` beside the points; return the text.

    Raises:
        UnveilError: if nothing was measured.
    """
    if not search.points:
        raise UnveilError(f"{search.out}: found no points, expected some; measure first")
    settings, name = search.settings, FEATURE_SETS[search.settings.features].frechet
    count = settings.reference_images or search.index.num_images(settings.reference_split)
    sampler = settings.sampler
    text = "\n\n".join(
        [
            f"`{name}` of {settings.images:,} samples against {count:,} real images of the {settings.reference_split} "
            f"split, by the average of the weights that they are drawn with; {sampler.sampler}, {sampler.steps} steps, "
            f"seed {settings.seed}, {search.precision}; {search.averages.images:,} images of training, "
            f"{len(search.averages.snapshots)} snapshots.",
            table(search.points),
            verdict(search.points, name),
        ]
    )
    write_text(search.out / "averages.md", text + "\n")
    write_json(search.out / "best.json", {"features": name, **asdict(best_of(search.points))})
    with atomic_path(search.out / "averages.png") as temporary:
        draw(search.points, name).savefig(temporary, format="png")
    return text


def draw(points: Sequence[Point], name: str) -> Figure:
    """Distance against relative deviation: a line of power functions, and a mark for each half-life."""
    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    placed = sorted(
        (point.deviation, point.distance, point.weights.partition(":")[0])
        for point in points
        if point.deviation is not None
    )
    for kind, label, color, marker, width in (
        ("power", "power functions", "#0072b2", "o", 1.3),
        ("half-life", "half-lives", "#d55e00", "s", 0),
        ("ema", "the model's own", "#222222", "D", 0),
    ):
        line = [(spread, distance) for spread, distance, name in placed if name == kind]
        if line:
            axes.plot(*zip(*line, strict=True), label=label, color=color, marker=marker, linewidth=width)
    best = best_of(points)
    if best.deviation is not None:
        axes.plot(
            [best.deviation], [best.distance], "o", markersize=12, fillstyle="none", color="#222222", label="best"
        )
    axes.set_xlabel("standard deviation of the average, relative to the length of training")
    axes.set_ylabel(name)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
