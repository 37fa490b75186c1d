"""diffusers' ``DDPMScheduler`` and ``DDIMScheduler``: what of them is the model's, and our names for it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unveil.diffusion.choices import Variance
from unveil.diffusion.design import DiffusionConfig, build_path
from unveil.errors import UnveilError
from unveil.params import GREATEST_SIGMA, LEAST_SIGMA

SchedulerName = Literal["ddpm", "ddim"]
Clipping = Literal["none", "clip"]
CLASSES: dict[SchedulerName, str] = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}
PATHS = {"linear": "vp-linear", "squaredcos_cap_v2": "vp-cosine"}
PARAMETERIZATIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACINGS = ("leading", "trailing", "linspace")
VARIANCES: dict[str, Variance] = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
COSINE_OFFSET = 0.008
MOST_TIMESTEPS = 100_000  # as params.yaml allows
THEIR_NAMES = {"timesteps": "num_train_timesteps"}  # of numbers that are not called the same


@dataclass(frozen=True)
class Sampling:
    """How a scheduler samples.

    Attributes:
        settings: keys and values of params.yaml's section ``sample``.
        not_represented: what of it these cannot say, each with the difference that it makes.
    """

    settings: dict[str, Any]
    not_represented: tuple[str, ...]


def to_diffusion(values: Mapping[str, Any], name: str) -> DiffusionConfig:
    """Our path and parameterization of a scheduler's.

    Args:
        values: of its scheduler_config.json.
        name: of the file, for messages.

    Raises:
        UnveilError: if it is another scheduler, or has a schedule that ours are not.
    """
    kind = values.get("_class_name")
    if kind not in CLASSES.values():
        raise UnveilError(f"{name}: _class_name: found {kind!r}, expected {' or '.join(CLASSES.values())}")
    if values.get("trained_betas") is not None:
        raise UnveilError(f"{name}: trained_betas: a list of betas, expected a beta_schedule: {' or '.join(PATHS)}")
    if values.get("rescale_betas_zero_snr"):
        raise UnveilError(f"{name}: rescale_betas_zero_snr: found true, expected false: sigma would be infinite")
    schedule, predicted = values.get("beta_schedule", "linear"), values.get("prediction_type", "epsilon")
    if not isinstance(schedule, str) or schedule not in PATHS:
        raise UnveilError(f"{name}: beta_schedule: found {schedule!r}, expected {' or '.join(PATHS)}")
    if not isinstance(predicted, str) or predicted not in PARAMETERIZATIONS:
        raise UnveilError(f"{name}: prediction_type: found {predicted!r}, expected {', '.join(PARAMETERIZATIONS)}")
    config = DiffusionConfig(
        path=PATHS[schedule],  # type: ignore[arg-type]
        parameterization=PARAMETERIZATIONS[predicted],  # type: ignore[arg-type]
        objective="simple",
        timesteps=values.get("num_train_timesteps", 1000),
        beta_start=values.get("beta_start", 1e-4),
        beta_end=values.get("beta_end", 0.02),
        cosine_offset=COSINE_OFFSET,
    )
    try:
        _check_numbers(config)
    except ValueError as error:
        key, _, rest = str(error).partition(":")
        raise UnveilError(f"{name}: {THEIR_NAMES.get(key, key)}:{rest}") from None
    return config


def _check_numbers(config: DiffusionConfig) -> None:
    """Raise ValueError, with the key at its start, unless the numbers make a chain of finite noise levels."""
    if type(config.timesteps) is not int or not 2 <= config.timesteps <= MOST_TIMESTEPS:
        raise ValueError(f"timesteps: found {config.timesteps!r}, expected a whole number from 2 to {MOST_TIMESTEPS}")
    for key in ("beta_start", "beta_end"):
        if not _is_number(beta := getattr(config, key)) or not 0 < beta < 1:
            raise ValueError(f"{key}: found {beta!r}, expected a number in (0, 1)")
    if config.beta_end <= config.beta_start:
        raise ValueError(
            f"beta_end: found {config.beta_end!r}, expected a number above beta_start, {config.beta_start}"
        )
    least, greatest = build_path(config).sigma_range()
    if not LEAST_SIGMA <= least < greatest <= GREATEST_SIGMA:
        raise ValueError(
            f"beta_end: found {config.beta_end!r}, expected one with which sigma, now {least:.3g} to {greatest:.3g}, "
            f"stays in [{LEAST_SIGMA:g}, {GREATEST_SIGMA:g}]"
        )


def _is_number(value: object) -> bool:
    """Whether it is an int or a float, finite, and no bool."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def to_sampling(values: Mapping[str, Any], name: str) -> Sampling:
    """How this scheduler samples, in our terms. Its settings do not change the model, only the images.

    Args:
        values: of its scheduler_config.json.
        name: of the file, for messages.

    Raises:
        UnveilError: if a setting has a value that diffusers itself could not use.
    """
    kind: SchedulerName = "ddim" if values["_class_name"] == CLASSES["ddim"] else "ddpm"
    defaults = {
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "variance_type": "fixed_small",
        "set_alpha_to_one": True,
    }
    used = {key: values.get(key, default) for key, default in defaults.items()}
    _check_sampling(used, defaults, name)
    settings = {
        "sampler": kind,
        "grid": f"ddim-{used['timestep_spacing']}",
        "threshold": _threshold(used),
        **({"threshold_percentile": used["dynamic_thresholding_ratio"]} if _threshold(used) == "dynamic" else {}),
        **({"variance": VARIANCES.get(used["variance_type"], "small")} if kind == "ddpm" else {}),
    }
    return Sampling(settings, tuple(_not_represented(used, kind)))


def _check_sampling(used: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> None:
    for key, default in defaults.items():
        like = _is_number(used[key]) if isinstance(default, float) else type(used[key]) is type(default)
        if not like:
            raise UnveilError(f"{name}: {key}: found {used[key]!r}, expected such as {default!r}")
    for key, fits, expected in (
        ("timestep_spacing", used["timestep_spacing"] in SPACINGS, ", ".join(SPACINGS)),
        ("clip_sample_range", used["clip_sample_range"] > 0, "a number above 0"),
        ("dynamic_thresholding_ratio", 0 < used["dynamic_thresholding_ratio"] <= 1, "a number in (0, 1]"),
        ("sample_max_value", used["sample_max_value"] >= 1, "1 at least"),
    ):
        if not fits:
            raise UnveilError(f"{name}: {key}: found {used[key]!r}, expected {expected}")


def _threshold(used: Mapping[str, Any]) -> str:
    """Their dynamic threshold lies between 1 and sample_max_value: at 1, its default, it is clipping."""
    if used["thresholding"]:
        return "dynamic" if used["sample_max_value"] > 1 else "clip"
    return "clip" if used["clip_sample"] else "none"


def _not_represented(used: Mapping[str, Any], kind: SchedulerName) -> Iterator[str]:
    if used["thresholding"] and used["sample_max_value"] > 1:
        yield f"sample_max_value {used['sample_max_value']}: the dynamic threshold here has no upper limit"
    if used["clip_sample"] and not used["thresholding"] and used["clip_sample_range"] != 1:
        yield f"clip_sample_range {used['clip_sample_range']}: clipping here is to [-1, 1]"
    if used["timestep_spacing"] == "leading" and used["steps_offset"]:
        yield f"steps_offset {used['steps_offset']}: the timesteps here are not shifted"
    if kind == "ddpm" and used["variance_type"] not in VARIANCES:
        yield f"variance_type {used['variance_type']!r}: expected {', '.join(VARIANCES)}; small is nearest"
    if kind == "ddim" and not used["set_alpha_to_one"]:
        yield "set_alpha_to_one false: the last step here leads to no noise, theirs to that of timestep 0"
    if kind == "ddim" and _threshold(used) != "none":
        key = "thresholding" if used["thresholding"] else "clip_sample"
        yield (
            f"{key} true: diffusers' DDIM limits the image but keeps the network's noise; here the noise follows "
            "from the limited image, as theirs with use_clipped_model_output=True"
        )


def from_diffusion(
    config: DiffusionConfig, scheduler: SchedulerName, *, threshold: Clipping, variance: Variance
) -> dict[str, Any]:
    """The scheduler_config.json of a model.

    Args:
        config: path and parameterization.
        scheduler: ddpm or ddim.
        threshold: whether it is to clip the denoised image in every step; ddpm alone.
        variance: of ddpm.

    Raises:
        UnveilError: if diffusers' scheduler has no such path or parameterization, or would make other images.
    """
    schedules = {path: schedule for schedule, path in PATHS.items()}
    predictions = {parameterization: predicted for predicted, parameterization in PARAMETERIZATIONS.items()}
    cannot = f"diffusers' {CLASSES[scheduler]} has no other; this model cannot be exported"
    for key, known in (("path", schedules), ("parameterization", predictions)):
        found = getattr(config, key)
        if not isinstance(found, str) or found not in known:
            raise UnveilError(f"train.diffusion.{key}: found {found}, expected {' or '.join(known)}: {cannot}")
    if config.path == "vp-cosine" and config.cosine_offset != COSINE_OFFSET:
        raise UnveilError(f"train.diffusion.cosine_offset: found {config.cosine_offset}, expected 0.008: {cannot}")
    try:
        _check_numbers(config)
    except ValueError as error:
        raise UnveilError(f"train.diffusion.{error}; the model's config.json is damaged, train again") from None
    if scheduler == "ddim" and threshold == "clip":
        raise UnveilError(
            "--threshold: found clip with --scheduler ddim, expected none: diffusers' DDIM clips the image but keeps "
            "the network's noise, so its images would not be those of sampler ddim here; export with --threshold "
            "none, or with --scheduler ddpm"
        )
    return {
        "_class_name": CLASSES[scheduler],
        "num_train_timesteps": config.timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": schedules[config.path],
        "trained_betas": None,
        "prediction_type": predictions[config.parameterization],
        "clip_sample": threshold == "clip",
        "timestep_spacing": "leading",
        **({"variance_type": f"fixed_{variance}"} if scheduler == "ddpm" else {}),
    }
