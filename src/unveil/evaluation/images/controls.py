"""Controls: real held-out images with one mistake, so that a distance says what the mistake costs.

Each function maps uint8 [N, 3, H, W] to uint8 [N, 3, H, W] and leaves its input alone. ``CONTROLS`` are made of the
pixels; ``reread`` takes the same images from the raw archive again, by another protocol.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from unveil.data.celeba import CANVAS, PARTITION_FILE, ZIP_NAME, image_member, image_number, read_partition
from unveil.data.images import open_zip, read_member
from unveil.data.order import spread
from unveil.data.preprocess import decode
from unveil.data.protocols import PROTOCOLS, Protocol
from unveil.data.resampling import crop, resize
from unveil.data.shards import ShardIndex
from unveil.data.sources.facts import SOURCE_FILE, SourceRecord
from unveil.errors import UnveilError
from unveil.seeds import image_seed

AT_ONCE = 128  # images that are held as floats, or at full size
COMPARED = 16  # images by which an archive is recognised


def jpeg(images: Tensor, quality: int = 75) -> Tensor:
    """The images after a JPEG file: Pillow's encoder, in memory, with its default subsampling of colour, 4:2:0.

    ``quality`` is the Independent JPEG Group's scale: the example tables of the standard (ITU-T T.81, annex K), by
    which the coefficients are divided and rounded, times 50 / quality below 50 and 2 - quality / 50 from there on.
    At 75, Pillow's default, they are halved.

    Raises ValueError for a quality outside 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}, expected 1 to 100")
    return _through_file(images, "JPEG", quality=quality)


def png(images: Tensor) -> Tensor:
    """The images after a PNG file, which loses nothing."""
    return _through_file(images, "PNG")


def _through_file(images: Tensor, kind: str, **options: int) -> Tensor:
    found = torch.empty_like(images)
    for row, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, kind, **options)
        with Image.open(file) as picture:
            found[row] = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return found


def blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian blur with a standard deviation of ``sigma`` pixels, rounded to whole levels.

    SciPy's, in float64. Weights end four standard deviations away; beyond the border the nearest pixel goes on.

    Raises ValueError for a sigma that is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected > 0")
    found = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE].numpy().astype(np.float64)
        found[start : start + AT_ONCE] = np.rint(gaussian_filter(part, (0, 0, sigma, sigma), mode="nearest"))
    return torch.from_numpy(found)


def noise(images: Tensor, sigma: float = 25.0, seed: int = 0) -> Tensor:
    """Gaussian noise of standard deviation ``sigma``, in levels of 0 .. 255, rounded and clipped.

    The noise of image i is a function of (seed, i) alone.

    Raises ValueError for a sigma below 0.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma is {sigma}, expected >= 0")
    found = torch.empty_like(images)
    for row, image in enumerate(images):
        generator = np.random.default_rng(image_seed("control", seed, row))
        added = torch.from_numpy(generator.standard_normal(tuple(image.shape), np.float32))
        found[row] = (image + sigma * added).round().clamp(0, 255).to(torch.uint8)
    return found


@dataclass(frozen=True)
class Control:
    """One mistake, made on purpose."""

    title: str
    """For tables."""
    mistake: str
    """What it stands for, one sentence for the evaluation card."""
    make: Callable[[Tensor, int], Tensor]
    """(images, seed) to images."""


CONTROLS: Mapping[str, Control] = {
    "jpeg75": Control(
        "JPEG, quality 75",
        "The samples or the reference were saved as JPEG, at Pillow's default quality.",
        lambda images, seed: jpeg(images, 75),
    ),
    "blur": Control(
        "Gaussian blur, sigma 1 pixel",
        "The images are soft: another resize filter, or a decoder that smooths.",
        lambda images, seed: blur(images, 1.0),
    ),
    "noisy": Control(
        "Gaussian noise, sigma 25/255",
        "The sampler stopped before all noise was removed.",
        lambda images, seed: noise(images, 25.0, seed),
    ),
}
"""The controls that need no archive, by name: its metric is called ``fid_<name>``."""

REREAD = "other_protocol"
"""Name of the control that ``reread`` makes."""


def other_protocol(protocol: str, canvas: tuple[int, int] | None = CANVAS) -> str:
    """The protocol that a careless reader would have taken in the place of ``protocol``.

    That is ``squash``, torchvision's ``Resize((n, n))``; where it is the right one, ``ddim``, or ``adm-ip`` for images
    of another canvas than CelebA's, of which no protocol crops a part.
    """
    if protocol != "squash":
        return "squash"
    return "ddim" if canvas == CANVAS else "adm-ip"


def mistake_of(protocol: str, other: str) -> str:
    """What the control ``REREAD`` stands for, one sentence for the evaluation card."""
    return f"The images were prepared by the protocol {other} in the place of {protocol}."


def reread(raw: Path, index: ShardIndex, ids: Tensor, protocol: str) -> Tensor:
    """Images of the raw archive by a protocol, at the size of the shards, in the order of ``ids``.

    Which images there are does not change with the protocol, also where its ``train`` would hold all of them.

    ``raw`` is the folder that download wrote, ``ids`` int64 [N] are the numbers in the images' names, and ``protocol``
    is a key of ``PROTOCOLS``; the shards' own gives their pixels again. Returns uint8 [N, 3, size, size].

    Raises UnveilError if the archive is not there, of another source, has not these images or none that the protocol
    takes, or is damaged.
    """
    chosen = PROTOCOLS[protocol]
    size = index.image_size
    images = np.empty((len(ids), 3, size, size), np.uint8)
    for image, part in zip(images, read_crops(raw, index, ids, chosen), strict=True):
        image[:] = resize(part, size, chosen.resize)
    return torch.from_numpy(images)


def check_archive(raw: Path, index: ShardIndex, ids: Tensor, images: Tensor) -> None:
    """Read some images of the shards again by the shards' own protocol, and compare every pixel.

    ``raw`` is the folder that download wrote; ``images``, uint8 [N, 3, size, size], are the shards' of ``ids`` [N].

    Raises UnveilError if the archive is not the one that the shards were made of.
    """
    places = torch.from_numpy(spread(len(ids), min(COMPARED, len(ids))))
    again = reread(raw, index, ids[places], index.protocol)
    same = (again == images[places]).flatten(1).all(dim=1)
    if not same.all():
        first = int(ids[places][~same][0])
        raise UnveilError(
            f"{raw / ZIP_NAME}: image {first} is not the one in the shards, expected the archive that they were made "
            "of; run `dvc repro preprocess`, or `dvc checkout` to get that archive back"
        )


def read_crops(raw: Path, index: ShardIndex, ids: Tensor, protocol: Protocol) -> Iterator[NDArray[np.uint8]]:
    """The protocol's part of images of the raw archive, before any resize: uint8 [h, w, 3] each, in order of ``ids``.

    Arguments and errors as of ``reread``.
    """
    record = SourceRecord.load(raw)
    if record.source != index.source:
        raise UnveilError(
            f"{raw / SOURCE_FILE}: source is {record.source!r}, but the shards are of {index.source!r}; "
            "run `dvc repro preprocess`"
        )
    path, by_id = raw / ZIP_NAME, {image_number(name): name for name in read_partition(raw)[0]}
    if missing := [number for number in ids.tolist() if number not in by_id]:
        raise UnveilError(
            f"{raw / PARTITION_FILE}: has no image {missing[0]}, which the shards hold; run `dvc repro preprocess`"
        )
    mend = "run the download stage again"
    with open_zip(path, mend) as archive:
        for name in map(by_id.__getitem__, ids.tolist()):
            try:
                image = decode(read_member(archive, image_member(name)), protocol.fast_dct)
            except ValueError as error:
                raise UnveilError(f"{path}: {name} cannot be used ({error}); {mend}") from None
            try:
                yield crop(image, protocol)
            except ValueError as error:
                raise UnveilError(f"{path}: {error}") from None
