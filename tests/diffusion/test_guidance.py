"""Guidance: closed forms of a labelled mixture, parity with peers, and every evaluation counted."""

from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tests.diffusion.affine import last
from torch import Tensor

from unveil.diffusion.closed_form import Mixture, gaussian
from unveil.diffusion.config import Guidance, Sampler
from unveil.diffusion.denoiser import Denoiser, DenoiserFunction, expand
from unveil.diffusion.guidance import Guided, guided
from unveil.diffusion.parameterizations import Eps
from unveil.diffusion.paths import EDM, VPLinear
from unveil.diffusion.samplers import Counted
from unveil.diffusion.sampling import build_grid, draw

SHAPE = (1, 8, 8)
HEUN = Sampler(sampler="heun", steps=12, grid="karras")
STOCHASTIC = Sampler(sampler="dpmpp-2m-sde", steps=12, grid="karras")
LABELS = gaussian(-1.0, 0.3), gaussian(1.0, 0.2)
ALL = Mixture([0.5, 0.5], [-1.0, 1.0], [0.3, 0.2])  # each number a point by itself
IDS = list(range(6))
LABEL = torch.tensor([0, 1, 1, 0, 0, 1])


def labelled(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
    """The exact denoiser of the mixture, and of one of its components where that is told."""
    if label is None:
        return ALL.denoise(x, sigma)
    both = torch.stack([component.denoise(x, sigma) for component in LABELS])
    return both[label, torch.arange(len(x))]


def worse(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
    return labelled(x, 1.3 * sigma, label)


def images(denoiser: Callable[..., Tensor], label: Tensor | None, sampler: Sampler = HEUN) -> tuple[Tensor, int]:
    step = last(draw(denoiser, sampler, 3, IDS, SHAPE, path=EDM(), condition=label))
    return step.x, step.nfe


@pytest.mark.parametrize("sampler", [HEUN, STOCHASTIC], ids=["ode", "sde"])
def test_scale_one_is_the_conditional_model_and_scale_zero_the_unconditional_one(sampler: Sampler) -> None:
    for scale, label in ((1.0, LABEL), (0.0, None)):
        found, evaluations = images(guided(labelled, Guidance(guidance=scale)), LABEL, sampler)
        expected, same = images(labelled, label, sampler)
        assert torch.equal(found, expected) and evaluations == same  # neither pays for the other


def test_of_one_component_and_of_two_at_scale_one_the_samples_have_its_moments() -> None:
    label = torch.ones(400, dtype=torch.int64)
    step = last(
        draw(guided(labelled, Guidance()), HEUN.replace(steps=40), 0, range(400), SHAPE, path=EDM(), condition=label)
    )
    assert step.x.mean().item() == pytest.approx(1.0, abs=0.01) and step.x.std().item() == pytest.approx(0.2, rel=0.05)


def test_guidance_pushes_away_from_the_other_component() -> None:
    means = [images(guided(labelled, Guidance(guidance=scale)), LABEL)[0][LABEL == 1].mean() for scale in (1.0, 2.0)]
    assert means[1] > means[0]


@pytest.mark.parametrize("guide", [None, worse])
def test_an_interval_that_is_everything_is_the_plain_guidance_and_an_empty_one_none(
    guide: Callable[..., Tensor] | None,
) -> None:
    plain, evaluations = images(guided(labelled, Guidance(guidance=2.5), guide), LABEL)
    whole, as_many = images(guided(labelled, Guidance(guidance=2.5, guidance_interval=(0.0, 1e8)), guide), LABEL)
    assert torch.equal(plain, whole) and evaluations == as_many == 2 * (2 * 12 - 1)
    outside, fewer = images(guided(labelled, Guidance(guidance=2.5, guidance_interval=(1e6, 1e8)), guide), LABEL)
    assert torch.equal(outside, images(labelled, LABEL)[0]) and fewer == 2 * 12 - 1
    some, between = images(guided(labelled, Guidance(guidance=2.5, guidance_interval=(0.1, 3.0)), guide), LABEL)
    assert fewer < between < evaluations and not torch.allclose(some, plain) and not torch.allclose(some, outside)


def test_levels_of_one_batch_may_lie_in_and_out_of_the_interval() -> None:
    x, sigma = torch.randn(6, *SHAPE), torch.tensor([0.05, 0.1, 0.5, 3.0, 3.1, 80.0])
    both = Guided(labelled, Guidance(guidance=2.0, guidance_interval=(0.1, 3.0)))(x, sigma, LABEL)
    inside, outside = Guided(labelled, Guidance(guidance=2.0))(x, sigma, LABEL), labelled(x, sigma, LABEL)
    expected = torch.where(expand(torch.tensor([False, False, True, True, False, False]), x), inside, outside)
    torch.testing.assert_close(both, expected)


def test_a_guide_that_is_the_model_changes_nothing_and_costs_as_much_again() -> None:
    for label, tell in ((LABEL, True), (None, False)):
        found, evaluations = images(guided(labelled, Guidance(guidance=3.0), labelled, tell), label)
        expected, half = images(labelled, label)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert evaluations == 2 * half


def test_a_guide_is_told_the_condition_only_if_asked() -> None:
    x, sigma = torch.randn(6, *SHAPE), torch.full((6,), 0.7)
    for tell, label in ((True, LABEL), (False, None)):
        found = Guided(labelled, Guidance(guidance=1.5), worse, tell)(x, sigma, LABEL)
        guide, model = worse(x, sigma, label), labelled(x, sigma, LABEL)
        torch.testing.assert_close(found, guide.lerp(model, 1.5))  # as edm2's sampler combines them


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_restores_the_spread_of_the_models_own_image(share: float) -> None:
    x, sigma = 3 * torch.randn(6, *SHAPE), torch.full((6,), 2.0)
    plain = Guided(labelled, Guidance(guidance=4.0))(x, sigma, LABEL)
    found = Guided(labelled, Guidance(guidance=4.0, guidance_rescale=share))(x, sigma, LABEL)
    own, before, after = (part.flatten(1).std(dim=1) for part in (labelled(x, sigma, LABEL), plain, found))
    torch.testing.assert_close(after, share * own + (1 - share) * before)


class Bent(torch.nn.Module):
    """A smooth prediction of the noise that depends on the label."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        share = expand(t, x) / 1000
        shift = 0.0 if label is None else expand(label.to(x.dtype), x) - 0.5
        return 0.9 * (x + 0.2 * (x.roll(1, -1) + shift).sin() + 0.1 * share.cos())


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
def test_classifier_free_guidance_is_diffusers(scale: float) -> None:
    """Their pipelines combine the predictions of the noise, ours the images: on any path that is the same."""
    scheduler = DDIMScheduler(
        1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=0,
    )
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.set_timesteps(20)
    network, path = Bent(), VPLinear()
    sampler = Sampler(sampler="ddim", steps=20, grid="ddim-leading")
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser = guided(Denoiser(network, path, Eps()), Guidance(guidance=scale))
    sigmas = build_grid(sampler, path)
    start = x * path.start_scale(sigmas[0])
    found = last(draw(denoiser, sampler, 0, IDS, SHAPE, condition=LABEL, start=start, sigmas=sigmas)).x
    for t in scheduler.timesteps:
        times = t.expand(len(x)).to(x.dtype)
        unconditional, conditional = network(x, times), network(x, times, LABEL)
        predicted = unconditional + scale * (conditional - unconditional)
        x = scheduler.step(predicted, int(t), x, return_dict=False)[0]
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


def test_where_it_computes_and_on_which_path_is_the_models() -> None:
    model = Denoiser(Bent(), VPLinear(), Eps())
    both = guided(model, Guidance(guidance=2.0), worse).denoiser
    assert isinstance(both, Guided) and both.path is model.path and list(both.parameters()) == list(model.parameters())
    alone: DenoiserFunction = Counted(labelled)
    assert Guided(alone, Guidance()).path is None
