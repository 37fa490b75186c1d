"""Thresholding keeps estimates in the range of images, as DDPM's and Imagen's do."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tests.diffusion.affine import last
from torch import Tensor

from unveil.diffusion import grids, samplers
from unveil.diffusion.config import Sampler
from unveil.diffusion.samplers import SamplerFunction
from unveil.diffusion.sampling import clipped, dynamically_thresholded, run_sampler

ONE = torch.ones(1)


def far(x: Tensor, sigma: Tensor) -> Tensor:
    return 3 * x.sign()


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.heun, samplers.dpmpp_2m, samplers.euler])
def test_clipped_estimates_end_in_range(sampler: SamplerFunction) -> None:
    x = torch.tensor([[-50.0], [50.0]])
    step = last(sampler(clipped(far), grids.karras(5, 0.002, 80.0), x, lambda: torch.zeros(2, 1)))
    torch.testing.assert_close(step.x, torch.tensor([[-1.0], [1.0]]))
    assert step.denoised.tolist() == [[-1.0], [1.0]]


@pytest.mark.parametrize("percentile", [0.9, 0.995, 1.0])
@pytest.mark.parametrize("spread", [0.2, 0.9, 3.0])
def test_dynamic_thresholding_is_diffusers(percentile: float, spread: float) -> None:
    images = spread * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9)
    found = dynamically_thresholded(lambda x, sigma: x, percentile)(images, ONE)
    torch.testing.assert_close(found, scheduler._threshold_sample(images))
    assert found.abs().max() <= 1


def test_what_is_in_range_is_left_as_it_is() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(dynamically_thresholded(lambda x, sigma: x, 0.5)(images, ONE), images)
    assert torch.equal(clipped(lambda x, sigma: x)(images, ONE), images)


def test_one_images_limit_is_not_anothers() -> None:
    images = torch.stack([torch.full((3, 2, 2), 0.4), torch.full((3, 2, 2), 4.0)])
    found = dynamically_thresholded(lambda x, sigma: x, 0.995)(images, ONE)
    assert found[0].unique().tolist() == [pytest.approx(0.4)] and found[1].unique().tolist() == [1.0]


def test_the_configuration_chooses() -> None:
    x = torch.tensor([[-50.0, 1.0], [50.0, 2.0]])
    sigmas = grids.karras(5, 0.002, 80.0)

    def identity(x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def result(threshold: str) -> Tensor:
        config = Sampler(sampler="ddim", steps=5, grid="karras", threshold=threshold, threshold_percentile=1.0)  # type: ignore[arg-type]
        return last(run_sampler(config, identity, sigmas, x, lambda: torch.zeros(2, 2))).denoised

    assert torch.equal(result("none"), x)
    assert result("clip").abs().max() == 1 and result("dynamic").abs().max() == 1
    assert not torch.equal(result("clip"), result("dynamic"))
