"""From names to parts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from unveil.diffusion.design import (
    DiffusionConfig,
    build_denoiser,
    build_objective,
    build_parameterization,
    build_path,
)
from unveil.diffusion.objectives import EDMObjective, FlowMatching, Simple
from unveil.diffusion.parameterizations import X0, EDMPreconditioning, Eps
from unveil.diffusion.paths import EDM, Flow, VPLinear

CONFIG = DiffusionConfig(
    path="vp-linear",
    parameterization="eps",
    objective="simple",
    timesteps=100,
    beta_start=0.001,
    beta_end=0.1,
    sigma_data=0.7,
    p_mean=-1.0,
    p_std=1.1,
    logit_mean=0.8,
    logit_std=0.9,
    t_min=0.02,
)


def test_each_name_is_a_part_with_its_own_numbers() -> None:
    path = VPLinear(100, 0.001, 0.1)
    assert build_path(CONFIG) == path
    assert build_path(replace(CONFIG, path="edm")) == EDM()
    assert build_path(replace(CONFIG, path="flow")) == Flow()
    assert build_parameterization(CONFIG) == Eps()
    assert build_parameterization(replace(CONFIG, parameterization="x0")) == X0()
    assert build_parameterization(replace(CONFIG, parameterization="edm")) == EDMPreconditioning(0.7)
    assert build_objective(CONFIG) == Simple(path)
    assert build_objective(replace(CONFIG, objective="edm")) == EDMObjective(-1.0, 1.1, 0.7)
    assert build_objective(replace(CONFIG, objective="flow")) == FlowMatching(0.8, 0.9, 0.02)


def test_a_denoiser_has_the_path_and_the_parameterization() -> None:
    network = nn.Identity()
    denoiser = build_denoiser(network, replace(CONFIG, path="flow", parameterization="x0"))
    assert (denoiser.network, denoiser.path, denoiser.parameterization) == (network, Flow(), X0())


@pytest.mark.parametrize("path", ["edm", "flow"])
def test_the_objective_simple_needs_timesteps(path: str) -> None:
    with pytest.raises(ValueError, match=f"the path is {path}"):
        build_objective(DiffusionConfig(**{**CONFIG.to_dict(), "path": path}))


def test_a_name_from_elsewhere_is_refused() -> None:
    """A config.json of a later version must not turn into another model."""
    values = CONFIG.to_dict()
    with pytest.raises(ValueError, match="path is 've'"):
        build_path(DiffusionConfig(**{**values, "path": "ve"}))
    with pytest.raises(ValueError, match="parameterization is 'v'"):
        build_parameterization(DiffusionConfig(**{**values, "parameterization": "v"}))
    with pytest.raises(ValueError, match="objective is 'p2'"):
        build_objective(DiffusionConfig(**{**values, "objective": "p2"}))


def test_plain_values_make_the_same_design() -> None:
    assert DiffusionConfig(**CONFIG.to_dict()) == CONFIG
    assert all(isinstance(value, str | int | float) for value in CONFIG.to_dict().values())


def test_the_objective_and_the_denoiser_share_the_path() -> None:
    """What is drawn in training are exactly the whole timesteps that the network is told."""
    objective, path = build_objective(CONFIG), build_path(CONFIG)
    sigma = objective.sample_sigma(200, torch.Generator().manual_seed(0))
    told = path.c_noise(sigma)
    torch.testing.assert_close(told, told.round(), rtol=0.0, atol=1e-4)
