"""dvc.yaml: each stage depends on the code that decides its result, on all of it and on nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML
from tests.conftest import git

from unveil.run.dvc import declared_paths
from unveil.run.lineage import STAGES

# The frame around a stage decides nothing that a stage computes.
FRAME = {
    f"src/unveil/{name}.py"
    for name in (
        "__init__",
        "errors",
        "files",
        "layout",
        "messages",
        "parameter_file",
        "params",
        "printing",
        "progress",
        "rank",
        "run/__init__",
        "run/attach",
        "run/checkout",
        "run/dvc",
        "run/commands",
        "run/launch",
        "run/lineage",
        "run/writer",
        "run/signals",
        "run/stage",
        "run/store",
        "run/tracked",
        "section",
        "tensors",
    )
}
# A range, a default (params.yaml has every key) or a sentence decides no result either; what the rules compute does.
ROOMS = ("data", "diffusion", "evaluation", "evaluation/oracle", "networks", "training")
CONFIGS = {f"src/unveil/{room}/config.py" for room in ROOMS}
# Drawing takes tensors and types from where they are made, not their values.
NOT_FOLLOWED = FRAME | {"src/unveil/figures.py"}
METRICS = "src/unveil/evaluation/metrics"
# What a stage imports and yet decides no output of it.
ASIDE = {
    # Only draws the previews of train, or measures its memory: a new sampler must not retrain.
    "train": {f"src/unveil/training/{name}.py" for name in ("preview", "usage")},
    # The page of another generator's samples: other words must not evaluate again.
    "evaluate": {"src/unveil/evaluation/card/markdown.py"},
    # Measures: the page names what was measured.
    "card": {f"{METRICS}/{name}.py" for name in ("copies", "distances", "manifold", "measurement", "uncertainty")}
    | {f"src/unveil/{name}.py" for name in ("data/batches", "evaluation/images/labelled")}
    | {f"src/unveil/evaluation/oracle/{name}.py" for name in ("classifier", "facts")},
}
# Stages that read a parameter of another section.
PARAMS_OF_OTHERS = {"download": ["preprocess.on_corrupt"], "oracle": ["train.attributes"]}
# With the one that makes the page, which has no run of its own.
EVERY = (*STAGES, "card")


def named_data(file: Path) -> Iterator[str]:
    """Package data beside a module, which the module names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and str(node.value).endswith((".yaml", ".j2")):
            yield str(node.value)


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def code_of(root: Path, start: str, left_out: set[str]) -> set[str]:
    """The project's own files that a script imports, directly or through others, but for some."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen | left_out:
            continue
        seen.add(name)
        if name in NOT_FOLLOWED or not name.endswith(".py"):
            continue
        beside = [str(Path(name).with_name(data)) for data in named_data(root / name)]
        waiting += [path for path in beside if (root / path).exists()]
        for module in imported_modules(root / name):
            path = f"src/{module.replace('.', '/')}"
            waiting += [file for file in (f"{path}.py", f"{path}/__init__.py") if (root / file).exists()]
    return seen - FRAME - CONFIGS


def covers(dependency: str, file: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


@pytest.mark.parametrize("name", EVERY)
def test_a_stage_depends_on_exactly_the_code_that_it_uses(repository: Path, name: str) -> None:
    used = code_of(repository, f"stages/{name}.py", ASIDE.get(name, set()))
    packages = {file for file in used if file.endswith("__init__.py") and not (repository / file).read_text().strip()}
    _, declared, _ = declared_paths(repository / "dvc.yaml", name)
    missing = {file for file in used - packages if not any(covers(path, file) for path in declared)}
    assert not missing, "used, but an edit to it would not rerun the stage"
    idle = {path for path in declared if not any(covers(path, file) for file in used)}
    assert not idle, "not used, but an edit to it would rerun the stage"
    assert not {file for file in CONFIGS if any(covers(path, file) for path in declared)}


def test_tools_beside_the_training_do_not_retrain(repository: Path) -> None:
    _, declared, _ = declared_paths(repository / "dvc.yaml", "train")
    for name in ("comparison", "preview", "usage"):
        assert not any(covers(path, f"src/unveil/training/{name}.py") for path in declared)


def test_other_words_on_the_page_evaluate_nothing_again(repository: Path) -> None:
    _, declared, _ = declared_paths(repository / "dvc.yaml", "evaluate")
    for name in ("markdown.py", "page.md.j2", "meanings.yaml", "comparison.py"):
        assert not any(covers(path, f"src/unveil/evaluation/card/{name}") for path in declared)


def test_no_option_that_would_switch_a_guarantee_off(repository: Path) -> None:
    stages: dict[str, Any] = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    assert tuple(stages) == EVERY
    for name, entry in stages.items():
        assert set(entry) <= {"desc", "cmd", "params", "deps", "outs", "metrics"}
        if name != "card":
            assert entry["params"] == [name, *PARAMS_OF_OTHERS.get(name, [])]
        assert entry["cmd"] == f"sh stages/run {name}"
        # One uncached output that is no metric, and DVC would not keep the stage's results at all.
        assert all(isinstance(item, str) for item in entry["outs"])


def test_the_model_is_an_artifact_that_dvc_knows(repository: Path) -> None:
    project = Repo(str(repository))
    artifact = project.artifacts.read()["dvc.yaml"]["denoiser"]
    assert (artifact.type, artifact.path) == ("model", "models")
    assert artifact.desc and artifact.labels
    outputs = {Path(str(out)) for out in project.index.outs}
    assert any(Path("models") in path.parents for path in outputs)


def test_dvc_phones_nobody(repository: Path) -> None:
    text = (repository / ".dvc" / "config").read_text()
    assert "analytics = false" in text
    assert "check_update = false" in text


def test_files_have_the_same_bytes_where_git_writes_other_line_ends(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--config=core.autocrlf=true", str(repository), "clone")
    ends = git(tmp_path / "clone", "ls-files", "--eol")
    assert "dvc.yaml" in ends
    assert "w/crlf" not in ends
