"""The points of a sweep, and their names."""

import subprocess
from pathlib import Path

import pytest

from unveil.errors import UnveilError
from unveil.run.sweep import LONGEST_NAME, file_overrides, grid, plain_name


def test_a_grid_has_every_combination_once() -> None:
    points = grid(["train.lr=1e-3,2e-3,1e-3", "sample.steps=range(5,16,5)", "sample.sampler=ddim"])
    assert [point.name for point in points] == [
        f"lr={lr},steps={steps}" for lr in ("0.001", "0.002") for steps in (5, 10, 15)
    ]
    assert points[0].overrides == ("train.lr=0.001", "sample.steps=5", "sample.sampler=ddim")


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluate.features=[inception],[dinov2]", "train.seed=1,2", "sample.seed=3"],
        ["train.seed=1,2", "sample.seed=3,4"],
        ["download.folder.path='/a b/ä','/a-b/ä',../c..d"],
        ["train.attributes=[" + ",".join(["Smiling"] * 40) + "],[]"],
        ["download.folder.path='" + "顔" * 90 + "',b"],
    ],
)
def test_names_are_distinct_and_good_for_git(overrides: list[str]) -> None:
    names = [point.name for point in grid(overrides, "my,")]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.startswith("my,") and len(plain_name(name).encode()) < LONGEST_NAME + 10
        subprocess.run(["git", "check-ref-format", f"refs/exps/ab/{'c' * 38}/{name}"], check=True)


def test_a_file_says_what_the_options_say(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "train.lr: [1e-3, 2e-3]\ntrain.compile: [true, false]\nsample.guide: null\n"
        "sample.steps: range(5, 16, 5)\nevaluate.features: [[inception], [clip, dinov2]]\n"
    )
    assert file_overrides(path) == [
        "train.lr=0.001,0.002",
        "train.compile=true,false",
        "sample.guide=null",
        "sample.steps=range(5, 16, 5)",
        "evaluate.features=[inception],[clip,dinov2]",
    ]
    assert len(grid(file_overrides(path))) == 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.lr=range(", "DVC cannot read it: .*range.*; write -S"),
        ("train.lr=", "train.lr: found no values, expected some"),
        ("~train.lr", "found ~train.lr, which deletes a key"),
    ],
)
def test_what_is_no_grid_is_told(override: str, line: str) -> None:
    with pytest.raises(UnveilError, match=line):
        grid([override])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train:\n  lr: [1e-3, 2e-3]\n", "train: found a mapping"),
        ("train.lr: [1e-3, {a: 1}]\n", "train.lr: found a mapping"),
        ("train.lr: !!set {a}\n", "train.lr: found a set"),
        ("3: [1e-3, 2e-3]\n", "3: found a key that is int"),
        ("train.lr: []\n", "train.lr: found no values"),
    ],
)
def test_a_file_of_other_things_is_told(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UnveilError) as told:
        file_overrides(tmp_path / "grid.yaml")
    assert str(told.value) == f"{tmp_path}/grid.yaml: {found}, expected dotted keys, such as train.lr: [1e-3, 2e-3]"
