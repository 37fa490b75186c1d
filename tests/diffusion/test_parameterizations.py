"""Parameterizations: each one's coefficients follow from what its network predicts."""

from collections.abc import Callable

import pytest
import torch
from tests.diffusion.closed_forms import column, gaussian_denoiser
from torch import Tensor, nn

from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.parameterizations import X0, Coefficients, EDMPreconditioning, Eps, Parameterization
from unveil.diffusion.paths import EDM, Flow, NoisePath, VPLinear

SIGMA = torch.logspace(-2, 2, 41, dtype=torch.float64)
MEAN, STD = 0.3, 0.6


def _equal(found: Coefficients, c_skip: Tensor, c_out: Tensor, c_in: Tensor) -> None:
    torch.testing.assert_close(found.c_skip, c_skip)
    torch.testing.assert_close(found.c_out, c_out)
    torch.testing.assert_close(found.c_in, c_in)


def test_the_coefficients_are_those_of_the_papers() -> None:
    one, u = torch.ones_like(SIGMA), SIGMA**2 + 1
    _equal(Eps().coefficients(SIGMA, VPLinear()), one, -SIGMA, u**-0.5)
    _equal(Eps().coefficients(SIGMA, EDM()), one, -SIGMA, one)
    for path in (VPLinear(), EDM(), Flow()):
        _equal(X0().coefficients(SIGMA, path), 0 * one, one, u**-0.5)
        d = 0.7
        total = SIGMA**2 + d**2
        _equal(EDMPreconditioning(d).coefficients(SIGMA, path), d**2 / total, SIGMA * d * total**-0.5, total**-0.5)


@pytest.mark.parametrize("parameterization", [Eps(), X0(), EDMPreconditioning(0.4)], ids=str)
@pytest.mark.parametrize("path", [VPLinear(), EDM(), Flow()], ids=str)
def test_without_noise_eps_and_edm_keep_the_image(path: NoisePath, parameterization: Parameterization) -> None:
    found = parameterization.coefficients(torch.tensor([1e-9], dtype=torch.float64), path)
    image = 0.0 if isinstance(parameterization, X0) else 1.0
    assert found.c_skip.item() == pytest.approx(image)
    assert found.c_out.item() == pytest.approx(1 - image, abs=1e-8)
    assert all(c.shape == (1,) for c in found)


@pytest.mark.parametrize("d", [0.25, 0.5, 2.0])
def test_edms_coefficients_solve_the_least_squares_problem_that_they_come_from(d: float) -> None:
    """2206.00364, appendix B.6: unit input, unit target, and as little of the network's error in D as can be.

    So c_skip x is the best prediction of x0 from x without a network (least squares, for any distribution with
    these moments), and c_out is the size of what it leaves. Here the data are +-d, and the noise takes three
    values, each with each, so that the moments are exact.
    """
    pairs = torch.cartesian_prod(
        torch.tensor([-d, d], dtype=torch.float64), torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * 1.5**0.5
    )
    x0, noise = pairs[:, :1], pairs[:, 1:]
    for sigma in (0.1, d, 4.0, 80.0):
        x = x0 + sigma * noise
        c_skip, c_out, c_in = (
            c.item() for c in EDMPreconditioning(d).coefficients(torch.tensor(sigma, dtype=torch.float64), EDM())
        )
        best = torch.linalg.lstsq(x, x0).solution.item()
        assert c_skip == pytest.approx(best)
        assert c_out == pytest.approx((x0 - best * x).square().mean().sqrt().item())
        assert (c_in * x).square().mean().item() == pytest.approx(1)
        assert ((x0 - c_skip * x) / c_out).square().mean().item() == pytest.approx(1)


class _Optimal(nn.Module):
    """The best network for data N(MEAN, STD^2), written in its own frame by Gaussian regression.

    It sees ``y = a x0 + b n`` and predicts ``z = p x0 + q n``; ``E[z | y]`` follows from the covariance of z and y.
    """

    def __init__(self, frame: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.frame = frame

    def forward(self, y: Tensor, c_noise: Tensor) -> Tensor:
        a, b, p, q = (column(value, y) for value in self.frame(c_noise))
        slope = (a * p * STD**2 + b * q) / (a**2 * STD**2 + b**2)
        return p * MEAN + slope * (y - a * MEAN)


def _ddpm_eps(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)[t.round().long()]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), torch.zeros_like(t), torch.ones_like(t)


def _edm_eps(c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ones_like(c), (4 * c).exp(), torch.zeros_like(c), torch.ones_like(c)


def _flow_eps(c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return 1 - c / 1000, c / 1000, torch.zeros_like(c), torch.ones_like(c)


def _flow_x0(c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The angle between image and noise says the same as rectified flow's time: tan = t / (1 - t)."""
    angle = torch.atan2(c / 1000, 1 - c / 1000)
    return angle.cos(), angle.sin(), torch.ones_like(c), torch.zeros_like(c)


def _ddpm_x0(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, zero, one = _ddpm_eps(t)
    return a, b, one, zero


def _edm_edm(c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """2206.00364, eq. 8: the target is ``(x0 - c_skip x) / c_out``; here by angles, tan(angle) = sigma / d."""
    d = 0.5
    angle = torch.atan2((4 * c).exp(), torch.full_like(c, d))
    return angle.cos() / d, angle.sin(), angle.sin() / d, -angle.cos()


OPTIMA = [
    (VPLinear(), Eps(), _ddpm_eps),
    (VPLinear(), X0(), _ddpm_x0),
    (EDM(), Eps(), _edm_eps),
    (EDM(), EDMPreconditioning(0.5), _edm_edm),
    (Flow(), Eps(), _flow_eps),
    (Flow(), X0(), _flow_x0),
]


@pytest.mark.parametrize(("path", "parameterization", "frame"), OPTIMA, ids=lambda part: getattr(part, "__name__", ""))
def test_the_best_network_of_every_kind_is_the_same_denoiser(
    path: NoisePath,
    parameterization: Parameterization,
    frame: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]],
) -> None:
    sigma = (
        path.sigma(torch.tensor([0, 1, 300, 998, 999], dtype=torch.float64)) if isinstance(path, VPLinear) else SIGMA
    )
    x = torch.randn(len(sigma), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x * column(sigma, x)
    denoised = Denoiser(_Optimal(frame), path, parameterization)(x, sigma)
    torch.testing.assert_close(denoised, gaussian_denoiser(MEAN, STD)(x, sigma), rtol=1e-8, atol=1e-8)
