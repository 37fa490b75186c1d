"""The curves of a training: as files for ``dvc plots``, as metrics of a tracker, and as lines."""

import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from unveil.files import atomic_path
from unveil.progress import Passing
from unveil.training.progress import SIGMA_BINS, Progress

VALUES = ("loss", "grad_norm", "lr", "images_per_second", "minutes")
"""Of every point."""


def write_curves(points: Sequence[Progress], folder: Path) -> list[Path]:
    """Write ``curves.csv``, ``validation.csv`` and ``loss_by_sigma.csv``, this over the last tenth of training.

    Returns:
        their paths.
    """
    validated = [point for point in points if point.validation_loss is not None]
    tables: dict[str, list[tuple[object, ...]]] = {
        "curves.csv": [("images", *VALUES), *((point.images, *_rounded(point, VALUES)) for point in points)],
        "validation.csv": [
            ("images", "validation_loss"),
            *((point.images, *_rounded(point, ["validation_loss"])) for point in validated),
        ],
        "loss_by_sigma.csv": [("sigma", "loss"), *_by_sigma(points[-max(len(points) // 10, 1) :])],
    }
    for name, rows in tables.items():
        with atomic_path(folder / name) as temporary, temporary.open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return [folder / name for name in tables]


def _rounded(point: Progress, names: Sequence[str]) -> list[str]:
    return [format(getattr(point, name), ".6g") for name in names]


def _by_sigma(points: Sequence[Progress]) -> Iterator[tuple[str, str]]:
    for name in SIGMA_BINS:
        if losses := [point.loss_by_sigma[name] for point in points if name in point.loss_by_sigma]:
            yield name.replace("_", " "), format(statistics.fmean(losses), ".6g")


def metrics(point: Progress) -> dict[str, float]:
    """A point of the curves by the names that a tracker shows."""
    validation = {} if point.validation_loss is None else {"validation_loss": point.validation_loss}
    by_sigma = {f"loss_sigma_{name}": loss for name, loss in point.loss_by_sigma.items()}
    return {name: getattr(point, name) for name in VALUES} | validation | by_sigma


def line(point: Progress) -> Passing:
    """A point of the curves as a line of progress."""
    minutes, seconds = divmod(round(point.seconds_left), 60)
    return Passing(
        f"{point.images:>9,} images  loss {point.loss:.4f}  {point.images_per_second:6.1f} images/s  "
        f"{minutes}:{seconds:02d} left"
    )
