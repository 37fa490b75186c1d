"""The adaptive solver: SciPy's steps for one row, and rows that know nothing of each other."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from unveil.diffusion import ode
from unveil.diffusion.ode import ERROR, NODES, STAGES, Field, rk45


def _pendulum(t: Tensor, y: Tensor) -> Tensor:
    """A driven, damped pendulum: nonlinear, and time counts."""
    angle, speed = y.unbind(-1)
    return torch.stack([speed, -3 * angle.sin() - 0.2 * speed + t.cos().to(y.dtype)], -1)


def _stiffening(t: Tensor, y: Tensor) -> Tensor:
    """Its steps must change by orders of magnitude: the slope grows as 1 / t."""
    return (y.sin() + 0.3) / t[:, None]


@pytest.mark.parametrize(
    ("field", "start", "t0", "t1"),
    [
        (_pendulum, [0.5, -1.0], 0.0, 12.0),
        (_pendulum, [2.0, 3.0], 8.0, -4.0),
        (_stiffening, [0.2, -0.7, 1.1], 1e-3, 50.0),
        (_stiffening, [0.2, -0.7, 1.1], 80.0, 1e-2),
    ],
)
@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 1e-6), (1e-5, 1e-5), (1e-9, 1e-11)])
def test_one_row_takes_scipys_steps(
    field: Field, start: list[float], t0: float, t1: float, rtol: float, atol: float
) -> None:
    def row(t: float, y: np.ndarray) -> np.ndarray:
        return field(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)[None])[0].numpy()

    expected = solve_ivp(row, (t0, t1), start, rtol=rtol, atol=atol, method="RK45")
    found = rk45(field, torch.tensor([start], dtype=torch.float64), t0, t1, rtol, atol)
    assert found.nfe.tolist() == [expected.nfev]
    np.testing.assert_allclose(found.y[0].numpy(), expected.y[:, -1], rtol=1e-6, atol=1e-10)


def test_the_tableau_is_consistent() -> None:
    for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
        assert sum(weights) == pytest.approx(node)
    assert sum(ERROR) == pytest.approx(0, abs=1e-15)
    for power in range(1, 5):  # the last stage is the result, of order 5: it integrates t^4 exactly
        moment = sum(w * c**power for w, c in zip(STAGES[-1], NODES, strict=False))
        assert moment == pytest.approx(1 / (power + 1))


def test_a_row_does_not_depend_on_the_others() -> None:
    starts = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    together = rk45(_pendulum, starts, 0.0, 9.0)
    assert len(set(together.nfe.tolist())) > 1
    for i in range(5):
        alone = rk45(_pendulum, starts[i : i + 1], 0.0, 9.0)
        assert alone.nfe.item() == together.nfe[i].item()
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=0.0, atol=1e-12)


def test_the_error_follows_the_tolerance() -> None:
    start = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    exact = start * torch.tensor(-3.0, dtype=torch.float64).exp()
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = rk45(lambda t, y: -y, start, 0.0, 3.0, tolerance, tolerance).y
        errors.append((found - exact).abs().max().item())
        assert errors[-1] < 10 * tolerance
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_images_keep_their_shape_and_type() -> None:
    images = torch.rand(2, 3, 4, 4)
    found = rk45(lambda t, y: y * 0, images, 1.0, 0.0)
    assert torch.equal(found.y, images) and found.y.dtype == torch.float32
    nothing = rk45(lambda t, y: y, images, 1.0, 1.0)
    assert torch.equal(nothing.y, images)


def test_it_gives_up_rather_than_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    start = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="no step is short enough"):
        rk45(lambda t, y: y.square(), start, 0.0, 2.0)  # 1 / (1 - t)
    with pytest.raises(ArithmeticError, match="no step is short enough"):
        rk45(lambda t, y: y * torch.nan, start, 0.0, 1.0)
    monkeypatch.setattr(ode, "MOST_STEPS", 3)
    with pytest.raises(ArithmeticError, match="after 3 steps"):
        rk45(_pendulum, torch.ones(1, 2, dtype=torch.float64), 0.0, 100.0)
