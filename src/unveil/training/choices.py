"""Names of the choices that params.yaml has for training."""

from typing import Literal

OptimizerName = Literal["adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "inverse-sqrt"]
