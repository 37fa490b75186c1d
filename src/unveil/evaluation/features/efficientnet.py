"""EfficientNet-Lite0 as a feature network, without torch-fidelity and torchvision, which take long to import."""

from pathlib import Path
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unveil.evaluation.features.weights import fitting, read_state_dict


class EfficientNet1280(nn.Module):
    """EfficientNet-Lite0 up to its global average pool: uint8 [N, 3, H, W] to float32 [N, 1280] in [0, 6].

    Images are resized to the 224 x 224 pixels of the training and scaled as tensorflow/tpu's ``efficientnet/lite``
    does: mean 127, standard deviation 128.

    Raises UnveilError if ``weights`` are not a file of its weights.
    """

    INPUT_SIZE = 224

    def __init__(self, weights: Path, dtype: torch.dtype) -> None:
        super().__init__()
        network = EfficientNet.from_name("efficientnet-lite0")
        with fitting(weights):
            network.load_state_dict(read_state_dict(weights))
        self.dtype = dtype
        self.network: Any = _fold(network.eval(), dtype)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The one layer of features."""
        size = (self.INPUT_SIZE, self.INPUT_SIZE)
        x = interpolate(images.to(self.dtype), size=size, mode="bilinear", align_corners=False, antialias=False)
        x = self.network.extract_features((x - 127) / 128)
        return (x.mean(dim=(2, 3)).float(),)


def _fold(network: Any, dtype: torch.dtype) -> Any:
    """Fold each batch norm into its convolution, and equal paddings into the convolution's own.

    The same function in eval mode, up to rounding, with fewer passes over memory.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, convolution, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(owner, convolution).double(), getattr(owner, norm).double()).to(dtype)
        padding = getattr(fused.static_padding, "padding", None)
        if padding is not None and len(set(padding)) == 1:
            fused.padding = (padding[0], padding[0])
            fused.static_padding = nn.Identity()
        setattr(owner, convolution, fused)
        setattr(owner, norm, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network.to(dtype)
