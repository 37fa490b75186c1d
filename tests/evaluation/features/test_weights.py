"""The feature networks' weights: found, fetched, checked and refused."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_clip, feature_extractor_inceptionv3
from torchvision.models import VGG16_Weights

from unveil.errors import UnveilError
from unveil.evaluation.features.published import PUBLISHED, PublishedFile
from unveil.evaluation.features.weights import (
    ENVIRONMENT,
    find_weights,
)
from unveil.files import file_digest

CONTENT = b"weights" * 1000
OTHER = b"other weights"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


INCEPTION, DINOV2, CLIP, VGG16 = PUBLISHED


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server on this machine, and the folder that it shows."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=[0.01])  # so often it looks whether to end
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
    return PublishedFile("weights.pth", f"{address}/weights.pth", digest)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, and no environment variables."""
    for name in (ENVIRONMENT, "UNVEIL_INCEPTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _one_line(error: pytest.ExceptionInfo[UnveilError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_the_publishers_own_files() -> None:
    assert INCEPTION.url == feature_extractor_inceptionv3.URL_INCEPTION_V3
    assert CLIP.url == feature_extractor_clip.MODEL_URLS["clip-vit-b-32"]
    assert VGG16.url == VGG16_Weights.IMAGENET1K_V1.url
    assert INCEPTION.name.removesuffix(".pth").endswith("-" + INCEPTION.sha256[:8])
    assert VGG16.name.removesuffix(".pth").endswith("-" + VGG16.sha256)
    assert f"/{CLIP.sha256}/" in CLIP.url and CLIP.sha256 in CLIP.aliases[0]
    for published in PUBLISHED:
        assert published.url.endswith("/" + published.name)


def test_downloads_once_into_torchs_cache(published: PublishedFile, cache: Path) -> None:
    found = find_weights(published)
    assert found.path == cache / "weights.pth" and found.path.read_bytes() == CONTENT
    assert found.sha256 == published.sha256
    nowhere = replace(published, url="http://127.0.0.1:1/weights.pth")
    assert find_weights(nowhere) == found
    found.path.rename(cache / "other-name.pth")
    assert find_weights(replace(nowhere, aliases=("other-name.pth",))).path == cache / "other-name.pth"


def test_looks_at_the_path_then_at_the_variables(
    published: PublishedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked = replace(published, environment="UNVEIL_INCEPTION")
    places = {}
    for name in ("named", "own", "general", "cache"):
        folder = cache if name == "cache" else tmp_path / name
        folder.mkdir(parents=True)
        places[name] = folder / "weights.pth"
        places[name].write_bytes(CONTENT)
    assert find_weights(asked).path == places["cache"]
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "general"))  # a folder
    assert find_weights(asked).path == places["general"]
    monkeypatch.setenv(ENVIRONMENT, str(places["general"]))  # a file
    assert find_weights(asked).path == places["general"]
    monkeypatch.setenv("UNVEIL_INCEPTION", str(places["own"]))
    assert find_weights(asked).path == places["own"]
    assert find_weights(published).path == places["general"]  # no other network's
    for path in (places["named"], tmp_path / "named"):
        assert find_weights(asked, path).path == places["named"]


def test_the_general_variable_may_be_for_other_networks(
    published: PublishedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "folder"))
    assert find_weights(published).path == cache / "weights.pth"
    clip = tmp_path / CLIP.name
    clip.write_bytes(CONTENT)
    monkeypatch.setenv(ENVIRONMENT, str(clip))
    assert find_weights(published).path == cache / "weights.pth"
    strange = tmp_path / "strange.pth"
    strange.write_bytes(OTHER)
    monkeypatch.setenv(ENVIRONMENT, str(strange))
    with pytest.raises(UnveilError, match=r"\$UNVEIL_WEIGHTS: .*strange.pth: sha256 "):
        find_weights(published)


def test_a_named_file_that_is_missing_is_no_reason_to_look_further(
    published: PublishedFile, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent.pth"
    with pytest.raises(UnveilError) as error:
        find_weights(published, absent, key="evaluate.weights")
    for word in (
        "evaluate.weights",
        str(absent),
        "no such file",
        published.url,
        published.sha256,
    ):
        assert word in _one_line(error)
    with pytest.raises(UnveilError, match=r"a folder without weights\.pth or other\.pth"):
        find_weights(replace(published, aliases=("other.pth",)), tmp_path)
    monkeypatch.setenv("UNVEIL_INCEPTION", str(tmp_path))
    with pytest.raises(UnveilError, match=r"\$UNVEIL_INCEPTION: .*: a folder without weights.pth"):
        find_weights(replace(published, environment="UNVEIL_INCEPTION"))
    assert not cache.exists()


def test_a_part_of_a_hash_is_compared_as_far_as_it_goes(published: PublishedFile, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    part = replace(published, sha256=published.sha256[:8])
    assert find_weights(part, path).sha256 == published.sha256
    path.write_bytes(OTHER)
    with pytest.raises(UnveilError, match=f"sha256 beginning with {part.sha256}"):
        find_weights(part, path)


def test_weights_without_a_published_hash_have_the_one_that_is_found_or_given(
    published: PublishedFile, tmp_path: Path
) -> None:
    assert DINOV2.sha256 == "" and [file for file in PUBLISHED if not file.sha256] == [DINOV2]
    unknown = replace(published, sha256="")
    path = tmp_path / "weights.pth"
    path.write_bytes(OTHER)
    assert find_weights(unknown, path).sha256 == file_digest(path)
    assert find_weights(unknown, path, sha256=file_digest(path).upper()).path == path
    with pytest.raises(UnveilError, match=f"expected weights.pth with sha256 {published.sha256}"):
        find_weights(unknown, path, sha256=published.sha256)
    with pytest.raises(UnveilError, match="expected 64 hexadecimal digits"):
        find_weights(unknown, path, sha256="abc")
    with pytest.raises(UnveilError, match=f"but {published.sha256} is published"):
        find_weights(published, path, sha256="0" * 64)
    path.write_bytes(b"")
    with pytest.raises(UnveilError, match="an empty file"):
        find_weights(unknown, path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "a web page"),
        (b"  <html>", "a web page"),
        (CONTENT[:-1], "sha256 "),
        (b"", "an empty file"),
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
        find_weights(published, wrong)
    assert problem in _one_line(error) and published.sha256 in str(error.value)

    (server[1] / "weights.pth").write_bytes(content)
    with pytest.raises(UnveilError) as error:
        find_weights(published)
    assert "failed (invalid hash value" in _one_line(error) and published.url in str(error.value)
    assert not list(cache.iterdir())

    (cache / "weights.pth").write_bytes(content)
    with pytest.raises(UnveilError) as error:
        find_weights(published)
    assert problem in _one_line(error) and "delete it" in str(error.value)


def test_a_web_page_is_no_file_of_weights_without_a_hash(
    published: PublishedFile, cache: Path, server: tuple[str, Path]
) -> None:
    (server[1] / "weights.pth").write_bytes(b"<html>")
    with pytest.raises(UnveilError, match=r"failed \(a web page, not weights\)"):
        find_weights(replace(published, sha256=""))
    assert not list(cache.iterdir())


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/weights.pth", "{server}/nothing.pth"])
def test_no_network_says_all_places_and_the_ways_out(
    published: PublishedFile, server: tuple[str, Path], cache: Path, address: str
) -> None:
    asked = replace(published, url=address.format(server=server[0]), environment="UNVEIL_INCEPTION")
    with pytest.raises(UnveilError) as error:
        find_weights(asked, key="evaluate.weights")
    line = _one_line(error)
    places = ("evaluate.weights", "$UNVEIL_INCEPTION", "$UNVEIL_WEIGHTS", str(cache), asked.url)
    for word in (*places, asked.name, asked.sha256, "failed (", "efficientnet-lite0"):
        assert word in line
    assert not list(cache.iterdir())
