"""Names of the choices of an evaluation, without its code: params.py needs no more."""

from typing import Literal

FeatureName = Literal["efficientnet-lite0", "inception", "dinov2", "clip", "vgg16"]
MetricName = Literal["frechet", "kernel", "inception-score", "precision-recall", "density-coverage", "memorization"]
LEAST_IMAGES: dict[MetricName, int] = {
    "frechet": 2,
    "kernel": 4,
    "precision-recall": 4,
    "density-coverage": 6,
    "inception-score": 10,
    "memorization": 2,
}
"""Images that a set needs for a metric to be defined."""
ControlName = Literal["jpeg75", "blur", "noisy", "other_protocol"]
