"""EDM's augmentation: each transformation against its closed form, the labels, and that nothing leaks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.data.augmentation import LABELS, SYM6, Transformations, augment

HEIGHT, WIDTH = 24, 32


def _only(count: int = 1, **changes: Any) -> Transformations:
    """Nothing, but for what is given."""
    nothing = {
        "flips": torch.zeros(count, 2, dtype=torch.bool),
        "scaling": torch.zeros(count),
        "rotation": torch.zeros(count),
        "anisotropy": torch.zeros(count, 2),
        "translation": torch.zeros(count, 2),
    }
    return Transformations(**(nothing | {name: torch.tensor([value]) for name, value in changes.items()}))


def _images(count: int = 1) -> Tensor:
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _drawn(count: int, probability: float, seed: int = 0) -> Transformations:
    return Transformations.draw(count, probability, torch.Generator().manual_seed(seed))


def _wave(right: Tensor, down: Tensor) -> Tensor:
    """A picture without detail, at places in pixels from its centre."""
    return torch.sin(0.22 * right + 0.3) * torch.cos(0.18 * down - 0.5)


def test_the_filter_is_orthonormal_with_six_vanishing_moments() -> None:
    """Which no twelve numbers but Daubechies' are."""
    taps = np.array(SYM6)
    for shift in range(6):
        assert taps[2 * shift :] @ taps[: 12 - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-11)
    places = (np.arange(12) - 5.5) / 5.5
    for moment in range(6):
        assert ((-1.0) ** np.arange(12) * places**moment) @ taps == pytest.approx(0.0, abs=1e-9)


def test_probability_zero_is_the_identity() -> None:
    drawn = _drawn(16, 0.0)
    images = _images(16)
    assert torch.equal(augment(images, drawn), images)
    assert not drawn.labels().any()


def test_flips_are_exact() -> None:
    images = _images()
    assert torch.equal(augment(images, _only(flips=[True, False])), images.flip(3))
    assert torch.equal(augment(images, _only(flips=[False, True])), images.flip(2))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-5, 7), (2 * WIDTH, -3 * HEIGHT)])
def test_a_translation_by_whole_pixels_is_that_of_the_reflected_image(right: int, down: int) -> None:
    images = _images()
    found = augment(images, _only(translation=[8 * right / WIDTH, 8 * down / HEIGHT]))
    wide = np.pad(images.numpy(), ((0, 0), (0, 0), (3 * HEIGHT,) * 2, (3 * WIDTH,) * 2), mode="reflect")
    rows = slice(3 * HEIGHT - down, 4 * HEIGHT - down)
    columns = slice(3 * WIDTH - right, 4 * WIDTH - right)
    torch.testing.assert_close(found, torch.from_numpy(wide[:, :, rows, columns]), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "inverse"),
    [
        ({"scaling": 1.5}, lambda x, y: (x / 2**0.3, y / 2**0.3)),
        ({"scaling": -1.0}, lambda x, y: (x * 2**0.2, y * 2**0.2)),
        ({"rotation": math.pi / 2}, lambda x, y: (-y, x)),
        (
            {"rotation": 0.4},
            lambda x, y: (x * math.cos(0.4) - y * math.sin(0.4), x * math.sin(0.4) + y * math.cos(0.4)),
        ),
        ({"anisotropy": [0.0, 2.0]}, lambda x, y: (x / 2**0.4, y * 2**0.4)),
        ({"anisotropy": [math.pi / 2, 2.0]}, lambda x, y: (x * 2**0.4, y / 2**0.4)),
        ({"translation": [0.3, -0.21]}, lambda x, y: (x - 0.3 * WIDTH / 8, y + 0.21 * HEIGHT / 8)),
        # One after the other: mirrored, magnified, turned, moved.
        (
            {"flips": [True, False], "scaling": 1.0, "rotation": math.pi / 2, "translation": [0.5, 0.0]},
            lambda x, y: (y / 2**0.2, (x - WIDTH / 16) / 2**0.2),
        ),
    ],
)
def test_a_smooth_picture_is_the_function_at_the_places_it_came_from(changes: dict[str, Any], inverse: Any) -> None:
    """The right-hand side is written out for each, with y down; a rotation is counter-clockwise as seen."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) - (HEIGHT - 1) / 2, torch.arange(WIDTH) - (WIDTH - 1) / 2, indexing="ij")
    found = augment(_wave(x, y)[None, None], _only(**changes))[0, 0]
    there = inverse(x, y)
    inside = (there[0].abs() <= (WIDTH - 1) / 2 - 3) & (there[1].abs() <= (HEIGHT - 1) / 2 - 3)
    assert inside.float().mean() > 0.25
    torch.testing.assert_close(found[inside], _wave(*there)[inside], rtol=0, atol=4e-3)


def test_shrinking_leaves_out_what_would_alias() -> None:
    """Stripes of two pixels are grey when there are fewer pixels than stripes."""
    stripes = (torch.arange(64) % 2 * 2.0 - 1).expand(1, 1, 64, 64).contiguous()
    shrunk = augment(stripes, _only(scaling=-5.0))
    assert shrunk[..., 8:-8, 8:-8].abs().max() < 0.25
    grown = augment(stripes, _only(translation=[8 / 64, 0.0]))
    torch.testing.assert_close(grown, -stripes, rtol=0, atol=2e-4)


def test_the_labels_are_the_papers() -> None:
    drawn = Transformations(
        torch.tensor([[True, False], [False, True]]),
        torch.tensor([0.5, -1.0]),
        torch.tensor([0.0, 2.0]),
        torch.tensor([[math.pi / 2, 3.0], [math.pi, 2.0]]),
        torch.tensor([[0.1, 0.2], [0.3, -0.4]]),
    )
    expected = [
        [1, 0, 0.5, 0, 0, 0, 3, 0.1, 0.2],
        [0, 1, -1.0, math.cos(2) - 1, math.sin(2), -2, 0, 0.3, -0.4],
    ]
    torch.testing.assert_close(drawn.labels(), torch.tensor(expected), rtol=0, atol=1e-6)
    assert drawn.labels().shape == (2, LABELS)


def test_it_draws_as_often_and_as_much_as_the_paper() -> None:
    count, probability = 40_000, 0.15
    drawn = _drawn(count, probability)
    shares = {
        "x-flip": (drawn.flips[:, 0], 0.5),
        "y-flip": (drawn.flips[:, 1], probability / 2),
        "scaling": (drawn.scaling != 0, probability),
        "rotation": (drawn.rotation != 0, probability),
        "anisotropy": (drawn.anisotropy.any(1), probability),
        "translation": (drawn.translation.any(1), probability),
    }
    for name, (done, expected) in shares.items():
        assert done.float().mean().item() == pytest.approx(expected, abs=0.01), name
    strengths = (drawn.scaling, drawn.anisotropy[:, 1], drawn.translation[:, 0], drawn.translation[:, 1])
    for strength in strengths:
        assert strength[strength != 0].std().item() == pytest.approx(1.0, abs=0.05)
    stretched = drawn.anisotropy[drawn.anisotropy[:, 1] != 0]
    assert (stretched[:, 0] != 0).float().mean().item() == pytest.approx(0.5, abs=0.05)  # EDM's aniso_rotate_prob
    for angle in (drawn.rotation, drawn.anisotropy[:, 0]):
        angle = angle[angle != 0]
        assert angle.abs().max() <= math.pi and angle.std().item() == pytest.approx(math.pi / 3**0.5, abs=0.05)


def test_a_part_of_the_batch_is_transformed_as_in_the_whole_to_the_last_bit() -> None:
    images, drawn = _images(8), _drawn(8, 0.8)
    whole = augment(images, drawn)
    for part in (slice(0, 3), slice(3, 8), slice(5, 5)):
        assert torch.equal(augment(images[part], drawn, part), whole[part])
    assert torch.equal(augment(images, _drawn(8, 0.8)), whole)
    assert not torch.equal(augment(images, _drawn(8, 0.8, seed=1)), whole)


def test_images_that_nothing_is_done_to_stay_to_the_last_bit() -> None:
    images, drawn = _images(32), _drawn(32, 0.15)
    found = augment(images, drawn)
    same = ~drawn.labels().any(1)
    assert 0 < same.sum() < 32
    assert torch.equal(found[same], images[same])
    assert ((found - images).flatten(1).abs().amax(1) > 0.01)[~same].all()
    assert found.isfinite().all() and found.abs().max() < 2
