"""Every protocol against somebody else's crop and resize."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.protocols import PROTOCOLS, Protocol, crop, resize, resize_all

CROPS = {  # left, upper, right, lower, as the published code of each has it
    "ddim": (25, 57, 153, 185),
    "score-sde": (19, 39, 159, 179),
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
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    (result,) = resize_all([crop(tensor, protocol)], size, protocol.resize)
    assert result.dtype == torch.uint8
    return result.permute(1, 2, 0).numpy()


def triangle_filter(values: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear along axis 0, straight from its definition, in float64."""
    length = len(values)
    scale = max(length / size, 1)
    centres = (np.arange(size) + 0.5) * length / size
    distances = np.abs(np.arange(length)[None] + 0.5 - centres[:, None]) / scale
    weights = np.clip(1 - distances, 0, None)
    return np.tensordot(weights / weights.sum(1, keepdims=True), values, axes=1)


def test_the_five_of_the_design_are_there() -> None:
    assert set(PROTOCOLS) == set(CROPS)
    assert [name for name, protocol in PROTOCOLS.items() if protocol.images == "all"] == ["adm-ip"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_crops_what_is_published(name: str) -> None:
    rows, columns = torch.meshgrid(torch.arange(218), torch.arange(178), indexing="ij")
    part = crop(torch.stack([rows, columns, rows]), PROTOCOLS[name])
    corners = [part[1].min(), part[0].min(), part[1].max() + 1, part[0].max() + 1]
    assert tuple(int(value) for value in corners) == CROPS[name]


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


@pytest.mark.parametrize("size", SIZES)
def test_adm_ip_is_opencvs_bilinear(size: int) -> None:
    for seed in range(3):
        image = canvas(seed)
        theirs = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).astype(int)
        # OpenCV's own paths for different processors differ in the last bit.
        assert np.abs(ours(image, PROTOCOLS["adm-ip"], size) - theirs).max() <= 1


def test_the_protocols_differ_from_one_another() -> None:
    image = canvas(0)
    results = [ours(image, protocol, 64).astype(int) for protocol in PROTOCOLS.values()]
    for i, one in enumerate(results):
        assert all(np.abs(one - other).mean() > 0.5 for other in results[:i])


@pytest.mark.parametrize("how", ["pil", "float", "aliased"])
def test_a_batch_of_mixed_shapes_is_its_images_one_by_one(how: str) -> None:
    images = [torch.from_numpy(canvas(seed)).permute(2, 0, 1) for seed in range(12)]
    images = [image[:, : 100 + 7 * (i % 3)] for i, image in enumerate(images)]
    together = resize_all(images, 32, how)  # type: ignore[arg-type]
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(resize(image[None], 32, how)[0], result, rtol=0, atol=0)  # type: ignore[arg-type]
    assert resize_all([], 32, how).shape == (0, 3, 32, 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ddim", "score-sde", "gan"])
def test_another_canvas_is_refused_with_both_sizes(name: str) -> None:
    with pytest.raises(ValueError, match="found 64 x 65 pixels, expected 178 x 218"):
        crop(torch.zeros(3, 65, 64, dtype=torch.uint8), PROTOCOLS[name])
