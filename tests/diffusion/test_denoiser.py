"""A network becomes a denoiser: what it is shown, what it is told, and what is made of its answer."""

import torch
from torch import Tensor, nn

from unveil.diffusion.denoiser import Denoiser, expand
from unveil.diffusion.parameterizations import EDMPreconditioning, Eps
from unveil.diffusion.paths import EDM, VPLinear


class _Recorder(nn.Module):
    """Answers with ones, of any type, and remembers what it was asked."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return torch.ones_like(x, dtype=self.dtype)


def test_expand_appends_axes() -> None:
    assert expand(torch.rand(2), torch.rand(2, 3, 4, 5)).shape == (2, 1, 1, 1)
    assert expand(torch.rand(2), torch.rand(2)).shape == (2,)


def test_every_sample_has_its_own_noise_level() -> None:
    x, sigma = torch.randn(3, 2, 4, 4), torch.tensor([0.1, 1.0, 50.0])
    denoiser = Denoiser(_Recorder(), EDM(), EDMPreconditioning(0.5))
    together = denoiser(x, sigma)
    for i in range(3):
        torch.testing.assert_close(denoiser(x[i : i + 1], sigma[i : i + 1]), together[i : i + 1])


def test_on_the_vp_path_the_network_sees_ddpms_image_and_timestep() -> None:
    path, network = VPLinear(), _Recorder()
    t = torch.tensor([0, 500, 999])
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    sigma = path.sigmas[t].float()
    Denoiser(network, path, Eps())(x0 + expand(sigma, x0) * noise, sigma)
    alpha_bar = expand((1 / (1 + path.sigmas[t] ** 2)).float(), x0)
    torch.testing.assert_close(network.x, alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.c_noise, t.float(), rtol=0.0, atol=1e-3)


def test_a_network_in_low_precision_gives_a_sum_in_full_precision() -> None:
    x, sigma = torch.randn(2, 1, 2, 2), torch.tensor([0.01, 80.0])
    for dtype in (torch.bfloat16, torch.float16):
        denoised = Denoiser(_Recorder(dtype), EDM(), Eps())(x, sigma)
        assert denoised.dtype == torch.float32
        torch.testing.assert_close(denoised, x - expand(sigma, x), rtol=0.0, atol=0.0)


def test_its_weights_are_the_networks() -> None:
    network = nn.Conv2d(1, 1, 1)
    assert list(Denoiser(network, EDM(), Eps()).parameters()) == list(network.parameters())


def test_a_condition_goes_to_the_network_as_it_is_and_only_if_there_is_one() -> None:
    heard: list[tuple[object, ...]] = []

    class Network(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, *told: object) -> Tensor:
            heard.append(told)
            return x

    denoiser = Denoiser(Network(), EDM(), Eps())
    x, sigma, condition = torch.randn(2, 3, 4, 4), torch.ones(2), object()
    denoiser(x, sigma)
    denoiser(x, sigma, condition)
    assert heard == [(), (condition,)]
