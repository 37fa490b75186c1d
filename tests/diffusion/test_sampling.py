"""Sampling: whose noise is whose, grids that fit their path, and images that do not depend on the batch."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from tests.diffusion.affine import last
from torch import Tensor

from unveil.diffusion import grids, sampling
from unveil.diffusion.closed_form import gaussian
from unveil.diffusion.config import Sampler, Threshold
from unveil.diffusion.denoiser import Denoiser, expand
from unveil.diffusion.parameterizations import X0
from unveil.diffusion.paths import EDM, VE, VPSDE, DiscreteVP, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid
from unveil.diffusion.samplers import Counted
from unveil.diffusion.sampling import SampleNoise, build_grid, draw
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.seeds import image_seed
from unveil.workers import ALONE, Workers

SHAPE = (3, 8, 8)


def name(config: Sampler) -> str:
    return f"{config.sampler} eta {config.eta} churn {config.s_churn}"


PATHS: list[NoisePath] = [VPLinear(), VPCosine(), VPSigmoid(), VPSDE(), SubVP(), VE(), EDM(), Flow()]
DETERMINISTIC = [
    Sampler(sampler="heun", steps=3, grid="karras"),
    Sampler(sampler="ddim", steps=4, grid="karras", eta=0.0),
    Sampler(sampler="euler", steps=4, grid="karras"),
    Sampler(sampler="dpmpp-2m", steps=4, grid="karras"),
    Sampler(sampler="rk45", steps=2, grid="karras", sigma_min=2.0, rtol=0.05, atol=0.05),
]
STOCHASTIC = [
    Sampler(sampler="ddim", steps=4, grid="karras", eta=1.0),
    Sampler(sampler="ddpm", steps=4, grid="karras"),
    Sampler(sampler="heun", steps=3, grid="karras", s_churn=1.0),
    Sampler(sampler="euler", steps=4, grid="karras", s_churn=1.0),
    Sampler(sampler="euler-maruyama", steps=4, grid="karras"),
    Sampler(sampler="predictor-corrector", steps=3, grid="karras"),
    Sampler(sampler="dpmpp-2m-sde", steps=4, grid="karras"),
]
SAMPLERS = DETERMINISTIC + STOCHASTIC


# ------------------------------------------------------------------------------------- noise


def _draws(seed: int, ids: Sequence[int], count: int = 3) -> list[Tensor]:
    noise = SampleNoise(seed, ids, SHAPE)
    return [noise() for _ in range(count)]


def test_noise_belongs_to_the_image_not_to_the_batch() -> None:
    together = _draws(0, range(6))
    for ids in ([0], [5], [4, 1], [5, 4, 3, 2, 1, 0], [2, 100, 3]):
        for drawn, whole in zip(_draws(0, ids), together, strict=True):
            for row, number in enumerate(ids):
                if number < 6:
                    assert torch.equal(drawn[row], whole[number])


def test_noise_differs_between_images_draws_and_seeds() -> None:
    rows = [row for seed in (0, 1, 2**32) for drawn in _draws(seed, range(5)) for row in drawn.flatten(1).tolist()]
    assert len({tuple(row) for row in rows}) == 3 * 3 * 5


def test_noise_is_unit_gaussian_and_independent() -> None:
    first, second, _ = (drawn.flatten(1).double() for drawn in _draws(0, range(500)))
    count = first.numel()
    for drawn in (first, second):
        assert drawn.mean().abs() < 4 / count**0.5
        assert abs(drawn.std() - 1) < 4 / (2 * count) ** 0.5
        assert abs((drawn**4).mean() - 3) < 4 * (96 / count) ** 0.5
    for a, b in ((first, second), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        assert (a * b).mean().abs() < 4 / a.numel() ** 0.5
    assert first.float().dtype == SampleNoise(0, [0], SHAPE)().dtype == torch.float32


def test_images_whose_seeds_share_their_low_bits_do_not_share_their_noise() -> None:
    """Of 200,000 seeds a few agree in 32 bits, which is all that some generators look at."""
    groups = defaultdict(list)
    for number in range(200_000):
        groups[image_seed("sample", 0, number) & 0xFFFFFFFF].append(number)
    twins = [group for group in groups.values() if len(group) > 1]
    assert twins
    for first, second in twins:
        noise = SampleNoise(0, [first, second], SHAPE)()
        assert not torch.equal(noise[0], noise[1])


# ------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_three_grids_fit_every_path(path: NoisePath) -> None:
    config = Sampler(sampler="heun", steps=7, grid="karras", sigma_min=0.02, sigma_max=40.0, rho=5.0)
    assert torch.equal(build_grid(config, path), grids.karras(7, 0.02, 40.0, 5.0))
    assert torch.equal(build_grid(config.replace(grid="log-linear"), path), grids.log_linear(7, 0.02, 40.0))
    assert torch.equal(build_grid(config.replace(grid="uniform-t"), path), grids.uniform_t(7, 40.0, path))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddims_grids_belong_to_paths_with_timesteps(spacing: str) -> None:
    config = Sampler(sampler="ddim", steps=7, grid=f"ddim-{spacing}")  # type: ignore[arg-type]
    for path in PATHS:
        if isinstance(path, DiscreteVP):
            assert torch.equal(build_grid(config, path), grids.ddim(7, path, spacing))
        else:
            words = f"ddim-{spacing} visits the timesteps .* {type(path).__name__}, whose time is continuous"
            with pytest.raises(ValueError, match=words):
                build_grid(config, path)


# -------------------------------------------------------------------------------- the sampling


def test_the_first_step_is_the_start() -> None:
    for path in (VPLinear(), EDM(), Flow()):
        config = Sampler(sampler="heun", steps=3, grid="karras")
        steps = list(draw(gaussian(0.0, 1.0).denoise, config, 5, [2, 9], SHAPE, path=path))
        noise = SampleNoise(5, [2, 9], SHAPE)()
        sigma_max = torch.tensor(80.0, dtype=torch.float64)
        torch.testing.assert_close(steps[0].x, noise * path.start_scale(sigma_max).item())
        assert steps[0].sigma == pytest.approx(80.0) and steps[0].nfe == 0
        assert len(steps) == 4 and steps[-1].nfe == config.nfe == 5 and steps[-1].sigma == 0
        assert steps[-1].x.dtype == torch.float32


def test_the_context_is_entered_for_each_evaluation_and_for_nothing_else() -> None:
    inside, entered = False, 0

    @contextmanager
    def context() -> Iterator[None]:
        nonlocal inside, entered
        inside, entered = True, entered + 1
        yield
        inside = False

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        assert inside
        return 0.5 * x

    config = Sampler(sampler="heun", steps=3, grid="karras")
    for _ in draw(denoiser, config, 0, [0], SHAPE, path=EDM(), context=context):
        assert not inside
    assert entered == config.nfe


def test_no_graph_is_kept() -> None:
    denoiser = Denoiser(_network(), Flow(), X0())
    step = last(draw(denoiser, SAMPLERS[0], 0, [0], SHAPE))
    assert not step.x.requires_grad
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def _network() -> UNet:
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(image_size=8, channels=32, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(4,))
    ).eval()
    for parameter in network.parameters():  # the zeros that training starts from would hide everything
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def _images(config: Sampler, seed: int, batches: Sequence[Sequence[int]]) -> dict[int, Tensor]:
    denoiser = Denoiser(_network(), Flow(), X0())
    images: dict[int, Tensor] = {}
    for ids in batches:
        step = last(draw(denoiser, config, seed, ids, SHAPE))
        images |= dict(zip(ids, step.x, strict=True))
    return images


@pytest.mark.parametrize("config", SAMPLERS, ids=name)
def test_an_image_depends_on_the_seed_and_its_number_alone(config: Sampler) -> None:
    whole = _images(config, 0, [[0, 1, 2, 3, 4, 5]])
    again = _images(config, 0, [[0, 1, 2, 3, 4, 5]])
    assert all(torch.equal(whole[i], again[i]) for i in whole)
    same_size = _images(config, 0, [[9, 3, 2, 1, 7, 5], [11, 12, 4, 0, 13, 14]])
    others = _images(config, 0, [[5], [1, 0, 4], [2, 3]])
    for i in whole:
        assert torch.equal(same_size[i], whole[i])
        torch.testing.assert_close(others[i], whole[i], rtol=0.0, atol=1e-5)
    other_seed = _images(config, 1, [[0, 1, 2]])
    different = [*whole.values(), *other_seed.values()]
    for i, one in enumerate(different):
        assert all((one - two).abs().max() > 1e-3 for two in different[:i])


@pytest.mark.parametrize("config", STOCHASTIC, ids=name)
def test_stochastic_samplers_depend_on_their_later_noise_too(config: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their first draw is the start; with another source for the rest, the image is another."""

    class Replaced(SampleNoise):
        drawn = 0

        def __call__(self) -> Tensor:
            self.drawn += 1
            return super().__call__() if self.drawn == 1 else torch.zeros(1, *SHAPE)

    denoiser = Denoiser(_network(), Flow(), X0())
    images = _images(config, 0, [[0]])
    monkeypatch.setattr(sampling, "SampleNoise", Replaced)
    quiet = last(draw(denoiser, config, 0, [0], SHAPE))
    assert (images[0] - quiet.x[0]).abs().max() > 1e-3


@pytest.mark.parametrize("count", [1, 7])
def test_threads_share_a_batch_and_each_image_stays_in_its_place(count: int, two_threads: Workers) -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled() and len(x) == len(sigma) <= 4
        return gaussian(0.3, 0.5).denoise(x, sigma)

    config = Sampler(sampler="dpmpp-2m", steps=4, grid="karras")
    whole = last(draw(gaussian(0.3, 0.5).denoise, config, 0, range(count), SHAPE, path=EDM()))
    shared = last(draw(denoiser, config, 0, range(count), SHAPE, path=EDM(), workers=two_threads))
    torch.testing.assert_close(shared.x, whole.x)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("threshold", ["none", "clip", "dynamic"])
@pytest.mark.parametrize("config", SAMPLERS, ids=name)
def test_a_denoiser_that_calls_two_networks_counts_two(
    config: Sampler, threshold: Threshold, threads: bool, two_threads: Workers
) -> None:
    one, other = Counted(gaussian(0.3, 0.5).denoise), Counted(gaussian(0.1, 0.5).denoise)

    def between(x: Tensor, sigma: Tensor) -> Tensor:
        return (one(x, sigma) + other(x, sigma)) / 2

    both = Counted(between, one, other)
    config, workers = config.replace(threshold=threshold), two_threads if threads else ALONE
    for _ in range(2):  # a second drawing begins at 0 again
        steps = list(draw(both, config, 0, range(9), SHAPE, path=EDM(), workers=workers))
        plain = list(draw(gaussian(0.2, 0.5).denoise, config, 0, range(9), SHAPE, path=EDM()))
        if config.sampler != "rk45":  # whose steps depend on rounding
            assert [step.nfe for step in steps] == [2 * step.nfe for step in plain]
        assert steps[-1].nfe % 2 == 0 and steps[0].nfe == 0


def test_a_start_and_levels_of_the_callers_own_are_taken() -> None:
    config, sigmas = (
        Sampler(sampler="heun", steps=3, grid="karras"),
        torch.tensor([5.0, 2.0, 1.0, 0.1], dtype=torch.float64),
    )
    denoiser, start = gaussian(0.3, 0.5).denoise, 5 * SampleNoise(7, [1, 4], SHAPE)()
    steps = list(draw(denoiser, config, 0, [0, 1], SHAPE, start=start, sigmas=sigmas))
    assert [step.sigma for step in steps] == sigmas.tolist() and torch.equal(steps[0].x, start)
    own = list(draw(denoiser, config, 0, [0, 1], SHAPE, path=EDM(), sigmas=sigmas))
    assert torch.equal(own[0].x, SampleNoise(0, [0, 1], SHAPE)() * EDM().start_scale(sigmas[0]).item())
    with pytest.raises(ValueError, match="path: found none"):
        next(draw(denoiser, config, 0, [0, 1], SHAPE, start=start))


@pytest.mark.parametrize("threads", [False, True])
def test_a_condition_goes_with_its_images(threads: bool, two_threads: Workers) -> None:
    means = torch.linspace(-0.5, 0.5, 7)

    def told(x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        centre = expand(condition, x)
        return centre + gaussian(0.0, 0.1).denoise(x - centre, sigma)

    config, workers = Sampler(sampler="heun", steps=20, grid="karras"), two_threads if threads else ALONE
    *_, step = draw(told, config, 0, range(7), SHAPE, path=EDM(), condition=means, workers=workers)
    torch.testing.assert_close(step.x.mean((1, 2, 3)), means, rtol=0, atol=0.05)
