"""When each sentence stands in card.json: what a reader should be warned of, and what was found out about copies.

The words are in ``sentences.yaml``.
"""

from typing import Any

from unveil.evaluation.card.published import INCEPTION, PUBLISHED_SAMPLES
from unveil.evaluation.features.published import FeatureSet
from unveil.evaluation.images.foreign import SampleFile
from unveil.evaluation.images.sets import SetSizes
from unveil.evaluation.metrics.copies import CopiesOfTraining, Duplicates, Share
from unveil.evaluation.metrics.uncertainty import LINE_FROM, FrechetBySize, least_for_limit
from unveil.parameter_file import package_data

WORDS: dict[str, dict[str, str]] = package_data(__package__, "sentences.yaml")


def notes_on(sizes: SetSizes, features: FeatureSet, shared: int = 0) -> list[str]:
    """What a reader of distances of so many images should be warned of.

    ``shared`` of the held-out images are among those of the reference.
    """
    smallest, least = min(
        (f"N = {sizes.samples:,}", sizes.samples),
        (f"The reference of {sizes.reference:,} images", sizes.reference),
        (f"The held-out set of {sizes.held_out:,} images", sizes.held_out),
        key=lambda named: named[1],
    )
    holds = {
        "shared": shared > 0,
        "few held out": sizes.held_out < sizes.samples,
        "singular": least <= features.dimension,
        "biased": features.name == INCEPTION and sizes.samples < PUBLISHED_SAMPLES,
    }
    facts = {"shared": shared, "dimension": features.dimension, "published": PUBLISHED_SAMPLES}
    return _said("notes", holds, sizes=sizes, smallest=smallest, **facts)


def on_limit(part: FrechetBySize, dimension: int) -> list[str]:
    """Why there is no limit for infinitely many samples, of so many features; nothing if there is one."""
    facts = {"least": least_for_limit(dimension), "line_from": LINE_FROM, "dimension": dimension}
    return _said("limit", {"none": part.infinity is None}, part=part, **facts)


def unknown_of(samples: SampleFile, unchecked: tuple[str, ...]) -> list[str]:
    """What another generator's samples do not say."""
    left_out = samples.facts.get("left_out")
    holds = {"unchecked": bool(unchecked), "left out": bool(left_out)}
    return _said("samples", holds, unchecked=", ".join(unchecked), left_out=left_out)


def on_training(found: CopiesOfTraining) -> list[str]:
    """Whether the model returns training images, and what that rests on."""
    tests: dict[str, Any] = {name: _chance(getattr(found, name)) for name in ("equal", "standing_out", "nearer")}
    nearest = (
        WORDS["nearest"]["quantile"].format(quantile=quantile, share=share, chance=_chance(share))
        for quantile, share in found.nearest.items()
    )
    towards = found.towards_training
    holds = {
        "towards": towards is not None,
        "shared": found.shared > 0,
        "equal held out": found.equal_held_out > 0,
        "few held out": found.num_held_out < found.num_samples,
    }
    more = _said("more on training", holds, found=found, towards="" if towards is None else _chance(towards))
    return [verdict(found), *_said("training", found=found, **tests), *nearest, *more]


def verdict(found: CopiesOfTraining) -> str:
    """Whether samples are copies of training images, with the reason: the first that holds."""
    holds = {
        "shared": found.shared > 0,
        "memorized": found.memorized is True,
        "undecided": found.memorized is None,
        "nearer": found.nearer_than_held_out,
        "equal": found.equal.found > 0,
        "none": True,
    }
    return _said("verdict", holds, found=found)[0]


def on_duplicates(found: Duplicates) -> list[str]:
    """Whether the model returns the same image again and again, and what that rests on."""
    holds = {"duplicated": found.duplicated, "not duplicated": not found.duplicated, "weak": found.num_nearest == 1}
    return _said("duplicates", holds, found=found, near=_chance(found.near))


def _said(about: str, holds: dict[str, bool] | None = None, **facts: Any) -> list[str]:
    """The sentences on this, without those of which ``holds`` is false."""
    return [text.format(**facts) for name, text in WORDS[about].items() if (holds or {}).get(name, True)]


def _chance(share: Share) -> str:
    return f"p = {share.p:.2g}" if share.p >= 1e-4 else "p < 0.0001"
