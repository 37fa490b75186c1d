"""diffusers' ``DDPMScheduler`` and ``DDIMScheduler``: what of them is the model's, and our names for it."""

from collections.abc import Mapping
from typing import Any, Literal

from unveil.diffusion.design import DiffusionConfig
from unveil.errors import UnveilError

SchedulerName = Literal["ddpm", "ddim"]
CLASSES: dict[SchedulerName, str] = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}
PATHS = {"linear": "vp-linear", "squaredcos_cap_v2": "vp-cosine"}
PARAMETERIZATIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
COSINE_OFFSET = 0.008
SAMPLING = ("clip_sample", "timestep_spacing", "variance_type", "thresholding", "steps_offset", "set_alpha_to_one")


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
    schedule, predicted = values.get("beta_schedule", "linear"), values.get("prediction_type", "epsilon")
    if values.get("trained_betas") is not None:
        raise UnveilError(f"{name}: trained_betas: a list of betas, expected a beta_schedule: {' or '.join(PATHS)}")
    if values.get("rescale_betas_zero_snr"):
        raise UnveilError(f"{name}: rescale_betas_zero_snr: found true, expected false: sigma would be infinite")
    if schedule not in PATHS:
        raise UnveilError(f"{name}: beta_schedule: found {schedule!r}, expected {' or '.join(PATHS)}")
    if predicted not in PARAMETERIZATIONS:
        raise UnveilError(f"{name}: prediction_type: found {predicted!r}, expected {', '.join(PARAMETERIZATIONS)}")
    return DiffusionConfig(
        path=PATHS[schedule],  # type: ignore[arg-type]
        parameterization=PARAMETERIZATIONS[predicted],  # type: ignore[arg-type]
        objective="simple",
        timesteps=values.get("num_train_timesteps", 1000),
        beta_start=values.get("beta_start", 1e-4),
        beta_end=values.get("beta_end", 0.02),
        cosine_offset=COSINE_OFFSET,
    )


def sampling_advice(values: Mapping[str, Any]) -> dict[str, Any]:
    """How this scheduler samples, as keys and values of params.yaml's section ``sample``."""
    sampler = "ddim" if values["_class_name"] == CLASSES["ddim"] else "ddpm"
    large = str(values.get("variance_type", "fixed_small")).startswith("fixed_large")
    return {
        "sampler": sampler,
        "grid": f"ddim-{values.get('timestep_spacing', 'leading')}",
        "clip_denoised": values.get("clip_sample", True),
        **({"variance": "large" if large else "small"} if sampler == "ddpm" else {}),
    }


def from_diffusion(
    config: DiffusionConfig, scheduler: SchedulerName, *, clip_denoised: bool, variance: Literal["small", "large"]
) -> dict[str, Any]:
    """The scheduler_config.json of a model.

    Args:
        config: path and parameterization.
        scheduler: ddpm or ddim.
        clip_denoised: whether it is to clip the denoised image in every step.
        variance: of ddpm.

    Raises:
        UnveilError: if diffusers' schedulers have no such path or parameterization.
    """
    schedules = {path: schedule for schedule, path in PATHS.items()}
    predictions = {parameterization: predicted for predicted, parameterization in PARAMETERIZATIONS.items()}
    cannot = f"diffusers' {CLASSES[scheduler]} has no other; this model cannot be exported"
    for key, known in (("path", schedules), ("parameterization", predictions)):
        if (found := getattr(config, key)) not in known:
            raise UnveilError(f"train.diffusion.{key}: found {found}, expected {' or '.join(known)}: {cannot}")
    if config.path == "vp-cosine" and config.cosine_offset != COSINE_OFFSET:
        raise UnveilError(f"train.diffusion.cosine_offset: found {config.cosine_offset}, expected 0.008: {cannot}")
    return {
        "_class_name": CLASSES[scheduler],
        "num_train_timesteps": config.timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": schedules[config.path],
        "trained_betas": None,
        "prediction_type": predictions[config.parameterization],
        "clip_sample": clip_denoised,
        "timestep_spacing": "leading",
        **({"variance_type": f"fixed_{variance}"} if scheduler == "ddpm" else {}),
    }
