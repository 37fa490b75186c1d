"""Schedulers of diffusers are noise paths and parameterizations of ours."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers import DDIMScheduler, DDPMScheduler

from unveil.diffusion.design import DiffusionConfig, build_path
from unveil.diffusion.paths import DiscreteVP
from unveil.errors import UnveilError
from unveil.interchange.scheduler import from_diffusion, sampling_advice, to_diffusion

GOOGLE = {  # scheduler_config.json of google/ddpm-celebahq-256
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_the_noise_levels_are_the_schedulers(schedule: str, kind: Any) -> None:
    peer = kind(beta_schedule=schedule, num_train_timesteps=400)
    path = build_path(to_diffusion(dict(peer.config) | {"_class_name": kind.__name__}, "scheduler_config.json"))
    assert isinstance(path, DiscreteVP)
    alpha_bar = 1 / (1 + path.sigmas.square())
    torch.testing.assert_close(alpha_bar.float(), peer.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("path", ["vp-linear", "vp-cosine"])
@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_there_and_back_is_the_same(path: Any, parameterization: Any, scheduler: Any) -> None:
    config = DiffusionConfig(path, parameterization, "simple", timesteps=500, beta_start=2e-4, beta_end=0.01)
    written = from_diffusion(config, scheduler, clip_denoised=True, variance="large")
    assert to_diffusion(written, "scheduler_config.json") == config
    assert sampling_advice(written) == {"sampler": scheduler, "grid": "ddim-leading", "clip_denoised": True} | (
        {"variance": "large"} if scheduler == "ddpm" else {}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name: found 'PNDMScheduler', expected DDPMScheduler or"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: found 'sigmoid', expected linear or squaredcos_cap_v2"),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule: found 'scaled_linear'"),
        ({"prediction_type": "flow"}, "prediction_type: found 'flow', expected epsilon, v_prediction, sample"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: a list of betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: found true"),
    ],
)
def test_other_schedules_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    to_diffusion(GOOGLE, "scheduler_config.json")
    with pytest.raises(UnveilError) as caught:
        to_diffusion(GOOGLE | changes, "scheduler_config.json")
    assert str(caught.value).startswith(f"scheduler_config.json: {words}")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"path": "flow"}, "path"),
        ({"path": "vp-sigmoid"}, "path"),
        ({"path": "ve"}, "path"),
        ({"parameterization": "edm"}, "parameterization"),
        ({"parameterization": "velocity"}, "parameterization"),
        ({"path": "vp-cosine", "cosine_offset": 0.1}, "cosine_offset"),
    ],
)
def test_paths_that_diffusers_lacks_are_refused_by_name(changes: dict[str, Any], key: str) -> None:
    config = replace(DiffusionConfig("vp-linear", "eps", "simple"), **changes)
    with pytest.raises(UnveilError, match=f"^train.diffusion.{key}: found .*DDIMScheduler .*cannot be exported"):
        from_diffusion(config, "ddim", clip_denoised=False, variance="small")
