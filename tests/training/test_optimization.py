"""Learning rates against closed forms and PyTorch's schedulers, and what the optimizers do to weights."""

import math

import pytest
import torch
from torch import Tensor

from unveil.training.config import ScheduleName, Training
from unveil.training.optimization import ITERATIONS, NEWTON_SCHULZ, build_optimizer, learning_rate, orthogonalized
from unveil.workers import ALONE, Workers

LENGTHS = {"warmup_images": 100, "images": 1100, "lr_reference_images": 400, "batch_size": 1}
SCHEDULES: list[ScheduleName] = ["constant", "cosine", "inverse-sqrt"]


def _rate(schedule: ScheduleName, images_seen: int) -> float:
    return learning_rate(Training.model_validate({"lr_schedule": schedule, "lr": 0.5, **LENGTHS}), images_seen)


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
        shortest = Training(
            lr_schedule=schedule, lr=1.0, warmup_images=1, images=1, lr_reference_images=1, batch_size=1
        )
        assert math.isfinite(learning_rate(shortest, 1))


def test_adamw_decays_weights_beside_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(Training(optimizer="adamw", lr=0.1, betas=(0.9, 0.99), weight_decay=0.2), [weight])
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.allclose(weight, torch.full((3,), 1 - 0.1 * 0.2))


def test_adam_does_not_decay() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(Training(optimizer="adam", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), [weight])
    weight.grad = torch.tensor([1.0, -1.0, 0.0])
    optimizer.step()  # Adam's first step is lr times the gradient's sign
    assert torch.allclose(weight, torch.tensor([0.9, 1.1, 1.0]))


def _matrices() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((6, 4, 3, 3), (20, 5), (5,), ())
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    return parameters


def test_muon_makes_steps_of_matrices_nearly_orthogonal_and_as_long_as_adams() -> None:
    """All directions alike, however unlike the gradient's are: singular values of about 0.2 sqrt(max(n, m)) lr."""
    parameters = _matrices()
    parameters[1].grad = torch.randn(20, 5) * torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01])
    before = [parameter.detach().clone() for parameter in parameters]
    build_optimizer(Training(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), parameters).step()
    for parameter, old in list(zip(parameters, before, strict=True))[:2]:
        step = (parameter.detach() - old).flatten(1)
        values = torch.linalg.svdvals(step) / (0.1 * 0.2 * max(step.shape) ** 0.5)
        assert 0.5 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_muon_is_pytorchs_on_matrices_and_adamw_elsewhere(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's computes in bf16 whatever it is given: for float32 its own code is run on numbers of that type."""
    if precision == "fp32":
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    ours, theirs = _matrices(), _matrices()
    matrices = [torch.nn.Parameter(parameter.detach().flatten(1)) for parameter in theirs[:2]]
    peers = [
        torch.optim.Muon(matrices, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[2:], lr=0.1, betas=(0.8, 0.9), weight_decay=0.2),
    ]
    optimizer = build_optimizer(
        Training(optimizer="muon", lr=1.0, betas=(0.8, 0.9), weight_decay=0.2), ours, precision=precision
    )
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)  # as a schedule does
        for peer in peers:
            peer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for mine, other, matrix in zip(ours, theirs, [*matrices, None, None], strict=True):
            mine.grad = other.grad = torch.full_like(mine, step + 1.0).add_(torch.randn_like(mine))
            if matrix is not None:
                matrix.grad = mine.grad.flatten(1)
        for part in (optimizer, *peers):
            part.step()
    tolerance = {"fp32": 1e-5, "bf16": 3e-3}[precision]
    for mine, other in zip(ours, [*matrices, *theirs[2:]], strict=True):
        torch.testing.assert_close(
            mine.flatten(1) if mine.dim() == 4 else mine, other, rtol=tolerance, atol=tolerance
        )  # ours is fused


@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 40, 3), (1, 8, 8)])
def test_products_of_the_gram_matrix_are_the_iteration_itself(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[2])
    a, b, c = NEWTON_SCHULZ
    x = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalized(matrices, torch.float32).double(), x, rtol=0, atol=2e-3)
    assert torch.equal(orthogonalized(torch.zeros(shape), torch.float32), torch.zeros(shape))


def test_threads_and_the_other_matrices_change_no_step(two_threads: Workers) -> None:
    def moved(threads: Workers, count: int) -> Tensor:
        parameters = [torch.nn.Parameter(value.clone()) for value in values[:count]]
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient
        build_optimizer(
            Training(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), parameters, workers=threads
        ).step()
        return parameters[0].detach()

    torch.manual_seed(0)
    values, gradients = torch.randn(5, 6, 9), torch.randn(5, 6, 9)
    torch.testing.assert_close(moved(two_threads, 5), moved(ALONE, 1))


@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
def test_muon_gives_the_same_steps_channels_last(of_gradient: torch.memory_format) -> None:
    usual = _matrices()[:1]
    gradient = usual[0].grad
    assert gradient is not None
    laid_out = [torch.nn.Parameter(usual[0].detach().clone(memory_format=torch.channels_last))]
    laid_out[0].grad = gradient.contiguous(memory_format=of_gradient)
    for parameters in (usual, laid_out):
        build_optimizer(Training(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), parameters).step()
    assert laid_out[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid_out[0], usual[0])


def test_muon_leaves_what_has_no_gradient() -> None:
    parameters = _matrices()
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad = parameters[2].grad = None
    build_optimizer(Training(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), parameters).step()
    assert [torch.equal(a, b) for a, b in zip(parameters, before, strict=True)] == [True, False, True, False]


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_muon_takes_parameters_of_one_kind_alone(shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.ones(shape)
    build_optimizer(Training(optimizer="muon", lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), [weight]).step()
    assert weight.abs().min() > 0
