"""What an evaluation shows: data for DVC's plots, made of the card, and real images beside samples."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from unveil.data.order import spread
from unveil.evaluation.card.card import Card, aligned
from unveil.evaluation.metrics.metric import Metric
from unveil.evaluation.metrics.registry import kind_of
from unveil.files import atomic_path

ROWS = 3
COLUMNS = 12
ZOOMED = 96  # pixels of an image's side in the figure, at least
TITLE_HEIGHT = 36  # pixels
DPI = 100
PRECISION_RECALL = ("precision", "recall", "density", "coverage")


def plot_data(card: Card) -> dict[str, str]:
    """The data of DVC's plots, by the name of its file; a table without rows has its header, so that the plot is there.

    - ``distances.json``: ``set``, ``distance`` and ``kernel_distance`` of the samples and each control, the latter null
      where the card has none of a set.
    - ``by_nfe.csv``, for ``dvc plots diff``: one row, ``nfe`` of the samples and their ``distance``, or none if they do
      not say it. Each experiment has one point, and all of them together make the curve of quality for compute.
    - ``by_size.csv``: ``images``, the ``distance`` at so many, and the ``extrapolated`` one, a level line.
    - ``by_guidance.csv``: what each scale of guidance gives and takes; ``accuracy``, of attributes, is ``nan``
      without an oracle.
    - ``precision_recall.csv``: one row for each feature network; what the card does not have is ``nan``.
    """
    kernel = next((metric for metric in card.metrics if metric.name.startswith("kid")), None)
    kernels = {} if kernel is None else _by_set(kernel)
    distances = [
        {"set": name, "distance": distance, "kernel_distance": kernels.get(name)}
        for name, distance in _by_set(card.headline).items()
        if distance is not None
    ]
    nfe = card.choices.sampling.get("nfe")
    sizes = [(point.images, point.distance, part.extrapolation) for part in card.by_size[:1] for point in part.points]
    shares: dict[str, dict[str, float]] = {}
    for metric in card.metrics:
        name = metric.name.partition("_")[0]
        if name in PRECISION_RECALL and metric.features is not None:
            shares.setdefault(metric.features, {})[name] = metric.value
    rows = [(features, *map(values.get, PRECISION_RECALL)) for features, values in shares.items()]
    guided = ("scale", "distance", "precision", "recall", "accuracy")
    return {
        "by_guidance.csv": _csv(guided, [[getattr(point, name) for name in guided] for point in card.by_guidance]),
        "distances.json": json.dumps(distances, indent=2, ensure_ascii=False) + "\n",
        "by_nfe.csv": _csv(("nfe", "distance"), [] if nfe is None else [(nfe, card.headline.value)]),
        "by_size.csv": _csv(("images", "distance", "extrapolated"), sizes),
        "precision_recall.csv": _csv(("features", *PRECISION_RECALL), rows),
    }


def _by_set(metric: Metric) -> dict[str, float | None]:
    """The values of a metric, by the set of images that each is of."""
    return {"samples": metric.value, "real, held out": metric.floor, "uniform noise": metric.noise, **metric.controls}


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    filled = (["nan" if value is None else value for value in row] for row in rows)  # an empty cell is drawn at 0
    csv.writer(text, lineterminator="\n").writerows([header, *filled])
    return text.getvalue()


def write_comparison(path: Path, real: Tensor, samples: Tensor, card: Card) -> None:
    """PNG: rows of held-out real images above rows of samples, both uint8 [N, 3, size, size].

    The images are spread evenly over each set, not chosen.
    """
    metric, held_out = card.headline, card.choices.data.held_out
    share = "" if metric.fraction is None else f", {metric.fraction:.3f} of the way from the floor to noise"
    titles = (
        f"real, held out ({held_out.name}): {metric.name} {_said(metric.floor)} (the floor), N = {held_out.taken}",
        f"samples: {metric.name} {_said(metric.value)}{share} ({_said(metric.noise)}), N = {metric.n}",
    )
    _write_rows(path, dict(zip(titles, (_grid(real), _grid(samples)), strict=True)))


def write_controls(path: Path, real: Tensor, controls: Mapping[str, Tensor]) -> None:
    """PNG: a row of held-out real images above the same ones with the mistake of each control, by its title."""
    _write_rows(path, {title: _grid(images) for title, images in {"real, held out": real, **controls}.items()})


def _write_rows(path: Path, grids: Mapping[str, NDArray[np.uint8]]) -> None:
    """PNG: grids of one size below each other, each below its title."""
    height, width = next(iter(grids.values())).shape[:2]
    row_height, count = height + TITLE_HEIGHT, len(grids)
    figure = Figure(figsize=(width / DPI, count * row_height / DPI), dpi=DPI)
    for row, (title, grid) in enumerate(grids.items(), 1):
        axes = figure.add_axes((0, (count - row) / count, 1, height / (count * row_height)))
        axes.imshow(grid, interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=14, loc="left", x=0.008, pad=8)
        axes.set_axis_off()
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG atomically; equal figures give equal bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def summary(card: Card) -> str:
    """A small table for the terminal: every metric of the samples, with its error and its controls."""
    rows = [("", "samples", "", "floor (held out)", "scale (noise)")]
    for metric in (metric for metric in card.metrics if not kind_of(metric.name).apart):
        error = "" if metric.stderr is None else f"± {metric.stderr:.2g}"
        rows.append((metric.name, f"{metric.value:.6g}", error, _said(metric.floor), _said(metric.noise)))
    lines = aligned(rows, right=True)
    headline, data = card.headline, card.choices.data
    if headline.fraction is not None:
        lines.append(f"{headline.name}: {headline.fraction:.3f} of the way from floor to scale")
    if card.memorization is not None:
        lines += card.memorization.sentences
    lines.append(
        f"{headline.n} samples, {data.held_out.taken} held out, {headline.n} noise, "
        f"against {data.reference.taken} real images"
    )
    return "\n".join(lines)


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _grid(images: Tensor) -> NDArray[np.uint8]:
    """Tile ROWS x COLUMNS images, or all, into one, uint8 [height, width, 3], each pixel a square of pixels."""
    chosen = images[torch.from_numpy(spread(len(images), min(len(images), ROWS * COLUMNS)))]
    columns = min(len(chosen), COLUMNS)
    rows = len(chosen) // columns
    size, zoom = images.shape[-1], max(1, -(-ZOOMED // images.shape[-1]))
    tiled = chosen[: rows * columns].reshape(rows, columns, 3, size, size).permute(0, 3, 1, 4, 2)
    tiled = tiled.reshape(rows * size, columns * size, 3)
    return tiled.repeat_interleave(zoom, dim=0).repeat_interleave(zoom, dim=1).numpy()


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
    for place, words in ((ZOOMED / 2, "sample"), (gap + (1 + k / 2) * ZOOMED, "nearest training images")):
        figure.text(place / width, 1 - title / 2 / height, words, ha="center", va="center", fontsize=9)
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
