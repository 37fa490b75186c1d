"""How an average of a model's weights is named, in params.yaml and on the command line."""

import re
from typing import Literal, NamedTuple

from unveil.section import GREATEST_DEVIATION, LEAST_DEVIATION

WEIGHTS = "ema | half-life:N | power:S"
"""How the weights to sample with are named."""


class WeightsChoice(NamedTuple):
    """Which average of the weights is meant.

    Attributes:
        kind: ``ema``, the model's own; ``half-life``, another that was stored; ``power``, reconstructed.
        value: of ``half-life`` images; of ``power`` the relative standard deviation; of ``ema`` 0.
    """

    kind: Literal["ema", "half-life", "power"] = "ema"
    value: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "ema" else f"{self.kind}:{self.value:.12g}"


def parse_weights(text: str) -> WeightsChoice | None:
    """What ``ema``, ``half-life:10000`` or ``power:0.1`` means; None if ``text`` is none of these."""
    if text == "ema":
        return WeightsChoice()
    if match := re.fullmatch(r"half-life:([1-9][0-9]{0,14})", text):
        return WeightsChoice("half-life", int(match[1]))
    if match := re.fullmatch(r"power:([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)", text):
        value = float(match[1])
        return WeightsChoice("power", value) if LEAST_DEVIATION <= value <= GREATEST_DEVIATION else None
    return None
