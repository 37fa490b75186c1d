"""Names of the choices of an evaluation, without its code: params.py needs no more."""

from typing import Literal

from unveil.evaluation.metrics.registry import LEAST_IMAGES, MetricName

__all__ = ["LEAST_IMAGES", "UNDAMAGED", "ControlName", "FeatureName", "MetricName"]

FeatureName = Literal["efficientnet-lite0", "inception", "dinov2", "clip", "vgg16"]
UNDAMAGED = "undamaged"
"""Name, among the controls, of the same real images as they are."""
ControlName = Literal["jpeg75", "blur", "noisy", "other_protocol"]
