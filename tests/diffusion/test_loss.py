"""The loss: what is drawn for it is one value, and errors count as the penalties say."""

from functools import partial

import pytest
import torch
from torch import Tensor

from unveil.diffusion.config import Diffusion
from unveil.diffusion.denoiser import expand
from unveil.diffusion.loss import Draws, Loss, Penalty, build_loss, nearest_noise
from unveil.diffusion.objectives import EDMObjective

TRAINED = Loss(EDMObjective(), Penalty(0.1, 4.0), noise_candidates=3, input_perturbation=0.1)
IMAGES = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("loss", [TRAINED, TRAINED.plain()], ids=["candidates and perturbation", "plain"])
@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 7), slice(6, 7)], ids=str)
def test_a_part_of_a_batch_has_the_draws_and_the_losses_that_it_has_in_the_whole(loss: Loss, part: slice) -> None:
    whole = loss.draw(IMAGES, _generator())
    alone = loss.draw(IMAGES[part], _generator(), len(IMAGES), part)
    assert torch.equal(alone.sigma, whole[part].sigma) and torch.equal(alone.noise, whole[part].noise)
    assert (alone.perturbation is None) == (whole.perturbation is None) == (loss is not TRAINED)
    losses = loss(_half, IMAGES, whole)
    torch.testing.assert_close(loss(_half, IMAGES[part], alone), losses[part])
    torch.testing.assert_close(loss(_half, IMAGES[part], whole[part]), losses[part])


def _half(x: Tensor, sigma: Tensor) -> Tensor:
    return x / 2


def test_what_only_training_adds_changes_no_other_draw() -> None:
    plain, one, all_of_it = (
        loss.draw(IMAGES, _generator())
        for loss in (TRAINED.plain(), Loss(EDMObjective(), input_perturbation=0.1), TRAINED)
    )
    assert plain.perturbation is None and one.perturbation is not None and all_of_it.perturbation is not None
    assert torch.equal(plain.sigma, one.sigma) and torch.equal(plain.sigma, all_of_it.sigma)
    assert torch.equal(plain.noise, one.noise) and not torch.equal(plain.noise, all_of_it.noise)
    assert one.perturbation.std().item() == pytest.approx(0.1, rel=0.2)
    nearer = (all_of_it.noise - IMAGES).flatten(1).norm(dim=1) <= (plain.noise - IMAGES).flatten(1).norm(dim=1)
    assert nearer.all()


def test_the_denoiser_is_told_the_condition_and_sees_what_was_drawn() -> None:
    seen: list[tuple[object, ...]] = []

    def denoiser(*given: Tensor) -> Tensor:
        seen.append(given)
        return given[0]

    draws, condition = TRAINED.draw(IMAGES, _generator()), object()
    TRAINED(denoiser, IMAGES, draws)
    TRAINED(denoiser, IMAGES, draws, condition)
    (x, sigma), (_, _, told) = seen
    assert told is condition and sigma is draws.sigma and draws.perturbation is not None
    torch.testing.assert_close(x, IMAGES + expand(draws.sigma, IMAGES) * (draws.noise + draws.perturbation))


@pytest.mark.parametrize("scale", [1e-4, 0.08, 1.0, 100.0])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 100.0])
def test_pseudo_huber_errors_are_exact_in_float32(scale: float, sigma: float) -> None:
    errors = torch.tensor([0.0, 1e-5, 1e-3, 0.1, 1.0])[:, None].requires_grad_()
    loss = Penalty(scale)(errors, torch.full((5,), sigma))
    e, c = errors.detach()[:, 0].double(), scale * (1 + sigma**2)
    share = (1 + sigma**2) ** -0.5
    exact = share * 2 * c * e.square() / ((e.square() + c**2).sqrt() + c)
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), errors)
    torch.testing.assert_close(gradient[:, 0].double(), share * 2 * e / (1 + (e / c) ** 2).sqrt(), rtol=1e-5, atol=0.0)


def test_pseudo_huber_errors_are_squares_below_their_scale_and_lines_above() -> None:
    def penalty(error: float, scale: float, sigma: float = 0.0) -> float:
        errors = torch.full((1, 3, 2, 2), error, dtype=torch.float64)
        return float(Penalty(scale)(errors, torch.tensor([sigma], dtype=torch.float64)))

    assert penalty(0.3, 0.0) == pytest.approx(0.09)
    assert penalty(0.3, 0.4) == pytest.approx(2 * 0.4 * (0.5 - 0.4))
    assert penalty(0.3, 0.1, sigma=3**0.5) == pytest.approx(2 * 0.4 * (0.5 - 0.4) / 2)
    assert penalty(0.003, 10.0) == pytest.approx(9e-6)
    assert penalty(3.0, 1e-6) == pytest.approx(2 * 1e-6 * 3.0)


def test_a_huber_scale_that_does_not_grow_is_one_at_all_noise_levels() -> None:
    errors, sigma = torch.rand(3, 3, 4, 4, dtype=torch.float64), torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    assert torch.equal(Penalty(0.2)(errors, sigma), Penalty(0.2, huber_growth=1.0)(errors, sigma))
    exact = 2 * 0.2 * ((errors.square() + 0.2**2).sqrt() - 0.2).flatten(1).mean(1)
    torch.testing.assert_close(Penalty(0.2, huber_growth=0.0)(errors, sigma), exact)
    assert build_loss(Diffusion(huber_scale=0.2, huber_growth=0.5)).penalty == Penalty(0.2, huber_growth=0.5)


@pytest.mark.parametrize(("scale", "sigma", "best"), [(0.0, 0.1, 0.25), (1e-4, 0.1, 0.0), (1e-4, 1000.0, 0.25)])
def test_the_best_denoiser_is_the_mean_and_only_of_small_scales_at_small_sigma_the_median(
    scale: float, sigma: float, best: float
) -> None:
    x0 = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    guesses = torch.linspace(-0.5, 1.5, 201, dtype=torch.float64)
    levels, still = torch.full((4,), sigma, dtype=torch.float64), torch.zeros_like(x0)

    def loss(guess: Tensor) -> Tensor:
        return Loss(EDMObjective(), Penalty(scale))(lambda x, sigma: guess + still, x0, Draws(levels, still))

    losses = [loss(guess).mean() for guess in guesses]
    assert guesses[int(torch.stack(losses).argmin())] == pytest.approx(best)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_a_texture_weighs_more_in_differences_and_a_wrong_colour_nothing(scale: float) -> None:
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    plain, both = (partial(Penalty(scale, weight), sigma=sigma) for weight in (0.0, 3.0))
    colour = torch.full((2, 3, 4, 5), 0.2, dtype=torch.float64)
    torch.testing.assert_close(both(colour), plain(colour))
    board = colour * (1 - 2 * ((torch.arange(4)[:, None] + torch.arange(5)) % 2))
    torch.testing.assert_close(both(board), plain(colour) + 3 * 2 * plain(2 * colour))


def test_the_best_denoiser_of_squared_differences_is_the_mean_too() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    guess = images.mean(0, keepdim=True).requires_grad_()
    (gradient,) = torch.autograd.grad(Penalty(0.0, 5.0)(guess - images, torch.ones(6)).mean(), guess)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_an_image_takes_the_nearest_of_its_own_draws_of_noise() -> None:
    torch.manual_seed(0)
    x0, candidates = torch.randn(3, 2, 4, 4), torch.randn(5, 3, 2, 4, 4)
    chosen = nearest_noise(x0, candidates)
    for image, noise, own in zip(x0, chosen, candidates.unbind(1), strict=True):
        assert torch.equal(noise, min(own, key=lambda draw: float((draw - image).norm())))
    assert torch.equal(nearest_noise(x0, candidates[:1]), candidates[0])
