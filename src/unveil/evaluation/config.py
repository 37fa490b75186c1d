"""What the user says of the evaluation."""

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Le, Len

from unveil.data.config import SplitName
from unveil.evaluation.metrics.registry import LEAST_IMAGES, MetricName
from unveil.section import LISTED, Amount, Count, Device, NonNegative, OptionalPath, Problem, Section, Seed

FeatureName = Literal["efficientnet-lite0", "inception", "dinov2", "clip", "vgg16"]
ControlName = Literal["jpeg75", "blur", "noisy", "other_protocol"]
LEAST_SPLITS = 10  # for an interval


class Evaluation(Section):
    """Which sets are compared, on which features."""

    features: Annotated[tuple[FeatureName, ...], LISTED, Len(1)] = ("inception",)
    """efficientnet-lite0 (ships in a package) | inception (FID) | dinov2 | clip | vgg16; weights from disk or network;
    each gives its own distances"""
    weights: OptionalPath = None
    """folder of their weights, or the file of the only one; null = $UNVEIL_WEIGHTS, then the network"""
    metrics: Annotated[tuple[MetricName, ...], LISTED, Len(1)] = (
        "frechet",
        "kernel",
        "inception-score",
        "precision-recall",
        "density-coverage",
        "memorization",
    )
    """frechet | kernel | inception-score (features inception) | precision-recall | density-coverage | memorization |
    classification-accuracy (of sample.attributes [data])"""
    num_images: Annotated[int, Ge(2)] = 50_000
    """N: samples, noise and held-out images (of these all, if their split has fewer)"""
    reference_images: Amount = 0
    """images of the reference split; 0 = all of them, as published FIDs do"""
    reference_split: SplitName = "train"
    """what the samples are compared with: train | valid | test"""
    held_out_split: SplitName = "test"
    """another split, the floor: train | valid | test"""
    batch_size: Count = 256
    """images at once through the feature network, on CUDA only: a CPU takes 4 at once"""
    device: Device = "auto"
    """auto (cuda if there is one) | cpu | cuda"""
    seed: Seed = 0
    """of the noise control and of all subsets"""
    controls: Annotated[tuple[ControlName, ...], LISTED] = ("jpeg75", "blur", "noisy", "other_protocol")
    """held-out images with a mistake: jpeg75 (JPEG of quality 75) | blur | noisy | other_protocol"""
    control_images: Amount = 500
    """held-out images for each of them, at most as many as the floor has; 0 = as many"""
    interval_splits: Annotated[int, Ge(0), Le(1000)] = 10
    """random halvings of the samples, 10 or more, for 95 % intervals and the extrapolation to infinite N (1911.07023);
    0 = neither"""
    cache_gib: NonNegative = 10.0
    """of features in .unveil/features, in GiB: the oldest go first; 0 = none are kept"""
    kid_subsets: Count = 100
    """random subsets (Binkowski et al., 1801.01401)"""
    kid_subset_size: Annotated[int, Ge(2)] = 1000
    """images a subset, at most those of the smallest set"""

    def problems(self) -> Iterator[Problem]:
        """A floor needs two different splits, and a subset needs enough images."""
        if self.held_out_split == self.reference_split:
            others = " | ".join(name for name in get_args(SplitName) if name != self.reference_split)
            yield Problem("held_out_split", f"{others}, another one than evaluate.reference_split")
        for key in ("features", "metrics", "controls"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                yield Problem(key, "each name once")
        if "inception-score" in self.metrics and "inception" not in self.features:
            yield Problem("metrics", "no inception-score, which needs inception among evaluate.features")
        if "memorization" in self.metrics and self.reference_split != "train":
            yield Problem("metrics", "no memorization, which needs evaluate.reference_split train")
        if set(self.metrics) == {"classification-accuracy"}:
            yield Problem("metrics", "another one too, which the card is about")
        asks = max(self.metrics, key=lambda name: LEAST_IMAGES[name])
        if self.controls and 0 < self.control_images < LEAST_IMAGES[asks]:
            yield Problem("control_images", f"0, or {LEAST_IMAGES[asks]} or more for {asks}")
        if 0 < self.interval_splits < LEAST_SPLITS:
            yield Problem("interval_splits", f"0, or {LEAST_SPLITS} to 1000")
        for key, count in (("num_images", self.num_images), ("reference_images", self.reference_images)):
            if 0 < count < self.kid_subset_size:
                yield Problem("kid_subset_size", f"at most evaluate.{key}, {count}")
