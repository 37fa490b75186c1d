"""How an average of a model's weights is named, in params.yaml and on the command line."""

import re
from typing import Literal, NamedTuple

from unveil.section import GREATEST_DEVIATION, LEAST_DEVIATION

WEIGHTS = "ema | half-life:N | power:S | snapshot:N"
"""How the weights to sample with are named."""


class WeightsChoice(NamedTuple):
    """Which average of the weights is meant.

    Attributes:
        kind: ``ema``, the model's own; ``half-life``, another that was stored; ``power``, reconstructed;
            ``snapshot``, the shortest power-function average as it was stored in the middle of the training.
        value: of ``half-life`` images; of ``power`` the relative standard deviation; of ``snapshot`` the images seen by
            then; of ``ema`` 0.
    """

    kind: Literal["ema", "half-life", "power", "snapshot"] = "ema"
    value: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "ema" else f"{self.kind}:{self.value:.12g}"


def parse_weights(text: str) -> WeightsChoice | None:
    """What ``ema``, ``half-life:10000``, ``power:0.1`` or ``snapshot:20000`` means; None if it is none of these."""
    if text == "ema":
        return WeightsChoice()
    if match := re.fullmatch(r"(half-life|snapshot):([1-9][0-9]{0,14})", text):
        return WeightsChoice("half-life" if match[1] == "half-life" else "snapshot", int(match[2]))
    if match := re.fullmatch(r"power:([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)", text):
        value = float(match[1])
        return WeightsChoice("power", value) if LEAST_DEVIATION <= value <= GREATEST_DEVIATION else None
    return None
