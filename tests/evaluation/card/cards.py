"""An evaluation card for tests, with everything that a card may have."""

from collections.abc import Mapping
from typing import Any

from unveil.evaluation.card.card import AtSize, BySize, Card
from unveil.evaluation.metrics.metric import FLAT as ENDINGS
from unveil.evaluation.metrics.metric import LEVEL, Metric
from unveil.evaluation.metrics.registry import kind_of

FLAT: dict[str, float | int] = {
    "fid": 12.3181,
    "fid_stderr": 0.061,
    "fid_low": 12.2003,
    "fid_high": 12.4401,
    "fid_floor": 1.9,
    "fid_noise": 400.1,
    "fid_fraction": 0.026163,
    "kid": 0.0083727,
    "kid_stderr": 0.00021,
    "kid_std": 0.0021,
    "kid_floor": -1.25e-05,
    "kid_noise": 0.41,
    "precision": 0.71,
    "precision_stderr": 0.004,
    "recall": 0.52,
    "density": 0.9,
    "coverage": 0.81,
    "inception_score": 2.41,
    "inception_score_std": 0.03,
    "fid_infinity": 11.9,
    "bits_per_dim": 2.31,
    "bits_per_dim_stderr": 0.01,
}
NAMES = (
    "fid",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "fid_infinity",
    "bits_per_dim",
)
CONTROLS = {
    "jpeg-75": {"fid": 6.2, "kid": 0.003},
    "blur-1": {"fid": 25.0, "kid": 0.02},
    "undamaged": {"fid": 5.5, "kid": 0.0},
}
TRAIN = 162_770


def choices(**changes: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of ``card``; a keyword names a section and holds values that replace or extend it."""
    found: dict[str, dict[str, Any]] = {
        "data": {
            "source": "celeba",
            "protocol": "ddim",
            "image_size": 64,
            "reference": {"name": "train", "images": TRAIN, "taken": TRAIN},
            "held_out": {"name": "test", "images": 19_962, "taken": 1_500},
            "shards": "abcd" * 16,
        },
        "features": {
            "extractor": "inception",
            "layer": "2048",
            "dimension": 2048,
            "preprocessing": "bilinear resize to 299 x 299",
            "weights_file": "weights.pth",
            "weights_sha256": "5793" * 16,
            "device": "cpu",
            "dtype": "float32",
        },
        "model": {
            "weights_sha256": "9876" * 16,
            "network": {"channels": 128, "channel_multipliers": (1, 2)},
            "ema_half_life_images": 4000,
        },
        "sampling": {"sampler": "heun", "grid": "karras", "steps": 18, "nfe": 35, "guidance": "none", "seed": 11},
        "evaluation": {"seed": 7, "kid_subsets": 100, "controls": {"jpeg-75": "saved as JPEG of quality 75"}},
        "code": {"commit": "c0ffee"},
    }
    whole = {name: section | dict(changes.get(name, {})) for name, section in found.items()}
    return whole | {"features": {"inception": whole["features"]}}


def metric(name: str, flat: Mapping[str, float | int] = FLAT, **others: Any) -> Metric:
    """A metric of flat values, as an old metrics/evaluate.json may have them."""
    found = {end: flat[f"{name}_{end}"] for end in ENDINGS if f"{name}_{end}" in flat}
    kind = {"lower_is_better": kind_of(name).lower_is_better, "level": LEVEL if "low" in found else None}
    return Metric(**{"name": name, "value": flat[name], "n": 10, **kind, **found, **others})


def metrics(flat: Mapping[str, float | int] = FLAT, n: int = 50_000) -> list[Metric]:
    """The metrics of ``card``."""
    return [
        metric(
            name,
            flat,
            n=3 if name == "bits_per_dim" else n,
            n_reference=None if name in ("inception_score", "bits_per_dim") else TRAIN,
            controls={key: values[name] for key, values in CONTROLS.items() if name in values},
            features=None if name == "bits_per_dim" else "inception",
            n_controls=1000 if any(name in values for values in CONTROLS.values()) else None,
        )
        for name in NAMES
        if name in flat
    ]


def card(flat: Mapping[str, float | int] = FLAT, n: int = 50_000, **changes: Any) -> Card:
    """A card with everything; keywords replace arguments of ``Card.of``, or name a section of the choices."""
    sections = {name: changes.pop(name) for name in choices() if name in changes}
    whole: dict[str, Any] = {
        "by_size": [
            BySize(
                metric="fid",
                points=(AtSize(images=5000, distance=16.1), AtSize(images=50_000, distance=12.3181)),
                extrapolation=11.9,
            )
        ],
        "memorization": {"sentences": ["No copies were found."], "numbers": {"nearer_share": 0.498, "duplicates": 0}},
        "notes": ["note one"],
        "environment": {"torch": "2.14.0", "hardware": {"cpu": "a fast one"}},
        "cost": {"training_seconds": 1234.5},
    }
    return Card.of(metrics(flat, n), choices(**sections), **whole | changes)
