"""The training loop: it learns, it can be killed, it stops when it breaks, and it tells what it does."""

import copy
import errno
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from unveil.data.batches import Batch, Batches
from unveil.data.pixels import to_float
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.loss import Draws, Loss
from unveil.diffusion.objectives import FlowMatching
from unveil.diffusion.parameterizations import X0
from unveil.diffusion.paths import Flow
from unveil.errors import UnveilError
from unveil.networks.condition import Condition
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.precision import autocast, resolve_precision
from unveil.training.checkpoint import Checkpoints
from unveil.training.config import OptimizerName, Training
from unveil.training.ema import EMA, PowerAverage
from unveil.training.loop import Trainer
from unveil.training.progress import Progress, Record
from unveil.weights import WeightsChoice
from unveil.workers import ALONE, Workers

NETWORK = UNetConfig(
    image_size=8, channels=32, channel_multipliers=(1,), blocks=1, attention_resolutions=(), dropout=0.2, stem=2
)
BATCH = 4
CONFIG = Training(
    seed=0,
    images=12 * BATCH,
    batch_size=BATCH,
    lr=1e-3,
    betas=(0.9, 0.99),
    warmup_images=5 * BATCH,
    gradient_clip=1.0,
    ema_half_life_images=3 * BATCH,
    ema_rampup=0.2,
    precision="fp32",
    log_every_images=2 * BATCH,
    checkpoint_every_images=4 * BATCH,
)
OWN = WeightsChoice()
LOSS = Loss(FlowMatching())
CPU_PRECISIONS = ["fp32", "bf16"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _images() -> Tensor:
    """Ten images that are easy to learn: each of one colour."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (10, 3, 1, 1), generator=generator, dtype=torch.uint8).expand(-1, -1, 8, 8)


def _trainer(
    config: Training = CONFIG,
    checkpoints: Path | None = None,
    *,
    network: Callable[[], nn.Module] = lambda: UNet(NETWORK),
    weights: int = 0,
    batch_size: int = BATCH,
    device: str = "cpu",
    threads: Workers = ALONE,
    loss: Loss = LOSS,
    attributes: Tensor | None = None,
) -> Trainer:
    torch.manual_seed(weights)
    denoiser = Denoiser(network(), Flow(), X0()).to(device)
    batches = Batches(Batch(_images().to(device), attributes), batch_size, 0, horizontal_flip=True)
    folder = Checkpoints(checkpoints) if checkpoints is not None else None
    return Trainer(denoiser, loss, batches, config, folder, workers=threads)


def _curve(points: list[Progress]) -> list[tuple[int, float, float, float, bool]]:
    """What of the curves does not depend on the clock."""
    return [(point.images, point.loss, point.grad_norm, point.lr, point.preview) for point in points]


def _same(one: Trainer, other: Trainer) -> bool:
    """Whether everything that the next step depends on is equal, bit for bit."""
    pairs: list[tuple[Tensor, Tensor]] = [*zip(one.parameters, other.parameters, strict=True)]
    for average, peer in zip(one.averages.values(), other.averages.values(), strict=True):
        pairs += zip(average.parameters, peer.parameters, strict=True)
    for a, b in zip(one.parameters, other.parameters, strict=True):
        mine, theirs = one.optimizer.state[a], other.optimizer.state[b]
        assert mine.keys() == theirs.keys() and mine.keys() in ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
        pairs += [(mine[name], theirs[name]) for name in mine]
    return one.step == other.step and all(torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("precision", CPU_PRECISIONS)
def test_the_loss_falls(precision: str) -> None:
    config = CONFIG.replace(images=1600, log_every_images=320, checkpoint_every_images=0, precision=precision)
    losses = [point.loss for point in _trainer(config, batch_size=16).run()]
    assert losses[-1] < losses[0] / 4


def test_bf16_is_for_the_products_and_weights_stay_in_full_precision() -> None:
    trainer = _trainer(CONFIG.replace(precision="bf16", images=2 * BATCH, warmup_images=0))
    seen: set[torch.dtype] = set()
    for module in trainer.network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    points = list(trainer.run())
    assert seen == {torch.bfloat16}
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    assert {tensor.dtype for tensor in (*trainer.parameters, *trainer.averages[OWN].parameters, *state)} == {
        torch.float32
    }
    assert all(math.isfinite(point.loss) for point in points)


def test_the_seed_decides_the_noise() -> None:
    """Of the same weights and the same images: one step's loss, for seeds that differ in high and in low bits."""
    config = CONFIG.replace(images=BATCH, warmup_images=0)
    losses = {next(_trainer(config.replace(seed=seed)).run()).loss for seed in (0, 1, 2, 2**31, 2**32 - 1)}
    assert len(losses) == 5
    assert next(_trainer(config).run()).loss in losses


def test_every_step_has_its_own_noise_and_noise_levels() -> None:
    drawn: list[tuple[Tensor, Tensor]] = []

    class Spy(FlowMatching):
        def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
            sigma = super().sample_sigma(count, generator)
            drawn.append((sigma, torch.randn(3, generator=generator.clone_state())))
            return sigma

    trainer = _trainer()
    trainer.loss = Loss(Spy())
    list(trainer.run())
    assert len(drawn) == 12
    for (sigma, noise), (other_sigma, other_noise) in itertools.combinations(drawn, 2):
        assert not torch.equal(sigma, other_sigma) and not torch.equal(noise, other_noise)


def test_input_perturbation_adds_noise_and_changes_no_other_draw() -> None:
    """What the network sees in its first step: the same noise levels and noise, and gamma of other noise more."""
    seen: dict[float, tuple[Tensor, Tensor]] = {}

    def look(gamma: float) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            seen[gamma] = inputs

        return hook

    for gamma in (0.0, 0.1, 0.2):
        trainer = _trainer(
            CONFIG.replace(images=BATCH, warmup_images=0), loss=Loss(FlowMatching(), input_perturbation=gamma)
        )
        trainer.network.register_forward_pre_hook(look(gamma))
        list(trainer.run())
    t = seen[0.0][1] / 1000
    assert torch.equal(seen[0.1][1], seen[0.0][1])
    one, two = seen[0.1][0] - seen[0.0][0], seen[0.2][0] - seen[0.0][0]
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-5)
    scale = (t.square() + (1 - t).square()).rsqrt() * t  # of unit noise, as a network that predicts x0 sees it
    extra = one / (0.1 * scale[:, None, None, None])
    assert extra.std().item() == pytest.approx(1, abs=0.1)


def test_other_peoples_random_numbers_are_left_alone() -> None:
    trainer = _trainer()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    list(trainer.run())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_learning_rate_warms_up_and_stays() -> None:
    trainer = _trainer(CONFIG.replace(log_every_images=BATCH))
    rates = []
    for point in trainer.run():
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {point.lr}
        rates.append(point.lr)
    assert rates == pytest.approx([1e-3 * min(1, step / 5) for step in range(1, 13)])
    assert next(_trainer(CONFIG.replace(warmup_images=0)).run()).lr == 1e-3
    assert next(_trainer(CONFIG.replace(log_every_images=1, warmup_images=3)).run()).lr == 1e-3


def test_the_gradient_is_clipped_to_its_largest_norm() -> None:
    norms = {}
    for clip in (0.0, 0.01, 1e6):
        trainer = _trainer(CONFIG.replace(gradient_clip=clip, images=BATCH, warmup_images=0))
        (point,) = trainer.run()
        gradients = [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]
        norms[clip] = (point.grad_norm, float(nn.utils.get_total_norm(gradients)))
    free = norms[0.0][0]
    assert free > 0.02
    assert norms[0.0][1] == norms[1e6][1] == pytest.approx(free)
    assert norms[0.01] == pytest.approx((free, 0.01), rel=1e-3)


# ------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize(
    ("images", "batch_size", "interval", "expected"),
    [
        (48, 4, 8, [8, 16, 24, 32, 40, 48]),
        (48, 4, 10, [12, 20, 32, 40, 48]),  # the first step at or after each multiple
        (48, 4, 1, list(range(4, 49, 4))),
        (48, 4, 1000, [48]),
        (50, 16, 32, [32, 64]),  # the last batch is whole, so a few more images are seen than asked for
        (50, 16, 48, [48, 64]),
        (3, 16, 1, [16]),
    ],
)
def test_points_cover_the_whole_run(images: int, batch_size: int, interval: int, expected: list[int]) -> None:
    config = CONFIG.replace(
        images=images, batch_size=1, warmup_images=0, log_every_images=interval, checkpoint_every_images=0
    )
    trainer = _trainer(config, batch_size=batch_size)
    points = list(trainer.run())
    assert [point.images for point in points] == expected
    assert points == trainer.points
    assert trainer.images_seen == expected[-1] == trainer.total_steps * batch_size
    assert images <= trainer.images_seen < images + batch_size
    assert points[-1].seconds_left == 0
    assert all(point.images_per_second > 0 and point.seconds_left >= 0 for point in points)
    assert list(trainer.run()) == []  # there is nothing left to do


def test_a_point_is_the_mean_of_the_steps_since_the_last() -> None:
    fine = list(_trainer(CONFIG.replace(log_every_images=BATCH)).run())
    coarse = list(_trainer(CONFIG.replace(log_every_images=5 * BATCH, checkpoint_every_images=0)).run())
    assert [point.images // BATCH for point in coarse] == [5, 10, 12]
    for point, steps in zip(coarse, (fine[:5], fine[5:10], fine[10:]), strict=True):
        assert point.loss == pytest.approx(sum(step.loss for step in steps) / len(steps))
        assert point.grad_norm == pytest.approx(sum(step.grad_norm for step in steps) / len(steps))


def test_previews_are_due_at_their_interval() -> None:
    config = CONFIG.replace(preview_every_images=5 * BATCH, log_every_images=4 * BATCH, checkpoint_every_images=0)
    points = list(_trainer(config).run())
    assert [(point.images // BATCH, point.preview) for point in points] == [
        (4, False),
        (5, True),
        (8, False),
        (10, True),
        (12, False),
    ]
    assert not any(point.preview for point in _trainer(CONFIG).run())


def test_a_step_that_fp16_left_out_does_not_spoil_the_mean_gradient() -> None:
    assert Record(norms=[torch.tensor(value) for value in (1.0, math.inf, 3.0, math.nan)]).mean_norm() == 2
    assert math.isnan(Record(norms=[torch.tensor(math.inf)]).mean_norm())


# -------------------------------------------------------------------------------- the average


def _modes(trainer: Trainer) -> set[bool]:
    """Whether its modules are in training."""
    return {module.training for module in trainer.denoiser.modules()}


def test_the_average_takes_the_networks_place_for_a_while() -> None:
    trainer = _trainer()
    list(trainer.run())
    raw = [parameter.detach().clone() for parameter in trainer.parameters]
    with trainer.averaged() as network:
        assert network is trainer.network and _modes(trainer) == {False}
        assert all(map(torch.equal, trainer.parameters, trainer.averages[OWN].parameters))
        assert not all(map(torch.equal, trainer.parameters, raw))
    assert all(map(torch.equal, trainer.parameters, raw))
    assert _modes(trainer) == {True}


def test_the_raw_weights_come_back_after_an_error() -> None:
    trainer = _trainer()
    list(trainer.run())
    raw = [parameter.detach().clone() for parameter in trainer.parameters]
    with pytest.raises(KeyboardInterrupt), trainer.averaged():
        raise KeyboardInterrupt
    assert all(map(torch.equal, trainer.parameters, raw)) and _modes(trainer) == {True}


def test_looking_at_the_average_changes_nothing_that_follows() -> None:
    looked, not_looked = _trainer(), _trainer()
    for _ in looked.run():
        with looked.averaged() as network, torch.inference_mode():
            network(torch.randn(1, 3, 8, 8), torch.zeros(1))
    list(not_looked.run())
    assert _same(looked, not_looked)


def test_without_a_half_life_the_average_is_the_weights() -> None:
    trainer = _trainer(CONFIG.replace(ema_half_life_images=0))
    list(trainer.run())
    assert all(map(torch.equal, trainer.parameters, trainer.averages[OWN].parameters))


def test_the_average_follows_the_weights_by_their_images() -> None:
    """Two steps by hand: the half-life is limited to 0.2 of the images seen."""
    trainer = _trainer(CONFIG.replace(log_every_images=BATCH))
    average = trainer.parameters[0].detach().clone()
    for step, _ in zip((1, 2), trainer.run(), strict=False):
        share = 0.5 ** (BATCH / min(3 * BATCH, 0.2 * step * BATCH))
        average = share * average + (1 - share) * trainer.parameters[0].detach()
        torch.testing.assert_close(trainer.averages[OWN].parameters[0], average)


# ----------------------------------------------------------------------------- kill and resume


def _kill(trainer: Trainer, images: int) -> None:
    """Run until a point of the curves, and stop there as a signal would: nothing more is saved."""
    for point in trainer.run():
        if point.images >= images:
            return


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("precision", CPU_PRECISIONS)
@pytest.mark.parametrize("killed_at", [5, 8, 9, 12])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    tmp_path: Path, precision: str, killed_at: int, optimizer: OptimizerName
) -> None:
    config = CONFIG.replace(precision=precision, log_every_images=BATCH, optimizer=optimizer)
    whole = _trainer(config)
    list(whole.run())

    _kill(_trainer(config, tmp_path), killed_at * BATCH)
    resumed = _trainer(config, tmp_path, weights=77)  # other weights, and other random numbers, at the start
    assert resumed.resume()
    assert resumed.step == (8 if killed_at > 8 else 4)
    list(resumed.run())
    assert _same(resumed, whole)
    assert _curve(resumed.points) == _curve(whole.points)


def test_killed_and_resumed_with_threads_is_uninterrupted_bit_for_bit(tmp_path: Path, two_threads: Workers) -> None:
    config = CONFIG.replace(optimizer="muon")
    network = NETWORK.replace(dropout=0.0)
    whole, killed, resumed = (
        _trainer(config, folder, network=lambda: UNet(network), weights=weights, threads=two_threads)
        for folder, weights in ((None, 0), (tmp_path, 0), (tmp_path, 77))
    )
    list(whole.run())
    _kill(killed, 9 * BATCH)
    assert resumed.resume() and resumed.step == 8
    list(resumed.run())
    assert _same(resumed, whole)


def test_threads_have_no_place_where_there_is_dropout(two_threads: Workers) -> None:
    with pytest.raises(ValueError, match="found 2 threads for a network with dropout, expected one"):
        _trainer(threads=two_threads)


def test_killed_twice(tmp_path: Path) -> None:
    whole = _trainer()
    list(whole.run())
    for killed_at in (6, 10):
        trainer = _trainer(CONFIG, tmp_path)
        trainer.resume()
        _kill(trainer, killed_at * BATCH)
    last = _trainer(CONFIG, tmp_path)
    assert last.resume() and last.step == 8
    list(last.run())
    assert _same(last, whole)


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    with_them, without = _trainer(CONFIG, tmp_path), _trainer(CONFIG.replace(checkpoint_every_images=0))
    list(with_them.run())
    list(without.run())
    assert _same(with_them, without)
    # The end needs none: the model itself is written then.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000008"]


def test_a_full_scratch_disk_is_told_of_and_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Checkpoints.save

    def full_at_first(self: Checkpoints, step: int, *state: Any) -> Path:
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
        return save(self, step, *state)

    monkeypatch.setattr(Checkpoints, "save", full_at_first)
    trainer, without = _trainer(CONFIG, tmp_path), _trainer(CONFIG.replace(checkpoint_every_images=0))
    told = [len(trainer.failures) for _ in trainer.run()]
    list(without.run())
    assert _same(trainer, without)
    assert told == [0, 0, 1, 1, 1, 1]  # every second step; the checkpoint of step 4 failed
    assert trainer.saved_step == 8
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    whole = _trainer(CONFIG, tmp_path)
    list(whole.run())
    state = tmp_path / "step-00000008" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    resumed = _trainer(CONFIG, tmp_path)
    assert resumed.resume() and resumed.step == 4
    list(resumed.run())
    assert _same(resumed, whole)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for trainer in (_trainer(), _trainer(CONFIG, tmp_path)):
        assert not trainer.resume()
        assert trainer.step == 0


def test_a_longer_run_extends_and_a_shorter_one_does_not_overrun(tmp_path: Path) -> None:
    _kill(_trainer(CONFIG, tmp_path), 12 * BATCH)  # checkpoints of steps 4 and 8
    for steps, resumed_at in ((20, 8), (9, 8), (8, 4), (5, 4), (4, 0), (2, 0)):
        config = CONFIG.model_copy(update={"images": steps * BATCH, "checkpoint_every_images": 0})
        trainer, whole = _trainer(config, tmp_path), _trainer(config)
        assert trainer.resume() == (resumed_at > 0) and trainer.step == resumed_at
        assert len(list(trainer.run())) > 0
        list(whole.run())
        assert _same(trainer, whole)


@pytest.mark.parametrize("other", [NETWORK.replace(channels=64), NETWORK.replace(blocks=2)], ids=["wider", "deeper"])
def test_a_checkpoint_of_another_network_is_one_line(tmp_path: Path, other: UNetConfig) -> None:
    _kill(_trainer(CONFIG, tmp_path), 5 * BATCH)
    trainer = _trainer(CONFIG, tmp_path, network=lambda: UNet(other))
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    with pytest.raises(UnveilError, match="another network") as caught:
        trainer.resume()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(map(torch.equal, trainer.parameters, before)) and trainer.step == 0


# ------------------------------------------------------------------------------ when it breaks


class _Breaking(nn.Module):
    """A network that does something to its output at one evaluation."""

    def __init__(self, at: int, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.at, self.change, self.count = UNet(NETWORK), at, change, 0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.count += 1
        out: Tensor = self.inner(x, c_noise)
        return self.change(out) if self.count == self.at else out


def _nan_output(out: Tensor) -> Tensor:
    return out * torch.nan


def _infinite_gradient(out: Tensor) -> Tensor:
    out.register_hook(lambda gradient: gradient * torch.inf)
    return out


def _failure(trainer: Trainer) -> str:
    with pytest.raises(UnveilError) as caught:
        list(trainer.run())
    message = str(caught.value)
    assert "\n" not in message and "try a lower train.lr" in message
    return message


@pytest.mark.parametrize("change", [_nan_output, _infinite_gradient])
@pytest.mark.parametrize("log_every", [1, 100], ids=["logged", "rarely logged"])
@pytest.mark.parametrize(
    ("at", "found_by", "kept"),
    [(1, 4, None), (3, 4, None), (4, 4, None), (5, 8, 4), (8, 8, 4), (9, 12, 8), (12, 12, 8)],
)
def test_a_run_that_breaks_names_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, change: Callable[[Tensor], Tensor], log_every: int, at: int, found_by: int, kept: int | None
) -> None:
    """Whether the loss shows it or not, it is found before anything is written."""
    config = CONFIG.replace(log_every_images=log_every * BATCH)
    trainer = _trainer(config, tmp_path, network=lambda: _Breaking(at, change))
    message = _failure(trainer)
    step = at if log_every == 1 else found_by
    assert f"by step {step} ({step * BATCH} images)" in message
    assert message.startswith(
        "train: the loss became nan" if change is _nan_output or at < step else "train: the weights"
    )
    if kept is None:
        assert "there is no checkpoint yet" in message
        assert list(tmp_path.iterdir()) == []
    else:
        newest = tmp_path / f"step-{kept:08d}"
        assert f"the last good checkpoint is {newest}" in message
        assert max(tmp_path.iterdir()) == newest
    loaded = Checkpoints(tmp_path).load()
    assert loaded is None or all(tensor.isfinite().all() for tensor in loaded[0].values())


def test_without_checkpoints_it_says_so() -> None:
    assert "there is no checkpoint yet" in _failure(_trainer(network=lambda: _Breaking(2, _nan_output)))


def test_a_learning_rate_out_of_all_reason_is_found() -> None:
    config = CONFIG.model_copy(update={"lr": 1e30, "warmup_images": 0, "images": 100 * BATCH})
    assert "by step" in _failure(_trainer(config))


def test_after_the_break_it_resumes_from_the_last_good_checkpoint(tmp_path: Path) -> None:
    whole = _trainer(network=lambda: _Breaking(0, _nan_output))
    list(whole.run())
    _failure(_trainer(CONFIG, tmp_path, network=lambda: _Breaking(7, _nan_output)))
    mended = _trainer(CONFIG, tmp_path, network=lambda: _Breaking(0, _nan_output))
    assert mended.resume() and mended.step == 4
    list(mended.run())
    assert _same(mended, whole)


# ------------------------------------------------------------------------------------ on a GPU


@pytest.fixture
def full_float32() -> Iterator[None]:
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("full_float32")
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_trains_on_cuda(tmp_path: Path, precision: str, optimizer: OptimizerName) -> None:
    device = torch.device("cuda")
    resolve_precision(precision, device)
    config = CONFIG.replace(images=60 * BATCH, log_every_images=10 * BATCH, precision=precision, optimizer=optimizer)
    trainer = _trainer(config, tmp_path, device="cuda")
    losses = [point.loss for point in trainer.run()]
    assert losses[-1] < losses[0]
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    with autocast(precision, device), trainer.averaged() as network:
        out = network(torch.randn(2, 3, 8, 8, device=device), torch.zeros(2, device=device))
    assert out.isfinite().all()
    resumed = _trainer(config, tmp_path, weights=7, device="cuda")
    assert resumed.resume()
    assert [point.loss for point in resumed.run()][-1] == pytest.approx(losses[-1], rel=0.05)


@pytest.mark.gpu
@needs_cuda
def test_fp16_skips_a_step_that_overflows_and_goes_on() -> None:
    config = CONFIG.replace(precision="fp16", log_every_images=BATCH)
    trainer = _trainer(config, network=lambda: _Breaking(5, _infinite_gradient), device="cuda")
    scales, moved = [], []
    before = trainer.parameters[0].detach().clone()
    for _ in trainer.run():
        scales.append(trainer.scaler.get_scale())
        moved.append(not torch.equal(trainer.parameters[0], before))
        before = trainer.parameters[0].detach().clone()
    assert scales[4] < scales[3] and not moved[4] and any(moved[5:])
    assert math.isnan(trainer.points[4].grad_norm)


# ---------------------------------------------------------------------- parts, noise levels, held-out images, time


@pytest.mark.parametrize(("parts", "count"), [(2, 1), (3, 1), (4, 1), (1, 2), (2, 2)])
def test_a_batch_in_parts_gives_the_same_weights(parts: int, count: int, two_threads: Workers) -> None:
    network = UNet(NETWORK.replace(dropout=0.0))
    config = CONFIG.replace(validate_every_images=20)
    whole = _trainer(config, network=lambda: copy.deepcopy(network))
    threads = two_threads if count == 2 else ALONE
    divided = _trainer(
        config.replace(gradient_accumulation=parts), network=lambda: copy.deepcopy(network), threads=threads
    )
    one, other = list(whole.run()), list(divided.run())
    assert [point.loss for point in one] == pytest.approx([point.loss for point in other], rel=1e-4)
    assert [point.grad_norm for point in one] == pytest.approx([point.grad_norm for point in other], rel=1e-3)
    for a, b in zip(whole.parameters, divided.parameters, strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_the_losses_of_the_noise_levels_add_up() -> None:
    trainer = _trainer(CONFIG.replace(log_every_images=12 * BATCH, checkpoint_every_images=0))
    sigmas: list[Tensor] = []
    draw = trainer.loss.objective.sample_sigma

    class Recorded(FlowMatching):
        def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
            sigmas.append(draw(count, generator))
            return sigmas[-1]

    trainer.loss = Loss(Recorded())
    (point,) = trainer.run()
    all_sigmas = torch.cat(sigmas)
    total = 0.0
    for name, loss in point.loss_by_sigma.items():
        low, _, high = name.replace("below", "0_to").replace("above_30", "30_to_inf").partition("_to_")
        share = ((all_sigmas > float(low)) & (all_sigmas <= float(high))).double().mean().item()
        assert share > 0
        total += share * loss
    assert total == pytest.approx(point.loss, rel=1e-5)


def test_a_loss_far_above_its_median_stops_the_training(tmp_path: Path) -> None:
    trainer = _trainer(CONFIG.replace(images=100 * BATCH), tmp_path)
    points = trainer.run()
    for _ in range(6):
        next(points)
    weight = trainer.loss.objective.weight

    class Broken(FlowMatching):
        def weight(self, sigma: Tensor) -> Tensor:
            return 1e4 * weight(sigma)

    trainer.loss = Loss(Broken())
    with pytest.raises(UnveilError, match=r"the loss rose to .* times its running median .*checkpoint is .*step-0000"):
        list(points)


def test_the_validation_loss_changes_nothing_and_is_always_of_the_same_noise() -> None:
    plain, validated = _trainer(), _trainer(CONFIG.replace(validate_every_images=6 * BATCH))
    validated.held_out = Batch(_images())
    points = list(validated.run())
    assert [point.images // BATCH for point in points if point.validation_loss is not None] == [6, 12]
    assert points[-1].validation_loss == validated.validation_loss() == validated.validation_loss()
    list(plain.run())
    assert _same(plain, validated)
    with pytest.raises(ValueError, match="held-out"):
        plain.validation_loss()


def test_time_ends_a_training_and_counts_what_was_before(tmp_path: Path) -> None:
    config = CONFIG.replace(images=10_000 * BATCH, max_minutes=1.0)
    first = _trainer(config, tmp_path)
    assert len(list(first.run(stop=lambda: True))) == 0
    assert first.step == 1
    first.seconds = 59.999
    first.save()
    again = _trainer(config, tmp_path)
    assert again.resume()
    points = list(again.run())
    assert again.finished and again.step < 100
    assert points[-1].minutes >= 1.0 and points[-1].images == again.images_seen
    assert points[-1].seconds_left == 0


def test_a_stop_between_two_points_loses_nothing(tmp_path: Path) -> None:
    whole = _trainer(CONFIG.replace(log_every_images=6 * BATCH, checkpoint_every_images=0))
    expected = _curve(list(whole.run()))
    config = CONFIG.replace(log_every_images=6 * BATCH, checkpoint_every_images=0)

    def run_to(steps: int) -> tuple[Trainer, list[Progress]]:
        trainer = _trainer(config, tmp_path)
        trainer.resume()
        before = trainer.points.copy()
        return trainer, before + list(trainer.run(stop=lambda: trainer.step >= steps))

    for steps, points in ((4, 0), (9, 1), (12, 2)):
        trainer, curve = run_to(steps)
        assert (trainer.step, len(curve)) == (steps, points)
    assert _curve(curve) == expected
    assert _same(trainer, whole)


# ---------------------------------------------------------------------------------- further averages

AVERAGES = CONFIG.replace(ema_more_half_lives=(8, 40), ema_profiles=(0.05, 0.1), snapshot_every_images=3 * BATCH)


def _stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Checkpoints(folder).snapshots()}


def test_further_averages_leave_the_training_as_it_is(tmp_path: Path) -> None:
    plain, more = _trainer(), _trainer(AVERAGES, tmp_path)
    assert _curve(list(plain.run())) == _curve(list(more.run()))
    for one, other in (
        (plain.parameters, more.parameters),
        (plain.averages[OWN].parameters, more.averages[OWN].parameters),
    ):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert [name.removesuffix(".safetensors")[-4:] for name in _stored(tmp_path)] == ["0012", "0024", "0036", "0048"]


def test_further_averages_follow_the_weights_as_an_average_alone_would(tmp_path: Path) -> None:
    trainer = _trainer(AVERAGES, tmp_path)
    alone = [EMA(trainer.parameters, 40, 0.2), PowerAverage(trainer.parameters, 0.1)]
    names = [WeightsChoice("half-life", 40), WeightsChoice("power", 0.1)]
    kept = [trainer.averages[name] for name in names]
    for _ in range(5):
        trainer._step()
        for average in alone:
            average.update(trainer.parameters, BATCH, trainer.images_seen)
    for one, other in zip(alone, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
    with trainer.averaged(names[0]) as network:
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), alone[0].parameters, strict=True))


@pytest.mark.parametrize("stop", range(1, 12, 2))
def test_taken_up_again_the_averages_and_snapshots_are_the_same(tmp_path: Path, stop: int) -> None:
    """Whether it was asked to stop or killed, at any step: snapshots made since the checkpoint are made again."""
    whole = _trainer(AVERAGES, tmp_path / "whole")
    list(whole.run())
    for name in ("asked", "killed"):
        folder = tmp_path / name
        first, steps = _trainer(AVERAGES, folder), itertools.count(1)
        if name == "asked":
            list(first.run(stop=lambda steps=steps: next(steps) == stop))  # type: ignore[misc]
        else:
            with pytest.raises(KeyboardInterrupt):
                list(first.run(stop=lambda steps=steps: _die(next(steps) == stop)))  # type: ignore[misc]
        again = _trainer(AVERAGES, folder, weights=1)
        assert again.resume() == (name == "asked" or stop > 4)
        if again.step == 0:  # nothing to go on from: as the stage does, with the same initial weights
            again = _trainer(AVERAGES, folder)
            again.resume()
        list(again.run())
        assert _same(whole, again)
        assert _stored(folder) == _stored(tmp_path / "whole")


def _die(now: bool) -> bool:
    if now:
        raise KeyboardInterrupt
    return False


def test_a_shorter_training_leaves_no_snapshot_to_a_longer_one(tmp_path: Path) -> None:
    """Its end is not a multiple of the interval; the longer one goes on from a checkpoint before it."""
    list(_trainer(AVERAGES.replace(images=10 * BATCH), tmp_path / "longer").run())
    assert len(_stored(tmp_path / "longer")) == 4
    longer = _trainer(AVERAGES, tmp_path / "longer")
    assert longer.resume() and longer.step == 8
    list(longer.run())
    list(_trainer(AVERAGES, tmp_path / "whole").run())
    assert _stored(tmp_path / "longer") == _stored(tmp_path / "whole")


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"half")])
def test_a_checkpoint_whose_snapshot_is_damaged_is_passed_over(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    list(_trainer(AVERAGES, tmp_path).run(stop=lambda: len(Checkpoints(tmp_path).snapshots()) == 2))
    again = _trainer(AVERAGES, tmp_path)
    assert again.resume() and again.step == 7
    harm(Checkpoints(tmp_path).snapshots()[-1])  # of step 6; a checkpoint of step 4 is left
    again = _trainer(AVERAGES, tmp_path)
    assert again.resume() and again.step == 4
    list(again.run())
    list(_trainer(AVERAGES, tmp_path / "whole").run())
    assert _stored(tmp_path) == _stored(tmp_path / "whole")


AUGMENTED = CONFIG.replace(augment=0.5)
NAMES = ("Smiling", "Bald", "Male")
SHOWN = torch.where(torch.rand(10, 3, generator=torch.Generator().manual_seed(5)) < 0.5, 1, -1).to(torch.int8)


def _told() -> nn.Module:
    return UNet(NETWORK.replace(augment_labels=9))


@pytest.mark.parametrize("augment", [0.0, 0.5])
@pytest.mark.parametrize("killed_at", [6, 10])
def test_told_attributes_it_resumes_bit_for_bit(tmp_path: Path, killed_at: int, augment: float) -> None:
    def make(folder: str, weights: int = 0) -> Trainer:
        def network() -> nn.Module:
            return UNet(NETWORK.replace(augment_labels=9 if augment else 0, attributes=NAMES))

        config = CONFIG.replace(attributes=NAMES, attribute_dropout=0.3, augment=augment)
        return _trainer(config, tmp_path / folder, network=network, weights=weights, attributes=SHOWN)

    whole = make("whole")
    list(whole.run())
    _kill(make("killed"), killed_at * BATCH)
    resumed = make("killed", weights=77)
    assert resumed.resume()
    list(resumed.run())
    assert _same(resumed, whole) and _curve(resumed.points) == _curve(whole.points)
    assert resumed.network.state_dict()["embedding.attributes.weight"].any()  # they were heard


def test_in_every_step_other_attributes_are_dropped_and_no_other_draw_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[Tensor, Condition]] = []

    def look(loss: Loss, denoiser: Denoiser, images: Tensor, draws: Draws, condition: Condition) -> Tensor:
        heard.append((draws.noise, condition))
        return sum((parameter.sum() * 0 for parameter in denoiser.parameters()), draws.sigma)

    monkeypatch.setattr(Loss, "__call__", look)
    for rate in (0.0, 0.5):
        config = CONFIG.replace(attributes=NAMES, attribute_dropout=rate, condition_dropout=rate)
        trainer = _trainer(config, network=lambda: UNet(NETWORK.replace(attributes=NAMES)), attributes=SHOWN)
        for _ in range(4):
            trainer._step()
    whole, dropped = heard[:4], heard[4:]
    gone = []
    for (noise, told), (same, some) in zip(whole, dropped, strict=True):
        assert torch.equal(noise, same) and told.attributes is not None and some.attributes is not None
        assert told.attributes.abs().eq(1).all()
        gone.append(some.attributes == 0)
        assert torch.equal(some.attributes[~gone[-1]], told.attributes[~gone[-1]])
    assert all(part.any() and not part.all() for part in gone)
    assert not all(torch.equal(gone[0], part) for part in gone[1:])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("killed_at", [6, 10])
def test_with_augmentation_and_channels_last_it_resumes_bit_for_bit(
    tmp_path: Path, killed_at: int, optimizer: OptimizerName
) -> None:
    def make(folder: str, weights: int = 0) -> Trainer:
        def network() -> nn.Module:
            return _told().to(memory_format=torch.channels_last)

        config = AUGMENTED.replace(optimizer=optimizer)
        return _trainer(config, tmp_path / folder, network=network, weights=weights)

    whole = make("whole")
    list(whole.run())
    _kill(make("killed"), killed_at * BATCH)
    resumed = make("killed", weights=77)
    assert resumed.resume()
    list(resumed.run())
    assert _same(resumed, whole) and _curve(resumed.points) == _curve(whole.points)
    assert resumed.network.state_dict()["embedding.augment.weight"].any()  # the labels were heard


def test_augmentation_changes_the_images_and_no_other_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, augmented = _trainer(network=_told), _trainer(AUGMENTED, network=_told)
    seen: list[tuple[Tensor, ...]] = []

    def look(loss: Loss, denoiser: object, images: Tensor, draws: Draws, condition: object) -> Tensor:
        seen.append((images, draws.sigma, draws.noise))
        weights = (parameter.sum() * 0 for trainer in (plain, augmented) for parameter in trainer.parameters)
        return sum(weights, draws.sigma)

    monkeypatch.setattr(Loss, "__call__", look)
    plain._step()
    augmented._step()
    (x0, *draws), (changed, *same) = seen
    assert not torch.equal(x0, changed)
    assert all(torch.equal(one, other) for one, other in zip(draws, same, strict=True))


def test_a_network_that_cannot_be_told_of_the_augmentation_is_not_trained() -> None:
    with pytest.raises(ValueError, match="the network was built without room for it"):
        next(_trainer(AUGMENTED).run())


@pytest.mark.parametrize("augment", [0.0, 0.5])
def test_what_a_batch_says_of_its_images_reaches_the_network_with_them(augment: float) -> None:
    """Part by part; the attribute here is the image's number, which its one colour tells."""
    heard: list[tuple[Tensor, Condition]] = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = UNet(NETWORK)

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            heard.append((x, condition))
            return self.inner(x, c_noise)

    numbers = torch.arange(10, dtype=torch.int8)[:, None]
    always = {"attribute_dropout": 0.0, "condition_dropout": 0.0}
    config = CONFIG.replace(images=BATCH, warmup_images=0, gradient_accumulation=2, augment=augment, **always)
    trainer = _trainer(config, network=Network, loss=Loss(_Noiseless()))
    trainer.batches = Batches(Batch(_images(), numbers), BATCH, 0, horizontal_flip=False)
    list(trainer.run())
    assert [len(x) for x, _ in heard] == [2, 2]
    for x, condition in heard:
        assert condition.attributes is not None and (condition.augmentation is None) == (augment == 0)
        colours = to_float(_images())[condition.attributes.flatten().long()]
        torch.testing.assert_close(x, colours, rtol=0, atol=1e-2)
    refused = _trainer(config, network=_told)
    refused.batches = trainer.batches
    with pytest.raises(ValueError, match=r"condition\.attributes: .* the network was built without room for it"):
        refused._step()


class _Noiseless(FlowMatching):
    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count,), 1e-4)


def test_the_validation_is_of_images_as_they_are() -> None:
    losses = []
    for config in (CONFIG, AUGMENTED):
        trainer = _trainer(config, network=_told)
        trainer.held_out = Batch(_images())
        losses.append(trainer.validation_loss())
    assert losses[0] == losses[1]


def test_channels_last_changes_no_more_than_rounding() -> None:
    """And the masks of dropout, which are drawn in the order of the memory."""

    def losses(form: torch.memory_format) -> list[float]:
        trainer = _trainer(network=lambda: UNet(NETWORK.replace(dropout=0.0)).to(memory_format=form))
        return [point.loss for point in trainer.run()]

    assert losses(torch.channels_last) == pytest.approx(losses(torch.contiguous_format), rel=1e-5)
