"""Types of values by name or range: of params.yaml, and of JSON that somebody may have changed."""

import re
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, ConfigDict

NO_OTHERS = ConfigDict(extra="forbid")
"""``__pydantic_config__`` of a dataclass that is read from a file: a key that it does not have is refused by name."""

LEAST_DEVIATION, GREATEST_DEVIATION = 0.005, 0.28  # relative, of power functions; at 12 ** -0.5 all times weigh alike
LEAST_SIGMA, GREATEST_SIGMA = 1e-8, 1e8  # beyond them float32 keeps nothing of the noise, or of the image

SourceName = Literal["cartoon", "celeba", "folder"]
ProtocolName = Literal["ddim", "score-sde", "score-sde-tf", "gan", "adm-ip", "squash"]
SplitName = Literal["train", "valid", "test"]

Amount = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Images = Annotated[int, Ge(0), Le(10**15)]  # seen in training, or a half-life of it
Side = Annotated[int, Ge(1), Le(4096)]  # of an image, in pixels
Seed = Annotated[int, Ge(0), Lt(2**32)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
OpenShare = Annotated[float, Gt(0), Lt(1)]
HalfOpenShare = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]
Sigma = Annotated[float, Ge(LEAST_SIGMA), Le(GREATEST_SIGMA)]
Mean = Annotated[float, Ge(-10), Le(10)]  # of a logarithm: sampled noise levels stay where float32 can square them
Deviation = Annotated[float, Gt(0), Le(5)]
RelativeDeviation = Annotated[float, Ge(LEAST_DEVIATION), Le(GREATEST_DEVIATION)]

# Of a noise path, an objective and a network, see params.yaml. No network that fits into a machine is beyond them.
Timesteps = Annotated[int, Ge(2), Le(100_000)]
CosineOffset = Annotated[float, Gt(0), Le(1)]
LogisticEnd = Annotated[float, Ge(-20), Le(20)]
LogisticTau = Annotated[float, Ge(0.1), Le(10)]
BetaMin = Annotated[float, Gt(0), Le(10)]
BetaMax = Annotated[float, Gt(0), Le(100)]
SigmaMin = Annotated[float, Gt(0), Le(1)]
SigmaMax = Annotated[float, Gt(1), Le(10_000)]
SigmaData = Annotated[float, Ge(1e-3), Le(1e3)]
P2Gamma = Annotated[float, Ge(0), Le(2)]
UpTo100 = Annotated[float, Ge(0), Le(100)]
Candidates = Annotated[int, Ge(1), Le(64)]
Width = Annotated[int, Ge(1), Le(16_384)]
Multipliers = Annotated[tuple[Annotated[int, Ge(1), Le(64)], ...], Len(1, 12)]
Blocks = Annotated[int, Ge(1), Le(64)]
Stem = Annotated[int, Ge(1), Le(32)]
RefinementChannels = Annotated[int, Ge(0), Le(256)]
NormEps = Annotated[float, Gt(0), Le(1e-2)]


def _like(pattern: str, expected: str) -> AfterValidator:
    """Text that matches the whole pattern."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text, re.ASCII) is None:
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


FileName = Annotated[str, _like(r"\w[\w.+-]{0,199}", "the name of a file in the same folder")]
Key = Annotated[str, _like(r"\w[\w.: -]{0,199}", "a name of at most 200 plain letters")]
Sha256 = Annotated[str, _like(r"[0-9a-f]{64}", "64 hexadecimal digits")]
