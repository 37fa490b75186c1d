"""The sentences that stand in card.json: what a reader should be warned of, and what was found out about copies."""

from unveil.evaluation.card.published import INCEPTION, PUBLISHED_SAMPLES
from unveil.evaluation.features.extraction import FeatureSet
from unveil.evaluation.images.sets import SampleFile, SetSizes
from unveil.evaluation.metrics.copies import CopiesOfTraining, Duplicates, Share
from unveil.evaluation.metrics.uncertainty import LINE_FROM, FrechetBySize, least_for_limit


def notes_on(sizes: SetSizes, features: FeatureSet, shared: int = 0) -> list[str]:
    """What a reader of distances of so many images should be warned of.

    ``shared`` of the held-out images are among those of the reference.
    """
    found = []
    if shared:
        found.append(
            f"{shared:,} of the {sizes.held_out:,} held-out images are in the reference too, because this "
            f"protocol trains on all images: the floor is too low, and the model has seen them."
        )
    if sizes.held_out < sizes.samples:
        found.append(
            f"The held-out split has only {sizes.held_out:,} images: the floor is at N = {sizes.held_out:,}, and "
            f"is higher than it would be at N = {sizes.samples:,}; the fraction is lower."
        )
    counts = {
        f"N = {sizes.samples:,}": sizes.samples,
        f"The reference of {sizes.reference:,} images": sizes.reference,
        f"The held-out set of {sizes.held_out:,} images": sizes.held_out,
    }
    what = min(counts, key=lambda name: counts[name])
    if counts[what] <= features.dimension:
        found.append(
            f"{what} is not above the {features.dimension:,} features, so covariances are singular: "
            f"compare the Fréchet distance with that of other models at these numbers of images only."
        )
    if features.name == INCEPTION and sizes.samples < PUBLISHED_SAMPLES:
        found.append(
            f"FID is biased upwards at small N: at N = {sizes.samples:,} it is larger than the same model's "
            f"FID at {PUBLISHED_SAMPLES:,}."
        )
    return found


def on_limit(part: FrechetBySize, dimension: int) -> list[str]:
    """Why there is no limit for infinitely many samples, of so many features; nothing if there is one."""
    if part.infinity is not None:
        return []
    return [
        f"no limit of the Fréchet distance for infinitely many samples: {part.sizes[0]:,} samples are fewer than "
        f"{least_for_limit(dimension):,}, {LINE_FROM} for each of the {dimension:,} features in the half of them, and "
        f"below that the bias is not yet a line in 1/N"
    ]


def unknown_of(samples: SampleFile, unchecked: tuple[str, ...]) -> list[str]:
    """What another generator's samples do not say."""
    found = []
    if unchecked:
        found.append(f"The samples do not say their {', '.join(unchecked)}, so these could not be compared.")
    if left_out := samples.facts.get("left_out"):
        found.append(f"Left out: {left_out}.")
    return found


def on_training(found: CopiesOfTraining) -> list[str]:
    """Whether the model returns training images, and what that rests on."""
    lines = [
        verdict(found),
        f"searched {found.num_training:,} of {found.training_total:,} training images",
        f"{found.equal.found:.2%} of samples equal a training image within rounding ({found.equal.expected:.2%} of "
        f"held-out images do, {_chance(found.equal)})",
        f"{found.standing_out.found:.2%} have a training image that is nearer, against the next ones, than that of "
        f"the first 1 % of held-out images (expected {found.standing_out.expected:.2%}, "
        f"{_chance(found.standing_out)})",
        f"{found.nearer.found:.1%} of samples are nearer to the training images than a held-out image is "
        f"(expected {found.nearer.expected:.0%}, {_chance(found.nearer)})",
    ]
    lines += [
        f"{share.found:.2%} are nearer than the nearest {quantile:.0%} of held-out images "
        f"(expected {share.expected:.2%}, {_chance(share)})"
        for quantile, share in found.nearest.items()
    ]
    if (share := found.towards_training) is not None:
        lines.append(
            f"of as many, those nearest to any of a lot of training and as many held-out images, {share.found:.1%} "
            f"are nearest to a training one (expected {share.expected:.1%}, {_chance(share)})"
        )
    return lines + _notes_on_training(found)


def verdict(found: CopiesOfTraining) -> str:
    """Whether samples are copies of training images, with the reason."""
    if found.shared:
        return "memorization: cannot be said"
    if found.memorized:
        return "memorized: samples are copies of training images more often than chance allows"
    if found.memorized is None:
        return (
            f"memorization: cannot be said: nothing was found, but only {found.num_training:,} of "
            f"{found.training_total:,} training images were searched (evaluate.reference_images: 0 takes all)"
        )
    if found.nearer_than_held_out:
        return (
            "not called memorized: samples are nearer to training images than held-out ones, but not more than to "
            "unseen faces: typical faces, or too few held-out images to tell"
        )
    if found.equal.found:
        return "not called memorized: some samples equal training images, but not more than chance allows"
    return "not memorized: no sign of copies of training images"


def _notes_on_training(found: CopiesOfTraining) -> list[str]:
    notes = []
    if found.shared:
        notes.append(
            f"{found.shared:,} of the {found.num_held_out:,} held-out images are training images, so they say "
            f"nothing of how near an unseen face is: take images that the model has not seen"
        )
    if zeros := found.equal_held_out:
        notes.append(
            f"{zeros:,} held-out images equal a training image within rounding: equal distances are ordered at random"
        )
    if found.num_held_out < found.num_samples:
        notes.append(
            f"only {found.num_held_out:,} held-out images for {found.num_samples:,} samples: the bounds are less "
            "certain"
        )
    return notes


def on_duplicates(found: Duplicates) -> list[str]:
    """Whether the model returns the same image again and again, and what that rests on."""
    lines = [
        "duplicated: samples repeat each other"
        if found.duplicated
        else "not duplicated: samples do not repeat each other more than held-out images do",
        f"{found.near.found:.2%} of samples have another one nearer, against the distances usual around them, than "
        f"the nearest 1 % of held-out images have "
        f"(expected {found.near.expected:.2%}, {_chance(found.near)}; {found.num_compared:,} of each)",
        f"{found.exact:,} of {found.num_samples:,} samples have an exact duplicate ({found.exact_held_out:,} of the "
        f"held-out images have one)",
    ]
    if found.num_nearest == 1:
        lines.append(f"the nearest 1 % of {found.num_compared:,} images is a single one, so this test is weak")
    return lines


def _chance(share: Share) -> str:
    return f"p = {share.p:.2g}" if share.p >= 1e-4 else "p < 0.0001"
