"""diffusers' ``DDPMScheduler`` and ``DDIMScheduler``: what of them is the model's, and our names for it."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, Field

from unveil.diffusion.config import Diffusion, ParameterizationName, PathName, Variance
from unveil.errors import UnveilError
from unveil.files import parse_json
from unveil.section import OpenShare, Positive

SchedulerName = Literal["ddpm", "ddim"]
Clipping = Literal["none", "clip"]
CLASSES: dict[SchedulerName, str] = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}
PATHS: dict[str, PathName] = {"linear": "vp-linear", "squaredcos_cap_v2": "vp-cosine"}
PARAMETERIZATIONS: dict[str, ParameterizationName] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
VARIANCES: dict[str, Variance] = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
COSINE_OFFSET = 0.008


class Scheduler(BaseModel):
    """A scheduler_config.json; the defaults are what one that lacks a key means by it. Other keys are not read."""

    class_name: Annotated[Literal["DDPMScheduler", "DDIMScheduler"], Field(alias="_class_name")]
    trained_betas: None = None  # a list of its own is no schedule of ours
    rescale_betas_zero_snr: Literal[False] = False  # else sigma would be infinite
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    num_train_timesteps: Annotated[int, Ge(2), Le(100_000)] = 1000
    beta_start: OpenShare = 1e-4
    beta_end: OpenShare = 0.02
    clip_sample: bool = True
    clip_sample_range: Positive = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Gt(0), Le(1)] = 0.995
    sample_max_value: Annotated[float, Ge(1)] = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    variance_type: str = "fixed_small"
    set_alpha_to_one: bool = True


@dataclass(frozen=True)
class Sampling:
    """How a scheduler samples.

    Attributes:
        settings: keys and values of params.yaml's section ``sample``.
        not_represented: what of it these cannot say, each with the difference that it makes.
    """

    settings: dict[str, Any]
    not_represented: tuple[str, ...]


def to_diffusion(theirs: Scheduler, name: str) -> Diffusion:
    """Our path and parameterization of a scheduler's, whose file messages call ``name``.

    Raises:
        UnveilError: if its noise levels are none.
    """
    values = {
        "path": PATHS[theirs.beta_schedule],
        "parameterization": PARAMETERIZATIONS[theirs.prediction_type],
        "objective": "simple",
        "timesteps": theirs.num_train_timesteps,
        "beta_start": theirs.beta_start,
        "beta_end": theirs.beta_end,
        "cosine_offset": COSINE_OFFSET,
    }
    return parse_json(json.dumps(values), Diffusion, name, "take the folder from its source again")


def to_sampling(theirs: Scheduler) -> Sampling:
    """How this scheduler samples, in our terms. Its settings do not change the model, only the images."""
    ddim = theirs.class_name == CLASSES["ddim"]
    # Their dynamic threshold lies between 1 and sample_max_value: at 1, its default, it is clipping.
    dynamic = theirs.thresholding and theirs.sample_max_value > 1
    clipped = theirs.thresholding or theirs.clip_sample
    settings: dict[str, Any] = {
        "sampler": "ddim" if ddim else "ddpm",
        "grid": f"ddim-{theirs.timestep_spacing}",
        "threshold": "dynamic" if dynamic else "clip" if clipped else "none",
    }
    if dynamic:
        settings["threshold_percentile"] = theirs.dynamic_thresholding_ratio
    if not ddim:
        settings["variance"] = VARIANCES.get(theirs.variance_type, "small")
    differences = {
        f"sample_max_value {theirs.sample_max_value}: the dynamic threshold here has no upper limit": dynamic,
        f"clip_sample_range {theirs.clip_sample_range}: clipping here is to [-1, 1]": (
            theirs.clip_sample and not theirs.thresholding and theirs.clip_sample_range != 1
        ),
        f"steps_offset {theirs.steps_offset}: the timesteps here are not shifted": (
            theirs.timestep_spacing == "leading" and theirs.steps_offset
        ),
        f"variance_type {theirs.variance_type!r}: expected {', '.join(VARIANCES)}; small is nearest": (
            not ddim and theirs.variance_type not in VARIANCES
        ),
        "set_alpha_to_one false: the last step here leads to no noise, theirs to that of timestep 0": (
            ddim and not theirs.set_alpha_to_one
        ),
        f"{'thresholding' if theirs.thresholding else 'clip_sample'} true: diffusers' DDIM limits the image but keeps "
        "the network's noise; here the noise follows from the limited image, as theirs with "
        "use_clipped_model_output=True": ddim and clipped,
    }
    return Sampling(settings, tuple(line for line, there in differences.items() if there))


def from_diffusion(
    config: Diffusion, scheduler: SchedulerName, *, threshold: Clipping, variance: Variance
) -> dict[str, Any]:
    """The scheduler_config.json of a model of this path and parameterization.

    Args:
        config: of the model.
        scheduler: which of the two.
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
        if found not in known:
            raise UnveilError(f"train.diffusion.{key}: found {found}, expected {' or '.join(known)}: {cannot}")
    if config.path == "vp-cosine" and config.cosine_offset != COSINE_OFFSET:
        raise UnveilError(f"train.diffusion.cosine_offset: found {config.cosine_offset}, expected 0.008: {cannot}")
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
