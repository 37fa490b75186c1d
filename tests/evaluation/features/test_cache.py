"""The cache: what is known is not computed, and nothing wrong is taken for it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.evaluation.features.cache import FeatureCache, facts_key
from unveil.evaluation.features.extraction import extract_layers, feature_facts, load_extractor
from unveil.evaluation.features.published import FEATURE_SETS

FACTS = {"images": {"shards": "abc", "split": "train", "count": 4}, "extractor": "x", "layers": ["a"]}


class _Counted:
    """Gives features, and counts how often."""

    def __init__(self, rows: int = 4) -> None:
        self.calls = 0
        self.features = {"a": torch.arange(rows * 3.0).reshape(rows, 3), "b": torch.ones(rows, 2)}

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return self.features


def _same(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> bool:
    return found is not None and set(found) == set(expected) and all(found[key].equal(expected[key]) for key in found)


def test_computes_once(tmp_path: Path) -> None:
    compute = _Counted()
    for turn in range(3):
        cache = FeatureCache(tmp_path / "cache")
        assert _same(cache.get_or(FACTS, compute), compute.features)
        assert compute.calls == 1
        assert (cache.hits, cache.misses) == ((1, 0) if turn else (0, 1))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{facts_key(FACTS)}.safetensors"]


def test_equal_facts_give_equal_bytes(tmp_path: Path) -> None:
    backwards = dict(reversed(FACTS.items()))
    assert facts_key(backwards) == facts_key(FACTS)
    for folder, facts in (("one", FACTS), ("other", backwards)):
        FeatureCache(tmp_path / folder).get_or(facts, _Counted())
    one, other = (next((tmp_path / folder).iterdir()) for folder in ("one", "other"))
    assert one.name == other.name and one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("change", [{"extractor": "y"}, {"layers": ["a", "b"]}, {"images": {}}, {"device": "cuda"}])
def test_any_other_fact_is_another_key(tmp_path: Path, change: dict[str, Any]) -> None:
    cache, compute = FeatureCache(tmp_path), _Counted()
    cache.get_or(FACTS, compute)
    cache.get_or(FACTS | change, compute)
    assert compute.calls == 2 and cache.hits == 0


@pytest.mark.parametrize("damage", ["half", "bit", "nothing", "other facts"])
def test_a_damaged_file_is_said_and_computed_again(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    cache, compute = FeatureCache(tmp_path, say=said.append), _Counted()
    cache.get_or(FACTS, compute)
    path = tmp_path / f"{facts_key(FACTS)}.safetensors"
    content = path.read_bytes()
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "nothing":
        path.write_bytes(b"")
    else:
        cache.get_or({"other": 1}, compute)
        (tmp_path / f"{facts_key({'other': 1})}.safetensors").replace(path)
        compute.calls = 1
    assert _same(cache.get_or(FACTS, compute), compute.features)
    assert compute.calls == 2 and len(said) == 1
    assert str(path) in said[0] and "damaged" in said[0] and "\n" not in said[0]
    assert _same(cache.get_or(FACTS, compute), compute.features) and compute.calls == 2
    assert path.read_bytes() == content


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    for number in range(3):
        cache.get_or({"n": number}, _Counted())
        os.utime(tmp_path / f"{facts_key({'n': number})}.safetensors", (1000 + number, 1000 + number))
    size = next(tmp_path.iterdir()).stat().st_size
    cache = FeatureCache(tmp_path, limit=3 * size)
    cache.get_or({"n": 0}, _Counted())  # used now
    cache.get_or({"n": 3}, _Counted())
    kept = {path.stem for path in tmp_path.iterdir()}
    assert kept == {facts_key({"n": number}) for number in (0, 2, 3)}


def test_what_does_not_fit_is_said_and_not_kept(tmp_path: Path) -> None:
    said: list[str] = []
    cache, compute = FeatureCache(tmp_path / "cache", limit=10, say=said.append), _Counted()
    assert _same(cache.get_or(FACTS, compute), compute.features)
    assert "not kept; the limit is 10" in said[0] and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    said: list[str] = []
    compute = _Counted()
    assert _same(FeatureCache(tmp_path / "cache", say=said.append).get_or(FACTS, compute), compute.features)
    assert "cannot be written" in said[0] and "not kept" in said[0]


def test_an_error_while_computing_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, Tensor]:
        raise ValueError("no")

    cache = FeatureCache(tmp_path)
    with pytest.raises(ValueError, match="no"):
        cache.get_or(FACTS, fail)
    assert not list(tmp_path.iterdir())


def test_a_second_evaluation_with_the_same_reference_calls_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load_extractor(next(iter(FEATURE_SETS)))
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    calls: list[int] = []
    forward = extractor.network.forward
    monkeypatch.setattr(extractor.network, "forward", lambda x: calls.append(len(x)) or forward(x))  # type: ignore[func-returns-value]
    facts = feature_facts(extractor, "cpu", {"shards": "abc", "split": "train", "count": 3})
    found = []
    for _ in range(2):
        cache = FeatureCache(tmp_path)
        found.append(cache.get_or(facts, lambda: extract_layers(iter(images.split(2)), extractor, 4, "cpu", 3)))
    assert calls == [2, 1]
    first = found[0]
    assert first is not None and _same(found[1], first)
