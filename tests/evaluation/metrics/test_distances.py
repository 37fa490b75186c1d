"""The distances: against closed forms, SciPy, brute force and torch-fidelity's own command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import sqrtm
from tests.evaluation.features import torch_fidelity_lite
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from unveil.errors import UnveilError
from unveil.evaluation.features.extraction import extract, load_extractor
from unveil.evaluation.features.published import FEATURE_SETS, FeatureSet
from unveil.evaluation.images.sets import uniform_noise
from unveil.evaluation.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_stderr,
    significant,
    statistics,
)
from unveil.evaluation.metrics.manifold import precision_recall

LITE = FEATURE_SETS["efficientnet-lite0"]


def _with_statistics(mean: NDArray[np.float64], root: NDArray[np.float64], count: int, seed: int) -> Tensor:
    """Features whose sample mean is ``mean`` and whose sample covariance is ``root @ root.T``, exactly."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    q, _ = np.linalg.qr(raw - raw.mean(axis=0))  # orthonormal columns of mean 0
    return torch.from_numpy(mean + q * np.sqrt(count - 1) @ root.T)


@settings(deadline=None, max_examples=25)
@given(
    shift=st.floats(-3, 3),
    scales=st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)), min_size=2, max_size=6),
    seed=st.integers(0, 99),
)
def test_frechet_is_the_closed_form_for_commuting_covariances(
    shift: float, scales: list[tuple[float, float]], seed: int
) -> None:
    a, b = np.array(scales).T
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(a), len(a))))
    mean = np.full(len(a), shift)
    one = statistics(_with_statistics(mean, rotation * a, 40, seed))
    other = statistics(_with_statistics(np.zeros(len(a)), rotation * b, 50, seed + 1))
    expected = len(a) * shift**2 + ((a - b) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_frechet_of_large_samples_approaches_that_of_their_gaussians() -> None:
    random = np.random.default_rng(0)
    one = torch.from_numpy(random.normal(1.0, 2.0, size=(200_000, 3)))
    other = torch.from_numpy(random.normal(0.0, 0.5, size=(200_000, 3)))
    expected = 3 * (1 + 1.5**2)
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_equals_scipys_matrix_square_root(seed: int) -> None:
    random = np.random.default_rng(seed)
    sets = [random.normal(size=(60, 12)) @ random.normal(size=(12, 12)) + random.normal(size=12) for _ in "12"]
    (m1, m2), (c1, c2) = ([f(x) for x in sets] for f in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    found = frechet_distance(*(statistics(torch.from_numpy(x)) for x in sets))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_of_a_set_with_itself_is_nothing_and_order_does_not_matter() -> None:
    random = np.random.default_rng(3)
    one, other = (statistics(torch.from_numpy(random.normal(size=(50, 20)))) for _ in "12")
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_statistics_are_in_float64_whatever_the_features_are() -> None:
    features = 1000 + torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    found = statistics(features)
    np.testing.assert_allclose(found["mu"], features.double().mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], torch.cov(features.double().T).numpy(), rtol=1e-9)


@pytest.mark.parametrize(("count", "block"), [(5, 2), (97, 10), (60, 4096)])
def test_statistics_are_torch_fidelitys_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, count: int, block: int
) -> None:
    """For fewer vectors than features, too."""
    monkeypatch.setattr("unveil.evaluation.metrics.distances.BLOCK_ROWS", block)
    features = 3 + torch.randn(count, 32, generator=torch.Generator().manual_seed(count))
    expected, found = fid_features_to_statistics(features.double()), statistics(features)
    for name in ("mu", "sigma"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12)
        assert found[name].dtype == np.float64


def test_features_of_two_networks_are_refused() -> None:
    one, other = torch.randn(2, 10, 4).unbind()
    with pytest.raises(UnveilError, match="found 3 and 4 numbers an image"):
        frechet_distance(statistics(one[:, :3]), statistics(other))
    with pytest.raises(UnveilError, match="found 4 numbers an image, expected 3"):
        kernel_distance(one[:, :3], other, subsets=2, subset_size=5, seed=0)
    with pytest.raises(UnveilError, match="features of the reference: found NaN"):
        kernel_stderr(one, other / 0, kernel_distance(one, one, 1, 5, 0), 1)


def _brute_force(one: Tensor, other: Tensor) -> float:
    """The unbiased estimate, one kernel value at a time."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(x: Tensor) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        return sum(kernel(x[i], x[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(x, y) for x in one for y in other) / (len(one) * len(other))
    return within(one) + within(other) - 2 * between


def test_kernel_distance_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        torch.randn(7, 5, generator=generator).double(),
        torch.rand(7, 5, generator=generator).double(),
    )
    found = kernel_distance(one, other, subsets=3, subset_size=7, seed=0)  # each subset is the whole set
    assert found.mean == pytest.approx(_brute_force(one, other), rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("subsets", [1, 2, 4, 30])
def test_kernel_distance_is_torch_fidelitys_on_either_way(subsets: int) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(40, 6, generator=generator), 0.5 + torch.rand(55, 6, generator=generator)
    expected = kid_features_to_metric(
        one.double(), other.double(), kid_subsets=subsets, kid_subset_size=20, rng_seed=7, verbose=False
    )
    found = kernel_distance(one, other, subsets=subsets, subset_size=20, seed=7)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9, abs=1e-12)


def test_kernel_distance_is_the_same_subset_by_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)), torch.rand(50, 4)
    expected = kernel_distance(one, other, 9, 30, seed=1)
    monkeypatch.setattr("unveil.evaluation.metrics.distances.WHOLE_VALUES", 0)
    found = kernel_distance(one, other, 9, 30, seed=1)
    assert found.mean == pytest.approx(expected.mean, rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    """Of sets of one distribution it scatters around 0: within four standard errors of it."""
    generator = torch.Generator().manual_seed(4)
    values = [
        kernel_distance(one, other, subsets=1, subset_size=40, seed=0).mean
        for one, other in torch.randn(200, 2, 40, 8, generator=generator)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


@pytest.mark.parametrize(
    ("shift", "subsets", "size"),
    [
        (0.0, 3, 20),
        (0.5, 60, 40),
        pytest.param(0.5, 3, 20, marks=pytest.mark.calibration),
        pytest.param(0.0, 60, 40, marks=pytest.mark.calibration),
    ],
)
def test_kernel_stderr_is_the_scatter_over_draws_of_the_samples(shift: float, subsets: int, size: int) -> None:
    """Both where the sets are alike, and the linear part of the variance vanishes, and where they are not."""
    generator = torch.Generator().manual_seed(5)
    reference = torch.randn(50, 6, generator=generator)
    draws = torch.randn(300, 40, 6, generator=generator) + shift
    found = [kernel_distance(samples, reference, subsets, size, seed) for seed, samples in enumerate(draws)]
    stderrs = [
        kernel_stderr(samples, reference, distance, subsets) for samples, distance in zip(draws, found, strict=True)
    ]
    scatter = float(np.std([distance.mean for distance in found]))
    assert float(np.sqrt(np.mean(np.square(stderrs)))) == pytest.approx(scatter, rel=0.12)
    if subsets == 60 and shift:
        assert np.mean([distance.std for distance in found]) < 0.7 * scatter  # what is printed elsewhere is no error


def test_kernel_stderr_is_the_same_in_blocks_and_of_products_of_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(6)
    samples, reference = (torch.randn(count, 3, generator=generator).double() for count in (9, 7))
    of_reference = ((samples @ reference.T / 3 + 1) ** 3).mean(dim=1)
    h = (samples @ samples.T / 3 + 1) ** 3 - of_reference[:, None] - of_reference
    n = range(9)
    squared = np.mean([h[i, j] * h[k, m] for i in n for j in n for k in n for m in n if len({i, j, k, m}) == 4])
    s1 = float(np.mean([h[i, j] * h[i, k] for i in n for j in n for k in n if len({i, j, k}) == 3]) - squared)
    s2 = np.mean([h[i, j] ** 2 for i in n for j in n if i != j]) - squared
    distance = kernel_distance(samples, reference, subsets=4, subset_size=5, seed=0)
    expected = np.sqrt((4 * 7 * max(s1, 0) + 2 * s2) / (9 * 8) + distance.std**2 / 4)
    assert kernel_stderr(samples, reference, distance, 4) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("unveil.evaluation.metrics.distances.BLOCK_ROWS", 4)
    assert kernel_stderr(samples, reference, distance, 4) == pytest.approx(expected, rel=1e-9)


def test_inception_score_is_torch_fidelitys_and_has_its_ends() -> None:
    logits = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    expected = isc_features_to_metric(logits, splits=4, rng_seed=9)
    found = inception_score(logits, seed=9, splits=4)
    assert (found.mean, found.std) == (expected["inception_score_mean"], expected["inception_score_std"])
    assert inception_score(torch.zeros(50, 7), seed=0).mean == pytest.approx(1)
    certain = 200 * torch.eye(7).repeat(100, 1)
    assert inception_score(certain, seed=0, splits=1).mean == pytest.approx(7)
    with pytest.raises(UnveilError, match=r"logits: found shape \[9, 7\], expected \[N, D\] with N >= 10"):
        inception_score(logits[:9], seed=0)


@pytest.mark.parametrize("size", [1, 11])
def test_kernel_distance_refuses_a_subset_that_is_no_subset(size: int) -> None:
    with pytest.raises(UnveilError, match=r"evaluate\.kid_subset_size: found .*expected 2 to 10"):
        kernel_distance(torch.zeros(10, 3), torch.zeros(12, 3), subsets=2, subset_size=size, seed=0)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4), torch.zeros(4), torch.tensor([[1.0], [float("nan")]])])
def test_statistics_refuse_what_has_none(bad: Tensor) -> None:
    with pytest.raises(UnveilError, match="features: found"):
        statistics(bad)


@pytest.mark.parametrize(("value", "expected"), [(1234567.8, 1234570.0), (0.00123456789, 0.00123457), (0.0, 0.0)])
def test_significant(value: float, expected: float) -> None:
    assert significant(value) == expected


def _pictures(count: int, seed: int) -> Tensor:
    """Smooth colour fields, 32 x 32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 255).to(torch.uint8)


def _save(images: Tensor, folder: Path) -> str:
    folder.mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place:04d}.png")
    return str(folder)


def test_equals_torch_fidelitys_own_command_on_the_same_images_as_png(tmp_path: Path) -> None:
    features: FeatureSet = LITE
    torch_fidelity_lite.register()
    extractor = load_extractor(features.name)
    samples, reference = _pictures(8, 0), uniform_noise(8, 32, 1)
    one, other = (extract(images, extractor, batch_size=64, device="cpu") for images in (samples, reference))
    expected = calculate_metrics(
        input1=_save(samples, tmp_path / "samples"),
        input2=_save(reference, tmp_path / "reference"),
        feature_extractor=features.extractor,
        fid=True,
        kid=True,
        kid_subsets=5,
        kid_subset_size=6,
        rng_seed=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    found = frechet_distance(statistics(one), statistics(other))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    kernel = kernel_distance(one, other, subsets=5, subset_size=6, seed=3)
    assert kernel.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert kernel.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


class _Tiny(FeatureExtractorBase):
    """A network of random weights in float64, with features and logits."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(11)
        self.kernels = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) / 14
        self.head = torch.randn(8, 5, generator=generator, dtype=torch.float64)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = torch.conv2d(images.double() / 128 - 1, self.kernels, stride=4).relu().mean(dim=(2, 3))
        both = {"8": features, "logits": 4 * features @ self.head}
        return tuple(both[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("8", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits"}.get(metric, "8")

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros((1, 3, 16, 16), dtype=torch.uint8)


def test_all_metrics_equal_torch_fidelitys_command_on_pngs_in_float64(tmp_path: Path) -> None:
    if "tiny" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("tiny", _Tiny)
    samples, reference = _pictures(40, 0), _pictures(50, 1)
    expected = calculate_metrics(
        input1=_save(samples, tmp_path / "samples"),
        input2=_save(reference, tmp_path / "reference"),
        feature_extractor="tiny",
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subsets=7,
        kid_subset_size=30,
        isc_splits=4,
        rng_seed=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    network = _Tiny("tiny", ["8", "logits"])
    (one, logits), (other, _) = network(samples), network(reference)
    kernel = kernel_distance(one, other, subsets=7, subset_size=30, seed=3)
    score, manifold = inception_score(logits, seed=3, splits=4), precision_recall(one, other)
    found = {
        "frechet_inception_distance": frechet_distance(statistics(one), statistics(other)),
        "kernel_inception_distance_mean": kernel.mean,
        "kernel_inception_distance_std": kernel.std,
        "inception_score_mean": score.mean,
        "inception_score_std": score.std,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-6)
    assert 0 < manifold.precision < 1 and 0 < manifold.recall < 1 and score.mean > 1.01


def test_orders_good_and_bad_images() -> None:
    extractor = load_extractor("efficientnet-lite0")
    real = _pictures(12, 0)
    grain = 25 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    noisy = (real + grain).clamp(0, 255).byte()
    sets = (real, _pictures(12, 5), noisy, uniform_noise(12, 32, 0))
    found = [statistics(extract(images, extractor, batch_size=64, device="cpu")) for images in sets]
    distances = [frechet_distance(one, found[0]) for one in found]
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0, abs=1e-3 * distances[1])


def test_the_kernel_distance_s_standard_error_needs_a_block_s_memory_however_many_blocks_there_are() -> None:
    """Forty blocks of 34 MB each, and as many of 17 MB; small results between them made each take new memory."""
    script = """
import resource, torch
from unveil.evaluation.metrics.distances import Spread, kernel_stderr
torch.set_num_threads(1)
samples, reference, none = torch.randn(8_300, 4), torch.randn(20_000, 4), Spread(0.0, 0.0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
kernel_stderr(samples, reference, none, 1)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.15  # GiB
