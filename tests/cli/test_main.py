"""The command ``unveil``: help, completion, start-up, and how it ends where its output goes nowhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from typer.main import get_command
from typer.testing import CliRunner

import unveil
from unveil.cli.main import app
from unveil.run import ui as pages

UNVEIL = (sys.executable, "-m", "unveil")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, found in getattr(command, "commands", {}).items():
        yield (*path, name), found
        yield from commands(found, (*path, name))


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS)
def test_help_says_what_a_command_does_with_an_example(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0
    assert hasattr(COMMANDS[path], "commands") or f"unveil {' '.join(path)}" in done.stdout.partition("Example")[2]


def test_every_command_is_there() -> None:
    paths = {" ".join(path) for path in COMMANDS}
    assert paths >= {
        *("recipes list", "recipes show", "recipes apply", "params fmt", "params check", "averages list"),
        *(
            "averages search",
            "curves compare",
            "evaluate",
            "compare",
            "import",
            "export",
            "ui",
            "doctor",
            "lineage",
            "push",
        ),
    }
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"unveil {unveil.__version__}\n")


def test_it_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from unveil.cli.main import app; app(['--help'], standalone_mode=False); "
        "sys.exit(', '.join({'torch', 'mlflow', 'dvc', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run((sys.executable, "-c", code), env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_completes_commands_and_recipes() -> None:
    for words, found in (("unveil recipes sh", "show"), ("unveil recipes show celeba64-d", "celeba64-ddpm")):
        asked = {"_UNVEIL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(UNVEIL, env=ENVIRONMENT | asked, capture_output=True, text=True)
        assert done.stdout.split() == [found], done.stderr


@pytest.mark.parametrize("arguments", [["recipes", "list"], ["--help"], ["recipes", "show", "demo"]])
def test_output_that_a_full_disk_does_not_take_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run((*UNVEIL, *arguments), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "stdout: the system says: No space left on device; make room on that disk\n"


def test_output_that_nobody_reads_any_more_is_no_error() -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    done = subprocess.run((*UNVEIL, "recipes", "show", "demo"), env=ENVIRONMENT, stdout=ours, stderr=subprocess.PIPE)
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, b"")


def test_evaluate_becomes_the_projects_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda _, command, __: called.append(command))
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "--samples", "theirs.npz", "--out", "there", "--protocol", "ddim"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and done.stderr.startswith("stages/evaluate.py: not there") and not called
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "evaluate.py").touch()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert called[0][1:] == [
        *("stages/evaluate.py", "--params", "params.yaml", "--samples", "theirs.npz", "--out", "there"),
        *("--protocol", "ddim"),
    ]


def test_the_file_of_parameters_is_checked_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("unveil.cli.params.render", lambda params: f"# seed {params.train.seed}\n", raising=False)
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    done = CliRunner().invoke(app, ["params", "check", "--params", str(path)])
    assert done.exit_code == 1 and "`unveil params fmt`" in done.stderr and done.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["params", "fmt", "--params", str(path)]).exit_code == 0
    assert path.read_text() == "# seed 0\n"
    done = CliRunner().invoke(app, ["params", "check", "--params", str(path)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1  # no parameters any more


def test_ui_opens_the_store_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(pages, "serve_ui", lambda *arguments: served.append(arguments))
    monkeypatch.setattr("unveil.cli.main.find_run", str.upper)
    assert CliRunner().invoke(app, ["ui", "--port", "5001"]).exit_code == 0
    assert CliRunner().invoke(app, ["ui", "--compare", "a", "b"]).exit_code == 0
    assert served == [(5001, []), (5000, ["A", "B"])]
    for words in (["--compare"], ["a"]):
        done = CliRunner().invoke(app, ["ui", *words])
        assert done.exit_code == 1 and "`unveil ui --compare A B`" in done.stderr
