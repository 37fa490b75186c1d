"""The sets of images of an evaluation: four that every distance is made of, and held-out images with a mistake each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.data.order import spread
from unveil.data.shards import ShardIndex
from unveil.errors import UnveilError
from unveil.evaluation.images.controls import CONTROLS, REREAD, check_archive, mistake_of, other_protocol, reread
from unveil.evaluation.images.foreign import SampleFile, digest
from unveil.evaluation.images.sets import SetSizes, load_ids, real_parts, uniform_noise
from unveil.evaluation.metrics.measurement import HELD_OUT, NOISE, REFERENCE, SAMPLES, ImageSet
from unveil.evaluation.metrics.metric import UNDAMAGED


@dataclass(frozen=True)
class RealImages:
    """Where the real images are, and which are taken."""

    folder: Path
    index: ShardIndex
    splits: tuple[str, str]
    """Of the reference and of the held-out images."""
    sizes: SetSizes
    held_out: Tensor
    """uint8 [M, 3, size, size]."""

    def facts(self, split: str, count: int) -> dict[str, Any]:
        """What decides which images of a split are taken."""
        return {"shards": [shard.sha256 for shard in self.index.shards(split)], "count": count}


@dataclass(frozen=True)
class Damaged:
    """Held-out images with a mistake."""

    sets: dict[str, ImageSet]
    """By the control's name."""
    words: dict[str, str]
    """What each stands for, and the same images undamaged."""
    left_out: tuple[str, ...]
    """Why a control could not be made, a sentence each."""


def four_sets(real: RealImages, samples: SampleFile, seed: int) -> dict[str, ImageSet]:
    """Samples, reference, held-out images, and as much uniform noise as there are samples."""
    (reference, held_out), sizes, size = real.splits, real.sizes, real.index.image_size
    noise = {"noise": "uniform", "seed": seed, "count": sizes.samples, "size": size}

    def split(name: str, count: int, parts: Callable[[], Iterable[Tensor]]) -> ImageSet:
        return ImageSet(f"real, {name} split", real.facts(name, count), count, parts)

    return {
        SAMPLES: ImageSet("samples", {"sha256": samples.images_sha256}, sizes.samples, lambda: [samples.images]),
        HELD_OUT: split(held_out, sizes.held_out, lambda: [real.held_out]),
        REFERENCE: split(
            reference, sizes.reference, lambda: real_parts(real.folder, real.index, reference, sizes.reference)
        ),
        NOISE: ImageSet("uniform noise", noise, sizes.samples, lambda: [uniform_noise(sizes.samples, size, seed)]),
    }


def damaged_sets(real: RealImages, raw: Path, names: Sequence[str], count: int, seed: int) -> Damaged:
    """Held-out images with the mistakes of these names.

    ``raw`` is the folder of the archive, for another protocol: without it, or with another archive, that control is
    left out. ``names`` are keys of ``CONTROLS``, or ``REREAD``. ``count`` images of each; 0, or more than there are =
    all.
    """
    split, index = real.splits[1], real.index
    count = min(count or len(real.held_out), len(real.held_out))
    places = torch.from_numpy(spread(len(real.held_out), count))
    chosen = real.held_out[places]
    base = real.facts(split, real.sizes.held_out) | {"of": count}
    sets: dict[str, ImageSet] = {}
    words: dict[str, str] = {}
    left_out = []

    def add(name: str, title: str, facts: Mapping[str, Any], make: Callable[[], Tensor]) -> None:
        # By its pixels, which another version of an encoder or of this code changes: the network is what costs.
        sets[name] = ImageSet(title, base | dict(facts) | {"sha256": digest(make())}, count, lambda: [make()])

    for name in names:
        if name != REREAD:
            control = CONTROLS[name]
            add(name, control.title, {"control": control.title, "seed": seed}, partial(control.make, chosen, seed))
            words[name] = f"{control.title}. {control.mistake}"
            continue
        other = other_protocol(index.protocol)
        ids = load_ids(real.folder, index, split, real.sizes.held_out)[places]
        try:
            check_archive(raw, index, ids, chosen)
        except UnveilError as error:
            left_out.append(f"The control {name} was left out: {error}.")
            continue
        add(name, f"protocol {other}", {"protocol": other}, partial(reread, raw, index, ids, other))
        words[name] = mistake_of(index.protocol, other)
    if sets:
        words[UNDAMAGED] = f"The same {count:,} images as they are."
    return Damaged(sets, words, tuple(left_out))
