"""Makes small archives in the published CelebA format, without the code under test."""

import io
import zipfile
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
    rng = np.random.default_rng(seed)
    names = [f"{number:06d}.jpg" for number in range(1, num_images + 1)]
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member(""), b"")
        for name in names:
            archive.writestr(_member(name), jpeg(face(rng)), zipfile.ZIP_DEFLATED)

    signs = rng.choice([-1, 1], (num_images, 40))
    rows = [name + "".join(f" {sign:2d}" for sign in row) for name, row in zip(names, signs, strict=True)]
    _write(folder / "list_attr_celeba.txt", [str(num_images), NAMES_OF_ATTRIBUTES + " ", *rows])

    held_out = max(1, num_images // 5)
    partition = [0] * (num_images - 2 * held_out) + [1] * held_out + [2] * held_out
    rows = [f"{name} {value}" for name, value in zip(names, partition, strict=True)]
    _write(folder / "list_eval_partition.txt", rows, end="\r\n")

    identities = rng.integers(1, 10_178, num_images)
    rows = [f"{name} {value}" for name, value in zip(names, identities, strict=True)]
    _write(folder / "identity_CelebA.txt", rows)

    boxes = rng.integers(1, 400, (num_images, 4))
    rows = [name + "".join(f" {value:3d}" for value in row) for name, row in zip(names, boxes, strict=True)]
    _write(folder / "list_bbox_celeba.txt", [str(num_images), "image_id x_1 y_1 width height", *rows])

    points = np.array([*EYES, (88, 135), (72, 152), (106, 152)]).reshape(-1)
    landmarks = points + rng.integers(-2, 3, (num_images, 10))
    rows = [name + "".join(f" {value:4d}" for value in row) for name, row in zip(names, landmarks, strict=True)]
    parts = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    heading = " ".join(f"{part}_{axis}" for part in parts for axis in "xy")
    _write(folder / "list_landmarks_align_celeba.txt", [str(num_images), heading, *rows])
    return folder


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date, so that the archive is the same at any time."""
    return zipfile.ZipInfo(f"img_align_celeba/{name}", (2015, 9, 28, 12, 0, 0))


def _write(path: Path, lines: list[str], end: str = "\n") -> None:
    path.write_bytes("".join(line + end for line in lines).encode())
