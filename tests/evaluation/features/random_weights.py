"""Files of random weights in the published formats, and networks that take them for the published ones."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch_fidelity import feature_extractor_clip, feature_extractor_inceptionv3
from torchvision.models.vgg import VGG, make_layers

from unveil.evaluation.features import networks, published
from unveil.evaluation.features.networks import VisionTransformer
from unveil.files import file_digest


def inception_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of Inception's shape, with batch norms that do something."""
    kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        network = kind("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # that neither fade nor grow
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = 0.8 + 0.4 * torch.rand(module.num_features)
    torch.save(network.state_dict(), path)
    return path


class _ClipArchive(nn.Module):
    """The shape of OpenAI's archive: the image encoder, and a few tensors of the text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = feature_extractor_clip.VisionTransformer(64, 16, 128, 2, 2, 24)
        self.text_projection = nn.Parameter(torch.randn(32, 24))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) @ self.text_projection.T * self.logit_scale


def clip_file(path: Path) -> Path:
    """A TorchScript archive of a small CLIP."""
    torch.manual_seed(0)
    network = _ClipArchive().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is being replaced; the published file is not
        torch.jit.trace(network, torch.zeros(1, 3, 64, 64)).save(str(path))
    return path


def _small_vgg16(**_: Any) -> VGG:
    with torch.device("meta"):  # a hundred million numbers that are replaced
        network = VGG(nn.Identity(), num_classes=10, init_weights=False)
    network.features = make_layers([8, "M", 16, "M"])
    widths = (16 * 49, 32, 32, 10)
    for place, linear in enumerate((0, 3, 6)):
        network.classifier[linear] = nn.Linear(widths[place], widths[place + 1])
    return network.eval()


def vgg16_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small VGG, which torchvision then takes for its VGG-16."""
    monkeypatch.setattr(torchvision.models, "vgg16", _small_vgg16)
    monkeypatch.setattr(networks, "vgg16", _small_vgg16)
    torch.manual_seed(0)
    torch.save(_small_vgg16().state_dict(), path)
    return path


def dinov2_file(path: Path) -> Path:
    """A small DINOv2, with position embeddings for 5 x 5 patches."""
    torch.manual_seed(0)
    network = VisionTransformer(128, 2, 2, 25, 14)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict() | {"mask_token": torch.zeros(1, 128)}, path)
    return path


def publish(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this file for the published weights of a network."""
    known = published.FEATURE_SETS[name]
    assert known.weights is not None
    weights = replace(known.weights, sha256=file_digest(path))
    monkeypatch.setitem(published.FEATURE_SETS, name, replace(known, weights=weights))
