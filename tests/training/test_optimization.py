"""Learning rates against closed forms and PyTorch's schedulers, and what the optimizers do to weights."""

import math

import pytest
import torch

from unveil.training.choices import ScheduleName
from unveil.training.optimization import build_optimizer, learning_rate

LENGTHS = {"warmup_images": 100, "images": 1100, "reference_images": 400}
SCHEDULES: list[ScheduleName] = ["constant", "cosine", "inverse-sqrt"]


def _rate(schedule: ScheduleName, images_seen: int) -> float:
    return learning_rate(schedule, 0.5, images_seen, **LENGTHS)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_rises_evenly_to_the_greatest(schedule: ScheduleName) -> None:
    assert [_rate(schedule, images) for images in (0, 25, 50, 100)] == pytest.approx([0, 0.125, 0.25, 0.5])
    later = [_rate(schedule, images) for images in range(100, 1101, 50)]
    assert later == sorted(later, reverse=True)


def test_constant_stays() -> None:
    assert _rate("constant", 10**9) == 0.5


def test_cosine_is_pytorchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)
    for images in range(100, 1101):
        assert _rate("cosine", images) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert _rate("cosine", 5000) == 0


def test_inverse_sqrt_halves_in_four_times_the_images() -> None:
    assert _rate("inverse-sqrt", 400) == 0.5
    assert _rate("inverse-sqrt", 1600) == pytest.approx(0.25)
    assert _rate("inverse-sqrt", 40_000) == pytest.approx(0.05)


def test_no_length_is_too_short() -> None:
    for schedule in SCHEDULES:
        rate = learning_rate(schedule, 1.0, 1, warmup_images=1, images=1, reference_images=1)
        assert math.isfinite(rate)


def test_adamw_decays_weights_beside_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer("adamw", [weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.allclose(weight, torch.full((3,), 1 - 0.1 * 0.2))


def test_adam_does_not_decay() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="weight_decay"):
        build_optimizer("adam", [weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    optimizer = build_optimizer("adam", [weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    weight.grad = torch.tensor([1.0, -1.0, 0.0])
    optimizer.step()  # Adam's first step is lr times the gradient's sign
    assert torch.allclose(weight, torch.tensor([0.9, 1.1, 1.0]))
