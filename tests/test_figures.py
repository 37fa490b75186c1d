"""Pictures made of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.diffusion.samplers import Step
from unveil.figures import FACTS_KEY, PADDING, WHITE, emergence, picture, save_grid, save_picture


def _images(count: int, height: int = 5, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 200, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("count", "columns", "rows"), [(12, 4, 3), (10, 4, 3), (3, 3, 1), (4, 1, 4)])
def test_a_grid_shows_every_image_in_its_place(tmp_path: Path, count: int, columns: int, rows: int) -> None:
    images = _images(count)
    path = tmp_path / "new" / "grid.png"
    save_grid(images, columns, path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        assert picture.size == (columns * (7 + PADDING) + PADDING, rows * (5 + PADDING) + PADDING)
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    seen = torch.zeros(pixels.shape[1:], dtype=torch.bool)
    for number, image in enumerate(images):
        top = PADDING + number // columns * (5 + PADDING)
        left = PADDING + number % columns * (7 + PADDING)
        assert torch.equal(pixels[:, top : top + 5, left : left + 7], image)
        seen[top : top + 5, left : left + 7] = True
    assert (pixels[:, ~seen] == WHITE).all()
    assert sorted(tmp_path.rglob("*.*")) == [path]


def test_fewer_images_than_columns_make_a_narrower_grid(tmp_path: Path) -> None:
    for count, size in ((2, (2 * (7 + PADDING) + PADDING, 5 + 2 * PADDING)), (1, (7, 5))):  # one needs no frame
        save_grid(_images(count), 4, tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as picture:
            assert picture.size == size


def _steps(count: int, batch: int = 3) -> list[Step]:
    """Step k holds k / 10 everywhere at noise level count - 1 - k, and takes it for -k / 10."""
    steps = []
    for k in range(count):
        x = torch.full((batch, 3, 2, 2), k / 10)
        steps.append(Step(x, -x, float(count - 1 - k), k))
    return steps


def test_emergence_runs_from_the_start_to_the_end() -> None:
    strip = emergence(_steps(11), faces=2, columns=6)
    assert strip.shape == (2 * 2 * 6, 3, 2, 2) and strip.dtype == torch.uint8
    rows = strip[:, 0, 0, 0].view(2, 2, 6)
    assert torch.equal(rows[0], rows[1])
    shown = [0, 2, 4, 6, 8, 10]
    held = [(k / 10) / (1 + (10 - k) ** 2) ** 0.5 for k in shown]
    assert rows[0, 0].tolist() == [round((value + 1) * 127.5) for value in held]
    estimates = [-k / 10 for k in shown]  # nothing is estimated at the start: grey
    assert rows[0, 1].tolist() == pytest.approx([(value + 1) * 127.5 for value in estimates], abs=0.51)


def test_emergence_shows_each_faces_own_rows() -> None:
    steps = _steps(3)
    for step in steps:
        step.x[1] += 0.5
    rows = emergence(steps, faces=2, columns=3)[:, 0, 0, 0].view(2, 2, 3).int()
    assert (rows[1, 0] > rows[0, 0]).all()


def test_the_last_column_is_the_result() -> None:
    for count, columns in ((19, 10), (5, 5), (1001, 10), (2, 2)):
        steps = _steps(count, batch=1)
        strip = emergence(steps, faces=1, columns=columns)
        assert strip.shape[0] == 2 * columns
        assert torch.equal(strip[columns - 1], ((steps[-1].x[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


def test_noise_is_shown_at_unit_scale() -> None:
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = emergence([Step(80 * noise, 80 * noise, 80.0, 0)], faces=1, columns=1)
    black, white = (shown[0] == 0).float().mean().item(), (shown[0] == 255).float().mean().item()
    assert black == pytest.approx(0.159, abs=0.02) and white == pytest.approx(0.159, abs=0.02)  # beyond one sigma
    assert (shown[1] == 128).all()


def test_a_picture_holds_its_facts_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    facts = {"seed": 3, "attributes": ["Smiling"], "note": "ä"}
    save_picture(_images(2), 2, tmp_path / "picture.png", facts)
    content = (tmp_path / "picture.png").read_bytes()
    assert content == picture(_images(2), 2, facts) != picture(_images(2), 2, facts | {"seed": 4})
    with Image.open(tmp_path / "picture.png") as found:
        assert json.loads(found.text[FACTS_KEY]) == facts  # type: ignore[attr-defined]
    save_grid(_images(2), 2, tmp_path / "grid.png")
    with Image.open(tmp_path / "picture.png") as ours, Image.open(tmp_path / "grid.png") as plain:
        assert ours.tobytes() == plain.tobytes()
