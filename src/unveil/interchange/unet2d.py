"""diffusers' ``UNet2DModel``: its configuration and its names of the weights, and ours."""

import json
import re
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from torch import Tensor

from unveil.errors import UnveilError
from unveil.files import parse_json
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.section import Count, HalfOpenShare, Side

MEND = "take the folder from its source again, or save the pipeline again with diffusers"
DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resampling = Literal["conv", "resnet"]


def _one_side(size: Any) -> Any:
    """The side of a square image, where its height and width are given."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


class Theirs(BaseModel):
    """A JSON file of diffusers, where keys that begin with ``_`` say how it was written."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        for key in self.model_extra or {}:
            if not key.startswith("_"):
                raise ValueError(f"{key}: unknown setting, which this network may not have")
        return self


class UNet2D(Theirs):
    """A ``UNet2DModel``'s config.json; the defaults are what one that lacks a key means by it."""

    sample_size: Annotated[Side, BeforeValidator(_one_side)]
    in_channels: Count = 3
    out_channels: Count = 3
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[UpBlock, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: Annotated[tuple[Count, ...], Len(1)] = (224, 448, 672, 896)
    layers_per_block: Annotated[int, Ge(1), Le(64)] = 2
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    dropout: HalfOpenShare = 0.0
    norm_num_groups: Count = 32
    attn_norm_num_groups: Count | None = None
    norm_eps: Annotated[float, Gt(0), Le(1e-2)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    attention_head_dim: Count | None = 8  # null is one head
    # Of the others ours has no choice.
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: None = None
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    mid_block_scale_factor: Annotated[float, Ge(1), Le(1)] = 1
    act_fn: Literal["silu"] = "silu"
    class_embed_type: None = None
    num_class_embeds: None = None
    num_train_timesteps: None = None


WAVES = {"ddpm": (False, 1), "adm": (True, 0)}  # flip_sin_to_cos, freq_shift
NAMES = (  # patterns of ours, and theirs
    (r"^embedding\.layers\.0", "time_embedding.linear_1"),
    (r"^embedding\.layers\.2", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
    (r"^middle1", "mid_block.resnets.0"),
    (r"^middle2", "mid_block.resnets.1"),
    (r"^middle_attention", "mid_block.attentions.0"),
    (r"^(down|up)sample\.(\d+)", r"\1_blocks.\2.\1samplers.0"),
    (r"^(down|up)\.(\d+)\.(\d+)\.residual", r"\1_blocks.\2.resnets.\3"),
    (r"^(down|up)\.(\d+)\.(\d+)\.attention", r"\1_blocks.\2.attentions.\3"),
    (r"(attentions\.\d+)\.norm$", r"\1.group_norm"),
    (r"(attentions\.\d+)\.out$", r"\1.to_out.0"),
    (r"\.embedding$", ".time_emb_proj"),
    (r"\.skip$", ".conv_shortcut"),
)
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_config(theirs: UNet2D, name: str) -> UNetConfig:
    """Our configuration of a ``UNet2DModel``'s, whose file messages call ``name``.

    Raises:
        UnveilError: if it has what our network has not; the line names the key.
    """
    try:
        values = _config(theirs)
    except ValueError as error:
        raise UnveilError(f"{name}: {error}") from None
    return parse_json(json.dumps(values), UNetConfig, name, MEND)  # within our ranges


def _config(theirs: UNet2D) -> dict[str, Any]:
    side, widths, groups = theirs.sample_size, theirs.block_out_channels, theirs.norm_num_groups
    attends = [kind.startswith("Attn") for kind in theirs.down_block_types]
    waves = (theirs.flip_sin_to_cos, theirs.freq_shift)
    scale_shift = theirs.resnet_time_scale_shift == "scale_shift"
    attention_groups = theirs.attn_norm_num_groups or (None if scale_shift else groups)
    for wrong, message in (
        (
            theirs.in_channels != theirs.out_channels,
            f"out_channels: found {theirs.out_channels}, expected in_channels, {theirs.in_channels}: "
            "learned variances and conditioning images are not there",
        ),
        (
            not len(attends) == len(theirs.up_block_types) == len(widths),
            "down_block_types: expected as many as up_block_types and block_out_channels",
        ),
        (
            attends != [kind.startswith("Attn") for kind in reversed(theirs.up_block_types)],
            "up_block_types: expected attention at the resolutions at which down_block_types has it",
        ),
        (
            any(width % widths[0] for width in widths),
            f"block_out_channels: found {list(widths)}, expected multiples of the first",
        ),
        (groups > widths[0] // 2, f"norm_num_groups: found {groups}, expected two channels a group at least"),
        (
            waves not in WAVES.values(),
            f"flip_sin_to_cos, freq_shift: found {waves[0]}, {waves[1]}, expected False, 1 (DDPM) or True, 0 (ADM)",
        ),
        (
            theirs.add_attention and attention_groups != groups,
            f"attn_norm_num_groups: found {attention_groups}, expected norm_num_groups, {groups}: "
            "the middle attends to normalised features",
        ),
    ):
        if wrong:
            raise ValueError(message)
    return {
        "image_size": side,
        "image_channels": theirs.in_channels,
        "channels": widths[0],
        "channel_multipliers": tuple(width // widths[0] for width in widths),
        "blocks": theirs.layers_per_block,
        "attention_resolutions": tuple(side // 2**level for level, yes in enumerate(attends) if yes),
        "attention_head_channels": theirs.attention_head_dim or 0,
        "dropout": theirs.dropout,
        "middle_attention": theirs.add_attention,
        "noise_embedding": "ddpm" if waves == WAVES["ddpm"] else "adm",
        "scale_shift_norm": scale_shift,
        "resampling": _resampling(theirs),
        "norm_groups": groups,
        "norm_eps": theirs.norm_eps,
    }


def _resampling(theirs: UNet2D) -> Literal["conv", "conv-symmetric", "residual"]:
    kinds = set()
    for names, of_attention in (
        (theirs.down_block_types[:-1], theirs.downsample_type),
        (theirs.up_block_types[:-1], theirs.upsample_type),
    ):
        for name in names:
            kind = "resnet" if name.startswith("Resnet") else "conv"
            kinds.add(of_attention if name.startswith("Attn") else kind)
    if len(kinds) > 1:
        raise ValueError(
            "down_block_types, up_block_types: expected one way of resampling, conv or resnet, at all resolutions"
        )
    if kinds == {"resnet"}:
        return "residual"
    return "conv-symmetric" if theirs.downsample_padding else "conv"


def from_config(config: UNetConfig) -> dict[str, Any]:
    """The config.json of the ``UNet2DModel`` that is this network.

    Raises:
        UnveilError: if there is none; the line names what diffusers has not.
    """
    for key, told, what, expected in (
        ("train.augment", config.augment_labels, "labels of augmentation", "0.0"),
        ("train.attributes", len(config.attributes), "attributes", "[]"),
    ):
        if told:
            raise UnveilError(
                f"{key}: found a network with {told} {what}, expected {expected}: "
                "diffusers' UNet2DModel takes none; this model cannot be exported"
            )
    most_groups = config.channels // 2
    for setting, fits, expected in (
        ("architecture", config.architecture == "residual", "residual"),
        ("stem", config.stem == 1, "1"),
        ("noise_conditioning", config.noise_conditioning == "all", "all"),
        ("decoder_attention", config.decoder_attention == "all", "all"),
        ("progressive_input", not config.progressive_input, "False"),
        ("skip_rescale", not config.skip_rescale, "False"),
        ("refinement_channels", not config.refinement_channels, "0"),
        ("attention_heads", not config.attention_heads, "0"),  # it has channels a head
        ("noise_embedding", config.noise_embedding in WAVES, "ddpm or adm"),
        ("resampling", config.resampling != "residual-project", "conv, conv-symmetric or residual"),
        ("resampling_filter", config.resampling != "residual" or config.resampling_filter == "box", "box"),
        ("channel_multipliers", config.channel_multipliers[0] == 1, "1 as the first"),
        ("norm_groups", config.norm_groups <= most_groups, f"{most_groups} at most for these channels"),
    ):
        if not fits:
            raise UnveilError(
                f"train.network.{setting}: found {getattr(config, setting)}, expected {expected}: diffusers' "
                "UNet2DModel has no other; this model cannot be exported"
            )
    sides = [config.image_size // 2**level for level in range(len(config.widths))]
    attends = [side in config.attention_resolutions for side in sides]
    residual = config.resampling == "residual"
    flip, shift = WAVES[config.noise_embedding]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": config.image_size,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": shift,
        "flip_sin_to_cos": flip,
        "down_block_types": [_block_type("Down", attend, residual) for attend in attends],
        "up_block_types": [_block_type("Up", attend, residual) for attend in reversed(attends)],
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1 if config.resampling == "conv-symmetric" else 0,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": config.dropout,
        "act_fn": "silu",
        "attention_head_dim": config.attention_head_channels or None,
        "norm_num_groups": config.norm_groups,
        "attn_norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "add_attention": config.middle_attention,
    }


def _block_type(way: str, attends: bool, residual: bool) -> str:
    return f"Attn{way}Block2D" if attends else f"Resnet{way}sampleBlock2D" if residual else f"{way}Block2D"


def to_weights(theirs: Mapping[str, Tensor], config: UNetConfig, name: str) -> dict[str, Tensor]:
    """Their weights under our names, float32; the old names of attention (query, key ...) count as the new ones.

    Args:
        theirs: by their names.
        config: of the network.
        name: of the file, for messages.

    Raises:
        UnveilError: if some are missing or too many.
        ValueError: if ``config`` describes no network.
    """
    given = {_new_name(each): tensor.float() for each, tensor in theirs.items()}
    with torch.device("meta"):
        names = {ours: _their_names(ours) for ours in build_network(config).state_dict()}
    expected = list(chain.from_iterable(names.values()))
    try:
        if lacking := [each for each in expected if each not in given]:
            raise ValueError(f"found no {lacking[0]}, expected one")
        if more := sorted(given.keys() - expected):
            others = f" and {len(more) - 1} more" if len(more) > 1 else ""
            raise ValueError(f"found {more[0]}{others}, expected no such weights")
        weights = {ours: torch.cat([given[each] for each in parts]) for ours, parts in names.items()}
    except (ValueError, RuntimeError) as error:  # RuntimeError: the parts of attention do not go together
        raise UnveilError(
            f"{name}: {error}, by the config.json beside it; take both files from one source, or save the pipeline "
            "again with diffusers"
        ) from None
    for ours, tensor in weights.items():
        if "attention" in ours and tensor.ndim == 2:  # its linear layers are 1 x 1 convolutions here
            weights[ours] = tensor[:, :, None, None]
    return weights


def from_weights(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names; the inverse of :func:`to_weights`."""
    weights = {}
    for name, tensor in ours.items():
        parts = _their_names(name)
        linear = tensor[:, :, 0, 0] if "attention" in name and tensor.ndim == 4 else tensor
        for part, piece in zip(parts, linear.chunk(len(parts)), strict=True):
            weights[part] = piece.clone(memory_format=torch.contiguous_format)
    return weights


def _their_names(ours: str) -> list[str]:
    """Their name of a tensor; of attention's joint projection three."""
    module, _, part = ours.rpartition(".")
    for pattern, theirs in NAMES:
        module = re.sub(pattern, theirs, module)
    if not module.endswith(".qkv"):
        return [f"{module}.{part}"]
    return [f"{module.removesuffix('qkv')}{each}.{part}" for each in ("to_q", "to_k", "to_v")]


def _new_name(name: str) -> str:
    before, _, part = name.rpartition(".")
    module, _, last = before.rpartition(".")
    return f"{module}.{OLD_NAMES[last]}.{part}" if "attentions." in name and last in OLD_NAMES else name
