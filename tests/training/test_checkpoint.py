"""Checkpoints on disk: what is written comes back, and what is damaged is passed over."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil.training.checkpoint import FACTS_FILE, STATE_FILE, Checkpoints, claimed_folder, fingerprint

# -------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_names_the_facts_and_not_their_order() -> None:
    facts = {"a": 1, "b": {"c": [1, 2], "d": 0.1}}
    found = fingerprint(facts)
    assert len(found) == 16 and int(found, 16) >= 0
    assert fingerprint({"b": {"d": 0.1, "c": [1, 2]}, "a": 1}) == found
    others = [facts | {"a": 2}, facts | {"a": 1.5}, {"a": 1, "b": {"c": [2, 1], "d": 0.1}}, facts | {"e": None}]
    assert len({found, *map(fingerprint, others)}) == 5


# --------------------------------------------------------------------------------- checkpoints


def _state(step: int) -> dict[str, Tensor]:
    return {"weight": torch.full((3, 2), float(step)), "step": torch.tensor(float(step))}


def _save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, _state(step), {"scaler": {"scale": 2.0}})


def _loaded(checkpoints: Checkpoints, before: int | None = None) -> int | None:
    found = checkpoints.load(before)
    if found is None:
        return None
    tensors, facts = found
    assert tensors.keys() == _state(0).keys()
    assert all(torch.equal(tensors[name], value) for name, value in _state(facts["step"]).items())
    assert facts["scaler"] == {"scale": 2.0}
    return int(facts["step"])


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.load() is None and checkpoints.newest() is None
    checkpoints.remove()


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for keep in (1, 2, 3):
        checkpoints = Checkpoints(tmp_path / str(keep), keep)
        _save(checkpoints, 5, 50, 500, 99_999_999)
        assert _loaded(checkpoints) == 99_999_999
        steps = [5, 50, 500, 99_999_999][-keep:]
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == [f"step-{step:08d}" for step in steps]
        assert checkpoints.newest() == checkpoints.folder / "step-99999999"


def test_a_tensor_of_any_layout_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    weight = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    checkpoints.save(1, {"weight": weight, "turned": weight[0, 0].T}, {})
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found[0]["weight"], weight) and torch.equal(found[0]["turned"], weight[0, 0].T)


def _swap_in_other_weights(path: Path) -> None:
    state = load_file(path / STATE_FILE)
    save_file({name: value + 1 for name, value in state.items()}, path / STATE_FILE)


def _edit_facts(path: Path, **changes: Any) -> None:
    (path / FACTS_FILE).write_text(json.dumps(json.loads((path / FACTS_FILE).read_text()) | changes))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda path: (path / STATE_FILE).unlink(),
    "no facts": lambda path: (path / FACTS_FILE).unlink(),
    "truncated weights": lambda path: (path / STATE_FILE).write_bytes((path / STATE_FILE).read_bytes()[:-1]),
    "other weights": _swap_in_other_weights,
    "truncated facts": lambda path: (path / FACTS_FILE).write_text("{"),
    "facts of another kind": lambda path: (path / FACTS_FILE).write_text("[]"),
    "facts that say too little": lambda path: (path / FACTS_FILE).write_text("{}"),
    "not text": lambda path: (path / FACTS_FILE).write_bytes(b"\xff\x00"),
    "a step that is text": lambda path: _edit_facts(path, step="10"),
    "a hash that is none": lambda path: _edit_facts(path, sha256=None),
    "a snapshot elsewhere": lambda path: _edit_facts(path, snapshots={"../../passwd": "0" * 64}),
    "facts from a pipe": lambda path: _pipe(path / FACTS_FILE),
    "weights from a pipe": lambda path: _pipe(path / STATE_FILE),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    _save(checkpoints, 10, 20)
    DAMAGE[damage](tmp_path / "step-00000020")
    assert _loaded(checkpoints) == 10
    assert checkpoints.newest() == tmp_path / "step-00000010"
    DAMAGE[damage](tmp_path / "step-00000010")
    assert checkpoints.load() is None and checkpoints.newest() is None


def test_a_point_that_is_not_a_number_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _state(1), {"points": [{"grad_norm": float("nan"), "loss": float("inf")}]})
    found = checkpoints.load()
    assert found is not None and math.isnan(found[1]["points"][0]["grad_norm"])


@pytest.mark.parametrize("content", ["", "[]", '{"run_id": 3}', "{}", '{"run_id": NaN}', None])
def test_a_damaged_note_is_none(tmp_path: Path, content: str | None) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.note("abc")
    assert checkpoints.noted() == "abc"
    (tmp_path / "run.json").unlink()
    os.mkfifo(tmp_path / "run.json") if content is None else (tmp_path / "run.json").write_text(content)
    assert checkpoints.noted() is None


def test_checkpoints_from_the_end_on_can_be_left_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    _save(checkpoints, 10, 20)
    assert [_loaded(checkpoints, before) for before in (21, 20, 11, 10, 5)] == [20, 10, 10, None, None]


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    _save(checkpoints, 10, 20)

    def full(tensors: dict[str, Tensor], path: Path, metadata: None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unveil.tensors.save_file", full)
    with pytest.raises(OSError, match="No space"):
        _save(checkpoints, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]
    assert _loaded(checkpoints) == 20


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, {"old": torch.zeros(1)}, {})
    _save(checkpoints, 10)
    assert _loaded(checkpoints) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


HOLDER = """
import sys, time
from pathlib import Path
import torch
from unveil.training.checkpoint import Checkpoints, claimed_folder
with claimed_folder(Path(sys.argv[1]), "run") as folder:
    Checkpoints(folder).save(10, {"weight": torch.ones(1)}, {})
    print(folder.name, flush=True)
    time.sleep(60)
"""


def test_two_holders_have_two_folders_and_a_killed_ones_is_found_again(tmp_path: Path) -> None:
    with claimed_folder(tmp_path, "run") as mine:
        _save(Checkpoints(mine), 5)
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline().strip() == "run-2"
            with claimed_folder(tmp_path, "run") as third, claimed_folder(tmp_path, "running") as unlike:
                assert (third.name, unlike.name) == ("run-3", "running")
            Checkpoints(mine).remove()
            assert Checkpoints(tmp_path / "run-2").newest() is not None
            other.kill()
    with claimed_folder(tmp_path, "run") as again:  # the checkpoints come before the first name
        assert again.name == "run-2" and Checkpoints(again).newest() == again / "step-00000010"
        with claimed_folder(tmp_path, "run") as fresh:
            assert fresh.name == "run"


def test_they_can_be_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    _save(checkpoints, 10)
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == []
