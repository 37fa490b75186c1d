"""The sets of images of an evaluation: four that every distance is made of, and held-out images with a mistake each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.data.order import spread
from unveil.data.shards import ShardIndex
from unveil.errors import UnveilError
from unveil.evaluation.choices import UNDAMAGED
from unveil.evaluation.images.controls import CONTROLS, REREAD, check_archive, mistake_of, other_protocol, reread
from unveil.evaluation.images.sets import SampleFile, SetSizes, digest, load_ids, real_parts, uniform_noise
from unveil.evaluation.metrics.measurement import HELD_OUT, NOISE, REFERENCE, SAMPLES, ImageSet


@dataclass(frozen=True)
class RealImages:
    """Where the real images are, and which are taken.

    Attributes:
        folder: of the shards.
        index: of the shards.
        splits: of the reference and of the held-out images.
        sizes: how many of each.
        held_out: the held-out ones, uint8 [M, 3, size, size].
    """

    folder: Path
    index: ShardIndex
    splits: tuple[str, str]
    sizes: SetSizes
    held_out: Tensor

    def facts(self, split: str, count: int) -> dict[str, Any]:
        """What decides which images of a split are taken."""
        return {"shards": [shard.sha256 for shard in self.index.shards(split)], "count": count}


@dataclass(frozen=True)
class Damaged:
    """Held-out images with a mistake.

    Attributes:
        sets: by the control's name.
        words: what each stands for, and the same images undamaged.
        left_out: why a control could not be made, a sentence each.
    """

    sets: dict[str, ImageSet]
    words: dict[str, str]
    left_out: tuple[str, ...]


def four_sets(real: RealImages, samples: SampleFile, seed: int) -> dict[str, ImageSet]:
    """Samples, reference, held-out images, and as much uniform noise as there are samples."""
    (reference, held_out), sizes, size = real.splits, real.sizes, real.index.image_size
    noise = {"noise": "uniform", "seed": seed, "count": sizes.samples, "size": size}
    return {
        SAMPLES: ImageSet("samples", {"sha256": samples.images_sha256}, sizes.samples, lambda: [samples.images]),
        HELD_OUT: ImageSet(
            f"real, {held_out} split",
            real.facts(held_out, sizes.held_out),
            sizes.held_out,
            lambda: [real.held_out],
        ),
        REFERENCE: ImageSet(
            f"real, {reference} split",
            real.facts(reference, sizes.reference),
            sizes.reference,
            lambda: real_parts(real.folder, real.index, reference, sizes.reference),
        ),
        NOISE: ImageSet("uniform noise", noise, sizes.samples, lambda: [uniform_noise(sizes.samples, size, seed)]),
    }


def damaged_sets(real: RealImages, raw: Path, names: Sequence[str], count: int, seed: int) -> Damaged:
    """Held-out images with the mistakes of these names.

    Args:
        real: the images.
        raw: folder of the archive, for another protocol; without it, or with another archive, that control is left out.
        names: keys of ``CONTROLS``, or ``REREAD``.
        count: images of each; 0, or more than there are = all held-out ones.
        seed: of what is random.
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
