"""Pictures that people give: framed as the model's data were, upright, and refused in a few words."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from tests.data.bad_files import BOMBS

from unveil.data.given import frame_image, frame_mask, framing
from unveil.data.preprocess import decode
from unveil.data.protocols import PROTOCOLS
from unveil.data.resampling import crop, resize

SIZE = 16


def pixels_of(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image | NDArray[np.uint8], kind: str = "PNG", **how: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **how)
    return stream.getvalue()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_image_of_the_data_is_the_one_that_the_model_saw(name: str) -> None:
    content = encoded(pixels_of(178, 218), "JPEG")
    found, _, words = frame_image(content, name, SIZE)
    protocol = PROTOCOLS[name]
    expected = resize(crop(decode(content, protocol.fast_dct), protocol), SIZE, protocol.resize)
    assert np.array_equal(found, expected)
    assert words == f"178 x 218 pixels, cropped and resized to 16 x 16 as protocol {name} does"


@pytest.mark.parametrize("name", ["ddim", "unknown", None])
def test_an_image_of_the_models_size_is_taken_as_it_is(name: str | None) -> None:
    pixels = pixels_of(SIZE, SIZE)
    found, _, words = frame_image(encoded(pixels), name, SIZE)
    assert np.array_equal(found, pixels.transpose(2, 0, 1)) and words == "16 x 16 pixels, taken as it is"


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(100, 60, 20, 0), (61, 100, 0, 19), (40, 40, 0, 0), (1, 1, 0, 0), (3, 9, 0, 3)]
)
def test_of_another_size_the_middle_is_squashed(width: int, height: int, left: int, top: int) -> None:
    pixels, side = pixels_of(width, height), min(width, height)
    found, _, words = frame_image(encoded(pixels), "ddim", SIZE)
    assert np.array_equal(found, resize(pixels[top : top + side, left : left + side], SIZE, "pil"))
    assert words.endswith("resized to 16 x 16 as protocol squash does") and ("central" in words) == (width != height)


def test_a_model_without_a_protocol_takes_the_middle_of_the_canvas_too() -> None:
    assert framing((178, 218), None, SIZE).part == (0, 20, 178, 178)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_are_turned_as_their_exif_data_say(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(pixels_of(178, 218), kind, exif=exif)
    found, frame, words = frame_image(content, "ddim", SIZE)
    turns = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}[orientation]
    upright = np.rot90(decode(content), turns[0])
    upright = upright[:, ::-1] if turns[1] else upright
    assert np.array_equal(found, frame.apply(np.ascontiguousarray(upright)))
    assert frame.picture == (upright.shape[1], upright.shape[0])
    assert ("turned upright" in words) == (orientation > 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixel_becomes_colour(mode: str) -> None:
    image = Image.fromarray(pixels_of(40, 50)).convert(mode)
    found, _, _ = frame_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), "ddim", SIZE)
    assert found.shape == (3, SIZE, SIZE) and found.dtype == np.uint8


def test_what_is_transparent_is_white_in_an_image_and_not_painted_by_a_mask() -> None:
    content = encoded(Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0)))
    found, frame, _ = frame_image(content, "ddim", SIZE)
    assert (found == 255).all()
    with pytest.raises(ValueError, match="found no white pixel"):
        frame_mask(content, frame)


def test_a_mask_is_framed_as_its_image_or_has_the_models_size() -> None:
    frame = framing((178, 218), "ddim", SIZE)
    large = np.zeros((218, 178, 3), np.uint8)
    large[57 : 57 + 64, 25:153] = 255  # the upper half of the protocol's part
    small = np.zeros((SIZE, SIZE, 3), np.uint8)
    small[: SIZE // 2] = 200
    upper = np.arange(SIZE)[:, None].repeat(SIZE, 1) < SIZE // 2
    for pixels in (large, small):
        assert np.array_equal(frame_mask(encoded(pixels), frame), upper)
    with pytest.raises(ValueError, match="found 20 x 20 pixels, expected 178 x 218 or 16 x 16, the size of the image"):
        frame_mask(encoded(pixels_of(20, 20)), frame)
    for dark in (np.zeros_like(large), np.where(large[::-1, ::-1] > 0, np.uint8(0), np.uint8(100))):
        with pytest.raises(ValueError, match="found no white pixel in the part that the model takes"):
            frame_mask(encoded(dark), frame)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(pixels_of(90, 90))[:-900], *BOMBS.values()])
def test_what_is_no_image_is_refused_in_a_few_words(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^.{5,200}$"):
        frame_image(content, "ddim", SIZE)
    with pytest.raises(ValueError, match=r"^.{5,200}$"):
        frame_mask(content, framing((178, 218), "ddim", SIZE))
