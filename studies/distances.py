"""What moves a Fréchet distance, and by how much: real images against real images, changed on purpose.

Nothing here was sampled from a model. Both sets are real faces, so any distance above the floor is the cost of how they
were prepared, of their number, or of their split. Features of each set are extracted once and kept in the study's
folder, and each distance as soon as it is measured: a study that was stopped goes on.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unveil.data.celeba import ZIP_NAME
from unveil.data.order import spread
from unveil.data.protocols import PROTOCOLS
from unveil.data.resampling import resize
from unveil.data.shards import ShardIndex, load_tensor
from unveil.data.sources.facts import SourceRecord
from unveil.errors import UnveilError
from unveil.evaluation.features.extraction import Extractor, extract, load_extractor
from unveil.evaluation.images.controls import blur, check_archive, jpeg, noise, png, read_crops, reread
from unveil.evaluation.images.sets import load_real, uniform_noise
from unveil.evaluation.metrics.distances import Statistics, frechet_distance, significant, statistics
from unveil.files import atomic_path, write_text
from unveil.ledger import Ledger
from unveil.precision import resolve_device
from unveil.progress import Say
from unveil.tensors import open_tensors, save_tensors

SIZES = (250, 500, 1000, 2000, 4000, 8000, 16_000)  # images a set, of the curve; as many as there are come last
DRAWS = 5  # of the images of two splits
FACES = 4  # in the picture
ZOOM = 2
COLORS = 256  # of the picture's palette, so that the file is small
VERSIONS = ("torch", "torch-fidelity", "numpy", "pillow", "opencv-python-headless", "simplejpeg")

Crop = NDArray[np.uint8]


def shifted(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] one pixel to the right; the first column stays where it was, too."""
    return torch.cat([images[..., :1], images[..., :-1]], dim=-1)


PIXEL_CHANGES: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {
        "saved as PNG": lambda images, seed: png(images),
        "mirrored": lambda images, seed: images.flip(-1),
        "shifted by one pixel": lambda images, seed: shifted(images),
        "JPEG, quality 95": lambda images, seed: jpeg(images, 95),
        "JPEG, quality 75": lambda images, seed: jpeg(images, 75),
        "JPEG, quality 50": lambda images, seed: jpeg(images, 50),
        "blur, sigma 0.5 pixels": lambda images, seed: blur(images, 0.5),
        "blur, sigma 1 pixel": lambda images, seed: blur(images, 1.0),
        "blur, sigma 2 pixels": lambda images, seed: blur(images, 2.0),
        "noise, sigma 5/255": lambda images, seed: noise(images, 5.0, seed),
        "noise, sigma 15/255": lambda images, seed: noise(images, 15.0, seed),
        "noise, sigma 25/255": lambda images, seed: noise(images, 25.0, seed),
        "uniform noise": lambda images, seed: uniform_noise(len(images), images.shape[-1], seed),
    }
)
"""What is done to the small images."""


def _pillow(crop: Crop, size: int, how: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(crop).resize((size, size), how)).transpose(2, 0, 1)


RESIZES: Mapping[str, Callable[[Crop, int], NDArray[np.uint8]]] = MappingProxyType(
    {
        "bilinear, antialiased, in 8 bit (Pillow)": partial(resize, how="pil"),
        "bilinear, antialiased, in float": partial(resize, how="float"),
        "bicubic, antialiased (Pillow)": partial(_pillow, how=Image.Resampling.BICUBIC),
        "bilinear, not antialiased (OpenCV)": partial(resize, how="aliased"),
        "nearest neighbour": partial(_pillow, how=Image.Resampling.NEAREST),
    }
)
"""Ways to shrink the protocol's crop."""


def bias_rate(covariance: NDArray[np.float64]) -> float:
    """How fast the Fréchet distance of two samples of one Gaussian grows with 1/N + 1/M, to first order.

    For N and M vectors of a Gaussian with covariance ``covariance`` [D, D] and eigenvalues l, the expectation is

        (1/N + 1/M) [ sum_i l_i + 1/2 sum_ij l_i l_j (1 + delta_ij) / (l_i + l_j) ] + O(1/N^2 + 1/M^2):

    the means differ by the first sum, and the second is the curvature of the Bures distance, in the eigenbasis
    ``1/2 sum_ij H_ij^2 / (l_i + l_j)`` for a difference H of the covariances, at the variance that a sample
    covariance's entries have. REPORT.md, section 7.2.
    """
    values = np.linalg.eigvalsh(covariance).clip(0)
    sums = values[:, None] + values
    products = values[:, None] * values
    terms = np.divide(products, sums, out=np.zeros_like(sums), where=sums > 0)
    return float(values.sum() + (terms.sum() + np.trace(terms)) / 2)


@dataclass(frozen=True)
class DistanceSettings:
    """What all distances of a study share.

    Attributes:
        images: N, of each set but for the curve and the splits.
        held_out: split of the images that are changed.
        seed: of noise and draws.
        features: key of ``FEATURE_SETS``.
        weights: file of the feature network's weights; None for its usual places.
        batch_size: images at once, on a GPU.
    """

    images: int = 2000
    held_out: str = "test"
    seed: int = 0
    features: str = "efficientnet-lite0"
    weights: Path | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Pair:
    """Two sets of images of which a distance is measured.

    Attributes:
        key: its name in ``distances.json``.
        one, other: names of the sets.
        rows, other_rows: which of their images; None for all.
    """

    key: str
    one: str
    other: str
    rows: NDArray[np.int64] | None = field(default=None, compare=False)
    other_rows: NDArray[np.int64] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Distance:
    """A distance that was measured, by the key of its pair."""

    key: str
    distance: float


@dataclass
class DistanceStudy:
    """Shards, the archive that they were made of, and the distances measured so far, in ``out/distances.json``.

    Args:
        shards: folder of the shards.
        raw: folder of the raw archive.
        out: folder of the results.
        settings: see there.
        say: takes lines for the user.

    Raises:
        UnveilError: if shards or archive are missing or do not belong together, or have too few images.
    """

    shards: Path
    raw: Path
    out: Path
    settings: DistanceSettings
    say: Say

    def __post_init__(self) -> None:
        self.index = ShardIndex.load(self.shards)
        self._check_sizes()
        self.device = resolve_device("auto")
        self._statistics_of_set = lru_cache(maxsize=len(PROTOCOLS) + 2)(lambda name: statistics(self.features(name)))
        self.facts = {
            "shards": self.index.digest(),
            "archive": SourceRecord.load(self.raw).files[ZIP_NAME].sha256,
            "weights": self.extractor.weights_sha256,
            "device": self.device.type,
            **{key: value for key, value in asdict(self.settings).items() if key not in ("batch_size", "weights")},
            "versions": {name: version(name) for name in VERSIONS},
        }
        check_archive(self.raw, self.index, self.held_out_ids, self.held_out)
        self.ledger = Ledger(self.out / "distances.json", self.facts, Distance)

    def _check_sizes(self) -> None:
        index, held_out = self.index, self.settings.held_out
        if held_out not in ("valid", "test"):
            raise UnveilError(f"--held-out: found {held_out!r}, expected valid or test")
        if index.train_holds != "train":
            raise UnveilError(
                f"{self.shards}: the protocol {index.protocol} has the held-out images in train, too; run preprocess "
                f"with another one: the study measures {index.protocol} beside it"
            )
        for split in ("train", held_out):
            there = index.num_images(split)
            if self.settings.images > there:
                raise UnveilError(
                    f"--images: found {self.settings.images}, but the {split} split of {self.shards} has {there}"
                )

    @cached_property
    def extractor(self) -> Extractor:
        """The feature network."""
        return load_extractor(self.settings.features, self.settings.weights, key="--weights")

    @property
    def measured(self) -> dict[str, float]:
        """The distances so far, by the keys of their pairs."""
        return {point.key: point.distance for point in self.ledger.points}

    @property
    def others(self) -> list[str]:
        """The protocols that are not the shards'."""
        return [name for name in PROTOCOLS if name != self.index.protocol]

    @cached_property
    def resizes(self) -> list[str]:
        """The ways to shrink that are not the shards'."""
        own = {"pil": 0, "float": 1, "aliased": 3}[PROTOCOLS[self.index.protocol].resize]
        return [title for place, title in enumerate(RESIZES) if place != own]

    @property
    def changes(self) -> list[str]:
        """Every change of the held-out images, in the order of the tables."""
        return [*PIXEL_CHANGES, *self.resizes]

    # ------------------------------------------------------------------------------------------- images

    @cached_property
    def held_out(self) -> Tensor:
        """The held-out images of the shards: uint8 [N, 3, size, size]."""
        return load_real(self.shards, self.index, self.settings.held_out, self.settings.images)

    @cached_property
    def held_out_ids(self) -> Tensor:
        """Their ids: int64 [N]."""
        return self._ids(self.settings.held_out)

    def _ids(self, split: str) -> Tensor:
        places = spread(self.index.num_images(split), self.settings.images)
        return load_tensor(self.shards, split, "ids")[torch.from_numpy(places)]

    @cached_property
    def curve_images(self) -> int:
        """Images a set at the end of the curve: the training split gives two such sets."""
        return min(self.index.num_images(self.settings.held_out), self.index.num_images("train") // 2)

    @property
    def second(self) -> str | None:
        """The other held-out split, if it has images."""
        name = "valid" if self.settings.held_out == "test" else "test"
        return name if self.index.shards(name) else None

    @cached_property
    def sets(self) -> dict[str, Callable[[], Tensor]]:
        """Every set whose features are needed, by name: what gives its images, uint8 [n, 3, size, size]."""
        index, count, held_out = self.index, self.settings.images, self.settings.held_out
        real = partial(load_real, self.shards, index)
        found: dict[str, Callable[[], Tensor]] = {
            "reference": partial(real, "train", count),
            "held out": partial(real, held_out, count),
            "train, twice as many": partial(real, "train", 2 * self.curve_images),
            "held out, all": partial(real, held_out, index.num_images(held_out)),
        }
        if self.second:
            found[self.second] = partial(real, self.second, index.num_images(self.second))
        for protocol in self.others:
            found[f"reference by {protocol}"] = partial(self._by_protocol, "train", protocol)
            found[f"held out by {protocol}"] = partial(self._by_protocol, held_out, protocol)
        for change in PIXEL_CHANGES:
            found[f"held out, {change}"] = partial(self._changed, change)
        for change in self.resizes:
            found[f"held out, {change}"] = partial(self.resized, self.held_out_ids, change)
        return found

    def _by_protocol(self, split: str, protocol: str) -> Tensor:
        return reread(self.raw, self.index, self._ids(split), protocol)

    def _changed(self, change: str) -> Tensor:
        return PIXEL_CHANGES[change](self.held_out, self.settings.seed)

    def resized(self, ids: Tensor, how: str) -> Tensor:
        """Images of the archive, cropped as the shards are and shrunk in another way."""
        crops = read_crops(self.raw, self.index, ids, PROTOCOLS[self.index.protocol])
        return torch.from_numpy(np.stack([RESIZES[how](crop, self.index.image_size) for crop in crops]))

    # ----------------------------------------------------------------------------------------- features

    def features(self, name: str) -> Tensor:
        """Features of a set, float32 [n, D], from the study's folder or anew."""
        path = self.out / "features" / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}.safetensors"
        if path.exists():
            with open_tensors(path, "remove it, and run the command again") as file:
                kept: Tensor = file.get_tensor("features")
                return kept
        found = extract(self.sets[name](), self.extractor, self.settings.batch_size, self.device)
        save_tensors(path, {"features": found})
        return found

    def pairs(self) -> Iterator[Pair]:
        """All distances of the study."""
        own = self.index.protocol

        def by(what: str, protocol: str) -> str:
            return what if protocol == own else f"{what} by {protocol}"

        for one in PROTOCOLS:
            for other in PROTOCOLS:
                yield Pair(f"protocols/{one}/{other}", by("held out", one), by("reference", other))
        for change in self.changes:
            yield Pair(f"changes/{change}/reference", f"held out, {change}", "reference")
            yield Pair(f"changes/{change}/untouched", f"held out, {change}", "held out")
        yield from self._sizes()
        yield from self._splits()

    def _sizes(self) -> Iterator[Pair]:
        end = self.curve_images
        for size in self.curve():
            rows, half = spread(self.index.num_images(self.settings.held_out), size), 2 * spread(end, size)
            yield Pair(f"sizes/{size}/held out", "held out, all", "train, twice as many", rows, half)
            yield Pair(f"sizes/{size}/train", "train, twice as many", "train, twice as many", half + 1, half)

    def curve(self) -> list[int]:
        """Images a set of the points of the curve."""
        return [*(size for size in SIZES if 1.25 * size <= self.curve_images), self.curve_images]

    def split_images(self) -> int:
        """Images a set of the comparison of splits: what the smallest of them gives."""
        half = self.curve_images // 2
        return min(half, self.settings.images, self.index.num_images(self.second) if self.second else half)

    def _splits(self) -> Iterator[Pair]:
        count, held_out, train = self.split_images(), "held out, all", "train, twice as many"
        sizes = {held_out: self.index.num_images(self.settings.held_out), train: 2 * self.curve_images}
        for draw in range(DRAWS):
            random = np.random.default_rng((self.settings.seed, draw))
            some, many = (random.permutation(sizes[name])[: 2 * count] for name in (held_out, train))
            first, last = many[:count], many[count:]
            yield Pair(f"splits/train, train/{draw}", train, train, last, first)
            yield Pair(f"splits/{self.settings.held_out}, train/{draw}", held_out, train, some[:count], first)
            if self.second:
                others = random.permutation(self.index.num_images(self.second))[:count]
                yield Pair(f"splits/{self.second}, train/{draw}", self.second, train, others, first)
            two = f"{self.settings.held_out}, {self.settings.held_out}"
            yield Pair(f"splits/{two}/{draw}", held_out, held_out, some[count:], some[:count])

    def run(self) -> None:
        """Measure what is not known yet."""
        self.ledger.save()
        known = self.measured
        pairs = [pair for pair in self.pairs() if pair.key not in known]
        needed = {name for pair in pairs for name in (pair.one, pair.other)}
        names = [name for name in self.sets if name in needed]
        started = time.perf_counter()
        for number, name in enumerate(names, start=1):
            count = len(self.features(name))
            left = (time.perf_counter() - started) / number * (len(names) - number)
            self.say(f"features {number:>2} of {len(names)}: {count:,} images, {name}; about {left / 60:.0f} min left")
        for number, pair in enumerate(pairs, start=1):
            distance = frechet_distance(
                self._statistics(pair.one, pair.rows), self._statistics(pair.other, pair.other_rows)
            )
            self.ledger.add(Distance(pair.key, significant(distance)))
            self.say(f"distance {number:>3} of {len(pairs)}: {distance:10.3f}  {pair.key}")

    @cached_property
    def rate(self) -> float:
        """``bias_rate`` of the largest set's features."""
        return bias_rate(np.cov(self.features("train, twice as many").double().numpy(), rowvar=False))

    def _statistics(self, name: str, rows: NDArray[np.int64] | None) -> Statistics:
        if rows is None:
            return self._statistics_of_set(name)
        return statistics(self.features(name)[torch.from_numpy(rows)])

    @property
    def floor(self) -> float:
        """Distance of the untouched held-out images from the reference."""
        return self.measured[f"protocols/{self.index.protocol}/{self.index.protocol}"]


# ---------------------------------------------------------------------------------------- what the study shows


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(value: float) -> str:
    """Three significant digits, without an exponent; what rounding left of zero is 0."""
    return "0" if abs(value) < 5e-4 else f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def protocols_table(measured: Mapping[str, float]) -> str:
    """Held-out images by the protocol of the row, against the reference by that of the column."""
    rows = [[f"`{one}`", *(_short(measured[f"protocols/{one}/{other}"]) for other in PROTOCOLS)] for one in PROTOCOLS]
    return _markdown(["held out by", *(f"`{name}`" for name in PROTOCOLS)], rows)


def protocols_verdict(measured: Mapping[str, float]) -> str:
    """One sentence: the least cost of another protocol, against the greatest floor."""
    same = [measured[f"protocols/{name}/{name}"] for name in PROTOCOLS]
    other = {(one, two): measured[f"protocols/{one}/{two}"] for one in PROTOCOLS for two in PROTOCOLS if one != two}
    (near, near_to), (far, far_to) = min(other, key=lambda pair: other[pair]), max(other, key=lambda pair: other[pair])
    return (
        f"With one protocol the distance is {_short(min(same))} to {_short(max(same))}; with two it is "
        f"{_short(other[near, near_to])} ({near} against {near_to}) to {_short(other[far, far_to])} "
        f"({far} against {far_to})."
    )


def changes_table(measured: Mapping[str, float], changes: Sequence[str], floor: float) -> str:
    """The distance of changed held-out images from the reference, and from themselves before."""
    rows = [["none (the floor)", _short(floor), "1", "0"]]
    for change in changes:
        distance, moved = (measured[f"changes/{change}/{what}"] for what in ("reference", "untouched"))
        rows.append([change, _short(distance), _short(distance / floor), _short(moved)])
    return _markdown(["held-out images", "from the reference", "times the floor", "from themselves untouched"], rows)


def sizes_table(measured: Mapping[str, float], sizes: Sequence[int], rate: float) -> str:
    """The distance of real images by the number of images in each set, beside the bias to first order."""
    rows = []
    for size in sizes:
        held_out, train = (measured[f"sizes/{size}/{what}"] for what in ("held out", "train"))
        first = 2 * rate / size
        rows.append([f"{size:,}", _short(held_out), _short(train), _short(size * held_out), _short(first)])
    header = ["N of each set", "held out, train", "train, train", "N times the first", "bias to first order"]
    return _markdown(header, rows)


def splits_table(measured: Mapping[str, float]) -> str:
    """Mean and range of the distance of two splits over the draws."""
    found: dict[str, list[float]] = {}
    for key, value in measured.items():
        if key.startswith("splits/"):
            found.setdefault(key.split("/")[1], []).append(value)
    rows = [
        [name, _short(sum(values) / len(values)), f"{_short(min(values))} to {_short(max(values))}"]
        for name, values in found.items()
    ]
    return _markdown(["splits", "mean", f"range of {DRAWS} draws"], rows)


def report(study: DistanceStudy) -> str:
    """All tables, in Markdown, with what made them."""
    measured, index, settings = study.measured, study.index, study.settings
    name = study.extractor.features.frechet
    count = f"{settings.images:,}"
    versions = ", ".join(f"{package} {found}" for package, found in study.facts["versions"].items())
    return "\n\n".join(
        [
            f"# What moves `{name}`",
            f"Real images only: {count} of the {settings.held_out} split against {count} of the train split, source "
            f"`{index.source}`, {index.image_size} x {index.image_size}, protocol `{index.protocol}` where no other is "
            f"named, seed {settings.seed}.",
            "## Protocols",
            f"The same images by every protocol. Rows: held out; columns: reference. N = {count}.",
            protocols_table(measured),
            protocols_verdict(measured),
            "## Changes",
            f"One mistake in the held-out images, none in the reference. N = {count}.",
            changes_table(measured, study.changes, study.floor),
            "## Numbers of images",
            "Both sets have N images. The last column is the bias that two samples of one Gaussian with these "
            "covariances have, to first order in 1/N.",
            sizes_table(measured, study.curve(), study.rate),
            "## Splits",
            f"N = {study.split_images():,} in each set, drawn {DRAWS} times.",
            splits_table(measured),
            "## What made these numbers",
            f"Features {study.extractor.features.title}, weights sha256 `{study.facts['weights']}`, on "
            f"{study.device.type}; shards `{study.facts['shards']}`; archive `{study.facts['archive']}`; {versions}.",
        ]
    )


def draw(study: DistanceStudy) -> Figure:
    """What each change costs, and the distance by the number of images."""
    figure = Figure(figsize=(10, 5.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    name = study.extractor.features.frechet
    _draw_changes(left, study)
    _draw_sizes(right, study)
    left.set_xlabel(f"{name} from the reference, N = {study.settings.images:,}")
    right.set_ylabel(name)
    for axes, scale in ((left, left.xaxis), (right, right.yaxis)):
        scale.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def _draw_changes(axes: Axes, study: DistanceStudy) -> None:
    own, measured = study.index.protocol, study.measured
    changes = {change: measured[f"changes/{change}/reference"] for change in study.changes}
    protocols = {f"protocol {other}": measured[f"protocols/{other}/{own}"] for other in study.others}
    found = changes | protocols
    order = sorted(found, key=lambda title: found[title], reverse=True)
    for group, color, marker in ((changes, "#0072b2", "o"), (protocols, "#d55e00", "D")):
        places = [order.index(title) for title in group]
        axes.plot(list(group.values()), places, linestyle="none", color=color, marker=marker, markersize=5)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.axvline(study.floor, color="#222222", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_title(f"held-out images changed; dashed: the floor, {_short(study.floor)}", fontsize=9)


def _draw_sizes(axes: Axes, study: DistanceStudy) -> None:
    sizes = study.curve()
    for what, color, marker in (("held out", "#0072b2", "o"), ("train", "#009e73", "s")):
        values = [study.measured[f"sizes/{size}/{what}"] for size in sizes]
        axes.plot(sizes, values, color=color, marker=marker, markersize=5, linewidth=1.3, label=f"{what} against train")
    first = [2 * study.rate / size for size in sizes]
    axes.plot(sizes, first, color="#222222", linewidth=1, linestyle=":", label="bias to first order")
    axes.axvline(study.extractor.features.dimension, color="#222222", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("N, images of each set")
    axes.set_title("real images, by their number; line: N = D", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


PICTURED = (
    "JPEG, quality 75",
    "blur, sigma 1 pixel",
    "noise, sigma 25/255",
    "nearest neighbour",
    "shifted by one pixel",
)
"""The changes beside the protocols in the picture."""


def faces(study: DistanceStudy) -> dict[str, Tensor]:
    """The same few held-out faces by every protocol, and through some of the changes."""
    rows = torch.from_numpy(spread(study.settings.images, min(FACES, study.settings.images)))
    ids, images = study.held_out_ids[rows], study.held_out[rows]
    found = {name: reread(study.raw, study.index, ids, name) for name in PROTOCOLS}
    for change in PICTURED:
        make = PIXEL_CHANGES.get(change)
        found[change] = study.resized(ids, change) if make is None else make(images, study.settings.seed)
    return found


def picture(columns: Mapping[str, Tensor], a_row: int) -> Image.Image:
    """Each column one set of images uint8 [n, 3, H, W] under its title, ``a_row`` columns a row."""
    gap, title, dpi = 4, 22, 100
    first = next(iter(columns.values()))
    height, width = ZOOM * first.shape[2] + gap, ZOOM * first.shape[3] + gap
    block = title + len(first) * height
    blocks = -(-len(columns) // a_row)
    figure = Figure(figsize=(a_row * width / dpi, blocks * block / dpi), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    for place, name in enumerate(columns):
        row, column = divmod(place, a_row)
        across, down = (column * width + width / 2) / (a_row * width), (row * block + title / 2) / (blocks * block)
        figure.text(across, 1 - down, name, fontsize=8, ha="center", va="center")
    pixels, _ = canvas.print_to_buffer()  # type: ignore[no-untyped-call]
    page = Image.frombytes("RGBA", canvas.get_width_height(), pixels).convert("RGB")
    for place, images in enumerate(columns.values()):
        row, column = divmod(place, a_row)
        for number, image in enumerate(images):
            face = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            large = face.resize((width - gap, height - gap), Image.Resampling.NEAREST)
            page.paste(large, (column * width + gap // 2, row * block + title + number * height))
    return page


def write_report(study: DistanceStudy) -> str:
    """Write ``distances.md``, ``distances.png`` and ``protocols.png`` into the study's folder; return the text."""
    text = report(study)
    write_text(study.out / "distances.md", text + "\n")
    with atomic_path(study.out / "distances.png") as temporary:
        draw(study).savefig(temporary, format="png")
    with atomic_path(study.out / "protocols.png") as temporary:
        page = picture(faces(study), len(PROTOCOLS))
        page.quantize(COLORS, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    return text
