"""Every protocol against somebody else's crop and resize."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.resampling import crop, resize

CROPS = {  # left, upper, right, lower, as the published code of each has it
    "ddim": (25, 57, 153, 185),
    "score-sde": (19, 39, 159, 179),
    "score-sde-tf": (19, 39, 159, 179),
    "gan": (15, 35, 163, 183),
    "adm-ip": (0, 0, 178, 218),
    "squash": (0, 0, 178, 218),
}
SIZES = [64, 32, 256, 61]


def canvas(seed: int) -> np.ndarray:
    """uint8 [218, 178, 3]: smooth structure at several scales and noise, as photographs have."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0, 12, (218, 178, 3))
    for scale in (4, 16, 64):
        coarse = rng.normal(0, 40, (218 // scale + 2, 178 // scale + 2, 3))
        total += cv2.resize(coarse, (178, 218), interpolation=cv2.INTER_CUBIC)
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def ours(image: np.ndarray, protocol: Protocol, size: int) -> np.ndarray:
    result = resize(crop(image, protocol), size, protocol.resize)
    assert result.dtype == np.uint8
    assert result.shape == (3, size, size)
    return result.transpose(1, 2, 0)


def triangle_filter(values: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear along axis 0, straight from its definition, in float64."""
    length = len(values)
    scale = max(length / size, 1)
    centres = (np.arange(size) + 0.5) * length / size
    distances = np.abs(np.arange(length)[None] + 0.5 - centres[:, None]) / scale
    weights = np.clip(1 - distances, 0, None)
    return np.tensordot(weights / weights.sum(1, keepdims=True), values, axes=1)


def test_the_five_of_the_design_are_there_and_one_of_another_decoder() -> None:
    assert set(PROTOCOLS) == set(CROPS)
    assert [name for name, protocol in PROTOCOLS.items() if protocol.images == "all"] == ["adm-ip"]
    assert [name for name, protocol in PROTOCOLS.items() if protocol.fast_dct] == ["score-sde-tf"]
    assert replace(PROTOCOLS["score-sde-tf"], name="score-sde", fast_dct=False) == PROTOCOLS["score-sde"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_crops_what_is_published(name: str) -> None:
    rows, columns = np.indices((218, 178), dtype=np.uint8)
    part = crop(np.stack([rows, columns, rows], axis=2), PROTOCOLS[name])
    row, column = part[..., 0].astype(int), part[..., 1].astype(int)
    assert (column.min(), row.min(), column.max() + 1, row.max() + 1) == CROPS[name]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["ddim", "gan", "squash"])
def test_is_pillows_bilinear_bit_for_bit(name: str, size: int) -> None:
    for seed in range(3):
        image = canvas(seed)
        theirs = Image.fromarray(image).crop(CROPS[name]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(ours(image, PROTOCOLS[name], size), np.asarray(theirs))


@pytest.mark.parametrize("size", SIZES)
def test_score_sde_is_the_triangle_filter_rounded_once(size: int) -> None:
    for seed in range(3):
        image = canvas(seed)
        left, upper, right, lower = CROPS["score-sde"]
        part = image[upper:lower, left:right].astype(np.float64)
        exact = triangle_filter(triangle_filter(part, size).swapaxes(0, 1), size).swapaxes(0, 1)
        # Half a level is the rounding itself; float32 adds next to nothing.
        assert np.abs(ours(image, PROTOCOLS["score-sde"], size) - exact).max() < 0.5 + 1e-3


@pytest.mark.parametrize(
    ("size", "recorded"),
    [
        (64, "0e67a831cf2a8481f198605a1d32fcad2e5de20b2bef127c3bff36a3fcc78149"),
        (32, "4c894d9147fc9bf74995d0d4c704017482624136a39d2ecf138ca1deec0ebd45"),
    ],
)
def test_score_sde_has_the_pixels_of_all_shards_so_far(size: int, recorded: str) -> None:
    """Sums in another order differ in some of the 2,457,600 levels of size 64."""
    images = np.random.default_rng(0).integers(0, 256, (200, 140, 140, 3), dtype=np.uint8)
    found = hashlib.sha256()
    for image in images:
        found.update(resize(image, size, "float").tobytes())
    assert found.hexdigest() == recorded


def two_neighbours(values: np.ndarray, size: int) -> np.ndarray:
    """Bilinear without antialiasing along axis 0, straight from its definition, in float64."""
    length = len(values)
    place = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
    low = np.floor(place).astype(int)
    share = (place - low)[:, None, None]
    return values[low] * (1 - share) + values[np.minimum(low + 1, length - 1)] * share


@pytest.mark.parametrize("size", SIZES)
def test_adm_ip_is_bilinear_without_antialiasing(size: int) -> None:
    for seed in range(3):
        image = canvas(seed)
        exact = two_neighbours(two_neighbours(image.astype(float), size).swapaxes(0, 1), size).swapaxes(0, 1)
        # OpenCV's 8-bit arithmetic drops a few bits on the way.
        assert np.abs(ours(image, PROTOCOLS["adm-ip"], size) - exact).max() < 1.0


def test_the_protocols_differ_from_one_another() -> None:
    image = canvas(0)
    results = [ours(image, protocol, 64).astype(int) for protocol in PROTOCOLS.values() if not protocol.fast_dct]
    for i, one in enumerate(results):
        assert all(np.abs(one - other).mean() > 0.5 for other in results[:i])


ODD_SHAPES = [(1, 1), (1, 300), (500, 3), (31, 64), (64, 31), (1000, 900), (80, 64), (81, 65), (120, 97), (45, 33)]


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_any_shape_is_pillows_too(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize(image, 32, "pil").transpose(1, 2, 0), theirs)
    exact = triangle_filter(triangle_filter(image.astype(float), 32).swapaxes(0, 1), 32).swapaxes(0, 1)
    assert np.abs(resize(image, 32, "float").transpose(1, 2, 0) - exact).max() < 0.5 + 1e-3


@pytest.mark.parametrize("name", ["ddim", "score-sde", "gan"])
def test_another_canvas_is_refused_with_both_sizes(name: str) -> None:
    with pytest.raises(ValueError, match="found 64 x 65 pixels, expected 178 x 218"):
        crop(np.zeros((65, 64, 3), np.uint8), PROTOCOLS[name])
