"""The U-Net: its size is the published one, its shape is kept, every part of it learns."""

import itertools
import json
from copy import deepcopy
from functools import cache
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.networks.blocks import AttentionBlock, Refinement, ResidualBlock
from unveil.networks.condition import Condition
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.networks.embedding import sinusoidal_embedding
from unveil.networks.plain import PlainUNet
from unveil.networks.unet import UNet
from unveil.recipes import load_recipe


class _Returns(nn.Module):
    """Whatever it is given, one answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


def _config(**changes: Any) -> UNetConfig:
    """Two resolutions, a block each, and attention in the middle alone, but for the changes."""
    small = {"image_size": 16, "channels": 32, "channel_multipliers": (1, 2), "blocks": 1, "attention_resolutions": ()}
    return UNetConfig(**{**small, **changes})


SMALL = _config(attention_resolutions=(8,), attention_head_channels=16)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _unet(config: UNetConfig, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(config)


def _awake(config: UNetConfig) -> Any:
    """A network with no zeros left, as after some training."""
    torch.manual_seed(0)
    network = build_network(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def _input(config: UNetConfig, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.image_channels, config.image_size, config.image_size, generator=generator)
    return x, torch.linspace(0, 999, batch)


@cache
def _values(name: str) -> dict[str, Any]:
    return load_recipe(f"unet-{name}").params.train.network.model_dump()


def _preset(name: str, image_size: int, **changes: Any) -> UNetConfig:
    """A published network by its recipe, or another of its family."""
    return UNetConfig(**{"image_size": image_size, **_values(name), **changes})


CIFAR10 = {"channel_multipliers": (2, 2, 2)}
IMAGENET256 = {"channels": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2}
# Published: 35.7 and 114 million in 2006.11239, appendix B; 296 and 553 million in 2105.05233 (552,814,086 and
# 295,904,454 as guided-diffusion constructs its checkpoints' networks); DDPM++ and NCSN++ as NVlabs/edm constructs
# SongUNet; DDIM's as ermongroup/ddim constructs configs/celeba.yml; the plain U-Net as 1505.04597, figure 1, with one
# channel in and out and no noise level.
PUBLISHED: list[tuple[str, int, dict[str, Any], int]] = [
    ("ddpm", 32, {}, 35_746_307),
    ("ddpm", 64, {"channel_multipliers": (1, 2, 2, 2, 4)}, 78_700_803),
    ("ddpm", 256, {"channel_multipliers": (1, 1, 2, 2, 4, 4)}, 113_673_219),
    # without labels (1000 x 768) and learned variances (3 x (9 x 192 + 1)), which are not here
    ("adm", 64, {}, 295_904_454 - 1000 * 768 - 3 * (9 * 192 + 1)),
    ("adm", 256, IMAGENET256, 552_814_086 - 3 * (9 * 256 + 1)),  # without learned variances
    # without labels and the augmentation's embedding
    ("ddpmpp", 32, CIFAR10, 55_732_739),
    ("ncsnpp", 32, CIFAR10, 56_395_523),
    ("ddpmpp", 64, {}, 61_804_419),
    ("ncsnpp", 64, {}, 62_758_787),
    ("plain", 64, {"image_channels": 1, "noise_conditioning": "none"}, 31_030_593),
]


@pytest.mark.parametrize(("family", "image_size", "changes", "published"), PUBLISHED)
def test_the_published_networks_have_their_published_sizes(
    family: str, image_size: int, changes: dict[str, Any], published: int
) -> None:
    with torch.device("meta"):
        assert _size(build_network(_preset(family, image_size, **changes))) == published


def _small(family: str) -> UNetConfig:
    """A network of the family that is quickly computed."""
    attention = () if family == "plain" else (4,)
    return _preset(family, 8, channels=32, channel_multipliers=(1, 2), blocks=2, attention_resolutions=attention)


@pytest.mark.parametrize("family", ["ddpm", "adm", "ddpmpp", "ncsnpp", "plain"])
def test_every_family_keeps_the_shape_and_hears_the_noise_level(family: str) -> None:
    for stem in (1, 2):
        stemmed = _small(family).replace(stem=stem, image_size=8 * stem, noise_conditioning="all", dropout=0.0)
        network = _awake(stemmed).eval()
        x, _ = _input(stemmed)
        low, high = network(x, torch.tensor([0.1, 0.1])), network(x, torch.tensor([0.7, 0.1]))
        assert low.shape == x.shape
        assert (low[0] - high[0]).abs().max() > 1e-4
        torch.testing.assert_close(low[1], high[1])
        untold = _awake(stemmed.replace(noise_conditioning="none")).eval()
        assert torch.equal(untold(x, torch.tensor([0.1, 0.1])), untold(x, torch.tensor([0.7, 0.1])))


@pytest.mark.parametrize("family", ["adm", "ncsnpp"])
def test_families_start_with_branches_that_are_zero(family: str) -> None:
    config = _small(family)
    x, c_noise = _input(config)
    assert _unet(config)(x, c_noise).count_nonzero() == 0


def test_skips_that_are_rescaled_keep_the_variance() -> None:
    """Sums of two independent branches of variance one have variance one (2011.13456)."""
    block = ResidualBlock(64, 64, 0, 0.0, project=True, skip_scale=0.5**0.5)
    nn.init.dirac_(block.conv2.weight)
    branch, around = torch.randn(2, 8, 64, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    block.skip = nn.Identity()
    block.conv2 = _Returns(branch)  # type: ignore[assignment]
    assert block(around, None).var() == pytest.approx(1.0, abs=0.02)


def test_progressive_input_reaches_every_resolution() -> None:
    """With the first convolution at zero, the image still reaches the middle."""
    reached = {}
    for progressive in (False, True):
        network = _awake(SMALL.replace(progressive_input=progressive)).eval()
        nn.init.zeros_(network.conv_in.weight)
        seen: list[Tensor] = []
        network.middle1.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
        x, c_noise = _input(SMALL)
        network(x, c_noise), network(x + 1, c_noise)
        reached[progressive] = bool((seen[0] - seen[1]).abs().max() > 1e-4)
    assert reached == {False: False, True: True}


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        _config(channel_multipliers=(1,)),
        _config(channel_multipliers=(2, 1, 3), blocks=2, attention_resolutions=(16, 4), attention_head_channels=32),
        _config(attention_resolutions=(4,), stem=2),
        _config(attention_resolutions=(2,), stem=4),
        _config(image_size=24, attention_resolutions=(4,), stem=3, image_channels=1),
        _config(channel_multipliers=(1,), stem=16),
        _config(middle_attention=False),
        _config(attention_resolutions=(8,), noise_conditioning="bottleneck"),
        _config(attention_resolutions=(8,), noise_conditioning="none"),
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
        stemmed = _config(attention_resolutions=(16 // p,), stem=p)
        plain = _config(image_size=16 // p, attention_resolutions=(16 // p,), image_channels=3 * p**2)
        with_stem, without = _awake(stemmed), _unet(plain, seed=1)
        without.load_state_dict(with_stem.state_dict())
        x, c_noise = _input(stemmed)
        inner = without(F.pixel_unshuffle(x, p), c_noise)
        assert torch.equal(with_stem(x, c_noise), F.pixel_shuffle(inner, p))
        assert torch.equal(F.pixel_shuffle(F.pixel_unshuffle(x, p), p), x)


def test_every_parameter_learns_after_two_steps() -> None:
    """The first step wakes the network's last layer, the second the last layers of its branches, the third all."""
    config = _config(
        channel_multipliers=(1, 2, 2), blocks=2, attention_resolutions=(8,), attention_head_channels=16, stem=2
    )
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
    config = _config(image_size=8, channel_multipliers=(1,))
    network = _unet(config)
    x, _ = _input(config, batch=4)
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
    network = _awake(SMALL.replace(noise_conditioning=told)).eval()
    names = [name for name, module in network.named_modules() if isinstance(module, ResidualBlock)]
    listening = [name for name in names if any(name.startswith(part) for part in blocks.split())]
    assert [name for name in names if f"{name}.embedding.weight" in network.state_dict()] == listening
    x, _ = _input(SMALL)
    same = torch.equal(network(x, torch.tensor([3.0, 3.0])), network(x, torch.tensor([900.0, 900.0])))
    assert same == (told == "none")


def test_attention_can_be_left_out_altogether() -> None:
    network = _unet(_config(middle_attention=False))
    assert not any(isinstance(module, AttentionBlock) for module in network.modules())


def test_samples_do_not_see_one_another() -> None:
    network = _awake(SMALL).eval()
    x, c_noise = _input(SMALL, batch=3)
    whole = network(x, c_noise)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], c_noise[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_attention_reaches_across_the_image_and_skips_bring_detail() -> None:
    network = _awake(_config(attention_resolutions=(8,))).eval()
    x, c_noise = _input(network.config, batch=1)
    changed = x.clone()
    changed[0, :, 0, 0] += 1
    difference = (network(changed, c_noise) - network(x, c_noise)).abs().amax((0, 1))
    assert difference[15, 15] > 0
    assert difference[:2, :2].max() > difference[8:, 8:].max()


@pytest.mark.parametrize("config", [SMALL, _config(attention_resolutions=(2,), stem=4)], ids=["stem 1", "stem 4"])
def test_channels_last_changes_the_memory_and_nothing_else(config: UNetConfig) -> None:
    network = _awake(config).eval()
    x, c_noise = _input(config)
    expected = network(x, c_noise)
    network.to(memory_format=torch.channels_last)
    found = network(x.to(memory_format=torch.channels_last), c_noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_plain_network_has_no_more_than_ronnebergers() -> None:
    network = build_network(_small("plain"))
    assert isinstance(network, PlainUNet)
    kinds = {type(module) for module in network.modules() if not list(module.children())}
    assert kinds <= {nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.SiLU}
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 2 * 3 + 1 + 1  # pairs down, lowest and up; one up-convolution; the last
    with torch.device("meta"):
        five = build_network(network.config.replace(image_size=16, channel_multipliers=(1, 2, 4, 8, 16)))
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in five.modules()) == 23  # as the paper says


def test_an_architecture_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'residual' or 'plain'"):
        SMALL.replace(architecture="dit")


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size: expected a multiple of the downsampling 8, not 20"):
        UNet(_config(image_size=20, stem=4))


def test_a_number_of_heads_holds_at_every_width() -> None:
    """Improved DDPM's 64 x 64 network (2102.09672) has 4 at every width; channels a head cannot say so."""
    network = UNet(_config(channel_multipliers=(1, 2, 3), attention_resolutions=(16, 8), attention_heads=4))
    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    assert {block.qkv.in_channels for block in blocks} == {32, 64, 96} and {block.heads for block in blocks} == {4}
    with pytest.raises(ValueError, match="32 channels cannot be divided into 5 heads"):
        UNet(_config(channel_multipliers=(1,), attention_resolutions=(16,), attention_heads=5))


def test_a_configuration_from_before_there_were_numbers_of_heads_is_the_same_network() -> None:
    early = {key: value for key, value in SMALL.read_values().items() if key != "attention_heads"}
    assert UNetConfig(**early) == SMALL


@pytest.mark.parametrize("conditioning", ["all", "none"])
@pytest.mark.parametrize("family", ["ddpm", "adm", "ddpmpp", "ncsnpp", "plain"])
def test_every_family_computes_in_the_type_of_its_weights(family: str, conditioning: Any) -> None:
    """In float64 the noise level too, and so nothing but rounding changes."""
    stem = 1 if family == "plain" else 2
    refined = 0 if family == "plain" else 8
    config = _small(family).replace(noise_conditioning=conditioning, stem=stem, image_size=8 * stem, dropout=0.0)
    network = _awake(config.replace(refinement_channels=refined)).eval()
    x, c_noise = _input(config)[0], torch.tensor([0.25, 1.5])  # random frequencies are made for no more
    with torch.no_grad():
        found = network(x, c_noise)
        twice = deepcopy(network).double()
        exact = twice(x.double(), c_noise.double())
        assert exact.dtype == torch.float64
        torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=1e-5 * exact.abs().max().item())
        for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
            short = getattr(deepcopy(network), name)()(x.to(dtype), c_noise)
            assert short.dtype == dtype and (short - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("family", ["ddpm", "adm"])
def test_float64_weights_are_told_the_noise_level_in_float64(family: str) -> None:
    """Closed form: cos^2 + sin^2 of one angle, and neighbouring levels that float32 takes for one."""
    levels = torch.tensor([999.0, 0.1], dtype=torch.float64)
    sine, cosine = sinusoidal_embedding(levels, 8, cosines_first=family == "adm").chunk(2, dim=1)
    assert (sine.square() + cosine.square() - 1).abs().max() < 1e-14
    network = _awake(_small(family)).double().eval()
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    low, high = network(x, torch.tensor([500.0, 500.0 + 1e-6], dtype=torch.float64))
    assert 0 < (low - high).abs().max() < 1e-3


def test_a_configuration_survives_json() -> None:
    config = _config(
        image_size=24, attention_resolutions=(4,), attention_head_channels=16, dropout=0.1, stem=3, image_channels=1
    )
    assert UNetConfig(**json.loads(json.dumps(config.read_values()))) == config
    assert config.downsampling == 6


@pytest.mark.parametrize("changes", [{}, {"architecture": "plain"}, {"noise_embedding": "fourier"}], ids=str)
def test_labels_of_augmentation_go_with_the_noise_level(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_network(SMALL.replace(augment_labels=9, **changes)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, c_noise = _input(SMALL)
    labels = torch.randn(len(x), 9)
    assert torch.equal(network(x, c_noise, Condition(torch.zeros_like(labels))), network(x, c_noise))
    assert not torch.allclose(network(x, c_noise, Condition(labels)), network(x, c_noise), atol=1e-3)
    with pytest.raises(ValueError, match="augment_labels: expected 0 with noise_conditioning none"):
        build_network(SMALL.replace(augment_labels=9, noise_conditioning="none"))


@pytest.mark.parametrize("changes", [{}, {"architecture": "plain"}, {"noise_embedding": "fourier"}], ids=str)
def test_attributes_go_with_the_noise_level(changes: dict[str, Any]) -> None:
    """Yes, no and not told are three things."""
    torch.manual_seed(0)
    network = build_network(SMALL.replace(attributes=("Smiling", "Bald"), **changes)).eval()
    x, c_noise = _input(SMALL)
    x, c_noise = x[:1].expand(5, -1, -1, -1), c_noise[:1].expand(5)
    condition = Condition(attributes=torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [1, 1]], dtype=torch.int8))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    found, untold = network(x, c_noise, condition), network(x, c_noise)
    torch.testing.assert_close(found[0], untold[0], rtol=1e-4, atol=1e-5)
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one, other, atol=1e-3)
    with pytest.raises(ValueError, match=r"condition.attributes: found \[5, 2\]"):
        build_network(SMALL.replace(**changes))(x, c_noise, condition)
    with pytest.raises(ValueError, match=r"attributes: expected \[\] with noise_conditioning none"):
        build_network(SMALL.replace(attributes=("Bald",), noise_conditioning="none"))


def test_a_refinement_treats_all_pixels_of_a_patch_alike() -> None:
    """But for the features: the image moved by one pixel gives the answer moved by one pixel."""
    torch.manual_seed(0)
    refinement = Refinement(6, stem=4, width=5, image_channels=3)
    image, x, h = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.randn(2, 6, 4, 4)
    assert torch.equal(refinement(image, h, x), image)  # it starts as nothing
    nn.init.normal_(refinement.out.weight)
    for parameter in refinement.features.parameters():  # which know the place in the patch
        nn.init.zeros_(parameter)
    moved = refinement(image.roll(1, 3), h, x.roll(1, 3))
    torch.testing.assert_close(moved[..., 3:-2], refinement(image, h, x).roll(1, 3)[..., 3:-2])


def test_a_refinement_learns() -> None:
    network = _unet(SMALL.replace(stem=2, attention_resolutions=(4,), refinement_channels=4))
    x, c_noise = _input(network.config)
    for _ in range(2):  # the first moves the last convolution alone, which starts at zero
        network.zero_grad()
        (network(x, c_noise) - x).square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad)
    assert network.refinement is not None
    assert all(
        parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.refinement.parameters()
    )
