"""From names to parts."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from unveil.diffusion.config import Diffusion, ObjectiveName, ParameterizationName, PathName
from unveil.diffusion.design import build_denoiser, build_parameterization, build_path
from unveil.diffusion.objectives import P2, EDMObjective, FlowMatching, Likelihood, MinSNR, Simple, build_objective
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps, V, Velocity
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, SubVP, VPCosine, VPLinear, VPSigmoid

CONFIG = Diffusion(
    path="vp-linear",
    parameterization="eps",
    objective="simple",
    timesteps=100,
    beta_start=0.001,
    beta_end=0.1,
    cosine_offset=0.01,
    sigmoid_start=-2.0,
    sigmoid_end=2.5,
    sigmoid_tau=0.9,
    beta_min=0.2,
    beta_max=18.0,
    sigma_min=0.02,
    sigma_max=90.0,
    sigma_data=0.7,
    p_mean=-1.0,
    p_std=1.1,
    flow_times="uniform",
    logit_mean=0.8,
    logit_std=0.9,
    t_min=0.02,
    min_snr_gamma=4.0,
    p2_k=0.9,
    p2_gamma=0.5,
    huber_scale=0.03,
    difference_weight=2.0,
    noise_candidates=3,
    input_perturbation=0.1,
)


PLAIN = {"huber_scale": 0.0, "difference_weight": 0.0, "noise_candidates": 1}


def test_each_name_is_a_part_with_its_own_numbers() -> None:
    path = VPLinear(100, 0.001, 0.1)
    paths = {
        "vp-linear": path,
        "vp-cosine": VPCosine(100, 0.01),
        "vp-sigmoid": VPSigmoid(100, -2.0, 2.5, 0.9),
        "vp-sde": VPSDE(0.2, 18.0),
        "sub-vp": SubVP(0.2, 18.0),
        "ve": VE(0.02, 90.0),
        "edm": EDM(),
        "flow": Flow(),
    }
    assert {name: build_path(_with(path=name, objective="flow")) for name in get_args(PathName)} == paths
    parameterizations = {"eps": Eps(), "v": V(), "x0": X0(), "edm": EDMPreconditioning(0.7), "velocity": Velocity()}
    names = get_args(ParameterizationName)
    assert {name: build_parameterization(_with(parameterization=name)) for name in names} == parameterizations
    ends = path.sigma_range()
    objectives = {
        "simple": Simple(path),
        "likelihood": Likelihood(path),
        "min-snr": MinSNR(path, 4.0),
        "p2": P2(path, 0.9, 0.5),
        "edm": EDMObjective(-1.0, 1.1, 0.7, ends),
        "flow": FlowMatching(0.8, 0.9, 0.02, "uniform", ends),
    }
    assert {name: build_objective(_with(**PLAIN, objective=name)) for name in get_args(ObjectiveName)} == objectives
    assert build_objective(_with(path="edm", objective="edm")) == EDMObjective(-1.0, 1.1, 0.7, None)


def _with(**changes: Any) -> Diffusion:
    return CONFIG.replace(**changes)


def test_a_denoiser_has_the_path_and_the_parameterization() -> None:
    network = nn.Identity()
    denoiser = build_denoiser(network, CONFIG.replace(path="flow", parameterization="x0"))
    assert (denoiser.network, denoiser.path, denoiser.parameterization) == (network, Flow(), X0())


def test_a_name_from_elsewhere_is_refused() -> None:
    """A config.json of a later version must not turn into another model."""
    for part, name in (("path", "vp"), ("parameterization", "score"), ("objective", "snr")):
        with pytest.raises(ValidationError, match=f"{part}\n"):
            _with(**{part: name})


def test_a_configuration_of_an_earlier_version_is_the_same_model() -> None:
    """config.json written before there were other paths."""
    early: dict[str, Any] = {
        "path": "flow",
        "parameterization": "x0",
        "objective": "flow",
        "logit_mean": 0.7,
        "logit_std": 0.8,
    }
    config = Diffusion(**early)
    assert build_objective(config).sample_sigma(9, torch.Generator().manual_seed(0)).tolist() == (
        FlowMatching(0.7, 0.8).sample_sigma(9, torch.Generator().manual_seed(0)).tolist()
    )


def test_what_is_read_makes_the_same_design_and_names_nothing_else() -> None:
    """All that is built of a path, a parameterization and an objective is built of the values that are named."""
    for path in get_args(PathName):
        for parameterization in get_args(ParameterizationName):
            for objective in get_args(ObjectiveName):
                parts = {
                    "path": path,
                    "parameterization": parameterization,
                    "objective": objective,
                    "flow_times": "logit-normal",
                }
                try:
                    config = _with(**PLAIN, **parts)
                except ValidationError:
                    continue
                again = Diffusion(**config.read_values())
                for build in (build_path, build_parameterization, build_objective):
                    assert build(again) == build(config)
    assert set(CONFIG.read_values()) == {
        *("path", "parameterization", "objective", "timesteps", "beta_start", "beta_end"),
        *("huber_scale", "huber_growth", "difference_weight", "noise_candidates", "input_perturbation"),
    }
    assert _with(parameterization="edm").read_values()["sigma_data"] == 0.7


def test_the_objective_and_the_denoiser_share_the_path() -> None:
    """What is drawn in training are exactly the whole timesteps that the network is told."""
    objective, path = build_objective(CONFIG), build_path(CONFIG)
    sigma = objective.sample_sigma(200, torch.Generator().manual_seed(0))
    told = path.c_noise(sigma)
    torch.testing.assert_close(told, told.round(), rtol=0.0, atol=1e-4)
