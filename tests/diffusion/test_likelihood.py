"""Likelihoods: those of Gaussians and mixtures are known exactly."""

import math

import pytest
import torch
from torch import Tensor, nn

from unveil.diffusion.closed_form import Mixture, gaussian
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.likelihood import (
    LEVEL,
    BitsPerDim,
    LikelihoodConfig,
    bits_per_dim,
    log_density,
)
from unveil.diffusion.parameterizations import EDMPreconditioning
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid

BIT = math.log(2)
ENDS = (1e-3, 1e4)

GAUSSIAN = Mixture([1.0], [[0.3]], [0.6])
PLANE = Mixture([0.3, 0.7], [[-0.6, 0.2], [0.5, -0.4]], [0.15, 0.3])
TWELVE = Mixture(
    [0.2, 0.5, 0.3], torch.randn(3, 12, generator=torch.Generator().manual_seed(0)).tolist(), [0.1, 0.25, 0.4]
)


def exact_probes(x: Tensor) -> Tensor:
    """Probes that give the trace itself: sqrt(dim) times the unit vectors, [dim, B, dim]."""
    dim = x[0].numel()
    return (math.sqrt(dim) * torch.eye(dim, dtype=x.dtype))[:, None].expand(dim, len(x), dim)


def _bits(nats: Tensor, dim: int) -> Tensor:
    return nats / dim / BIT


def _rademacher(count: int, x: Tensor, seed: int = 0) -> Tensor:
    signs = torch.randint(0, 2, (count, *x.shape), generator=torch.Generator().manual_seed(seed))
    return (2 * signs - 1).to(x.dtype)


@pytest.mark.parametrize("data", [GAUSSIAN, PLANE, TWELVE], ids=["gaussian", "plane", "twelve"])
def test_the_exact_trace_gives_the_exact_likelihood(data: Mixture) -> None:
    """To 1e-3 bits per dimension, the prior's lack of the data and the solver's error included."""
    x = data.draw(40, seed=1)
    values, nfe = log_density(data.denoise, x, ENDS, ENDS[1], exact_probes(x))
    exact = data.log_density(x, ENDS[0])
    assert _bits(values - exact, x.shape[1]).abs().max() < 1e-3
    assert _bits(exact - data.log_density(x, 0.0), x.shape[1]).abs().max() < 1e-3  # what cutting off sigma_min costs
    assert nfe.shape == (40,) and (nfe > 10).all()


def test_the_estimate_is_the_exact_likelihood_within_its_standard_error() -> None:
    x = TWELVE.draw(300, seed=2)
    error = log_density(TWELVE.denoise, x, ENDS, ENDS[1], _rademacher(1, x))[0] - TWELVE.log_density(x, ENDS[0])
    stderr = error.std() / math.sqrt(300)
    assert error.mean().abs() < 3 * stderr
    assert _bits(stderr, 12) < 0.02
    assert error.std() > 0.05  # one probe is an estimate
    gaussian = torch.randn(8, *x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    more = log_density(TWELVE.denoise, x, ENDS, ENDS[1], gaussian)[0] - TWELVE.log_density(x, ENDS[0])
    assert more.mean().abs() < 3 * more.std() / math.sqrt(300)


def test_more_probes_have_less_variance() -> None:
    x = TWELVE.draw(100, seed=4)
    exact = TWELVE.log_density(x, ENDS[0])
    spread = [
        (log_density(TWELVE.denoise, x, ENDS, ENDS[1], _rademacher(count, x, 5))[0] - exact).std() for count in (1, 16)
    ]
    assert 0.15 < spread[1] / spread[0] < 0.4  # 1 / 4 for independent probes


def test_an_isotropic_gaussian_needs_one_sign_a_dimension() -> None:
    """Its Jacobian is a multiple of the identity, of which signs give the trace without error."""
    data = Mixture([1.0], [[0.1] * 12], [0.5])
    x = data.draw(5, seed=6)
    values, _ = log_density(data.denoise, x, ENDS, ENDS[1], _rademacher(1, x))
    assert _bits(values - data.log_density(x, ENDS[0]), 12).abs().max() < 1e-3


def test_the_prior_without_the_data_costs_no_more_than_its_divergence() -> None:
    x = PLANE.draw(2000, seed=7)
    ends = (1e-3, 3.0)  # far too early an end
    values, _ = log_density(PLANE.denoise, x, ends, ends[1], exact_probes(x))
    lost = (PLANE.log_density(x, ends[0]) - values).mean()
    bound = x.square().sum(1).mean() / (2 * ends[1] ** 2)
    assert 0 < lost < bound + 0.01


def _pixels(mean: float, std: float, count: int) -> Tensor:
    """uint8 images whose pixels are independent Gaussians."""
    values = mean + std * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(8))
    return ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    "path",
    [VPLinear(), VPCosine(), VPSigmoid(), VPSDE(), SubVP(), VE(0.02, 180.0), EDM(), Flow()],
    ids=lambda p: type(p).__name__,
)
def test_bits_of_gaussian_pixels_on_every_path(path: NoisePath) -> None:
    """The entropy of a Gaussian pixel in grey levels, log2(std / LEVEL sqrt(2 pi e)), within the standard error."""
    mean, std = 0.05, 0.25
    images = _pixels(mean, std, 64)
    found = bits_per_dim(gaussian(mean, std).denoise, path, images, LikelihoodConfig())
    least = path.sigma_range()[0]
    cross = math.log2(math.sqrt(2 * math.pi * (std**2 + least**2)) / LEVEL) + std**2 / (std**2 + least**2) / 2 / BIT
    assert found.mean == pytest.approx(cross, abs=4 * found.stderr)
    assert found.stderr < 0.02
    centred = images.double() / 127.5 - 1 - mean  # the same images at the centres of their cells
    exact = math.log2(math.sqrt(2 * math.pi * (std**2 + least**2)) / LEVEL) + (
        (centred**2 + LEVEL**2 / 12).mean((1, 2, 3)) / (2 * (std**2 + least**2)) / BIT
    )
    assert (found.values - exact).abs().max() < 0.02
    assert (found.values - exact).mean().abs() < 2e-3


def test_dequantization_and_probes_belong_to_an_image() -> None:
    torch.manual_seed(0)
    network = _Small()
    denoiser = Denoiser(network, EDM(), EDMPreconditioning())
    images = _pixels(0.0, 0.3, 5)
    config = LikelihoodConfig(seed=3, rtol=1e-3, atol=1e-3)
    whole = bits_per_dim(denoiser, EDM(), images, config)
    parts = [bits_per_dim(denoiser, EDM(), images[i : i + 2], config, i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat([part.values for part in parts]), whole.values, rtol=0.0, atol=1e-3)
    other = bits_per_dim(denoiser, EDM(), images, LikelihoodConfig(seed=4, rtol=1e-3, atol=1e-3))
    assert (other.values - whole.values).abs().min() > 1e-4
    assert all(parameter.grad is None for parameter in network.parameters())


class _Small(nn.Module):
    """Any network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.conv(x).tanh() * c_noise.sin()[:, None, None, None]


def test_without_dequantization_the_levels_themselves_are_taken() -> None:
    images = torch.full((2, 3, 2, 2), 200, dtype=torch.uint8)
    denoiser = gaussian(0.0, 0.25).denoise
    plain = bits_per_dim(denoiser, EDM(), images, LikelihoodConfig(dequantization="none"))
    variance = 0.25**2 + 0.002**2
    exact = ((200 / 127.5 - 1) ** 2 / variance + math.log(2 * math.pi * variance)) / 2 / BIT - math.log2(LEVEL)
    torch.testing.assert_close(plain.values, torch.full((2,), exact, dtype=torch.float64), rtol=0.0, atol=1e-3)
    assert plain.values[0] == pytest.approx(plain.values[1].item(), abs=1e-6)
    spread = bits_per_dim(denoiser, EDM(), images, LikelihoodConfig())
    assert (spread.values - plain.values).abs().min() > 1e-5


def test_estimates_scatter_around_the_exact_trace_of_a_network() -> None:
    images = _pixels(0.0, 0.3, 12)[:, :, :2, :2]
    torch.manual_seed(1)
    denoiser = Denoiser(_Small(), EDM(), EDMPreconditioning())
    values = {
        probe: bits_per_dim(denoiser, EDM(), images, LikelihoodConfig(probe=probe, rtol=1e-3, atol=1e-3)).values
        for probe in ("exact", "rademacher", "gaussian")
    }
    for probe in ("rademacher", "gaussian"):
        error = values[probe] - values["exact"]
        assert error.mean().abs() < 3 * error.std() / math.sqrt(12)
        assert error.std() > 1e-3  # one probe is an estimate
    assert not torch.equal(values["rademacher"], values["gaussian"])


def test_mean_and_standard_error() -> None:
    found = BitsPerDim(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), torch.tensor([1, 1, 1, 1]))
    assert found.mean == 2.5
    assert found.stderr == pytest.approx(math.sqrt(5 / 3) / 2)


def test_a_denoiser_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ArithmeticError):
        bits_per_dim(lambda x, sigma: x * torch.nan, EDM(), _pixels(0.0, 0.3, 1), LikelihoodConfig())


def test_no_images_have_no_likelihoods() -> None:
    found = bits_per_dim(gaussian(0.0, 0.3).denoise, EDM(), _pixels(0.0, 0.3, 0), LikelihoodConfig())
    assert found.values.shape == found.nfe.shape == (0,)
    nothing = torch.zeros(0, 3, 4, 4)
    assert all(part.shape == (0,) for part in log_density(gaussian(0, 1).denoise, nothing, ENDS, 1.0, nothing[None]))
