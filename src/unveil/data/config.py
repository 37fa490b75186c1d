"""What the user says of the data: where the images come from, and what becomes of them."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Le

from unveil.section import Amount, Count, OpenShare, OptionalPath, Problem, Section, Seed

SourceName = Literal["cartoon", "celeba", "folder"]
ProtocolName = Literal["ddim", "score-sde", "score-sde-tf", "gan", "adm-ip", "squash"]
SplitName = Literal["train", "valid", "test"]
Loader = Literal["auto", "device", "stream"]


class Shares(Section):
    """Shares of the images."""

    train: OpenShare = 0.75
    """share to train on"""
    valid: OpenShare = 0.08
    """share to choose between models by"""
    test: OpenShare = 0.17
    """share that nothing is chosen by"""


class Cartoon(Section):
    """The embedded source: faces that are drawn."""

    num_faces: Annotated[int, Ge(100)] = 12_000
    """faces to draw"""
    seed: Seed = 0
    """another seed, other faces"""


class Celeba(Section):
    """CelebA as its authors published it."""

    path: OptionalPath = None
    """folder or img_align_celeba.zip on disk; null = $CELEBA_ROOT, then the network"""
    mirror: bool = True
    """whether it may come from a Hugging Face mirror if its own server fails"""


class Folder(Section):
    """Any photographs."""

    path: OptionalPath = None
    """folder of images, searched recursively; null = none"""
    attributes: OptionalPath = None
    """CSV: first column the file name, then any of CelebA's 40 attributes as 0/1 or -1/1; null = none"""


class Download(Section):
    """Where the images come from."""

    source: SourceName = "cartoon"
    """cartoon (drawn here, no network) | celeba | folder (any images)"""
    workers: Amount = 0
    """processes that draw or re-encode, 0 = all cores; never changes the result"""
    split: Shares = Shares()
    """shares of the images, for cartoon and folder (CelebA brings its own split); their sum is 1"""
    cartoon: Cartoon = Cartoon()
    """read if the source is cartoon"""
    celeba: Celeba = Celeba()
    """read if the source is celeba"""
    folder: Folder = Folder()
    """read if the source is folder"""

    def problems(self) -> Iterator[Problem]:
        """The shares must cover the images, and a folder must have a place."""
        total = self.split.train + self.split.valid + self.split.test
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            yield Problem("split", f"shares that sum to 1 (these sum to {total:.6g})")
        if self.source == "folder" and self.folder.path is None:
            yield Problem("folder.path", "the folder of images, because download.source is folder")


class Preprocess(Section):
    """From the archive to shards."""

    protocol: ProtocolName = "ddim"
    """crop and resize: ddim | score-sde | score-sde-tf | gan | adm-ip | squash (docs/protocols.md)"""
    image_size: Annotated[int, Ge(8), Le(1024)] = 64
    """height and width in pixels; a multiple of the network's downsampling"""
    shard_size: Count = 20_000
    """images a shard"""
    on_corrupt: Literal["error", "skip"] = "error"
    """error (stop) | skip (leave out, count and list); download obeys it for your own pictures"""
    workers: Amount = 0
    """threads that decode, 0 = all cores; never changes the result"""
