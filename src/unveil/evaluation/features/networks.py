"""The feature networks themselves: from uint8 images to one tensor a layer.

They compute the same functions as the extractors that torch-fidelity registers, from the same files. They differ in
three ways. Batch norms are folded into the convolutions. The resize of
TensorFlow 1 is done row by row and then column by column, which gives the same bits. And no file is unpickled:
weights are read by ``torch.load(weights_only=True)``, or, where the published file is a TorchScript archive
(CLIP), only after its hash was found to be the published one.

Every network takes uint8 [N, 3, H, W] RGB and returns a tuple of float32 tensors [N, D], one for each layer.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_clip import build_model
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3
from torchvision.models import vgg16
from torchvision.transforms.functional import normalize

from unveil.evaluation.features.weights import fitting, read_state_dict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


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


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception-v3 of 2015-12-05, with its batch norms folded in.

    Layers ``2048``, the features of FID, and ``logits_unbiased``, the 1008 logits without the bias of the last
    layer, of which the Inception Score is made.
    """

    def __init__(self, weights: Path, dtype: torch.dtype) -> None:
        # Its own constructor unpickles what it is given: that is a copy of the tensors alone.
        copy = io.BytesIO()
        torch.save(read_state_dict(weights), copy)
        copy.seek(0)
        with fitting(weights):
            super().__init__("inception-v3-compat", ["2048", "logits_unbiased"], copy)
        self.dtype = dtype
        for module in self.modules():
            if isinstance(module, BasicConv2d):
                module.conv = fuse_conv_bn_eval(module.conv.double(), module.bn.double())
                module.bn = nn.Identity()
        self.to(dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = resize_like_tensorflow(images.to(self.dtype), self.INPUT_IMAGE_SIZE)
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)
        for layer in self.children():  # in their order, up to the classifier
            if layer is not self.fc:
                x = layer(x)
        pooled = x.flatten(1)
        return pooled.float(), pooled.mm(self.fc.weight.T).float()


class OneLayer(nn.Module):
    """A network of one layer of features, [N, 3, size, size] to [N, D], on images that are resized and normalised.

    ``mean`` is subtracted from each channel, of pixels in 0 .. 1, and ``std`` divides it.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: int = 224,
    ) -> None:
        super().__init__()
        self.network: Any = network.to(dtype).requires_grad_(False).eval()
        self.dtype, self.size = dtype, size
        self.mean, self.std = [255 * value for value in mean], [255 * value for value in std]

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = normalize(resize_like_tensorflow(images.to(self.dtype), self.size), self.mean, self.std)
        return (self.network(x).float(),)


def clip(weights: Path, dtype: torch.dtype) -> OneLayer:
    """The image encoder of CLIP ViT-B/32 (Radford et al. 2021, 2103.00020); layer ``clip``.

    The published file is a TorchScript archive, which only ``torch.jit.load`` reads: so it has to be the published
    one, and callers check its hash first.
    """
    with fitting(weights), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is being replaced; the file is not
        state = torch.jit.load(str(weights), map_location="cpu").state_dict()
        encoder = build_model(state, torch.float32).visual
    return OneLayer(encoder, dtype, CLIP_MEAN, CLIP_STD, encoder.input_resolution)


def vgg(weights: Path, dtype: torch.dtype) -> OneLayer:
    """torchvision's VGG-16 up to its second hidden layer of 4096; layer ``fc2_relu``, after the rectifier."""
    with torch.device("meta"):
        network = vgg16()
    with fitting(weights):
        network.load_state_dict(read_state_dict(weights), assign=True)
    del network.classifier[5:]
    return OneLayer(network, dtype)


def dinov2(weights: Path, dtype: torch.dtype) -> OneLayer:
    """DINOv2 ViT-L/14 (Oquab et al. 2023, 2304.07193): the class token after the last norm; layer ``dinov2``.

    torch-fidelity fetches the network's code through torch.hub and runs it. Here the network is written down, and
    only its weights are fetched.
    """
    state = read_state_dict(weights)
    state.pop("mask_token", None)  # of the pretraining alone
    with fitting(weights):
        width = state["cls_token"].shape[-1]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        patches, patch_size = state["pos_embed"].shape[1] - 1, state["patch_embed.proj.weight"].shape[-1]
        with torch.device("meta"):
            network = VisionTransformer(width, depth, width // 64, patches, patch_size)
        network.load_state_dict(state, assign=True)
    return OneLayer(network, dtype)


BUILDERS: dict[str, Callable[[Path, torch.dtype], nn.Module]] = {
    "inception": Inception,
    "dinov2": dinov2,
    "clip": clip,
    "vgg16": vgg,
}
"""Each takes the file of its weights and the type of its arithmetic."""


class VisionTransformer(nn.Module):
    """A vision transformer with the names and shapes of DINOv2's weights (without registers).

    ``patches``, a square number, is for how many the position embeddings were trained.
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
