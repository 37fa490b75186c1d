"""Makes small archives in the published CelebA format, without the code under test."""

import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 178, 218
EYES = ((69, 111), (108, 111))
NAMES_OF_ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair "
    "Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup "
    "High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose "
    "Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat "
    "Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
)


def face(rng: np.random.Generator) -> Image.Image:
    """A head with eyes and a mouth in CelebA's places, in random colours, under a little noise."""
    colours = [tuple(int(value) for value in rng.integers(30, 230, 3)) for _ in range(4)]
    image = Image.new("RGB", (WIDTH, HEIGHT), colours[0])
    draw = ImageDraw.Draw(image)
    draw.ellipse((36, 40, 142, 190), fill=colours[1])
    for x, y in EYES:
        draw.ellipse((x - 8, y - 5, x + 8, y + 5), fill=colours[2])
    draw.arc((66, 138, 112, 166), 20, 160, fill=colours[3], width=5)
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """The image as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make_celeba(folder: Path, num_images: int = 24, seed: int = 0) -> Path:
    """Write ``img_align_celeba.zip`` (178 x 218 JPEGs) and the five annotation files into ``folder``.

    The text files are as mixed as the published ones: line ends of both kinds, a trailing space, columns of
    different widths, ``image_id`` in one heading only. About 3/5, 1/5 and 1/5 of the images are train, valid
    and test, in this order, as in CelebA. Equal arguments give equal bytes.

    Returns:
        ``folder``, which is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _celeba(num_images, seed).items():
        (folder / name).write_bytes(content)
    return folder


@cache  # many tests need the same one
def _celeba(num_images: int, seed: int) -> dict[str, bytes]:
    """The files by their names."""
    rng = np.random.default_rng(seed)
    names = [f"{number:06d}.jpg" for number in range(1, num_images + 1)]
    images = io.BytesIO()
    with zipfile.ZipFile(images, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member(""), b"")
        for name in names:
            archive.writestr(_member(name), jpeg(face(rng)), zipfile.ZIP_DEFLATED)

    signs = rng.choice([-1, 1], (num_images, 40))
    attributes = [name + "".join(f" {sign:2d}" for sign in row) for name, row in zip(names, signs, strict=True)]

    held_out = max(1, num_images // 5)
    partition = [0] * (num_images - 2 * held_out) + [1] * held_out + [2] * held_out
    identities = rng.integers(1, 10_178, num_images)
    box_values = rng.integers(1, 400, (num_images, 4))
    boxes = [name + "".join(f" {value:3d}" for value in row) for name, row in zip(names, box_values, strict=True)]

    points = np.array([*EYES, (88, 135), (72, 152), (106, 152)]).reshape(-1)
    places = points + rng.integers(-2, 3, (num_images, 10))
    landmarks = [name + "".join(f" {value:4d}" for value in row) for name, row in zip(names, places, strict=True)]
    parts = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    heading = " ".join(f"{part}_{axis}" for part in parts for axis in "xy")
    return {
        "img_align_celeba.zip": images.getvalue(),
        "list_attr_celeba.txt": _text([str(num_images), NAMES_OF_ATTRIBUTES + " ", *attributes]),
        "list_eval_partition.txt": _text([f"{n} {value}" for n, value in zip(names, partition, strict=True)], "\r\n"),
        "identity_CelebA.txt": _text([f"{n} {value}" for n, value in zip(names, identities, strict=True)]),
        "list_bbox_celeba.txt": _text([str(num_images), "image_id x_1 y_1 width height", *boxes]),
        "list_landmarks_align_celeba.txt": _text([str(num_images), heading, *landmarks]),
    }


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date, so that the archive is the same at any time."""
    return zipfile.ZipInfo(f"img_align_celeba/{name}", (2015, 9, 28, 12, 0, 0))


def _text(lines: list[str], end: str = "\n") -> bytes:
    return "".join(line + end for line in lines).encode()
