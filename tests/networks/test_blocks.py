"""The U-Net's blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.networks.blocks import (
    BINOMIAL,
    BOX,
    AttentionBlock,
    Downsample,
    Filter,
    ResidualBlock,
    Upsample,
    attend,
    group_norm,
    zero_init,
)

GENERATOR = torch.Generator().manual_seed(0)


def _random(module: nn.Module) -> nn.Module:
    """Weights without the zeros and ones that training starts from."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def _input(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (8, 4), (32, 16), (64, 32), (128, 32), (256, 32)])
def test_a_group_has_zero_mean_and_unit_variance(channels: int, groups: int) -> None:
    normed = group_norm(channels)(5 + 3 * _input(2, channels, 6, 6)).unflatten(1, (groups, -1)).flatten(2)
    torch.testing.assert_close(normed.mean(2), torch.zeros(2, groups), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(normed.var(2, unbiased=False), torch.ones(2, groups), rtol=0.0, atol=1e-4)


def test_a_convolution_started_at_zero_gives_zero() -> None:
    for bias in (True, False):
        conv = zero_init(nn.Conv2d(3, 5, 3, bias=bias))
        assert conv(_input(1, 3, 8, 8)).count_nonzero() == 0


def test_residual_branches_start_as_the_identity() -> None:
    x = _input(2, 32, 4, 4)
    assert torch.equal(ResidualBlock(32, 32, 16, 0.1)(x, _input(2, 16)), x)
    assert torch.equal(AttentionBlock(32, 8)(x), x)
    block = ResidualBlock(32, 64, 16, 0.1)
    torch.testing.assert_close(block(x, _input(2, 16)), block.skip(x))


@pytest.mark.parametrize("width", [32, 64, 128])
def test_a_residual_block_listens_to_its_own_samples_noise_level(width: int) -> None:
    """Of any width: see group_norm."""
    block = _random(ResidualBlock(32, width, 16, 0.0))
    x, embedding = _input(2, 32, 4, 4), _input(2, 16)
    out = block(x, embedding)
    assert out.shape == (2, width, 4, 4)
    other = block(x, torch.stack([embedding[0], embedding[1] + 1]))
    assert torch.equal(other[0], out[0])
    assert (other[1] - out[1]).abs().max() > 0.1


def test_dropout_acts_in_training_alone() -> None:
    block = _random(ResidualBlock(32, 32, 16, 0.5))
    x, embedding = _input(2, 32, 4, 4), _input(2, 16)
    assert not torch.equal(block(x, embedding), block(x, embedding))
    block.eval()
    assert torch.equal(block(x, embedding), block(x, embedding))


@pytest.mark.parametrize(
    ("channels", "head_channels", "given", "heads"), [(32, 0, 0, 1), (32, 32, 0, 1), (64, 16, 0, 4), (48, 0, 3, 3)]
)
def test_attention_is_softmax_attention_over_pixels(channels: int, head_channels: int, given: int, heads: int) -> None:
    """2006.11239, appendix B: one pixel at a time, one head at a time."""
    block = _random(AttentionBlock(channels, head_channels, heads=given))
    assert isinstance(block, AttentionBlock)
    x = _input(2, channels, 3, 5)
    normed = block.norm(x)
    q, k, v = (
        F.conv2d(normed, weight, bias)
        for weight, bias in zip(block.qkv.weight.chunk(3), _bias(block.qkv).chunk(3), strict=True)
    )
    width = channels // heads
    mixed = torch.zeros_like(x)
    for sample in range(2):
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            keys = k[sample, rows].flatten(1)
            for y in range(3):
                for column in range(5):
                    scores = q[sample, rows, y, column] @ keys / width**0.5
                    mixed[sample, rows, y, column] = v[sample, rows].flatten(1) @ scores.softmax(0)
    expected = x + F.conv2d(mixed, block.out.weight, block.out.bias)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


@pytest.mark.parametrize("head_channels", [48, 128])
def test_heads_that_do_not_divide_the_channels_are_refused(head_channels: int) -> None:
    with pytest.raises(ValueError, match=f"64 channels cannot be divided into heads of {head_channels}"):
        AttentionBlock(64, head_channels)
    with pytest.raises(ValueError, match="64 channels cannot be divided into 3 heads"):
        AttentionBlock(64, 0, heads=3)


def test_attention_does_not_know_where_a_pixel_is() -> None:
    block = _random(AttentionBlock(32, 16))
    x = _input(1, 32, 4, 4)
    shuffled = torch.randperm(16, generator=GENERATOR)
    moved = x.flatten(2)[:, :, shuffled].unflatten(2, (4, 4))
    torch.testing.assert_close(
        block(moved), block(x).flatten(2)[:, :, shuffled].unflatten(2, (4, 4)), rtol=1e-4, atol=1e-5
    )


def test_downsampling_halves_and_looks_right_and_down() -> None:
    """Output pixel (i, j) sees rows 2i .. 2i + 2 and columns 2j .. 2j + 2, with zeros outside, as DDPM's does."""
    down = _random(Downsample(3))
    x = _input(1, 3, 8, 6)
    out = down(x)
    assert out.shape == (1, 3, 4, 3)
    for y in range(8):
        for column in range(6):
            changed = x.clone()
            changed[0, :, y, column] += 1
            touched = (down(changed) - out).abs().amax((0, 1)) > 1e-4
            for i in range(4):
                for j in range(3):
                    assert touched[i, j] == (2 * i <= y <= 2 * i + 2 and 2 * j <= column <= 2 * j + 2)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (8, 8)])
def test_upsampling_doubles_each_pixel_before_its_convolution(height: int, width: int) -> None:
    up = Upsample(6).double()
    x = _input(2, 6, height, width).double()
    expected = up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(up(x), expected)
    found = torch.autograd.grad(up(x).square().sum(), list(up.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), list(up.parameters())))


def test_symmetric_downsampling_looks_to_all_sides() -> None:
    down = Downsample(1, symmetric=True)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(_bias(down.conv))
    ones = down(torch.ones(1, 1, 4, 4))[0, 0]
    assert ones.tolist() == [[4.0, 6.0], [6.0, 9.0]]  # zeros at the left and above; the right and lower side are seen


@pytest.mark.parametrize("taps", [BOX, BINOMIAL])
@pytest.mark.parametrize("up", [False, True])
def test_a_filter_is_separable_and_keeps_a_constant(taps: tuple[float, ...], up: bool) -> None:
    """Against the definition: zeros between the pixels (up), filter by the normalised taps, every second (down)."""
    x = _input(2, 3, 6, 8).double()
    found = Filter(taps, up).double()(x)
    row = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    kernel = (torch.outer(row, row) * (4 if up else 1)).expand(3, 1, -1, -1)
    if up:
        spaced = torch.zeros(2, 3, 12, 16, dtype=torch.float64)
        spaced[:, :, ::2, ::2] = x
        before = len(taps) // 2
        expected = F.conv2d(F.pad(spaced, (before, len(taps) - 1 - before) * 2), kernel, groups=3)
    else:
        expected = F.conv2d(F.pad(x, ((len(taps) - 1) // 2,) * 4), kernel, groups=3)[:, :, ::2, ::2]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    constant = Filter(taps, up)(torch.ones(1, 1, 8, 8))[0, 0, 2:-2, 2:-2]
    torch.testing.assert_close(constant, torch.ones_like(constant))
    assert not Filter(taps, up).state_dict()


def test_scale_and_shift_act_on_normalised_features() -> None:
    """2105.05233, sec. 3: AdaGN(h, y) = y_s GroupNorm(h) + y_b, here with y_s = 1 + scale."""
    block = _random(ResidualBlock(32, 32, 4, 0.0, scale_shift=True))
    assert isinstance(block, ResidualBlock) and block.embedding is not None
    x, embedding = _input(2, 32, 4, 4), _input(2, 4)
    scale, shift = (part[:, :, None, None] for part in block.embedding(embedding).chunk(2, dim=1))
    normed = block.norm2(block.conv1(F.silu(block.norm1(x))))
    torch.testing.assert_close(block(x, embedding), x + block.conv2(F.silu(normed * (1 + scale) + shift)))


@pytest.mark.parametrize("project", [False, True])
def test_a_resampling_block_resamples_both_branches(project: bool) -> None:
    for up, side in ((False, 2), (True, 8)):
        block = ResidualBlock(32, 32, 0, 0.0, resample=Filter(BOX, up), project=project)
        x = _input(2, 32, 4, 4)
        around = Filter(BOX, up)(x)
        out = block(x, None)
        assert out.shape == (2, 32, side, side)
        torch.testing.assert_close(out, block.skip(around))  # the branch starts at zero
        assert isinstance(block.skip, nn.Conv2d) == project


@pytest.mark.parametrize(("heads", "pixels", "channels"), [(2, 64, 64), (1, 16, 256), (4, 1, 8), (1, 1100, 8)])
def test_attention_in_half_precision_is_that_in_full(heads: int, pixels: int, channels: int) -> None:
    q, k, v = torch.randn(3, 2, heads, pixels, channels).bfloat16()
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = attend(q, k, v)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), exact, atol=0.03)
