"""Schedulers of diffusers are noise paths and parameterizations of ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers import DDIMScheduler, DDPMScheduler

from unveil.diffusion.config import Diffusion
from unveil.diffusion.design import build_path
from unveil.diffusion.paths import DiscreteVP
from unveil.diffusion.sampling import dynamically_thresholded
from unveil.errors import UnveilError
from unveil.files import parse_json
from unveil.interchange import scheduler as schedulers
from unveil.interchange.scheduler import Sampling, Scheduler, from_diffusion
from unveil.params import Sample, load_params

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


def to_diffusion(values: dict[str, Any], name: str) -> Diffusion:
    return schedulers.to_diffusion(parse_json(json.dumps(values), Scheduler, name, "mend it"), name)


def to_sampling(values: dict[str, Any], name: str) -> Sampling:
    return schedulers.to_sampling(parse_json(json.dumps(values), Scheduler, name, "mend it"))


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
    config = Diffusion(
        path=path, parameterization=parameterization, objective="simple", timesteps=500, beta_start=2e-4, beta_end=0.01
    )
    threshold: Any = "clip" if scheduler == "ddpm" else "none"
    written = from_diffusion(config, scheduler, threshold=threshold, variance="large")
    assert to_diffusion(written, "scheduler_config.json") == config
    sampling = to_sampling(written, "scheduler_config.json")
    assert sampling.settings == {"sampler": scheduler, "grid": "ddim-leading", "threshold": threshold} | (
        {"variance": "large"} if scheduler == "ddpm" else {}
    )
    assert sampling.not_represented == ()


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"sampler": "ddpm", "grid": "ddim-leading", "threshold": "clip", "variance": "small"}),
        ({"clip_sample": False}, {"threshold": "none"}),
        ({"thresholding": True}, {"threshold": "clip"}),
        (
            {"thresholding": True, "sample_max_value": 9, "dynamic_thresholding_ratio": 0.9},
            {"threshold": "dynamic", "threshold_percentile": 0.9},
        ),
        ({"timestep_spacing": "trailing"}, {"grid": "ddim-trailing"}),
        (
            {"timestep_spacing": "linspace", "variance_type": "fixed_large"},
            {"grid": "ddim-linspace", "variance": "large"},
        ),
        ({"_class_name": "DDIMScheduler"}, {"sampler": "ddim", "threshold": "clip"}),
    ],
)
def test_every_advised_setting_is_one_of_params_yaml(changes: dict[str, Any], settings: dict[str, Any]) -> None:
    found = to_sampling(GOOGLE | changes, "scheduler_config.json").settings
    assert found == found | settings
    current = load_params(Path(__file__).parents[2] / "params.yaml").sample.model_dump()
    sample = Sample.model_validate(current | found).model_dump()
    assert {key: sample[key] for key in found} == found


def test_diffusers_dynamic_threshold_is_clipping_unless_its_limit_is_raised() -> None:
    images = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    peer: Any = DDPMScheduler(thresholding=True)
    torch.testing.assert_close(peer._threshold_sample(images), images.clamp(-1, 1))
    peer = DDPMScheduler(thresholding=True, sample_max_value=100.0)
    dynamic = peer._threshold_sample(images)
    ours = dynamically_thresholded(lambda x, _: x, 0.995)(images, torch.ones(2))
    torch.testing.assert_close(dynamic, ours)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_sample_range": 2.0}, "clip_sample_range 2.0: clipping here is to [-1, 1]"),
        ({"thresholding": True, "sample_max_value": 9.0}, "sample_max_value 9.0: "),
        ({"steps_offset": 1}, "steps_offset 1: "),
        ({"variance_type": "learned_range"}, "variance_type 'learned_range': "),
        ({"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}, "set_alpha_to_one false: "),
        ({"_class_name": "DDIMScheduler"}, "clip_sample true: diffusers' DDIM limits the image but keeps"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding true: diffusers' DDIM"),
    ],
)
def test_settings_that_change_the_images_and_are_not_here_are_named(changes: dict[str, Any], words: str) -> None:
    assert to_sampling(GOOGLE, "scheduler_config.json").not_represented == ()
    (found,) = to_sampling(GOOGLE | changes, "scheduler_config.json").not_represented
    assert found.startswith(words) and found.isprintable()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"timestep_spacing": "logsnr"},
            "timestep_spacing: found \"logsnr\", expected 'leading', 'tr",
        ),
        ({"timestep_spacing": []}, "timestep_spacing: found [], expected 'leading', "),
        ({"clip_sample": "yes"}, 'clip_sample: found "yes", expected a valid boolean'),
        ({"clip_sample_range": None}, "clip_sample_range: found null"),
        ({"clip_sample_range": 0}, "clip_sample_range: found 0, expected greater than 0"),
        ({"dynamic_thresholding_ratio": 2.0}, "dynamic_thresholding_ratio: found 2.0"),
        ({"sample_max_value": 0.5}, "sample_max_value: found 0.5, expected greater than or equal to 1"),
        ({"variance_type": ["fixed_small"]}, 'variance_type: found ["fixed_small"]'),
        ({"steps_offset": "1"}, 'steps_offset: found "1"'),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnveilError) as caught:
        to_sampling(GOOGLE | changes, "scheduler_config.json")
    assert str(caught.value).startswith(f"scheduler_config.json: {words}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name: found \"PNDMScheduler\", expected 'DDPMScheduler' or"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: found \"sigmoid\", expected 'linear' or 'squaredcos_cap_v2'"),
        ({"beta_schedule": "scaled_linear"}, 'beta_schedule: found "scaled_linear"'),
        (
            {"prediction_type": "flow"},
            "prediction_type: found \"flow\", expected 'epsilon', 'v_",
        ),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: found [0.1, 0.2], expected null"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: found true, expected False"),
        ({"num_train_timesteps": 1}, "num_train_timesteps: found 1, expected greater than or equal to 2"),
        ({"num_train_timesteps": -5}, "num_train_timesteps: found -5"),
        ({"num_train_timesteps": None}, "num_train_timesteps: found null"),
        ({"num_train_timesteps": "1000"}, 'num_train_timesteps: found "1000"'),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps: found 1000000000"),
        ({"beta_start": "x"}, 'beta_start: found "x", expected a valid number'),
        ({"beta_start": None}, "beta_start: found null"),
        ({"beta_start": 0.5}, "beta_end: found 0.02, expected a number above beta_start, 0.5"),
        ({"beta_end": 3.0}, "beta_end: found 3.0, expected less than 1"),
        ({"beta_end": float("nan")}, "not valid JSON"),
        ({"beta_end": 0.9}, "beta_end: found 0.9, expected a number with which sigma stays in"),
        ({"beta_schedule": ["linear"]}, "beta_schedule: found [\"linear\"], expected 'linear' or"),
        ({"prediction_type": ["epsilon"]}, "prediction_type: found [\"epsilon\"], expected 'epsilon',"),
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
    config = Diffusion(path="vp-linear", parameterization="eps", objective="simple").replace(**changes)
    with pytest.raises(UnveilError, match=f"^train.diffusion.{key}: found .*cannot be exported$"):
        from_diffusion(config, "ddim", threshold="none", variance="small")


def test_ddim_with_clipping_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UnveilError, match=r"^--threshold: found clip with --scheduler ddim, .* keeps .*--scheduler ddpm$"
    ):
        from_diffusion(
            Diffusion(path="vp-linear", parameterization="eps", objective="simple"),
            "ddim",
            threshold="clip",
            variance="small",
        )
