"""unveil.run.dvc: what dvc.yaml declares, and digests of names and contents alone."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import git

from unveil.errors import UnveilError
from unveil.run.dvc import declared_paths, paths_digest
from unveil.run.lineage import STAGES


def test_data_and_code_of_every_stage_in_dvc_yaml(repository: Path) -> None:
    seen: set[str] = set()
    for name in STAGES:
        data, code, written = declared_paths(repository / "dvc.yaml", name)
        assert f"stages/{name}.py" in code
        assert all(path.startswith(("stages/", "src/")) for path in code)
        assert set(data) <= seen, f"{name} reads what no stage before it writes"
        assert any(path.endswith("run.json") for path in written)
        seen |= set(written)
        assert not any(path.endswith("run.json") for path in data)


@pytest.mark.parametrize("text", ["", "stages:", "stages: {other: {cmd: x}}", "plots: []"])
def test_a_dvc_yaml_without_the_stage_declares_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    assert declared_paths(tmp_path / "dvc.yaml", "train") == ([], [], [])
    assert declared_paths(tmp_path / "none.yaml", "train") == ([], [], [])


def test_a_dvc_yaml_that_is_not_dvcs_is_one_line(tmp_path: Path) -> None:
    entries = ("3", "{deps: 3}", "{deps: [3]}", "{outs: [{}]}")
    texts = ["stages: [", "[1]", "text", "stages: 3", "[" * 5000, "a: \0"]
    for text in [*texts, *(f"stages: {{train: {entry}}}" for entry in entries)]:
        (tmp_path / "dvc.yaml").write_text(text)
        with pytest.raises(UnveilError, match=r"^dvc\.yaml: not readable as YAML of DVC's: ") as caught:
            declared_paths(tmp_path / "dvc.yaml", "train")
        assert len(str(caught.value)) < 500


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    files: dict[str, str] = {"a/x": "1", "a/y/z": "2"}

    def digest(case: str, files: dict[str, str], *names: str) -> Any:
        return paths_digest(tree(tmp_path / case, files), list(names))

    reference = digest("reference", files, "a")
    assert digest("again", dict(reversed(files.items())), "a") == reference
    assert digest("byte-code", files | {"a/__pycache__/x.pyc": "3"}, "a") == reference
    assert digest("edited", files | {"a/x": "3"}, "a") != reference
    assert digest("added", files | {"a/w": ""}, "a") != reference
    assert digest("renamed", {"a/x": "1", "a/y/w": "2"}, "a") != reference
    assert digest("swapped", {"a/x": "2", "a/y/z": "1"}, "a") != reference
    assert digest("order", files, "a/y", "a/x") == digest("order", files, "a/x", "a/y")
    assert digest("nothing", files, "b") is None
    # as sha256sum prints it, so that a reader can check a file by hand
    assert digest("file", files, "a/x") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_dvc_and_the_digest_of_code_agree_on_what_is_code(tmp_path: Path, repository: Path) -> None:
    package = "src/unveil/networks"
    modules = {f"{package}/unet.py": "1", f"{package}/blocks/a.py": "2", f"{package}/table.yaml": "4"}
    others = [".unet.py.swp", "unet.py~", ".DS_Store", "#unet.py#", ".#unet.py", "._unet.py", "notes.txt", "4913"]
    others += ["unet.py.orig", "unet.pyc", "__pycache__/unet.py", ".ipynb_checkpoints/unet.py", ".unet.py.77.tmp"]
    root = tree(tmp_path, modules | dict.fromkeys((f"{package}/{name}" for name in others), "3"))
    shutil.copy(repository / ".dvcignore", root)
    git(root, "init", "--quiet")
    assert paths_digest(root, [package], code=True) == paths_digest(tree(tmp_path / "bare", modules), [package])
    names = [path.relative_to(root).as_posix() for path in (root / package).rglob("*") if path.is_file()]
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    ignored = subprocess.run(
        [sys.executable, "-m", "dvc", "check-ignore", *names], cwd=root, capture_output=True, text=True
    ).stdout.split()
    assert set(names) - set(ignored) == set(modules)
