"""What an evaluation shows: data for DVC's plots, made of the card, and real images beside samples."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from unveil.evaluation.card import BySize, Card, Metric
from unveil.evaluation.features import FeatureSet
from unveil.evaluation.sets import spread
from unveil.files import atomic_path, write_json, write_text

ROWS = 3
COLUMNS = 12
ZOOMED = 96  # pixels of an image's side in the figure, at least
TITLE_HEIGHT = 36  # pixels
DPI = 100
PRECISION_RECALL = ("precision", "recall", "density", "coverage")
SETS = {"": "samples", "_floor": "real, held out", "_noise": "uniform noise"}
"""The suffix of a metric's name, and the set of images whose distance it is."""


def write_distances(path: Path, card: Card) -> None:
    """JSON for ``dvc plots``: ``set``, ``distance`` and ``kernel_distance`` of the samples and each control.

    The kernel distance is null where the card has none of a set.
    """
    distances, kernel = _by_set(card.headline), _by_set(_kernel(card))
    rows = [
        {"set": name, "distance": distance, "kernel_distance": kernel.get(name)} for name, distance in distances.items()
    ]
    write_json(path, rows)


def _by_set(metric: Metric | None) -> dict[str, float]:
    """The values of a metric, by the set of images that each is of."""
    if metric is None:
        return {}
    ends = zip(SETS.values(), (metric.value, metric.floor, metric.noise), strict=True)
    return {name: value for name, value in (*ends, *metric.controls.items()) if value is not None}


def _kernel(card: Card) -> Metric | None:
    return next((metric for metric in card.metrics if metric.name.startswith("kid")), None)


def write_by_size(path: Path, part: BySize) -> None:
    """CSV for ``dvc plots``: ``images``, the ``distance`` at so many, and the ``extrapolated`` one, a level line."""
    rows = [(point.images, point.distance, part.extrapolation) for point in part.points]
    _write_csv(path, ("images", "distance", "extrapolated"), rows)


def write_by_nfe(path: Path, card: Card) -> None:
    """CSV for ``dvc plots diff``: one row, ``nfe`` of the samples and their ``distance``.

    Each experiment has one point, and all of them together make the curve of quality for compute. Samples that do
    not say their ``nfe`` give a file with a header alone.
    """
    nfe = card.choices.sampling.get("nfe")
    _write_csv(path, ("nfe", "distance"), [] if nfe is None else [(nfe, card.headline.value)])


def write_precision_recall(path: Path, card: Card) -> None:
    """CSV for ``dvc plots``: ``features``, ``precision``, ``recall``, ``density``, ``coverage``.

    One row for each feature network; what the card does not have is empty.
    """
    found: dict[str, dict[str, float]] = {}
    for metric in card.metrics:
        name = metric.name.partition("_")[0]
        if name in PRECISION_RECALL and metric.features is not None:
            found.setdefault(metric.features, {})[name] = metric.value
    rows = [(features, *map(values.get, PRECISION_RECALL)) for features, values in found.items()]
    _write_csv(path, ("features", *PRECISION_RECALL), rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    write_text(path, text.getvalue())


def write_comparison(
    path: Path,
    real: Tensor,
    samples: Tensor,
    metrics: dict[str, float | int],
    features: FeatureSet,
    held_out: str,
) -> None:
    """PNG: rows of held-out real images above rows of samples, both uint8 [N, 3, size, size].

    The images are spread evenly over each set, not chosen.
    """
    name = features.frechet
    share = metrics.get(f"{name}_fraction")
    titles = (
        f"real, held out ({held_out}): {name} {metrics[f'{name}_floor']:.4g} "
        f"(the floor), N = {metrics['num_held_out']}",
        f"samples: {name} {metrics[name]:.4g}"
        + (f", {share:.3f} of the way from the floor to noise" if share is not None else "")
        + f" ({metrics[f'{name}_noise']:.4g}), N = {metrics['num_samples']}",
    )
    grids = [_grid(images) for images in (real, samples)]
    height, width = grids[0].shape[:2]
    row_height = height + TITLE_HEIGHT
    figure = Figure(figsize=(width / DPI, 2 * row_height / DPI), dpi=DPI)
    for row, (grid, title) in enumerate(zip(grids, titles, strict=True)):
        axes = figure.add_axes((0, (1 - row) / 2, 1, height / (2 * row_height)))
        axes.imshow(grid, interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=14, loc="left", x=0.008, pad=8)
        axes.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def for_figure(images: Tensor) -> Tensor:
    """The images of a set that the figure shows, spread evenly over it, so that the rest can be let go."""
    return images[torch.from_numpy(spread(len(images), min(len(images), ROWS * COLUMNS)))]


def summary(metrics: dict[str, float | int], features: FeatureSet) -> str:
    """A small table for the terminal: both distances, of the samples and the controls."""
    names = (features.frechet, features.kernel)
    first, wide = max(map(len, names)), 18
    titles = ("samples", "floor (held out)", "scale (noise)")
    lines = [
        " " * first + "".join(title.rjust(wide) for title in titles),
        *(name.ljust(first) + "".join(f"{metrics[name + end]:{wide}.6g}" for end in SETS) for name in names),
    ]
    if (share := metrics.get(f"{features.frechet}_fraction")) is not None:
        lines.append(f"{share:.3f} of the way from floor to scale")
    counts = f"{metrics['num_samples']} samples, {metrics['num_held_out']} held out"
    lines.append(f"{counts}, {metrics['num_samples']} noise, against {metrics['num_reference']} real images")
    return "\n".join(lines)


def _grid(images: Tensor) -> NDArray[np.uint8]:
    """Tile up to ROWS x COLUMNS images into one, uint8 [height, width, 3], each pixel a square of pixels."""
    chosen = for_figure(images)
    columns = min(len(chosen), COLUMNS)
    rows = len(chosen) // columns
    chosen = chosen[: rows * columns]
    zoom = max(1, -(-ZOOMED // images.shape[-1]))
    chosen = chosen.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    size = chosen.shape[-1]
    tiled = chosen.reshape(rows, columns, 3, size, size).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * size, columns * size, 3).numpy()


def neighbours_figure(samples: Tensor, neighbours: Tensor, distances: NDArray[np.float64]) -> Figure:
    """A row for each sample, uint8 [n, 3, H, W]: itself, then its nearest training images, uint8 [n, k, 3, H, W].

    Each neighbour has its ``distances`` [n, k] in feature space above it, nearest first.
    """
    count, k = distances.shape
    if len(samples) != count or neighbours.shape[:2] != (count, k):
        found = f"{list(samples.shape)}, {list(neighbours.shape)} and {list(distances.shape)}"
        raise ValueError(f"neighbours_figure: found shapes {found}, expected [n, ...], [n, k, ...] and [n, k]")
    title, gap = 18, 8  # pixels
    width, height = (k + 1) * ZOOMED + gap, count * (ZOOMED + title) + title
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.text(ZOOMED / 2 / width, 1 - title / 2 / height, "sample", ha="center", va="center", fontsize=9)
    place = (gap + (1 + k / 2) * ZOOMED) / width
    figure.text(place, 1 - title / 2 / height, "nearest training images", ha="center", va="center", fontsize=9)
    for row in range(count):
        bottom = height - title - (row + 1) * (ZOOMED + title)
        for column in range(k + 1):
            left = column * ZOOMED + (gap if column else 0)
            axes = figure.add_axes((left / width, bottom / height, ZOOMED / width, ZOOMED / height))
            image = neighbours[row, column - 1] if column else samples[row]
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            if column:
                axes.set_title(f"{distances[row, column - 1]:.3g}", fontsize=8, pad=2)
    return figure
