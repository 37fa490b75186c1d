"""The averaged weights: closed forms for weights that stand still and for weights that move evenly."""

import math

import pytest
import torch
from torch import Tensor

from unveil.training.config import Training
from unveil.training.ema import EMA, PowerAverage, build_averages, decay


def _weights(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_the_decay_of_a_half_life_in_images() -> None:
    assert decay(128, 887_184) == pytest.approx(0.9999, abs=1e-9)  # DDPM's and DDIM's, at batch 128
    assert decay(1, 1) == 0.5
    assert decay(32, 0) == 0
    for batch_size in (1, 8, 250):
        assert decay(batch_size, 4000) ** (4000 / batch_size) == pytest.approx(0.5)


def test_weights_that_stand_still_are_approached_by_halves() -> None:
    for batch_size in (5, 10, 100):  # after as many images, the same, whatever the batch
        ema = EMA(_weights(3.0, -1.0), 200, 0.0)
        for step in range(600 // batch_size):
            ema.update(_weights(1.0, 1.0), batch_size, (step + 1) * batch_size)
        assert [float(p) for p in ema.parameters] == pytest.approx([1 + 2 / 8, 1 - 2 / 8])


def test_weights_that_move_evenly_are_followed_at_a_distance() -> None:
    """w_k = k gives n - d (1 - d^n) / (1 - d), from the sum of the geometric series and its derivative."""
    ema = EMA(_weights(0.0), 40, 0.0)
    d = decay(10, 40)
    for n in range(1, 60):
        ema.update(_weights(float(n)), 10, 10 * n)
        assert float(ema.parameters[0]) == pytest.approx(n - d * (1 - d**n) / (1 - d))
    assert 59 - float(ema.parameters[0]) == pytest.approx(d / (1 - d), rel=1e-3)


def test_no_half_life_is_the_raw_weights() -> None:
    for rampup in (0.0, 0.05):
        ema = EMA(_weights(1e30), 0, rampup)
        for value in (math.pi, -math.e):
            ema.update(_weights(value), 8, 8)
            assert float(ema.parameters[0]) == value


def test_the_ramp_limits_the_half_life_to_a_share_of_what_was_seen() -> None:
    """Early on the average forgets as if its half-life were rampup x images; later as without a ramp."""
    ema = EMA(_weights(0.0), 1000, 0.1)
    for images, half_life in ((100, 10), (5_000, 500), (10_000, 1000), (50_000, 1000)):
        ema.parameters[0].zero_()
        ema.update(_weights(1.0), 100, images)
        assert float(ema.parameters[0]) == pytest.approx(1 - 0.5 ** (100 / half_life))


def test_the_average_is_a_copy() -> None:
    weights = _weights(1.0, 2.0)
    ema = EMA(weights, 10, 0.0)
    weights[0].fill_(9)
    assert [float(p) for p in ema.parameters] == [1, 2]
    target = _weights(0.0, 0.0)
    ema.copy_to(target)
    ema.parameters[0].fill_(7)
    assert [float(p) for p in target] == [1, 2]
    assert [float(p) for p in weights] == [9, 2]
    with pytest.raises(ValueError, match="longer"):
        ema.copy_to(target[:1])


def test_weights_that_learn_can_be_averaged() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    ema = EMA([weight], 8, 0.0)
    ema.update([torch.nn.Parameter(torch.ones(3))], 8, 8)
    ema.copy_to([weight])
    assert weight.tolist() == [0.5] * 3 and weight.requires_grad
    assert not ema.parameters[0].requires_grad


def test_a_power_function_is_the_integral_of_its_profile() -> None:
    """w_k = k, for images (k - 1) b to k b, has the share (k / n)^(g + 1) - ((k - 1) / n)^(g + 1); the initial none."""
    average = PowerAverage(_weights(1e9), 0.1)
    power = average.gamma + 1
    for n in range(1, 50):
        average.update(_weights(float(n)), 8, 8 * n)
        integral = sum(k * ((k / n) ** power - ((k - 1) / n) ** power) for k in range(1, n + 1))
        assert float(average.parameters[0]) == pytest.approx(integral)


def test_a_half_life_within_its_ramp_is_nearly_a_power_function() -> None:
    """Half-life r t is the exponent ln 2 / r - 1 (EDM's ramp, seen as EDM2 sees it)."""
    rampup = 0.09
    gamma = math.log(2) / rampup - 1
    power = PowerAverage(_weights(0.0), math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)))
    ramped = EMA(_weights(0.0), 1_000_000, rampup)
    for step in range(1, 2001):
        for average in (power, ramped):
            average.update(_weights(math.sin(step / 200)), 1, step)
    assert float(ramped.parameters[0]) == pytest.approx(float(power.parameters[0]), abs=5e-3)


def test_all_averages_are_those_that_each_would_be_alone() -> None:
    start = _weights(0.0, 1.0)
    config = Training(ema_half_life_images=20, ema_more_half_lives=(40, 80), ema_profiles=(0.05, 0.2))
    together = build_averages(config, start)
    assert [str(name) for name in together] == ["ema", "half-life:40", "half-life:80", "power:0.05", "power:0.2"]
    alone = [*(EMA(start, images, 0.0) for images in (20, 40, 80)), *(PowerAverage(start, s) for s in (0.05, 0.2))]
    for step in range(1, 30):
        weights = _weights(math.sin(step), math.cos(step))
        for average in (*together.values(), *alone):
            average.update(weights, 4, 4 * step)
    for kept, average in zip(together.values(), alone, strict=True):
        assert kept.parameters == average.parameters
    assert len({float(average.parameters[0]) for average in alone}) == 5
