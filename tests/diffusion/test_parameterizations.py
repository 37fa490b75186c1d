"""Parameterizations: each one's coefficients follow from what its network predicts."""

import pytest
import torch
from torch import Tensor, nn

from unveil.diffusion.closed_form import gaussian
from unveil.diffusion.denoiser import Denoiser, expand
from unveil.diffusion.parameterizations import X0, Coefficients, EDMPreconditioning, Eps, Parameterization, V, Velocity
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid

PATHS: list[NoisePath] = [VPLinear(), VPCosine(), VPSigmoid(), VPSDE(), SubVP(), VE(), EDM(), Flow()]
ALL: list[Parameterization] = [Eps(), V(), X0(), EDMPreconditioning(0.5), Velocity()]
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
    for path in PATHS:
        _equal(Eps().coefficients(SIGMA, path), one, -SIGMA, path.alpha(SIGMA))
        _equal(V().coefficients(SIGMA, path), 1 / u, -SIGMA * u**-0.5, u**-0.5)
        scale = 1 / (1 + SIGMA)
        _equal(Velocity().coefficients(SIGMA, path), scale, -SIGMA * scale, scale)
        _equal(X0().coefficients(SIGMA, path), 0 * one, one, u**-0.5)
        d = 0.7
        total = SIGMA**2 + d**2
        _equal(EDMPreconditioning(d).coefficients(SIGMA, path), d**2 / total, SIGMA * d * total**-0.5, total**-0.5)


@pytest.mark.parametrize("parameterization", ALL, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_without_noise_all_but_x0_keep_the_image(path: NoisePath, parameterization: Parameterization) -> None:
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


Mix = tuple[Tensor, Tensor]
"""Of image and noise: ``a x0 + b n``."""


def _seen_and_wanted(parameterization: Parameterization, path: NoisePath, sigma: Tensor) -> tuple[Mix, Mix]:
    """What each paper shows its network and asks it for, written in the paper's own variables."""
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    angle = torch.atan(sigma)
    vp = angle.cos(), angle.sin()
    if isinstance(parameterization, Eps):  # 2006.11239, eq. 14
        return (path.alpha(sigma), path.alpha(sigma) * sigma), (zero, one)
    if isinstance(parameterization, V):  # 2202.00512, app. D: v = cos(phi) n - sin(phi) x0
        return vp, (-angle.sin(), angle.cos())
    if isinstance(parameterization, X0):
        return vp, (one, zero)
    if isinstance(parameterization, Velocity):  # 2210.02747: x_t = (1 - t) x0 + t n and its derivative in t
        t = Flow().t(sigma)
        return (1 - t, t), (-one, one)
    d = 0.5  # 2206.00364, eq. 8: (x0 - c_skip x) / c_out, by the angle whose tangent is sigma / d
    angle = torch.atan(sigma / d)
    return (angle.cos() / d, angle.sin()), (angle.sin() / d, -angle.cos())


@pytest.mark.parametrize("parameterization", ALL, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_coefficients_are_what_least_squares_finds(path: NoisePath, parameterization: Parameterization) -> None:
    """From many pairs of image and noise: x0 as a sum of x and of what is wanted, and what is seen as a part of x."""
    x0, noise = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma in torch.logspace(-1.5, 1.5, 7, dtype=torch.float64):
        (a, b), (p, q) = _seen_and_wanted(parameterization, path, sigma)
        x, seen, wanted = x0 + sigma * noise, a * x0 + b * noise, p * x0 + q * noise
        c_skip, c_out = torch.linalg.lstsq(torch.cat([x, wanted], 1), x0).solution[:, 0]
        c_in = torch.linalg.lstsq(x, seen).solution[0, 0]
        _equal(parameterization.coefficients(sigma, path), c_skip, c_out, c_in)


@pytest.mark.parametrize("parameterization", [V(), EDMPreconditioning(0.5)], ids=str)
def test_v_and_edm_amplify_errors_least(parameterization: Parameterization) -> None:
    """For data of their standard deviation: |c_out| is what the best linear estimate of x0 from x leaves over."""
    d = getattr(parameterization, "sigma_data", 1.0)
    found = parameterization.coefficients(SIGMA, EDM())
    torch.testing.assert_close(found.c_out.abs(), SIGMA * d / (SIGMA**2 + d**2).sqrt())
    for other in torch.linspace(-0.2, 1.2, 29, dtype=torch.float64):
        left = ((1 - other) ** 2 * d**2 + other**2 * SIGMA**2).sqrt()
        assert (found.c_out.abs() <= left + 1e-12).all()


class _Optimal(nn.Module):
    """The best network for data N(MEAN, STD^2), by Gaussian regression of what is wanted on what is seen."""

    def __init__(self, parameterization: Parameterization, path: NoisePath) -> None:
        super().__init__()
        self.parameterization, self.path = parameterization, path

    def forward(self, seen: Tensor, c_noise: Tensor) -> Tensor:
        sigma = _told(self.path, c_noise)
        (a, b), (p, q) = (
            tuple(expand(value, seen) for value in mix)
            for mix in _seen_and_wanted(self.parameterization, self.path, sigma)
        )
        slope = (a * p * STD**2 + b * q) / (a**2 * STD**2 + b**2)
        return p * MEAN + slope * (seen - a * MEAN)


def _told(path: NoisePath, c_noise: Tensor) -> Tensor:
    """The noise level that the network is told of, as each paper writes it."""
    if isinstance(path, EDM):
        return (4 * c_noise).exp()
    if isinstance(path, VE):
        return 2 * c_noise.exp()
    if isinstance(path, Flow):
        return c_noise / 1000 / (1 - c_noise / 1000)
    return path.sigma(c_noise / 999 if isinstance(path, VPSDE) else c_noise)


@pytest.mark.parametrize("parameterization", ALL, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_best_network_of_every_kind_is_the_same_denoiser(
    path: NoisePath, parameterization: Parameterization
) -> None:
    sigma = torch.logspace(-1.1, 1.6, 28, dtype=torch.float64)
    x = torch.randn(len(sigma), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = MEAN + x * expand(sigma, x)
    denoised = Denoiser(_Optimal(parameterization, path), path, parameterization)(x, sigma)
    torch.testing.assert_close(denoised, gaussian(MEAN, STD).denoise(x, sigma), rtol=1e-10, atol=1e-10)
