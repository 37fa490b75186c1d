"""diffusers' ``UNet2DModel``: its configuration and its names of the weights, and ours."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UnveilError
from unveil.networks.config import UNetConfig

# What a config.json that lacks a key means by it, and the only value where ours has no such choice.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
}
COUNTS = ("sample_size", "in_channels", "out_channels", "layers_per_block", "norm_num_groups")
OPTIONAL_COUNTS = ("attn_norm_num_groups", "attention_head_dim")
HEAD_CHANNELS = 8  # of a config.json that lacks attention_head_dim; null there is one head
GREATEST_EPS = 1e-2  # as params.yaml allows
FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
WAVES = {"ddpm": (False, 1), "adm": (True, 0)}  # flip_sin_to_cos, freq_shift
BLOCK = {"norm1": "norm1", "conv1": "conv1", "embedding": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
SHORTCUT = {"skip": "conv_shortcut"}
QKV = ("to_q", "to_k", "to_v")
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_config(values: Mapping[str, Any], name: str) -> UNetConfig:
    """Our configuration of a ``UNet2DModel``'s.

    Args:
        values: of its config.json.
        name: of the file, for messages.

    Raises:
        UnveilError: if it has what our network has not; the line names the key.
    """
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    if unknown := sorted(values.keys() - DEFAULTS.keys() - FIXED.keys() - {"attention_head_dim"}):
        raise UnveilError(f"{name}: {unknown[0]}: unknown setting of UNet2DModel, which this network may not have")
    for key, only in FIXED.items():
        if values.get(key, only) != only:
            raise UnveilError(f"{name}: {key}: found {values[key]!r}, expected {only!r}: this network has no other")
    for key, value in values.items():
        if key in DEFAULTS and not _is_like(value, DEFAULTS[key]):
            raise UnveilError(f"{name}: {key}: found {value!r}, expected such as {DEFAULTS[key]!r}")
    size = values.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        values["sample_size"] = size[0]
    try:
        _check_numbers({**DEFAULTS, **values})
        return _config({**DEFAULTS, **values})
    except ValueError as error:
        raise UnveilError(f"{name}: {error}") from None


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default, and a list's items those of the default's."""
    if isinstance(default, tuple):
        return isinstance(value, list) and bool(value) and all(type(item) is type(default[0]) for item in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return default is None or type(value) is type(default)


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raise ValueError if a number is none, or is out of the range of any network."""
    for key in COUNTS:
        if not _is_count(values[key]):
            size = " (or two equal ones): the side of a square image" if key == "sample_size" else ""
            raise ValueError(f"{key}: found {values[key]!r}, expected one number, 1 at least{size}")
    for key in OPTIONAL_COUNTS:
        if (found := values.get(key)) is not None and not _is_count(found):
            raise ValueError(f"{key}: found {found!r}, expected null or a whole number, 1 at least")
    if not all(_is_count(width) for width in values["block_out_channels"]):
        raise ValueError(f"block_out_channels: found {list(values['block_out_channels'])}, expected 1 at least in each")
    if not 0 <= values["dropout"] < 1:
        raise ValueError(f"dropout: found {values['dropout']}, expected a number in [0, 1)")
    if not 0 < values["norm_eps"] <= GREATEST_EPS:
        raise ValueError(f"norm_eps: found {values['norm_eps']}, expected a number in (0, {GREATEST_EPS}]")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _config(values: Mapping[str, Any]) -> UNetConfig:
    widths = values["block_out_channels"]
    if values["in_channels"] != values["out_channels"]:
        raise ValueError(
            f"out_channels: found {values['out_channels']}, expected in_channels, {values['in_channels']}: "
            "learned variances and conditioning images are not there"
        )
    if any(width % widths[0] for width in widths):
        raise ValueError(f"block_out_channels: found {list(widths)}, expected multiples of the first")
    if values["norm_num_groups"] > widths[0] // 2:
        raise ValueError(f"norm_num_groups: found {values['norm_num_groups']}, expected two channels a group at least")
    waves = (values["flip_sin_to_cos"], values["freq_shift"])
    if waves not in WAVES.values():
        raise ValueError(
            f"flip_sin_to_cos, freq_shift: found {waves[0]}, {waves[1]}, expected False, 1 (DDPM) or True, 0 (ADM)"
        )
    scale_shift = values["resnet_time_scale_shift"] == "scale_shift"
    if not scale_shift and values["resnet_time_scale_shift"] != "default":
        raise ValueError(
            f"resnet_time_scale_shift: found {values['resnet_time_scale_shift']!r}, expected default or scale_shift"
        )
    attention_groups = values["attn_norm_num_groups"]
    if attention_groups is None and not scale_shift:
        attention_groups = values["norm_num_groups"]
    if values["add_attention"] and attention_groups != values["norm_num_groups"]:
        raise ValueError(
            f"attn_norm_num_groups: found {attention_groups}, expected norm_num_groups, "
            f"{values['norm_num_groups']}: the middle attends to normalised features"
        )
    attends = _attends(values)
    return UNetConfig(
        image_size=values["sample_size"],
        image_channels=values["in_channels"],
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        blocks=values["layers_per_block"],
        attention_resolutions=tuple(values["sample_size"] // 2**level for level, yes in enumerate(attends) if yes),
        attention_head_channels=values.get("attention_head_dim", HEAD_CHANNELS) or 0,
        dropout=values["dropout"],
        middle_attention=values["add_attention"],
        noise_embedding="ddpm" if waves == WAVES["ddpm"] else "adm",
        scale_shift_norm=scale_shift,
        resampling=_resampling(values),
        norm_groups=values["norm_num_groups"],
        norm_eps=values["norm_eps"],
    )


def _attends(values: Mapping[str, Any]) -> list[bool]:
    """Which resolutions attend, the highest first."""
    down, up = values["down_block_types"], values["up_block_types"]
    if not len(down) == len(up) == len(values["block_out_channels"]):
        raise ValueError("down_block_types: expected as many as up_block_types and block_out_channels")
    for key, types in (("down_block_types", down), ("up_block_types", up)):
        way = "Down" if key.startswith("down") else "Up"
        known = (f"{way}Block2D", f"Attn{way}Block2D", f"Resnet{way}sampleBlock2D")
        if unknown := [kind for kind in types if kind not in known]:
            raise ValueError(f"{key}: found {unknown[0]}, expected {', '.join(known)}")
    attends = [kind.startswith("Attn") for kind in down]
    if attends != [kind.startswith("Attn") for kind in reversed(up)]:
        raise ValueError("up_block_types: expected attention at the resolutions at which down_block_types has it")
    return attends


def _resampling(values: Mapping[str, Any]) -> Any:
    """conv, conv-symmetric or residual."""
    down = [_kind(name, values["downsample_type"]) for name in values["down_block_types"][:-1]]
    up = [_kind(name, values["upsample_type"]) for name in values["up_block_types"][:-1]]
    kinds = {*down, *up}
    if len(kinds) > 1 or not kinds <= {"conv", "resnet"}:
        raise ValueError(
            "down_block_types, up_block_types: expected one way of resampling, conv or resnet, at all resolutions"
        )
    if kinds == {"resnet"}:
        return "residual"
    if values["downsample_padding"] not in (0, 1):
        raise ValueError(f"downsample_padding: found {values['downsample_padding']}, expected 0 or 1")
    return "conv-symmetric" if values["downsample_padding"] else "conv"


def _kind(block_type: str, of_attention: str) -> str:
    return of_attention if block_type.startswith("Attn") else "resnet" if block_type.startswith("Resnet") else "conv"


def from_config(config: UNetConfig) -> dict[str, Any]:
    """The config.json of the ``UNet2DModel`` that is this network.

    Raises:
        UnveilError: if there is none; the line names what diffusers has not.
    """
    for setting, only in (
        ("architecture", "residual"),
        ("stem", 1),
        ("noise_conditioning", "all"),
        ("decoder_attention", "all"),
        ("progressive_input", False),
        ("skip_rescale", False),
        ("refinement_channels", 0),
        ("attention_heads", 0),  # it has channels a head
    ):
        if getattr(config, setting) != only:
            raise _not_theirs(setting, getattr(config, setting), only)
    if config.augment_labels:
        raise UnveilError(
            f"train.augment: found a network with {config.augment_labels} labels of augmentation, expected 0.0: "
            "diffusers' UNet2DModel takes none; this model cannot be exported"
        )
    if config.noise_embedding not in WAVES:
        raise _not_theirs("noise_embedding", config.noise_embedding, "ddpm or adm")
    if config.resampling == "residual-project":
        raise _not_theirs("resampling", config.resampling, "conv, conv-symmetric or residual")
    if config.resampling == "residual" and config.resampling_filter != "box":
        raise _not_theirs("resampling_filter", config.resampling_filter, "box")
    if config.channel_multipliers[0] != 1:
        raise _not_theirs("channel_multipliers", list(config.channel_multipliers), "1 as the first")
    if config.norm_groups > config.channels // 2:
        raise _not_theirs("norm_groups", config.norm_groups, f"{config.channels // 2} at most for these channels")
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


def _not_theirs(setting: str, found: object, expected: object) -> UnveilError:
    return UnveilError(
        f"train.network.{setting}: found {found}, expected {expected}: diffusers' UNet2DModel has no other; "
        "this model cannot be exported"
    )


def to_weights(theirs: Mapping[str, Tensor], config: UNetConfig, name: str) -> dict[str, Tensor]:
    """Their weights under our names, float32; the old names of attention (query, key ...) count as the new ones.

    Args:
        theirs: by their names.
        config: of the network.
        name: of the file, for messages.

    Raises:
        UnveilError: if some are missing or too many.
    """
    try:
        return _to_weights(theirs, config)
    except ValueError as error:
        raise UnveilError(
            f"{name}: {error}, by the config.json beside it; take both files from one source, or save the pipeline "
            "again with diffusers"
        ) from None


def _to_weights(theirs: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    given = {_new_name(name): tensor.float() for name, tensor in theirs.items()}
    weights: dict[str, Tensor] = {}
    for ours, their_name in _modules(config):
        for part in ("weight", "bias"):
            weights[f"{ours}.{part}"] = _take(given, f"{their_name}.{part}")
    for ours, their_name in _attentions(config):
        for part in ("weight", "bias"):
            qkv = torch.cat([_take(given, f"{their_name}.{name}.{part}") for name in QKV])
            weights[f"{ours}.qkv.{part}"] = _as_convolution(qkv)
            weights[f"{ours}.out.{part}"] = _as_convolution(_take(given, f"{their_name}.to_out.0.{part}"))
    if given:
        more = f" and {len(given) - 1} more" if len(given) > 1 else ""
        raise ValueError(f"found {min(given)}{more}, expected no such weights")
    return weights


def from_weights(ours: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Our weights under their names; the inverse of :func:`to_weights`."""
    weights: dict[str, Tensor] = {}
    for our_name, theirs in _modules(config):
        for part in ("weight", "bias"):
            weights[f"{theirs}.{part}"] = ours[f"{our_name}.{part}"].contiguous()
    for our_name, theirs in _attentions(config):
        for part in ("weight", "bias"):
            qkv = ours[f"{our_name}.qkv.{part}"].squeeze().chunk(3)
            for name, tensor in zip(QKV, qkv, strict=True):
                weights[f"{theirs}.{name}.{part}"] = tensor.clone()
            weights[f"{theirs}.to_out.0.{part}"] = ours[f"{our_name}.out.{part}"].squeeze().clone()
    return weights


def _take(given: dict[str, Tensor], name: str) -> Tensor:
    try:
        return given.pop(name)
    except KeyError:
        raise ValueError(f"found no {name}, expected one") from None


def _as_convolution(weight: Tensor) -> Tensor:
    """A linear layer's weight [O, I] as that of a 1 x 1 convolution; a bias stays."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def _new_name(name: str) -> str:
    before, _, part = name.rpartition(".")
    module, _, last = before.rpartition(".")
    return f"{module}.{OLD_NAMES[last]}.{part}" if "attentions." in name and last in OLD_NAMES else name


def _modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Our and their name of every layer with a weight and a bias, but for attention's projections."""
    yield "embedding.layers.0", "time_embedding.linear_1"
    yield "embedding.layers.2", "time_embedding.linear_2"
    yield "conv_in", "conv_in"
    yield "norm_out", "conv_norm_out"
    yield "conv_out", "conv_out"
    for ours, theirs, changes_width in _residual_blocks(config):
        for our_part, their_part in (BLOCK | (SHORTCUT if changes_width else {})).items():
            yield f"{ours}.{our_part}", f"{theirs}.{their_part}"
    for ours, theirs in _attentions(config):
        yield f"{ours}.norm", f"{theirs}.group_norm"
    if not config.resampling.startswith("residual"):
        for ours, theirs in _resamplers(config):
            yield f"{ours}.conv", f"{theirs}.conv"


def _residual_blocks(config: UNetConfig) -> Iterator[tuple[str, str, bool]]:
    """Our and their name of every residual block, and whether its width changes."""
    before = (config.channels, *config.widths[:-1])
    for level, width in enumerate(config.widths):
        for block in range(config.blocks):
            changes = block == 0 and before[level] != width
            yield f"down.{level}.{block}.residual", f"down_blocks.{level}.resnets.{block}", changes
        for block in range(config.blocks + 1):
            yield f"up.{level}.{block}.residual", f"up_blocks.{level}.resnets.{block}", True
    yield "middle1", "mid_block.resnets.0", False
    yield "middle2", "mid_block.resnets.1", False
    if config.resampling.startswith("residual"):
        for ours, theirs in _resamplers(config):
            yield ours, theirs, False


def _attentions(config: UNetConfig) -> Iterator[tuple[str, str]]:
    if config.middle_attention:
        yield "middle_attention", "mid_block.attentions.0"
    levels = len(config.widths)
    for level in range(levels):
        if config.image_size // 2**level in config.attention_resolutions:
            for block in range(config.blocks):
                yield f"down.{level}.{block}.attention", f"down_blocks.{level}.attentions.{block}"
            rising = levels - 1 - level
            for block in range(config.blocks + 1):
                yield f"up.{rising}.{block}.attention", f"up_blocks.{rising}.attentions.{block}"


def _resamplers(config: UNetConfig) -> Iterator[tuple[str, str]]:
    for level in range(len(config.widths) - 1):
        yield f"downsample.{level}", f"down_blocks.{level}.downsamplers.0"
        yield f"upsample.{level}", f"up_blocks.{level}.upsamplers.0"
