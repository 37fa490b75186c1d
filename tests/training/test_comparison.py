"""Two loss curves beside each other: false alarms are rare, real differences are found, bad input is one line."""

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from unveil.cli.main import app
from unveil.data.batches import Batch, Batches
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.loss import Loss
from unveil.diffusion.objectives import FlowMatching
from unveil.diffusion.parameterizations import X0
from unveil.diffusion.paths import Flow
from unveil.run.store import Store
from unveil.run.tracked import TrackedRun
from unveil.training import comparison
from unveil.training.comparison import FALSE_ALARMS, LossCurve, _freedom, _noise, compare, read_curve
from unveil.training.config import Training
from unveil.training.loop import Trainer

Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]


def _curve(losses: Iterable[float], interval: int = 640, name: str = "run") -> LossCurve:
    values = tuple(float(loss) for loss in losses)
    return LossCurve(name, tuple(interval * (index + 1) for index in range(len(values))), values)


def _falling(count: int) -> NDArray[np.float64]:
    """A loss that falls fast at first, as losses do."""
    t = np.arange(1, count + 1) / count
    return 0.1 + 0.4 * np.exp(-12 * t) + 0.05 * np.exp(-2 * t)


def _white(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    return rng.standard_normal(count)


def _heavy(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    return rng.standard_t(4, count) / math.sqrt(2)


def _correlated(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Neighbours correlate by 0.2."""
    steps = rng.standard_normal(count)
    values = [steps[0]]
    for step in steps[1:]:
        values.append(0.2 * values[-1] + math.sqrt(1 - 0.2**2) * step)
    return np.asarray(values)


# ------------------------------------------------------------------------------------- verdict


def _alarms(count: int, noise: Noise, trials: int, worse: float = 1.0, size: float = 0.01) -> int:
    """How many of so many pairs of curves are found to differ; ``worse`` multiplies the second's loss."""
    rng = np.random.default_rng([count, trials])
    found = 0
    for _ in range(trials):
        one, other = (_curve(_falling(count) * np.exp(size * noise(rng, count))) for _ in range(2))
        found += compare(one, replace(other, losses=tuple(worse * loss for loss in other.losses))).verdict == "differ"
    return found


@pytest.mark.parametrize(
    ("noise", "trials", "most"),
    [
        (_white, 100, 1),
        (_correlated, 100, 1),
        *(
            pytest.param(noise, 1000, most, marks=pytest.mark.calibration)
            for noise, most in ((_white, 4), (_heavy, 4), (_correlated, 7))
        ),
    ],
)
@pytest.mark.parametrize("count", [8, 16, 40, 100])
def test_false_alarms_are_as_rare_as_promised(
    count: int, noise: Noise, trials: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1000 pairs: more than 4 where 1 is promised would be bad luck of 4 in 1000, more than 7 where 2 are of 1.

    Without the margin for luck, which would hide it.
    """
    monkeypatch.setattr(comparison, "LUCK", 0.0)
    assert FALSE_ALARMS == 1e-3
    assert _alarms(count, noise, trials) <= most


@pytest.mark.parametrize("noise", [_white, _heavy, _correlated])
def test_three_percent_worse_is_found(noise: Noise) -> None:
    """With 1 % noise a point and 100 points, and in shorter and noisier curves as far as can be hoped for."""
    assert _alarms(100, noise, 100, worse=1.03) == 100
    assert _alarms(100, noise, 100, worse=0.97) == 100
    assert _alarms(40, noise, 100, worse=1.03) >= 95


def test_a_point_of_one_percent_is_found_in_long_curves() -> None:
    assert _alarms(400, _white, 20, worse=1.01) == 20


def test_what_is_lost_late_is_found_though_it_was_won_early() -> None:
    rng = np.random.default_rng(0)
    one, other = (_falling(100) * np.exp(0.01 * rng.standard_normal(100)) for _ in range(2))
    other *= np.where(np.arange(100) < 50, 0.97, 1.03)
    result = compare(_curve(one), _curve(other))
    assert [stretch.name for stretch in result.stretches if stretch.differs] == ["second half", "last fifth"]


def test_a_difference_that_fades_does_not_hide_behind_its_own_drift() -> None:
    """Another learning rate: far apart at first, the same in the end."""
    rng = np.random.default_rng(0)
    one, other = (_falling(100) * np.exp(0.02 * rng.standard_normal(100)) for _ in range(2))
    other *= np.exp(-0.3 * np.exp(-np.arange(100) / 10))
    result = compare(_curve(one), _curve(other))
    assert [stretch.name for stretch in result.stretches if stretch.differs] == ["whole"]


def test_a_run_that_breaks_at_its_end_is_found() -> None:
    """Its last points would make the scatter of the differences so large that their mean lies within it."""
    rng = np.random.default_rng(0)
    one, other = (_falling(100) * np.exp(0.01 * rng.standard_normal(100)) for _ in range(2))
    other[-3:] *= (1.2, 1.5, 1.9)
    result = compare(_curve(one), _curve(other))
    assert [stretch.name for stretch in result.stretches if stretch.differs] == ["last fifth"]
    assert result.largest == pytest.approx(0.9, abs=0.1) and result.largest_at == 64000


def test_rounding_that_grows_agrees_and_says_where_it_began() -> None:
    """Two engines and one seed: the draws are shared, so the curves part slowly, and never come together."""
    rng = np.random.default_rng(0)
    one = _falling(100) * np.exp(0.05 * rng.standard_normal(100))
    growth = 1e-8 * np.exp(np.arange(100) / 9)
    growth[:7] = 0
    result = compare(_curve(one), _curve(one * (1 + growth)))
    assert (result.verdict, result.parted_at) == ("agree", 8 * 640)
    assert result.largest == pytest.approx(growth[-1], rel=1e-6) and result.largest_at == 100 * 640


def test_the_evidence_is_right() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2, 400))
    one, other = _falling(400) * np.exp(0.01 * noise[0]), 1.05 * _falling(400) * np.exp(0.02 * noise[1])
    result = compare(_curve(one), _curve(other))
    assert (result.points, result.images) == (400, (640, 400 * 640))
    assert result.noise == pytest.approx((0.01, 0.02), rel=0.2)
    whole, half, end = result.stretches
    assert [stretch.points for stretch in result.stretches] == [400, 200, 80]
    assert whole.mean == pytest.approx(np.log(other / one).mean())
    assert half.mean == pytest.approx(np.log(other / one)[200:].mean())
    assert end.mean == pytest.approx(np.log(other / one)[320:].mean())
    assert whole.standard_error == pytest.approx(math.hypot(0.01, 0.02) / 20, rel=0.3)
    # Three stretches share the false alarms: 3.59 standard errors of a normal deviate, and some for few points.
    assert 3.55 * whole.standard_error < whole.limit - comparison.LUCK < 4.5 * whole.standard_error
    assert result.parted_at == 640


# ----------------------------------------------------------------------------------- properties

losses = st.floats(1e-6, 1e6)
curves = st.integers(8, 60).flatmap(
    lambda count: st.tuples(*[st.lists(losses, min_size=count, max_size=count) for _ in range(2)])
)


@given(curves)
@settings(deadline=None)
def test_swapped_runs_get_the_same_verdict(pair: tuple[list[float], list[float]]) -> None:
    there, back = compare(_curve(pair[0]), _curve(pair[1])), compare(_curve(pair[1]), _curve(pair[0]))
    assert (there.points, there.parted_at, there.noise) == (back.points, back.parted_at, back.noise[::-1])
    for one, other in zip(there.stretches, back.stretches, strict=True):
        assert one.mean == pytest.approx(-other.mean)
        assert one.standard_error == pytest.approx(other.standard_error)
        assert one.limit == pytest.approx(other.limit)


@given(curves, st.integers(-20, 20))
@settings(deadline=None)
def test_the_unit_of_the_loss_does_not_matter(pair: tuple[list[float], list[float]], power: int) -> None:
    one, scaled = (
        compare(*(_curve(factor * loss for loss in values) for values in pair)) for factor in (1.0, 2.0**power)
    )
    assert one.parted_at == scaled.parted_at
    for mine, theirs in zip(one.stretches, scaled.stretches, strict=True):
        # Logarithms of large numbers have fewer digits after the point.
        assert theirs.mean == pytest.approx(mine.mean, rel=1e-6, abs=1e-9)
        assert theirs.limit == pytest.approx(mine.limit, rel=1e-6, abs=1e-9)


@given(st.lists(losses, min_size=8, max_size=60))
@settings(deadline=None)
def test_a_curve_is_identical_to_itself_and_to_no_other(values: list[float]) -> None:
    same = compare(_curve(values), _curve(values))
    assert (same.verdict, same.parted_at, same.largest) == ("identical", None, 0.0)
    assert all(stretch.mean == 0 and not stretch.differs for stretch in same.stretches)
    for changed in (math.nextafter(values[5], math.inf), 2 * values[5]):
        other = compare(_curve(values), _curve([*values[:5], changed, *values[6:]]))
        assert other.verdict != "identical" and other.parted_at == 6 * 640


@given(st.integers(8, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_other_intervals_of_one_run_are_the_same_curve(points: int, every: int, other: int, seed: int) -> None:
    """The loss of each image is given; the curves are its means, over intervals of two lengths."""
    length = points * every * other
    loss = np.random.default_rng(seed).lognormal(size=length)

    def curve(interval: int) -> LossCurve:
        return _curve(loss.reshape(-1, interval).mean(axis=1), interval)

    result = compare(curve(every), curve(other))
    assert result.points == length // math.lcm(every, other)
    assert abs(result.largest) < 1e-12
    assert result.verdict != "differ"


def test_points_between_shared_ones_count_by_their_images() -> None:
    """Ten images of loss 1, then thirty of loss 5: over the forty it is 4, as the other run says."""
    fine = LossCurve("fine", tuple(x for end in range(40, 361, 40) for x in (end - 30, end)), (1.0, 5.0) * 9)
    result = compare(fine, _curve([4.0] * 9, interval=40))
    assert (result.points, result.largest, result.verdict) == (9, 0.0, "agree")


def test_curves_of_other_lengths_are_compared_where_both_are() -> None:
    values = _falling(100)
    result = compare(_curve(values), _curve(values[:20]))
    assert (result.verdict, result.points, result.images) == ("identical", 20, (640, 20 * 640))


def test_smooth_curves_without_noise() -> None:
    """What has no noise has no excuse, beyond the margin for luck."""
    flat = _curve([0.5] * 20)
    assert compare(flat, _curve([0.5 * (1 + comparison.LUCK / 2)] * 20)).verdict == "agree"
    assert compare(flat, _curve([0.5 * (1 + comparison.LUCK * 2)] * 20)).verdict == "differ"


def test_a_straight_line_is_no_noise_whatever_the_spacing() -> None:
    x = np.asarray([1.0, 2, 5, 6, 10, 11, 12, 20])
    assert _noise(x, 3 - 0.2 * x) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.integers(1, 9, 20_000)).astype(float)
    assert _noise(x, 1e-3 * x + 0.3 * rng.standard_normal(20_000)) == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("count", [8, 30])
def test_degrees_of_freedom_are_those_of_the_scatter_of_the_estimate(count: int) -> None:
    """The estimate of a variance 1 from f independent deviates has the variance 2 / f."""
    rng, x = np.random.default_rng(0), np.arange(1.0, count + 1)
    variances = np.asarray([_noise(x, rng.standard_normal(count)) ** 2 for _ in range(4000)])
    assert variances.mean() == pytest.approx(1, rel=0.05)
    assert 2 / variances.var() == pytest.approx(_freedom([1.0, 0.0], count), rel=0.12)
    assert _freedom([1.0, 1.0], count) == pytest.approx(2 * _freedom([1.0, 0.0], count))


# ------------------------------------------------------------------------------------ real runs


class _Network(nn.Module):
    """The least that can be trained: it mixes the channels, with a gain for the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.gain = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1), nn.Linear(1, 16)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        hidden = self.first(x) + self.gain(c_noise.float()[:, None] / 1000)[:, :, None, None]
        return self.last(nn.functional.silu(hidden))


CONFIG = Training(
    seed=0,
    images=120 * 16,
    batch_size=16,
    lr=1e-3,
    betas=(0.9, 0.99),
    warmup_images=0,
    gradient_clip=1.0,
    ema_half_life_images=0,
    ema_rampup=0,
    precision="fp32",
    log_every_images=2 * 16,
)


def _trained(config: Training = CONFIG, weights: int = 0) -> LossCurve:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (64, 3, 1, 1), generator=generator, dtype=torch.uint8).expand(-1, -1, 8, 8)
    torch.manual_seed(weights)
    denoiser = Denoiser(_Network(), Flow(), X0())
    trainer = Trainer(
        denoiser, Loss(FlowMatching()), Batches(Batch(images), 16, config.seed, horizontal_flip=False), config
    )
    return LossCurve.of("trainer", ((point.images, point.loss) for point in trainer.run()))


def test_trainers_that_divide_the_batch_agree_and_other_learning_rates_differ() -> None:
    plain = _trained()
    parts = compare(plain, _trained(CONFIG.replace(gradient_accumulation=2)))
    assert parts.verdict == "agree" and parts.parted_at is not None
    assert abs(parts.largest) < 1e-3
    assert compare(plain, _trained(CONFIG.replace(seed=1))).verdict == "agree"
    assert compare(plain, _trained(CONFIG.replace(lr=3 * CONFIG.lr))).verdict == "differ"


# ------------------------------------------------------------------------------ files and runs


def _write(path: Path, losses: Iterable[float], interval: int = 640) -> Path:
    """As the train stage does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("images", "loss", "grad_norm", "lr", "images_per_second", "minutes"))
        for index, loss in enumerate(losses, start=1):
            writer.writerow(format(value, ".6g") for value in (index * interval, loss, 1.0, 1e-3, 100.0, 0.1 * index))
    return path


def test_what_the_train_stage_writes_is_read(tmp_path: Path) -> None:
    curve = read_curve(_write(tmp_path / "curves.csv", [0.123456, 0.0987, 0.08]))
    assert (curve.images, curve.losses) == ((640, 1280, 1920), (0.123456, 0.0987, 0.08))
    assert curve.name == str(tmp_path / "curves.csv")


def test_images_that_six_digits_cannot_tell_apart_are_one_point(tmp_path: Path) -> None:
    """From a million images on the file rounds them: 10,000,040 and 10,000,010 are both 1e+07."""
    curve = read_curve(_write(tmp_path / "curves.csv", [0.5, 0.25], interval=10_000_030))
    assert curve.images == (10_000_000, 20_000_100)
    assert LossCurve.of("run", [(1, 0.5), (2, 0.25), (2, 0.75), (3, 0.1)]).losses == (0.5, 0.5, 0.1)


BAD_FILES = {
    "": "found no points",
    "images,loss\n": "found no points",
    "step,value\n1,2\n": "found the columns step, value",
    "images,validation_loss\n1,2\n": "found the columns images, validation_loss",
    "images,loss\n640,0.5\n1280\n": "line 3: found images '1280' and loss None",
    "images,loss\n640,0.5\n1280,much\n": "line 3: found images '1280' and loss 'much'",
    "images,loss\ninf,0.5\n": "line 2: found images 'inf'",
    "images,loss\n640,0.5\n1280,nan\n": "found a loss of nan at 1280 images",
    "images,loss\n640,inf\n": "found a loss of inf at 640 images",
    "images,loss\n640,0\n": "found a loss of 0.0 at 640 images",
    "images,loss\n640,0.5\n1280,0.5\n640,0.5\n": "found 640 images after 1280",
    "images,loss\n0,0.5\n": "found 0 images after 0",
    "images,loss\n640,0.5\n1280,0.4\n": "found 2 points at the same numbers of images (20 and 2 in all)",
}


def _command(*names: object) -> tuple[int, str, str]:
    """Exit code and both outputs of the command."""
    done = CliRunner().invoke(app, ["curves", "compare", *map(str, names)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


def _assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "") and err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_files_are_one_line_and_status_2(tmp_path: Path, text: str) -> None:
    good, bad = _write(tmp_path / "good.csv", _falling(20)), tmp_path / "bad.csv"
    bad.write_text(text)
    _assert_one_line(_command(good, bad), str(bad), BAD_FILES[text], "expected", "; ")


def test_what_is_no_curve_is_one_line_and_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = _write(tmp_path / "good.csv", _falling(20))
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    _assert_one_line(_command(good, picture), str(picture), "found no text in UTF-8")
    (tmp_path / "empty").mkdir()
    _assert_one_line(_command("empty", good), "empty: found a folder without curves.csv or plots/train/curves.csv")
    _assert_one_line(_command("nowhere", good), "nowhere: found no such file or folder")
    _assert_one_line(_command(good, "0" * 32), "found no store", "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()
    _assert_one_line(_command("x" * 5000, good))


def test_the_command_says_what_it_found_and_exits_with_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = _falling(100) * np.exp(0.01 * rng.standard_normal((3, 100)))
    _write(tmp_path / "plots" / "train" / "curves.csv", values[0])
    other = _write(tmp_path / "other.csv", values[1])
    worse = _write(tmp_path / "worse" / "curves.csv", 1.03 * values[2])

    status, out, err = _command(tmp_path, tmp_path / "plots" / "train")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "100 shared points, from 640 to 64,000 images",
        "identical: every loss is the same, to the last digit",
    ]
    status, out, err = _command(tmp_path, other)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].startswith("first different at 640 images; largest difference ")
    assert [line.split("  ")[0] for line in lines[3:6]] == ["whole", "second half", "last fifth"]
    assert lines[-1] == "agree: no difference beyond noise"
    status, out, err = _command(tmp_path, worse.parent)
    assert (status, err) == (1, "")
    assert out.splitlines()[-1] == (
        "differ: whole, second half, last fifth beyond noise (two seeds of one program: in 1 of 1,000 comparisons)"
    )


def test_runs_of_the_store_are_compared(project: Path) -> None:
    values = _falling(20)
    runs = []
    for _ in range(2):
        run = TrackedRun.start(Store.locate(project), {"unveil.stage": "train"}, {})
        for index, loss in enumerate(values, start=1):
            run.log_metrics({"loss": loss}, step=640 * index)
        runs.append(run)
    runs[1].log_metrics({"loss": 2 * values[9]}, step=6400)  # the run went on from before this point
    for run in runs:
        run.finish("FINISHED")
    assert _command(runs[0].run_id, runs[0].run_id)[0] == 0
    status, out, _ = _command(runs[0].run_id, runs[1].run_id)
    assert "first different at 6,400 images; largest difference +100.00%" in out and status == 0
    status, out, _ = _command(runs[0].run_id, _write(project / "plots" / "train" / "curves.csv", values).parent)
    assert status == 0 and "agree" in out  # the file has six digits
    bare = TrackedRun.start(Store.locate(project), {"unveil.stage": "sample"}, {})
    bare.finish("FINISHED")
    _assert_one_line(_command(runs[0].run_id, bare.run_id), f"{bare.run_id}: found no metric loss")
    _assert_one_line(_command(runs[0].run_id, "0" * 32), "0" * 32, "no such run")


def test_a_curve_needs_a_loss_for_every_point() -> None:
    with pytest.raises(ValueError, match="shorter"):
        LossCurve("run", (1, 2), (0.5,))
