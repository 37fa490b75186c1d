"""The U-Net: its size is the published one, its shape is kept, every part of it learns."""

import json
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from unveil.networks.blocks import AttentionBlock, ResidualBlock
from unveil.networks.unet import UNet, UNetConfig

DDIM_CELEBA = UNetConfig(64, 128, (1, 2, 2, 2, 4), 2, (16,), 0, 0.1)  # ermongroup/ddim, configs/celeba.yml
DDPM_CIFAR10 = UNetConfig(32, 128, (1, 2, 2, 2), 2, (16,), 0, 0.1)  # 2006.11239, appendix B: 35.7 million
SMALL = UNetConfig(16, 32, (1, 2), 1, (8,), 16)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _unet(config: UNetConfig, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(config)


def _awake(config: UNetConfig) -> UNet:
    """A network with no zeros left, as after some training."""
    network = _unet(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def _input(config: UNetConfig, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.image_channels, config.image_size, config.image_size, generator=generator)
    return x, torch.linspace(0, 999, batch)


@pytest.mark.parametrize(("config", "published"), [(DDIM_CELEBA, 78_700_803), (DDPM_CIFAR10, 35_746_307)])
def test_the_published_networks_have_their_published_sizes(config: UNetConfig, published: int) -> None:
    with torch.device("meta"):
        assert _size(UNet(config)) == published


@pytest.mark.parametrize("config", [DDIM_CELEBA, DDPM_CIFAR10, UNetConfig(64, 64, (1, 1, 2, 3), 3, (32, 8))], ids=str)
def test_it_has_as_many_parameters_as_diffusers(config: UNetConfig) -> None:
    attends = [
        config.image_size // 2**level in config.attention_resolutions
        for level, _ in enumerate(config.channel_multipliers)
    ]
    with torch.device("meta"):
        peer = UNet2DModel(
            sample_size=config.image_size,
            block_out_channels=tuple(config.channels * multiplier for multiplier in config.channel_multipliers),
            layers_per_block=config.blocks,
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            attention_head_dim=None,
        )
        assert _size(UNet(config)) == _size(peer)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        UNetConfig(16, 32, (1,), 1, ()),
        UNetConfig(16, 32, (2, 1, 3), 2, (16, 4), 32),
        UNetConfig(16, 32, (1, 2), 1, (4,), stem=2),
        UNetConfig(16, 32, (1, 2), 1, (2,), stem=4),
        UNetConfig(24, 32, (1, 2), 1, (4,), stem=3, image_channels=1),
        UNetConfig(16, 32, (1,), 1, (), stem=16),
        UNetConfig(16, 32, (1, 2), 1, (), middle_attention=False),
        UNetConfig(16, 32, (1, 2), 1, (8,), noise_conditioning="bottleneck"),
        UNetConfig(16, 32, (1, 2), 1, (8,), noise_conditioning="none"),
    ],
    ids=str,
)
def test_the_shape_is_kept_and_the_start_is_zero(config: UNetConfig) -> None:
    x, c_noise = _input(config)
    out = _unet(config)(x, c_noise)
    assert out.shape == x.shape
    assert out.count_nonzero() == 0
    awake = _awake(config)(x, c_noise)
    assert awake.shape == x.shape and awake.count_nonzero() == awake.numel()


def test_a_stem_is_the_network_of_the_rearranged_image_and_nothing_else() -> None:
    for p in (2, 4):
        stemmed = UNetConfig(16, 32, (1, 2), 1, (16 // p,), stem=p)
        plain = UNetConfig(16 // p, 32, (1, 2), 1, (16 // p,), image_channels=3 * p**2)
        with_stem, without = _awake(stemmed), _unet(plain, seed=1)
        without.load_state_dict(with_stem.state_dict())
        x, c_noise = _input(stemmed)
        inner = without(F.pixel_unshuffle(x, p), c_noise)
        assert torch.equal(with_stem(x, c_noise), F.pixel_shuffle(inner, p))
        assert torch.equal(F.pixel_shuffle(F.pixel_unshuffle(x, p), p), x)


def test_every_parameter_learns_after_two_steps() -> None:
    """The first step wakes the network's last layer, the second the last layers of its branches, the third all."""
    config = UNetConfig(16, 32, (1, 2, 2), 2, (8,), 16, stem=2)
    network = _unet(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, c_noise = _input(config)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, c_noise) - torch.randn(x.shape, generator=generator)).square().mean().backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        parts = list(parameter.grad.chunk(3)) if name.endswith("qkv.bias") else [parameter.grad]
        if len(parts) == 3:  # queries, keys, values: a constant added to all keys changes no softmax
            del parts[1]
        assert all(part.abs().max() > 1e-9 for part in parts), name


def test_the_noise_level_has_an_effect_once_trained() -> None:
    network = _unet(SMALL)
    x, _ = _input(SMALL, batch=4)
    c_noise = torch.tensor([0.0, 0.0, 900.0, 900.0])
    target = torch.where(c_noise[:, None, None, None] > 0, 1.0, -1.0).expand_as(x)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        (network(x, c_noise) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        same = x[:1].expand(2, -1, -1, -1)
        low, high = network(same, torch.tensor([0.0, 900.0])).mean((1, 2, 3)).tolist()
    assert low < -0.3 and high > 0.3


@pytest.mark.parametrize(("told", "blocks"), [("all", "down middle up"), ("bottleneck", "middle"), ("none", "")])
def test_noise_conditioning_names_the_blocks_that_are_told(
    told: Literal["all", "bottleneck", "none"], blocks: str
) -> None:
    network = _awake(replace(SMALL, noise_conditioning=told)).eval()
    names = [name for name, module in network.named_modules() if isinstance(module, ResidualBlock)]
    listening = [name for name in names if any(name.startswith(part) for part in blocks.split())]
    assert [name for name in names if f"{name}.embedding.weight" in network.state_dict()] == listening
    x, _ = _input(SMALL)
    same = torch.equal(network(x, torch.tensor([3.0, 3.0])), network(x, torch.tensor([900.0, 900.0])))
    assert same == (told == "none")


def test_attention_can_be_left_out_altogether() -> None:
    network = _unet(UNetConfig(16, 32, (1, 2), 1, (), middle_attention=False))
    assert not any(isinstance(module, AttentionBlock) for module in network.modules())


def test_samples_do_not_see_one_another() -> None:
    network = _awake(SMALL).eval()
    x, c_noise = _input(SMALL, batch=3)
    whole = network(x, c_noise)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], c_noise[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_attention_reaches_across_the_image_and_skips_bring_detail() -> None:
    network = _awake(UNetConfig(16, 32, (1, 2), 1, (8,))).eval()
    x, c_noise = _input(network.config, batch=1)
    changed = x.clone()
    changed[0, :, 0, 0] += 1
    difference = (network(changed, c_noise) - network(x, c_noise)).abs().amax((0, 1))
    assert difference[15, 15] > 0
    assert difference[:2, :2].max() > difference[8:, 8:].max()


@pytest.mark.parametrize("config", [SMALL, UNetConfig(16, 32, (1, 2), 1, (2,), stem=4)], ids=["stem 1", "stem 4"])
def test_channels_last_changes_the_memory_and_nothing_else(config: UNetConfig) -> None:
    network = _awake(config).eval()
    x, c_noise = _input(config)
    expected = network(x, c_noise)
    network.to(memory_format=torch.channels_last)
    found = network(x.to(memory_format=torch.channels_last), c_noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size 20 is not divisible by the downsampling 8"):
        UNet(UNetConfig(20, 32, (1, 2), 1, (), stem=4))


def test_a_configuration_survives_json() -> None:
    config = UNetConfig(24, 32, (1, 2), 1, (4,), 16, 0.1, stem=3, image_channels=1)
    assert UNetConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert config.downsampling == 6
