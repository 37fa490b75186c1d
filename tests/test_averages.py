"""The folder of averages: what is written is read, and what is wrong with it is said in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.averages import Averages, save_snapshot, write_averages
from unveil.errors import UnveilError
from unveil.files import file_digest
from unveil.training.ema import PowerAverage
from unveil.weights import WeightsChoice, parse_weights

PROFILES = (0.05, 0.1)
STATE = {"a": torch.linspace(-1, 1, 6).reshape(2, 3), "b": torch.tensor(2.0)}


def state(value: float) -> dict[str, Tensor]:
    return {name: tensor * value for name, tensor in STATE.items()}


def make(folder: Path, count: int = 8, images: int = 800) -> Averages:
    """Averages of weights that stood still at STATE, but for the last snapshot's 0.1."""
    paths = []
    for number in range(1, count + 1):
        path = folder / "scratch" / f"snapshot-{number:03d}.safetensors"
        last = 2.0 if number == count else 1.0
        save_snapshot(path, images * number // count, {0.05: state(1.0), 0.1: state(last)})
        paths.append(path)
    return write_averages(folder / "averages", images, 0.09, [(300, state(3.0))], PROFILES, paths)


@pytest.fixture
def averages(tmp_path: Path) -> Averages:
    return make(tmp_path)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("ema", WeightsChoice()),
        ("half-life:10000", WeightsChoice("half-life", 10000)),
        ("power:0.1", WeightsChoice("power", 0.1)),
        ("power:.05", WeightsChoice("power", 0.05)),
        ("power:5e-2", WeightsChoice("power", 0.05)),
        *((wrong, None) for wrong in ("EMA", "half-life:0", "half-life:-1", "half-life:1.5", "half-life:", "power:1")),
        *((wrong, None) for wrong in ("power:0.001", "power:0.2887", "power:nan", "power:", "power", "", "power:0,1")),
    ],
)
def test_how_weights_are_named(text: str, choice: WeightsChoice | None) -> None:
    assert parse_weights(text) == choice
    if choice is not None:
        assert parse_weights(str(choice)) == choice


def test_what_is_written_is_read(averages: Averages) -> None:
    assert Averages.load(averages.folder) == averages
    assert [snapshot.images for snapshot in averages.snapshots] == list(range(100, 801, 100))
    assert averages.choices() == [WeightsChoice("half-life", 300), *(WeightsChoice("power", s) for s in PROFILES)]
    for choice, factor in zip(averages.choices(), (3.0, 1.0, 2.0), strict=True):
        found = averages.read(choice)
        assert found.keys() == STATE.keys()
        for name, tensor in STATE.items():
            assert found[name].shape == tensor.shape and found[name].dtype == torch.float32
            assert torch.allclose(found[name], factor * tensor, atol=2e-3)  # fp16
    index = json.loads((averages.folder / "index.json").read_text())
    assert [entry["gamma"] for entry in index["profiles"]] == pytest.approx([16.9722, 6.9372], abs=1e-4)


def test_a_reconstruction_is_the_sum_of_the_snapshots(averages: Averages) -> None:
    choice = WeightsChoice("power", 0.08)
    coefficients = averages.reconstruction(choice).coefficients
    assert len(coefficients) == 16
    expected = 1 + coefficients[-1]  # all are 1, but for the last, which is 2; and the coefficients sum to 1
    assert averages.read(choice)["b"] == pytest.approx(2 * expected, rel=1e-5)


def test_a_half_life_that_was_not_stored_is_reconstructed_along_the_ramp(averages: Averages) -> None:
    found = averages.read(WeightsChoice("half-life", 60))
    coefficients = averages.reconstruction(WeightsChoice("half-life", 60)).coefficients
    assert found["b"] == pytest.approx(2 * (1 + coefficients[-1]), rel=1e-5)
    with pytest.raises(UnveilError, match=r"half-life:300.* and train\.ema_rampup 0, expected half-life:60") as caught:
        replace(averages, ema_rampup=0.0).reconstruction(WeightsChoice("half-life", 60))
    assert "\n" not in str(caught.value)


def test_a_profile_out_of_reach_names_those_within(averages: Averages) -> None:
    least, greatest = averages.deviations()
    assert 0.025 < least < 0.05 and 0.1 < greatest < 0.25
    for reached in (least, greatest):
        assert averages.reconstruction(WeightsChoice("power", reached)).error <= 0.1
    for beyond in (least / 1.05, greatest * 1.05):
        with pytest.raises(UnveilError) as caught:
            averages.read(WeightsChoice("power", beyond))
        said = str(caught.value)
        assert f"power:{least:.3g} to power:{greatest:.3g}" in said and "\n" not in said


def test_more_snapshots_reach_further(averages: Averages, tmp_path: Path) -> None:
    more = make(tmp_path / "more", count=32)
    assert more.deviations()[0] < averages.deviations()[0] < averages.deviations()[1] < more.deviations()[1]


def test_sums_that_would_only_add_up_rounding_are_not_made(tmp_path: Path) -> None:
    """Wide profiles make a narrow one from thousands of themselves that cancel, which fp16 does not survive."""
    generator, profiles, batch = torch.Generator().manual_seed(0), (0.1, 0.2, 0.28), 32
    weight = torch.randn(500, generator=generator)
    kept, wanted = ({s: PowerAverage([weight], s) for s in values} for values in (profiles, (0.02, 0.04, 0.15)))
    paths = []
    for step in range(1, 1025):
        weight = weight + torch.randn(500, generator=generator) / 32
        for average in (*kept.values(), *wanted.values()):
            average.update([weight], batch, step * batch)
        if step % 16 == 0:
            paths.append(tmp_path / "scratch" / f"snapshot-{step:04d}.safetensors")
            save_snapshot(paths[-1], step * batch, {s: {"w": item.parameters[0]} for s, item in kept.items()})
    made = write_averages(tmp_path / "averages", 1024 * batch, 0.09, [], profiles, paths)
    for sigma_rel in (0.04, 0.15):
        truth = wanted[sigma_rel].parameters[0]
        assert (made.read(WeightsChoice("power", sigma_rel))["w"] - truth).norm() < 0.01 * truth.norm()
    with pytest.raises(UnveilError, match=r"only with an error of 1\d%"):
        made.read(WeightsChoice("power", 0.02))


def test_the_range_is_found_with_few_reconstructions(averages: Averages, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def reaches(_: Averages, sigma_rel: float) -> bool:
        calls.append(sigma_rel)
        return 0.03 < sigma_rel < 0.2

    monkeypatch.setattr(Averages, "_reaches", reaches)
    least, greatest = averages.deviations()
    assert 0.03 < least < 0.0303 and 0.198 < greatest < 0.2
    assert len(calls) < 40


def test_nothing_kept_is_an_index_alone(tmp_path: Path) -> None:
    empty = write_averages(tmp_path / "averages", 640, 0.09, [], [], [])
    assert [path.name for path in empty.folder.iterdir()] == ["index.json"]
    for choice, key in (
        (WeightsChoice("half-life", 5), "ema_more_half_lives"),
        (WeightsChoice("power", 0.1), "ema_pro"),
    ):
        with pytest.raises(UnveilError, match=rf"found no averages, expected {choice} .*train\.{key}"):
            empty.read(choice)
    with pytest.raises(ValueError, match="found ema"):
        empty.read(WeightsChoice())


def test_equal_averages_are_equal_bytes(averages: Averages, tmp_path: Path) -> None:
    again = make(tmp_path / "again")
    for path in averages.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("snapshot-003.safetensors", _cut, "damaged"),
        ("snapshot-003.safetensors", Path.unlink, "not there"),
        ("half-life-300.safetensors", _cut, "damaged"),
        ("index.json", _cut, "not valid JSON"),
        ("index.json", Path.unlink, "not there"),
        ("index.json", lambda path: path.write_text('{"format": 7}'), "format: found 7, expected 1"),
    ],
)
def test_what_is_damaged_is_named(averages: Averages, name: str, harm: Callable[[Path], object], said: str) -> None:
    if name == "index.json":
        text = (averages.folder / name).read_text()
        (averages.folder / name).write_text(text.strip())
    harm(averages.folder / name)
    with pytest.raises(UnveilError, match=f"{name}.*{said}") as caught:
        Averages.load(averages.folder).read(
            WeightsChoice("half-life", 300) if "half" in name else averages.choices()[1]
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "800"}, "images: found"),
        ({"images": 700}, "expected snapshots at rising numbers of images, from 1 to 700"),
        ({"ema_rampup": 2}, "ema_rampup: found 2"),
        ({"profiles": []}, "expected different profiles"),
        ({"profiles": [{"sigma_rel": 0.1, "gamma": 6.9}] * 2}, "expected different profiles"),
        ({"profiles": [{"sigma_rel": 1.0, "gamma": 6.9}]}, "profiles.0.sigma_rel: found 1.0"),
        ({"half_lives": None}, "half_lives: found null"),
        ({"half_lives": [{"half_life_images": 3, "file": "..", "sha256": "0" * 64}]}, "half_lives.0.file: found"),
        ({"snapshots": {}}, "snapshots: found {}"),
        ({"model": 3}, "model: found 3"),
        ({"more": 3}, "more: unknown key"),
    ],
)
def test_a_value_of_the_index_that_cannot_be_is_named(averages: Averages, changes: dict[str, Any], said: str) -> None:
    path = averages.folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UnveilError) as caught:
        Averages.load(averages.folder)
    assert str(caught.value).startswith(f"{path}: {said}") and str(caught.value).isprintable()


def test_a_snapshot_of_other_profiles_changes_nothing(averages: Averages, tmp_path: Path) -> None:
    before = {path.name: file_digest(path) for path in averages.folder.iterdir()}
    path = tmp_path / "scratch" / "other.safetensors"
    save_snapshot(path, 800, {0.2: state(1.0)})
    with pytest.raises(UnveilError, match=r"found profiles \[0\.2\], expected \[0\.05, 0\.1\]"):
        write_averages(averages.folder, 800, 0.09, [], PROFILES, [path])
    assert {path.name: file_digest(path) for path in averages.folder.iterdir()} == before


def test_averages_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    assert Averages.beside(weights).choices() == []  # a model without any
    write_averages(tmp_path / "averages", 640, 0.09, [(300, STATE)], [], [], file_digest(weights))
    assert Averages.beside(weights).choices() == [WeightsChoice("half-life", 300)]
    weights.write_bytes(b"another")
    with pytest.raises(UnveilError, match=r"index\.json: averages of a model with sha256 7692c3ad3540, but ") as caught:
        Averages.beside(weights)
    assert "\n" not in str(caught.value)
