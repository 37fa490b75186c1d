"""Pictures that people give, of any size: made into squares like those that a model was trained on, and masks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from unveil.data.celeba import CANVAS
from unveil.data.images import open_image
from unveil.data.preprocess import decode
from unveil.data.protocols import PROTOCOLS, Resize
from unveil.data.resampling import resize

WHITE = 128  # and above, of 255: what a mask has to be painted


@dataclass(frozen=True)
class Framing:
    """How a picture becomes a model's square.

    Attributes:
        picture: its width and height in pixels, upright.
        part: left, top, width and height of what is taken.
        how: the resize; None = the part has the model's size.
        size: height and width of the square.
        words: what is done.
    """

    picture: tuple[int, int]
    part: tuple[int, int, int, int]
    how: Resize | None
    size: int
    words: str

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Uint8 [H, W, 3] of the picture to [3, size, size]."""
        left, top, width, height = self.part
        taken = pixels[top : top + height, left : left + width]
        return np.array(taken.transpose(2, 0, 1) if self.how is None else resize(taken, self.size, self.how))


def framing(picture: tuple[int, int], protocol: str | None, size: int) -> Framing:
    """How a picture is framed for a model of a protocol.

    One of the model's size is taken as it is; one of CelebA's canvas as the protocol says, so that an image of the data
    is the one that the model saw; of any other the middle square, resized as protocol squash does.

    >>> framing((400, 300), "ddim", 64).words
    'its central 300 x 300 pixels resized to 64 x 64 as protocol squash does'
    """
    width, height = picture
    if picture == (size, size):
        return Framing(picture, (0, 0, size, size), None, size, "taken as it is")
    if picture == CANVAS and protocol in PROTOCOLS:
        chosen = PROTOCOLS[protocol]
        words = f"cropped and resized to {size} x {size} as protocol {protocol} does"
        return Framing(picture, chosen.crop or (0, 0, width, height), chosen.resize, size, words)
    side = min(picture)
    middle = "" if width == height else f"its central {side} x {side} pixels "
    part = ((width - side) // 2, (height - side) // 2, side, side)
    words = f"{middle}resized to {size} x {size} as protocol squash does"
    return Framing(picture, part, PROTOCOLS["squash"].resize, size, words)


def frame_image(content: bytes, protocol: str | None, size: int) -> tuple[NDArray[np.uint8], Framing, str]:
    """An encoded image as a model takes it: uint8 [3, size, size], how it was framed, and in words all that was done.

    It is turned upright as its EXIF data say. What is transparent becomes white.

    Raises:
        ValueError: in a few words, if the bytes are not a whole image.
    """
    fast = protocol in PROTOCOLS and PROTOCOLS[protocol].fast_dct
    pixels, turned = _upright(content, "white", fast)
    height, width, _ = pixels.shape
    frame = framing((width, height), protocol, size)
    return frame.apply(pixels), frame, f"{width} x {height} pixels, {'turned upright, ' * turned}{frame.words}"


def frame_mask(content: bytes, image: Framing) -> NDArray[np.bool_]:
    """An encoded mask as bool [size, size]: True where it is white, which is what is to be painted.

    It has the size of the image, and is framed as that was, or the model's. What is transparent is black.

    Raises:
        ValueError: in a few words, if it is no image, of another size, or nowhere white.
    """
    pixels, _ = _upright(content, "black")
    height, width, _ = pixels.shape
    square = (image.size, image.size)
    if (width, height) not in (image.picture, square):
        sizes = " or ".join("{} x {}".format(*size) for size in dict.fromkeys((image.picture, square)))
        raise ValueError(f"found {width} x {height} pixels, expected {sizes}, the size of the image or the model's")
    framed = pixels.transpose(2, 0, 1) if (width, height) == square else image.apply(pixels)
    mask: NDArray[np.bool_] = framed.mean(axis=0) >= WHITE
    if not mask.any():
        raise ValueError("found no white pixel in the part that the model takes, expected white where to paint")
    return mask


def _upright(content: bytes, behind: str, fast_dct: bool = False) -> tuple[NDArray[np.uint8], bool]:
    """Pixels [H, W, 3] of an encoded image, before a colour where it is transparent, and whether it was turned."""
    with open_image(content) as opened:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        if opened.has_transparency_data:
            clear = opened.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", clear.size, behind), clear).convert("RGB")
        else:
            image = Image.fromarray(decode(content, fast_dct))
    turned = orientation in range(2, 9)
    if turned:
        image.getexif()[ExifTags.Base.Orientation] = orientation
        image = ImageOps.exif_transpose(image)
    return np.asarray(image), turned
