"""Our U-Net is diffusers' UNet2DModel of the same configuration, weight for weight."""

import json
import re
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from unveil.errors import UnveilError
from unveil.files import parse_json
from unveil.interchange import unet2d
from unveil.interchange.unet2d import UNet2D, from_config, from_weights, to_weights
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network

# unet/config.json as the hub has them
CIFAR10 = {  # google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CELEBAHQ256 = CIFAR10 | {  # google/ddpm-celebahq-256
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
EXAMPLE = {  # examples/unconditional_image_generation/train_unconditional.py, where all else is a default
    "_class_name": "UNet2DModel",
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
RESIDUAL = {  # ADM's blocks
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "block_out_channels": [64, 128],
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 32,
    "attn_norm_num_groups": 32,
    "resnet_time_scale_shift": "scale_shift",
    "layers_per_block": 1,
}
# The published networks at less than their width and at most 32 pixels a side.
NARROW = {"block_out_channels": [64, 64, 64, 64, 128, 128], "sample_size": 32}
SMALLER: dict[str, dict[str, Any]] = {
    "cifar10": CIFAR10 | {"block_out_channels": [64, 128, 128, 128], "sample_size": 16},
    "celebahq256": CELEBAHQ256 | NARROW,
    "example": EXAMPLE | NARROW,
    "residual": RESIDUAL,
    "no middle attention": RESIDUAL | {"add_attention": False, "attn_norm_num_groups": None},
}


def to_config(values: dict[str, Any], name: str) -> UNetConfig:
    return unet2d.to_config(parse_json(json.dumps(values), UNet2D, name, "mend it"), name)


def _peer(values: dict[str, Any]) -> UNet2DModel:
    return UNet2DModel(**{key: value for key, value in values.items() if not key.startswith("_")})


@pytest.mark.parametrize("values", SMALLER.values(), ids=SMALLER)
def test_the_same_weights_give_the_same_images(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    peer = _peer(values).eval()
    config = to_config(values, "config.json")
    ours = build_network(config).eval()
    ours.load_state_dict(to_weights(peer.state_dict(), config, "weights"))
    x, t = torch.randn(2, 3, values["sample_size"], values["sample_size"]), torch.tensor([3, 970])
    with torch.no_grad():
        expected, found = peer(x, t).sample, ours(x, t.float())
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "parameters"), [(CIFAR10, 35_746_307), (CELEBAHQ256, 113_673_219), (EXAMPLE, 113_673_219)]
)
def test_the_published_configurations_have_our_shapes_as_they_are(values: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        peer = _peer(values)
        config = to_config(values, "config.json")
        ours = build_network(config)
    weights = to_weights(peer.state_dict(), config, "weights")
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters


@pytest.mark.parametrize("values", [CIFAR10, CELEBAHQ256, EXAMPLE, *list(SMALLER.values())[3:]])
def test_there_and_back_is_the_same(values: dict[str, Any]) -> None:
    config = to_config(values, "config.json")
    written = from_config(config)
    assert to_config(written, "config.json") == config
    with torch.device("meta"):
        assert _peer(written).state_dict().keys() == _peer(values).state_dict().keys()
    small = config.replace(channels=32, norm_groups=16, attention_head_channels=8)
    torch.manual_seed(1)
    weights = build_network(small).state_dict()
    back = to_weights(from_weights(weights), small, "weights")
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[name], back[name]) for name in weights)


def test_the_old_names_of_attention_are_the_new_ones() -> None:
    config = to_config(RESIDUAL, "config.json")
    theirs = from_weights(build_network(config).state_dict())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in theirs.items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = tensor
    assert renamed.keys() != theirs.keys()
    found, expected = to_weights(renamed, config, "weights"), to_weights(theirs, config, "weights")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_channels": 6}, "out_channels: found 6, expected in_channels, 3"),
        ({"sample_size": None}, "sample_size: found null, expected a valid integer"),
        ({"sample_size": [32, 64]}, "sample_size: found [32, 64], expected a valid integer"),
        ({"block_out_channels": [128, 192, 256, 256]}, "block_out_channels: found [128, 192, 256, 256]"),
        ({"block_out_channels": [32, 64, 64, 64]}, "norm_num_groups: found 32, expected two channels a group"),
        ({"freq_shift": 0}, "flip_sin_to_cos, freq_shift: found False, 0, expected"),
        ({"resnet_time_scale_shift": "ada_group"}, 'resnet_time_scale_shift: found "ada_group"'),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups: found None, expected norm_num_groups, 32"),
        (
            {"down_block_types": ["SkipDownBlock2D"] * 4},
            'down_block_types.0: found "SkipDownBlock2D", expected',
        ),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types: expected attention at the resolutions"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "down_block_types: expected as many as up_block_types"),
        ({"downsample_type": "resnet"}, "expected one way of resampling, conv or resnet"),
        ({"downsample_padding": 2}, "downsample_padding: found 2, expected 0 or 1"),
        ({"class_embed_type": "timestep"}, 'class_embed_type: found "timestep", expected null'),
        ({"num_class_embeds": 10}, "num_class_embeds: found 10, expected null"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type: found \"fourier\", expected 'positional'"),
        ({"act_fn": "mish"}, "act_fn: found \"mish\", expected 'silu'"),
        ({"mid_block_scale_factor": 1.41}, "mid_block_scale_factor: found 1.41, expected less than or equal to 1"),
        ({"center_input_sample": True}, "center_input_sample: found true, expected False"),
        ({"cross_attention_dim": 768}, "cross_attention_dim: unknown setting"),
        ({"layers_per_block": "2"}, 'layers_per_block: found "2", expected a valid integer'),
        ({"norm_eps": None}, "norm_eps: found null, expected a valid number"),
        ({"block_out_channels": 128}, "block_out_channels: found 128, expected a valid array"),
        ({"up_block_types": []}, "down_block_types: expected as many as up_block_types"),
        ({"attention_head_dim": "8"}, 'attention_head_dim: found "8", expected a valid integer'),
        ({"attention_head_dim": -8}, "attention_head_dim: found -8"),
        ({"attention_head_dim": 8.0}, "attention_head_dim: found 8.0"),
        ({"block_out_channels": [0, 64]}, "block_out_channels.0: found 0, expected greater than or equal to 1"),
        ({"sample_size": -16}, "sample_size: found -16, expected greater"),
        ({"sample_size": True}, "sample_size: found true"),
        ({"sample_size": 0}, "sample_size: found 0"),
        ({"in_channels": 0, "out_channels": 0}, "in_channels: found 0"),
        ({"layers_per_block": 0}, "layers_per_block: found 0"),
        ({"norm_num_groups": 0}, "norm_num_groups: found 0"),
        ({"attn_norm_num_groups": "32"}, 'attn_norm_num_groups: found "32"'),
        ({"norm_eps": -1}, "norm_eps: found -1, expected greater than 0"),
        ({"norm_eps": float("nan")}, "not valid JSON"),
        ({"dropout": float("nan")}, "not valid JSON"),
        ({"dropout": 1.0}, "dropout: found 1.0"),
    ],
)
def test_what_is_not_here_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnveilError) as caught:
        build_network(to_config(CIFAR10 | changes, "unet/config.json"))
    assert str(caught.value).startswith("unet/config.json: ") and words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"architecture": "plain"}, "architecture"),
        ({"stem": 4}, "stem"),
        ({"noise_conditioning": "none"}, "noise_conditioning"),
        ({"decoder_attention": "last"}, "decoder_attention"),
        ({"progressive_input": True}, "progressive_input"),
        ({"skip_rescale": True}, "skip_rescale"),
        ({"attention_heads": 4}, "attention_heads"),
        ({"noise_embedding": "fourier"}, "noise_embedding"),
        ({"resampling": "residual-project"}, "resampling"),
        ({"resampling": "residual", "resampling_filter": "binomial"}, "resampling_filter"),
        ({"channel_multipliers": (2, 2)}, "channel_multipliers"),
        ({"channels": 32}, "norm_groups"),
    ],
)
def test_what_is_not_there_is_refused_by_name(changes: dict[str, Any], key: str) -> None:
    config = UNetConfig(image_size=16, channels=64, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(8,))
    from_config(config)
    with pytest.raises(UnveilError, match=f"^train.network.{key}: found .*cannot be exported"):
        from_config(config.replace(**changes))


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"augment_labels": 9}, "train.augment: found a network with 9 labels"),
        ({"attributes": ("Smiling",)}, "train.attributes: found a network with 1 attributes"),
    ],
)
def test_a_network_that_is_told_more_than_noise_is_refused_by_the_key_that_made_it(
    told: dict[str, Any], found: str
) -> None:
    config = UNetConfig(image_size=16, channels=64, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(8,))
    with pytest.raises(UnveilError, match=f"^{re.escape(found)}.*cannot be exported$"):
        from_config(config.replace(**told))


def test_weights_that_do_not_belong_to_the_configuration_are_named() -> None:
    config = to_config(RESIDUAL, "config.json")
    weights = from_weights(build_network(config).state_dict())
    lacking = {name: tensor for name, tensor in weights.items() if name != "conv_in.bias"}
    with pytest.raises(
        UnveilError, match=r"^f\.safetensors: found no conv_in\.bias, expected one, .*; take both files"
    ):
        to_weights(lacking, config, "f.safetensors")
    with pytest.raises(
        UnveilError, match=r"^f\.safetensors: found class_embedding\.weight, expected .*; take both files"
    ):
        to_weights(weights | {"class_embedding.weight": torch.zeros(1)}, config, "f.safetensors")


def test_a_square_size_of_two_equal_numbers_is_one() -> None:
    assert to_config(CIFAR10 | {"sample_size": [32, 32]}, "config.json") == to_config(CIFAR10, "config.json")
