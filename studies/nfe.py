"""Quality for compute: the Fréchet distance of every sampler against its network evaluations, on one trained model.

All points have the same images' seeds, the same number of images, the same real images and, but where asked for
otherwise, the same ends of the grid, so that only the sampler and its number of evaluations differ. The reference is
DDPM with 1000 steps. Each point is kept as soon as it is measured: a study that was stopped goes on.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from unveil.data.pixels import to_uint8
from unveil.data.shards import ShardIndex
from unveil.diffusion.config import GridName, Sampler, SamplerName
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.sampling import NotDrawn, batches, build_grid, draw_batches
from unveil.errors import UnveilError
from unveil.evaluation.features.extraction import Extractor, extract, load_extractor
from unveil.evaluation.images.sets import real_parts
from unveil.evaluation.metrics.distances import Statistics, frechet_distance, significant, statistics
from unveil.files import atomic_path, file_digest, write_text
from unveil.ledger import Ledger
from unveil.model import ModelConfig, load_denoiser
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.progress import Say

EVALUATIONS = (5, 9, 15, 23, 35, 51)
TOLERANCES = (1e-1, 3e-2, 1e-2)  # rk45's, in the place of numbers of evaluations
REFERENCE_STEPS = 1000
CLOSE = 0.05  # of the reference's distance, that counts as reaching it
FEW = 35  # evaluations within which it should be reached

COLORS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#882255", "#999933", "#332288", "#cc6677")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


@dataclass(frozen=True)
class NfeSettings:
    """What all points of a study share.

    Attributes:
        images: samples of each point, >= 2.
        reference_images: real images of the train split that the samples are compared with.
        seed: of the samples; sample i of every point starts from the same noise.
        sigma_min: smallest sigma of the grids, raised to what the path has.
        sigma_max: largest sigma, lowered to what the path has.
        batch_size: samples at once.
        features: of the distance; a key of ``FEATURE_SETS``.
    """

    images: int = 1000
    reference_images: int = 2000
    seed: int = 0
    sigma_min: float = 0.1
    sigma_max: float = 80.0
    batch_size: int = 100
    features: str = "efficientnet-lite0"


@dataclass(frozen=True)
class Point:
    """One measurement: a sampler, its evaluations, and the distance of its samples."""

    config: Sampler
    nfe: int
    distance: float
    seconds: float

    @property
    def label(self) -> str:
        """Name of the line that the point lies on."""
        churned = " churned" if self.config.s_churn else ""
        grid = "" if self.config.grid == "karras" else f", {self.config.grid}"
        return f"{self.config.sampler}{churned}{grid}"


def cases(
    chosen: Sequence[str], grids: Sequence[str], sigma_min: float, sigma_max: float, evaluations: Sequence[int]
) -> Iterator[Sampler]:
    """The samplers of a study, those of few evaluations first.

    Raises:
        UnveilError: for a sampler or a grid of no such name.
    """
    for what, names, known in (("samplers", chosen, get_args(SamplerName)), ("grid", grids, get_args(GridName))):
        if unknown := [name for name in names if name not in known]:
            raise UnveilError(f"--{what}: found {unknown[0]!r}, expected {' | '.join(known)}")
    for place, nfe in enumerate(evaluations):
        for grid in grids:
            # Churn raises sigma at most sqrt(2) times, and must not raise it above what the path has.
            shared: dict[str, Any] = {
                "grid": grid,
                "sigma_min": sigma_min,
                "sigma_max": sigma_max,
                "s_tmin": sigma_min,
                "s_tmax": sigma_max / 1.5,
            }
            for sampler in chosen:
                if sampler == "rk45":
                    if place < len(TOLERANCES):
                        tolerance = TOLERANCES[place]
                        yield Sampler(sampler="rk45", steps=2, rtol=tolerance, atol=tolerance, **shared)
                    continue
                yield Sampler(sampler=sampler, steps=_steps(sampler, nfe), **shared)  # type: ignore[arg-type]
                if sampler == "heun" and nfe >= 15:  # with as much noise as half of its steps can remove
                    yield Sampler(
                        sampler="heun", steps=_steps(sampler, nfe), s_churn=0.2 * _steps(sampler, nfe), **shared
                    )


def _steps(sampler: str, nfe: int) -> int:
    """Steps with which a sampler takes about so many evaluations, and not more."""
    return (nfe + 1) // 2 if sampler in ("heun", "predictor-corrector") else nfe


def reference_case(sigma_min: float, sigma_max: float) -> Sampler:
    """DDPM with 1000 steps."""
    return Sampler(
        sampler="ddpm", steps=REFERENCE_STEPS, grid="karras", sigma_min=sigma_min, sigma_max=sigma_max, s_tmax=sigma_max
    )


@dataclass
class NfeStudy:
    """A model, real images, and the points measured so far, which live in ``out/points.json``.

    Args:
        models: folder of the trained model.
        shards: folder of the shards that it was trained on.
        out: folder of the results.
        settings: see there.
        say: takes lines for the user.

    Raises:
        UnveilError: if the model or the shards are missing or do not belong together.
    """

    models: Path
    shards: Path
    out: Path
    settings: NfeSettings
    say: Say

    def __post_init__(self) -> None:
        self.model = ModelConfig.load(self.models)
        self.index = ShardIndex.load(self.shards)
        if self.model.data.get("shards") != self.index.digest():
            raise UnveilError(
                f"{self.models}/config.json: trained on shards {str(self.model.data.get('shards'))[:12]}, but "
                f"{self.shards}/index.json has {self.index.digest()[:12]}; a distance between the two means nothing"
            )
        if self.settings.reference_images > (there := self.index.num_images("train")):
            raise UnveilError(
                f"--reference-images: found {self.settings.reference_images}, but the train split of {self.shards} "
                f"has {there} images"
            )
        self.device = resolve_device("auto")
        set_tf32(False, self.device)
        self.precision = resolve_precision("auto", self.device)
        least, greatest = self.denoiser.path.sigma_range()
        self.sigma_min = max(self.settings.sigma_min, least)
        self.sigma_max = min(self.settings.sigma_max, greatest)
        if not self.sigma_min < self.sigma_max:
            raise UnveilError(
                f"--sigma-min: found {self.settings.sigma_min:g}, expected a number below --sigma-max, "
                f"{self.settings.sigma_max:g}, with sigmas between them that the model's path has "
                f"({least:.3g} to {greatest:.3g})"
            )
        facts = {
            "model": file_digest(self.models / "model.safetensors"),
            "shards": self.index.digest(),
            "precision": self.precision,
            **{name: value for name, value in asdict(self.settings).items() if name != "batch_size"},
        }
        self.ledger = Ledger(self.out / "points.json", facts, Point)

    @property
    def points(self) -> list[Point]:
        """Measured so far, the first first."""
        return self.ledger.points

    @cached_property
    def denoiser(self) -> Denoiser:
        """The trained model's."""
        return load_denoiser(self.models, self.device)

    @cached_property
    def extractor(self) -> Extractor:
        """The feature network."""
        return load_extractor(self.settings.features)

    @cached_property
    def real(self) -> Statistics:
        """Of the real images' features."""
        count = self.settings.reference_images
        self.say(f"features of {count:,} real images")
        parts = real_parts(self.shards, self.index, "train", count)
        return statistics(torch.cat([self._features(part) for part in parts]))

    def run(self, configs: Sequence[Sampler], seconds: float) -> None:
        """Measure what is not known yet, leaving out what would not end within ``seconds`` from now.

        Raises:
            UnveilError: before anything is measured, if the model's path has not the grid of one of them; later, if
                samples cannot be drawn or are not finite numbers.
        """
        for config in configs:
            try:
                build_grid(config, self.denoiser.path)
            except ValueError as error:
                raise UnveilError(f"--grids, --evaluations: {config.sampler} on grid {config.grid}: {error}") from None
        started = time.perf_counter()
        for number, config in enumerate(configs, start=1):
            if any(point.config == config for point in self.points):
                continue
            left = seconds - (time.perf_counter() - started)
            if (needed := self._estimate(config)) > left:
                self.say(f"left out: {config.sampler}, {config.steps} steps: about {needed / 60:.1f} min")
                continue
            point = self.measure(config)
            self.ledger.add(point)
            self.say(
                f"{number:>3} of {len(configs)}  {point.label:<24} {point.nfe:>5} evaluations  "
                f"{self.extractor.features.frechet} {point.distance:8.2f}  {point.seconds:6.1f} s"
            )

    def measure(self, config: Sampler) -> Point:
        """Sample and measure one point."""
        real, started = self.real, time.perf_counter()
        images, nfe = self._sample(config)
        distance = frechet_distance(statistics(self._features(images)), real)
        return Point(config, nfe, significant(distance), round(time.perf_counter() - started, 1))

    def _sample(self, config: Sampler) -> tuple[Tensor, int]:
        size, images, nfe = self.model.network.image_size, [], 0
        parts = batches(self.settings.images, self.settings.batch_size)
        context = lambda: autocast(self.precision, self.device)  # noqa: E731
        drawn = draw_batches(self.denoiser, config, self.settings.seed, (3, size, size), parts, context=context)
        try:
            for _, last in drawn:
                images.append(to_uint8(last.x).cpu())
                nfe = max(nfe, last.nfe)
        except NotDrawn as error:
            raise self._not_drawn(config, error.why) from None
        return torch.cat(images), nfe

    def _not_drawn(self, config: Sampler, why: str) -> UnveilError:
        return UnveilError(
            f"{self.models}/model.safetensors: samples of {config.sampler} with {config.steps} steps on grid "
            f"{config.grid} {why} in {self.precision}; train again, or leave {config.sampler} out of --samplers"
        )

    def _features(self, images: Tensor) -> Tensor:
        return extract(images, self.extractor, 64, self.device)

    def _estimate(self, config: Sampler) -> float:
        """Seconds that a point will take, from those measured; 0 if there are none."""
        if not self.points:
            return 0.0
        a, b = self.points[0], max(self.points, key=lambda point: point.nfe)
        slope = (b.seconds - a.seconds) / (b.nfe - a.nfe) if b.nfe > a.nfe else a.seconds / a.nfe
        return a.seconds + slope * ((config.nfe or b.nfe) - a.nfe)


def reference_of(points: Sequence[Point]) -> Point | None:
    """The point of DDPM with 1000 steps, if it was measured."""
    found = (point for point in points if (point.config.sampler, point.config.steps) == ("ddpm", REFERENCE_STEPS))
    return next(found, None)


def verdict(points: Sequence[Point], name: str) -> str:
    """One sentence: the best point of few evaluations, against the reference."""
    few = [point for point in points if point.nfe <= FEW]
    if not few:
        return f"No sampler was measured with at most {FEW} evaluations."
    best = min(few, key=lambda point: point.distance)
    said = f"Best with at most {FEW} evaluations: {best.label} with {best.nfe}, {name} {best.distance:.2f}"
    if (reference := reference_of(points)) is None:
        return f"{said}. DDPM with {REFERENCE_STEPS} steps was not measured yet."
    close = [point for point in few if point.distance <= (1 + CLOSE) * reference.distance]
    share = best.distance / reference.distance - 1
    said += (
        f", {abs(share):.1%} {'above' if share > 0 else 'below'} DDPM's {reference.distance:.2f} with {reference.nfe}."
    )
    if not close:
        return f"{said} None is within {CLOSE:.0%} of it."
    first = min(close, key=lambda point: (point.nfe, point.distance))
    return f"{said} Fewest within {CLOSE:.0%} of it: {first.label} with {first.nfe}, {first.distance:.2f}."


def table(points: Sequence[Point]) -> str:
    """The distances as a Markdown table: a row a sampler, a column a number of evaluations."""
    lines = _lines(points)
    columns = sorted({point.nfe for label, line in lines.items() if not label.startswith("rk45") for point in line})
    rows = [["sampler", *map(str, columns)], ["---", *("---:" for _ in columns)]]
    for label, line in lines.items():
        if label.startswith("rk45"):
            continue
        by_nfe = {point.nfe: f"{point.distance:.2f}" for point in line}
        rows.append([label, *(by_nfe.get(nfe, "") for nfe in columns)])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    adaptive = [point for label, line in lines.items() if label.startswith("rk45") for point in line]
    found = "; ".join(
        f"tolerance {point.config.rtol:g}: {point.distance:.2f} with {point.nfe} evaluations" for point in adaptive
    )
    return text + (f"\n\nrk45 takes as many as it needs. {found}." if found else "")


def write_report(study: NfeStudy) -> str:
    """Write ``nfe.md`` and ``nfe.png`` beside the points; return the text."""
    features, settings = study.extractor.features, study.settings
    text = "\n\n".join(
        [
            f"`{features.frechet}` of {settings.images:,} samples against {settings.reference_images:,} real images of "
            f"the train split, by network evaluations for an image; sigma from {study.sigma_max:g} to "
            f"{study.sigma_min:g}, grid karras where no other is named, seed {settings.seed}, {study.precision}.",
            table(study.points),
            verdict(study.points, features.frechet),
        ]
    )
    write_text(study.out / "nfe.md", text + "\n")
    with atomic_path(study.out / "nfe.png") as temporary:
        draw(study.points, features.frechet).savefig(temporary, format="png")
    return text


def draw(points: Sequence[Point], name: str) -> Figure:
    """Distance against evaluations, a line a sampler, with the reference and what is within 5% of it."""
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (label, line) in enumerate(_lines(points).items()):
        few = [point for point in line if point.nfe < REFERENCE_STEPS]
        if few:
            axes.plot(
                [point.nfe for point in few],
                [point.distance for point in few],
                label=label,
                color=COLORS[number % len(COLORS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linewidth=1.3,
            )
    if (reference := reference_of(points)) is not None:
        axes.axhline(reference.distance, color="#222222", linewidth=1, linestyle="--", label="ddpm, 1000 steps")
        axes.axhspan(reference.distance, (1 + CLOSE) * reference.distance, color="#222222", alpha=0.12, linewidth=0)
    axes.axvline(FEW, color="#222222", linewidth=0.6, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({point.nfe for point in points if point.nfe < 200 and not point.label.startswith("rk45")})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations for an image")
    axes.set_ylabel(name)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points by label, each line rising in evaluations, in the order of the samplers' names."""
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: (get_args(SamplerName).index(point.config.sampler), point.nfe)):
        lines.setdefault(point.label, []).append(point)
    return lines
