"""The FID network's weights: found, fetched, checked and refused."""

import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from unveil.errors import UnveilError
from unveil.evaluation import features, inception
from unveil.evaluation.distances import frechet_distance, statistics
from unveil.evaluation.features import extract, load_extractor
from unveil.evaluation.inception import INCEPTION, PublishedFile, find_weights, problem_of
from unveil.evaluation.sets import uniform_noise
from unveil.files import file_digest

CONTENT = b"weights" * 1000
WEIGHTS = os.environ.get(inception.ENVIRONMENT)


class _Tensors(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server on this machine, and the folder that it shows."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}", folder
        found.shutdown()
        thread.join()


@pytest.fixture
def published(server: tuple[str, Path], tmp_path: Path) -> PublishedFile:
    """A small file in the place of the weights, published on this machine."""
    address, folder = server
    (folder / "weights.pth").write_bytes(CONTENT)
    digest = file_digest(folder / "weights.pth")
    return PublishedFile("weights.pth", f"{address}/weights.pth", len(CONTENT), digest)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, and no environment variable."""
    monkeypatch.delenv(inception.ENVIRONMENT, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _one_line(error: pytest.ExceptionInfo[UnveilError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_torch_fidelitys_own_file() -> None:
    assert INCEPTION.url == fidelity.URL_INCEPTION_V3
    assert INCEPTION.url.endswith("/" + INCEPTION.name)
    assert INCEPTION.name.removesuffix(".pth").endswith("-" + INCEPTION.sha256[:8])


def test_downloads_once_into_torchs_cache(published: PublishedFile, cache: Path) -> None:
    found = find_weights(None, published)
    assert found == cache / "weights.pth" and found.read_bytes() == CONTENT
    nowhere = replace(published, url="http://127.0.0.1:1/weights.pth")
    assert find_weights(None, nowhere) == found


def test_a_named_file_comes_before_the_environment(
    published: PublishedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = tmp_path / "named.pth", tmp_path / "other.pth"
    for path in (named, other):
        path.write_bytes(CONTENT)
    monkeypatch.setenv(inception.ENVIRONMENT, str(other))
    assert find_weights(named, published) == named
    assert find_weights(None, published) == other


def test_a_named_file_that_is_missing_is_no_reason_to_look_further(
    published: PublishedFile, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent.pth"
    with pytest.raises(UnveilError) as error:
        find_weights(absent, published)
    for word in ("evaluate.inception_weights", str(absent), "no such file", published.url, published.sha256):
        assert word in _one_line(error)
    monkeypatch.setenv(inception.ENVIRONMENT, str(tmp_path))
    with pytest.raises(UnveilError, match=r"\$UNVEIL_INCEPTION: .*: a folder"):
        find_weights(None, published)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "a web page"),
        (b"  <html>", "a web page"),
        (CONTENT[:-1], "6,999 bytes of 7,000"),
        (b"", "0 bytes of 7,000"),
        (CONTENT[:-1] + b"!", "sha256 "),
    ],
)
def test_a_wrong_file_is_refused_wherever_it_lies(
    published: PublishedFile,
    tmp_path: Path,
    cache: Path,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    problem: str,
) -> None:
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(content)
    with pytest.raises(UnveilError) as error:
        find_weights(wrong, published)
    assert problem in _one_line(error) and published.sha256 in str(error.value)

    (server[1] / "weights.pth").write_bytes(content)
    with pytest.raises(UnveilError) as error:
        find_weights(None, published)
    assert problem in _one_line(error) and published.url in str(error.value)
    assert not list(cache.iterdir())

    (cache / "weights.pth").write_bytes(content)
    with pytest.raises(UnveilError) as error:
        find_weights(None, published)
    assert problem in _one_line(error) and "delete it" in str(error.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/weights.pth", "{server}/nothing.pth"])
def test_no_network_says_all_places_and_the_ways_out(
    published: PublishedFile, server: tuple[str, Path], cache: Path, address: str
) -> None:
    asked = replace(published, url=address.format(server=server[0]))
    with pytest.raises(UnveilError) as error:
        find_weights(None, asked)
    line = _one_line(error)
    places = ("evaluate.inception_weights", "$UNVEIL_INCEPTION", str(cache), asked.url)
    for word in (*places, asked.name, asked.sha256, "the download failed", "efficientnet-lite0"):
        assert word in line
    assert not list(cache.iterdir())


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "absent.pth") == "unreadable (No such file or directory)"


def test_inception_runs_on_weights_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path with random weights in the published format, under their own hash."""
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for parameter in network.parameters():
        if parameter.dim() == 4:  # convolutions that neither fade nor grow
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    path = tmp_path / "random.pth"
    torch.save(network.state_dict(), path)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)

    with pytest.raises(UnveilError, match=INCEPTION.sha256):
        load_extractor("inception", path)

    known = replace(INCEPTION, size=path.stat().st_size, sha256=file_digest(path))
    monkeypatch.setattr(features, "find_weights", partial(find_weights, published=known))
    extractor = load_extractor("inception", path)
    assert (extractor.weights_file, extractor.weights_sha256) == ("random.pth", known.sha256)
    found = extract(images, extractor, batch_size=64, device="cpu")
    with torch.no_grad():
        expected = network(images)[0]
    assert found.shape == (5, 2048) and found.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.real_weights
@pytest.mark.skipif(WEIGHTS is None, reason="UNVEIL_INCEPTION is not set")
def test_fid_with_the_published_weights_is_torch_fidelitys() -> None:
    assert WEIGHTS is not None
    extractor = load_extractor("inception", Path(WEIGHTS))
    assert extractor.weights_sha256 == INCEPTION.sha256
    sets = [_Tensors(uniform_noise(32, 64, seed)) for seed in (0, 1)]
    expected = calculate_metrics(
        input1=sets[0],
        input2=sets[1],
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        feature_extractor_weights_path=WEIGHTS,
    )
    one, other = (statistics(extract(data.images, extractor, batch_size=32, device="cpu")) for data in sets)
    assert frechet_distance(one, other) == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
