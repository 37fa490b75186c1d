"""Names of the choices of an evaluation, without its code: params.py needs no more."""

from typing import Literal

FeatureName = Literal["efficientnet-lite0", "inception", "dinov2", "clip", "vgg16"]
MetricName = Literal["frechet", "kernel", "inception-score", "precision-recall", "density-coverage", "memorization"]
ControlName = Literal["jpeg75", "blur", "noisy", "other_protocol"]
