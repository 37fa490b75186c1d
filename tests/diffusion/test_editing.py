"""Editing, with denoisers that are exact."""

import math
from typing import Any

import pytest
import torch
from tests.diffusion.affine import last
from torch import Tensor

from unveil.diffusion import editing, grids
from unveil.diffusion.closed_form import Mixture, gaussian
from unveil.diffusion.config import Sampler
from unveil.diffusion.denoiser import expand
from unveil.diffusion.paths import EDM
from unveil.diffusion.samplers import Counted
from unveil.diffusion.sampling import draw
from unveil.networks.condition import Condition

MIXTURE = Mixture(
    [0.3, 0.7], [[-0.9, 0.4], [0.7, -0.3]], [[[0.03, 0.02], [0.02, 0.04]], [[0.05, -0.02], [-0.02, 0.02]]]
)
HEUN = Sampler(sampler="heun", steps=20, grid="karras")
SAMPLERS = [
    HEUN,
    HEUN.replace(s_churn=10.0),
    Sampler(sampler="ddpm", steps=20, grid="karras"),
    Sampler(sampler="dpmpp-2m", steps=20, grid="karras"),
    Sampler(sampler="predictor-corrector", steps=10, grid="karras"),
]


def images_of(data: Mixture, count: int, rows: int = 4) -> Tensor:
    """Images [count, 1, rows, d], each row of which is a point of the data."""
    return data.draw(count * rows, seed=3).view(count, 1, rows, -1).float()


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of images in [-1, 1]."""
    return 10 * math.log10(4 / (a - b).double().square().mean().item())


def told(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Data N(attribute, 0.5^2), as a denoiser that must be told."""
    assert condition.attributes is not None
    mean = expand(condition.attributes[:, 0].to(x), x)
    return gaussian(0.0, 0.5).denoise(x - mean, sigma) + mean


def attribute(*values: int) -> Condition:
    return Condition(attributes=torch.tensor(values, dtype=torch.int8)[:, None])


# ------------------------------------------------------------------------------------ inversion


def there_and_back(denoiser: Any, sampler: Sampler, images: Tensor, **how: Any) -> float:
    up = last(editing.invert(denoiser, sampler, 0, images, path=EDM(), **how))
    down = draw(denoiser, sampler, 0, range(len(images)), images.shape[1:], start=up.x, path=EDM(), **how)
    return psnr(last(down).x, images)


@pytest.mark.parametrize(("name", "order"), [("heun", 2), ("dpmpp-2m", 1), ("ddim", 1)])
def test_inversion_and_back_return_the_images_at_the_solvers_order_or_better(name: Any, order: int) -> None:
    """Twice the steps are 6 dB an order; dpmpp-2m begins and ends at first order."""
    images = images_of(MIXTURE, 20).double()
    grid = Sampler(sampler=name, steps=100, grid="karras", sigma_min=0.002, sigma_max=20.0)
    found = [there_and_back(MIXTURE.denoise, grid.replace(steps=steps), images) for steps in (100, 200)]
    assert found[0] > 30
    assert found[1] - found[0] > 0.8 * order * 20 * math.log10(2)


def test_inversion_finds_gaussian_noise() -> None:
    """Points of the data, without noise, become points of the noisy data at the largest sigma."""
    images = images_of(MIXTURE, 100)
    up = last(editing.invert(MIXTURE.denoise, HEUN, 1, images, path=EDM()))
    spread = (up.x / 80).std((0, 1, 2))
    torch.testing.assert_close(spread, torch.ones(2), rtol=0.0, atol=0.1)
    line = gaussian(0.2, 1e-4)  # next to nothing is left to find the noise by
    up = last(editing.invert(line.denoise, HEUN, 1, torch.full((50, 3, 8, 8), 0.2), path=EDM()))
    assert (up.x / 80).std().item() == pytest.approx(1, abs=0.1)


def test_each_image_is_inverted_by_itself_and_evaluations_are_counted() -> None:
    images = images_of(MIXTURE, 3)
    counted = Counted(MIXTURE.denoise)
    steps = list(editing.invert(counted, HEUN, 7, images, path=EDM()))
    assert len(steps) == 21 and steps[-1].nfe == counted.images // 3 == editing.FIXED_POINT_STEPS * (2 * 19 + 1)
    assert [step.sigma for step in steps] == grids.karras(20, 0.002, 80.0).flip(0).tolist()
    alone = last(editing.invert(counted, HEUN, 7, images[2:], ids=[2], path=EDM()))
    torch.testing.assert_close(alone.x, steps[-1].x[2:])
    assert alone.nfe == steps[-1].nfe


@pytest.mark.parametrize("name", ["ddpm", "euler-maruyama", "predictor-corrector", "dpmpp-2m-sde"])
def test_what_cannot_be_undone_is_refused(name: Any) -> None:
    for sampler in (Sampler(sampler=name, grid="karras"), HEUN.replace(s_churn=1.0)):
        with pytest.raises(ValueError, match="which draws noise on its way; expected one that follows the ODE"):
            next(editing.invert(MIXTURE.denoise, sampler, 0, torch.zeros(1, 1, 4, 2), path=EDM()))


def test_an_edit_moves_the_image_to_where_it_is_asked_to() -> None:
    """By the ODE a point of one Gaussian goes to the point of the other with the same standard score.

    Up to what is left of the image in the largest noise: 2 * 0.5 / 80.
    """
    images = gaussian(-1.0, 0.5).draw(2 * 3 * 16, seed=0).view(2, 3, 4, 4).float()
    how: dict[str, Any] = {"known": attribute(-1, -1), "condition": attribute(1, -1), "path": EDM()}
    step = last(editing.edit(told, HEUN.replace(steps=100), 0, images, **how))
    torch.testing.assert_close(step.x, images + torch.tensor([2.0, 0.0]).view(2, 1, 1, 1), rtol=0.0, atol=0.02)
    assert step.nfe == (editing.FIXED_POINT_STEPS + 1) * (2 * 99 + 1)
    for strength, moved in ((0.0, 0.0), (0.3, 0.1), (0.7, 1.8)):
        step = last(editing.edit(told, HEUN, 0, images, strength=strength, **how))
        assert (step.x - images)[0].mean().item() == pytest.approx(moved, abs=0.2)
    other = last(editing.edit(gaussian(1.0, 0.5).denoise, HEUN, 0, images, inverse=told, **how | {"condition": None}))
    torch.testing.assert_close(other.x, images + 2, rtol=0.0, atol=0.1)


# ---------------------------------------------------------------------------------- inpainting


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler.sampler} {sampler.s_churn}")
def test_the_known_part_is_untouched_and_the_rest_is_not(sampler: Sampler) -> None:
    images = images_of(MIXTURE, 3)
    mask = torch.zeros(4, 2, dtype=torch.bool)
    mask[1:3, 1] = True
    step = last(editing.inpaint(MIXTURE.denoise, sampler, 0, images, mask, resamplings=3, jump=2, path=EDM()))
    assert torch.equal(step.x[..., ~mask], images[..., ~mask])
    assert (step.x[..., mask] != images[..., mask]).all() and step.sigma == 0


CORRELATED = torch.tensor([[0.25, 0.18], [0.18, 0.16]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["ddpm", "heun"])
def test_what_is_painted_follows_the_conditional_distribution(name: Any) -> None:
    """Of N(0, C), given the left pixel: mean C12 / C11 x1, variance C22 - C12^2 / C11."""
    data = Mixture([1.0], [[0.0, 0.0]], CORRELATED[None])
    images = torch.full((1, 1, 4000, 2), 0.8)
    right = torch.tensor([False, True])
    sampler = Sampler(sampler=name, steps=100, grid="karras", sigma_min=0.02)
    slope = (CORRELATED[0, 1] / CORRELATED[0, 0]).item()
    std = math.sqrt((CORRELATED[1, 1] - CORRELATED[0, 1] ** 2 / CORRELATED[0, 0]).item())
    off = []
    for resamplings in (1, 10):
        how: dict[str, Any] = {"resamplings": resamplings, "jump": 4, "path": EDM()}
        painted = last(editing.inpaint(data.denoise, sampler, 0, images, right, **how))
        found = painted.x[..., 1].double()
        off.append(abs(found.mean().item() - 0.8 * slope))
    assert off[1] < 0.15 * std < 0.7 * std < off[0]
    assert found.std().item() == pytest.approx(std, rel=0.06)


def test_an_image_is_painted_by_itself_told_its_condition_and_counted() -> None:
    images, mask = torch.zeros(3, 3, 4, 4), torch.arange(4) < 2
    sampler = Sampler(sampler="ddpm", steps=9, grid="karras")
    how: dict[str, Any] = {"resamplings": 3, "jump": 4, "path": EDM()}
    steps = list(editing.inpaint(told, sampler, 5, images, mask, condition=attribute(1, -1, 1), **how))
    assert steps[-1].nfe == len(steps) - 1 == 3 * 8 + 1  # each step three times, but for the last one
    painted = steps[-1].x[..., :2]
    assert painted[0].mean() > 0.5 and painted[1].mean() < -0.5
    alone = last(editing.inpaint(told, sampler, 5, images[1:2], mask, ids=[1], condition=attribute(-1), **how))
    torch.testing.assert_close(alone.x[0], steps[-1].x[1])


def test_steps_are_done_again_in_parts_that_leave_the_last_one_alone() -> None:
    grid = [(float(level), float(level - 1)) for level in range(8, 0, -1)]
    assert [len(part) for part in editing._parts(grid, 3)] == [1, 3, 3, 1]
    for jump in (1, 2, 7, 100):
        assert [step for part in editing._parts(grid, jump) for step in part] == grid


def test_rk45_paints_nothing() -> None:
    with pytest.raises(ValueError, match="rk45, which chooses its own levels"):
        next(editing.inpaint(told, Sampler(sampler="rk45", grid="karras"), 0, torch.zeros(1, 1, 2, 2), torch.ones(2)))


# ------------------------------------------------------------------- interpolation and variation


def test_between_two_draws_of_noise_lies_such_noise() -> None:
    first, second = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    between = editing.interpolate(first, second, 5)
    assert torch.equal(between[0], first) and torch.equal(between[-1], second)
    torch.testing.assert_close(between.flatten(1).std(1), torch.ones(5), rtol=0.0, atol=0.05)
    angles = torch.cosine_similarity(between[:-1].flatten(1), between[1:].flatten(1)).acos()
    torch.testing.assert_close(angles, angles.mean().expand(4), rtol=0.0, atol=0.01)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_on_one_line_there_is_no_circle(factor: float) -> None:
    noise = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    between = editing.interpolate(noise, factor * noise, 3)
    torch.testing.assert_close(between[1], (1 + factor) / 2 * noise)


def test_the_ends_of_an_interpolation_are_the_images() -> None:
    images, sampler = images_of(MIXTURE, 2), HEUN.replace(steps=100)
    up = last(editing.invert(MIXTURE.denoise, sampler, 0, images, path=EDM())).x
    start = editing.interpolate(up[0], up[1], 4)
    drawn = last(draw(MIXTURE.denoise, sampler, 0, range(4), images.shape[1:], start=start, path=EDM())).x
    assert psnr(drawn[[0, 3]], images) > 30
    assert psnr(drawn[1:3], images) < 30


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler.sampler} {sampler.s_churn}")
def test_variations_range_from_the_image_to_a_plain_sample(sampler: Sampler) -> None:
    images, shape = images_of(MIXTURE, 3), (1, 4, 2)
    counted = Counted(MIXTURE.denoise)
    none = last(editing.vary(counted, sampler, 4, images, 0.0, path=EDM()))
    assert torch.equal(none.x, images) and counted.images == none.nfe == 0
    full = last(editing.vary(counted, sampler, 4, images, 1.0, path=EDM()))
    assert torch.equal(full.x, last(draw(MIXTURE.denoise, sampler, 4, range(3), shape, path=EDM())).x)
    distances, evaluations = [], []
    for strength in (0.1, 0.4, 0.7):
        step = last(editing.vary(counted, sampler, 4, images, strength, path=EDM()))
        distances.append((step.x - images).norm().item())
        evaluations.append(step.nfe)
    assert 0 < distances[0] < distances[1] < distances[2] and evaluations[0] < evaluations[1] < evaluations[2]


def test_variations_follow_the_data_and_what_they_are_told() -> None:
    """From N(-1, 0.5^2) to N(1, 0.5^2), far enough up to forget: a model's samples, whatever the image was."""
    images = gaussian(-1.0, 0.5).draw(2 * 3 * 400, seed=0).view(2, 3, 20, 20).float()
    how: dict[str, Any] = {"path": EDM(), "condition": attribute(1, -1), "ids": [4, 8]}
    step = last(editing.vary(told, HEUN.replace(steps=50), 0, images, 0.9, **how))
    means, stds = step.x.flatten(1).mean(1), step.x.flatten(1).std(1)
    torch.testing.assert_close(means, torch.tensor([1.0, -1.0]), rtol=0.0, atol=0.1)
    torch.testing.assert_close(stds, torch.full((2,), 0.5), rtol=0.0, atol=0.05)
    how = {"path": EDM(), "condition": attribute(-1), "ids": [8]}
    alone = last(editing.vary(told, HEUN.replace(steps=50), 0, images[1:], 0.9, **how))
    torch.testing.assert_close(alone.x[0], step.x[1])


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_is_a_share(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength: found .*, expected a number in \[0, 1\]"):
        next(editing.vary(MIXTURE.denoise, HEUN, 0, torch.zeros(1, 1, 4, 2), strength, path=EDM()))


def test_a_grid_needs_a_path_and_a_condition_its_rows() -> None:
    images = torch.zeros(2, 1, 4, 2)
    with pytest.raises(ValueError, match="path: found none, expected one, or sigmas"):
        next(editing.vary(MIXTURE.denoise, HEUN, 0, images, 0.5))
    with pytest.raises(ValueError, match="condition: found 3 rows, expected one for each of 2 images"):
        next(editing.invert(told, HEUN, 0, images, path=EDM(), condition=attribute(1, 1, 1)))
