"""Pictures made of images: grids and strips, as PNG files."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import pad

from unveil.data.pixels import to_uint8
from unveil.diffusion.samplers import Step
from unveil.files import atomic_path

PADDING = 2
WHITE = 255
FACTS_KEY = "unveil"
"""Of the text in a PNG that says how it was made."""


def save_grid(images: Tensor, columns: int, path: Path) -> None:
    """Save uint8 images [N, 3, H, W] as one PNG, ``columns`` images a row."""
    with atomic_path(path) as temporary:
        Image.fromarray(image_grid(images, columns).contiguous().numpy()).save(temporary, "PNG")


def save_picture(images: Tensor, columns: int, path: Path, facts: Mapping[str, Any]) -> None:
    """Save a grid as ``save_grid`` does, with ``facts`` in the file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(picture(images, columns, facts))


def picture(images: Tensor, columns: int, facts: Mapping[str, Any]) -> bytes:
    """A grid as a PNG whose text ``unveil`` is ``facts`` as JSON; equal images and facts are equal bytes."""
    texts, stream = PngInfo(), BytesIO()
    texts.add_text(FACTS_KEY, json.dumps(facts))
    Image.fromarray(image_grid(images, columns).contiguous().numpy()).save(stream, "PNG", pnginfo=texts)
    return stream.getvalue()


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Lay uint8 images [N, 3, H, W] out in rows of ``columns``, on white; one alone has no frame."""
    if len(images) == 1:
        return images[0].permute(1, 2, 0).cpu()
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[2] + PADDING, images.shape[3] + PADDING
    cells = torch.full((rows * columns, height, width, 3), WHITE, dtype=torch.uint8)
    cells[: len(images), PADDING:, PADDING:] = images.permute(0, 2, 3, 1)
    grid = cells.reshape(rows, columns, height, width, 3).transpose(1, 2).reshape(rows * height, columns * width, 3)
    return pad(grid, (0, 0, 0, PADDING, 0, PADDING), value=WHITE)


def emergence(steps: Sequence[Step], faces: int, columns: int) -> Tensor:
    """Faces emerging from noise, as uint8 images for a grid of ``columns`` columns.

    For each face a row of what the sampler holds, scaled to about unit variance so that the noise shows, and
    below it a row of what the denoiser takes it for. Time runs from left to right.

    Args:
        steps: of one batch, the start first.
        faces: how many of the batch to show.
        columns: how many steps to show, evenly chosen, the first and the last among them.

    Returns:
        uint8 [2 * faces * columns, 3, H, W], row by row.
    """
    chosen = [steps[i] for i in torch.linspace(0, len(steps) - 1, columns).round().long().tolist()]
    rows = []
    for face in range(faces):
        rows += [step.x[face] / (1 + step.sigma**2) ** 0.5 for step in chosen]
        rows += [step.denoised[face] if step.nfe else torch.zeros_like(step.x[face]) for step in chosen]
    return to_uint8(torch.stack(rows))
