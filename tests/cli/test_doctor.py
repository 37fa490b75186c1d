"""``unveil doctor`` on machines that the tests make up, and on this one."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.conftest import ROOT
from typer.testing import CliRunner, Result

from unveil.cli import doctor
from unveil.cli.doctor import GIB, Machine
from unveil.cli.main import app
from unveil.recipes import names

GOOD = Machine(
    instructions=("AVX2", "AVX-512", "bf16"),
    gpus=("a card, 80 GiB",),
    free=500 * GIB,
    celeba=Path("/celeba/img_align_celeba.zip"),
)
Patch = pytest.MonkeyPatch


@pytest.fixture
def project(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A DVC project with the shipped parameters and no store, in an environment that names nothing."""
    for name in ("CELEBA_ROOT", "UNVEIL_WEIGHTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(monkeypatch: Patch, machine: Machine) -> tuple[Result, dict[str, str]]:
    """The result, and its lines by title, the last of each."""
    monkeypatch.setattr(doctor, "examine", lambda settings: machine)
    done = CliRunner().invoke(app, ["doctor"])
    columns = [line.split("  ", 1)[1].lstrip() for line in done.stdout.splitlines()[:-1]]
    return done, {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in columns}


def test_a_machine_that_has_all_can_run_all(project: Path, monkeypatch: Patch) -> None:
    done, lines = examined(monkeypatch, GOOD)
    assert done.exit_code == 0
    assert lines["GPU"] == "a card, 80 GiB" and "bf16" in lines["processor"]
    assert "the first run makes it" in lines["MLflow store"]
    assert all("can run" in lines[name] or "changes" in lines[name] for name in names())
    assert "10.6 minutes" in lines["demo"] and "not measured" in lines["celeba64-ddpm"]
    starts = {len(line) - len(line[4:].partition("  ")[2].lstrip()) for line in done.stdout.splitlines()[:-1]}
    assert len(starts) == 1  # aligned


def _without_torch(monkeypatch: Patch, project: Path) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "torch" else present(name))


def _little_memory(monkeypatch: Patch, project: Path) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=GIB))


@pytest.mark.parametrize(
    ("change", "title", "said"),
    [
        (_without_torch, "torch", "not installed; `make repro`"),
        (_little_memory, "memory", "1.0 GiB, expected 2; "),
        (lambda patch, project: (project / ".dvc").rmdir(), "DVC project", "go to the clone"),
        (lambda patch, project: (project / "params.yaml").write_text("data: 3"), "params.yaml", "params.yaml"),
    ],
)
def test_what_the_demo_lacks_is_named_with_its_mend(
    project: Path, monkeypatch: Patch, change: Callable[[Patch, Path], None], title: str, said: str
) -> None:
    change(monkeypatch, project)
    done, lines = examined(monkeypatch, GOOD)
    assert done.exit_code == 1
    assert said in lines[title]
    assert next(line for line in done.stdout.splitlines() if line.startswith("!!")).split("  ")[1] == title
    assert "cannot run" in lines["demo"]


def test_a_full_disk_stops_the_demo(project: Path, monkeypatch: Patch) -> None:
    done, lines = examined(monkeypatch, replace(GOOD, free=GIB // 2))
    assert done.exit_code == 1 and "0.5 GiB, expected 2; make room" in lines["free disk"]


def test_what_a_recipe_lacks_does_not_stop_the_demo(project: Path, monkeypatch: Patch) -> None:
    done, lines = examined(monkeypatch, Machine(instructions=("AVX2",), gpus=(), free=5 * GIB, celeba=None))
    assert done.exit_code == 0
    assert "13.4 minutes" in lines["demo"] and "without bf16" in lines["processor"]
    assert lines["celeba64-ddpm"].startswith("lacks ") and "GiB of free disk; a GPU" in lines["celeba64-ddpm"]
    assert "CELEBA_ROOT" in lines["CelebA"] and "no checkout" in lines["Git"]


def test_a_store_that_does_not_open_stops_the_demo_unless_tracking_is_off(project: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://such")
    done, lines = examined(monkeypatch, GOOD)
    assert done.exit_code == 1 and "it does not open: " in lines["MLflow store"]
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    done, lines = examined(monkeypatch, GOOD)
    assert done.exit_code == 0 and "switched off" in lines["MLflow store"]


def test_this_machine_is_examined_and_nothing_is_made(project: Path, monkeypatch: Patch) -> None:
    bare = doctor.examine(None)
    assert bare.free > 0 and bare.celeba is None
    before = sorted(project.iterdir())
    CliRunner().invoke(app, ["doctor"])
    assert sorted(project.iterdir()) == before
    images = project / "faces" / "Img" / "img_align_celeba.zip"
    weights = project / "weights" / "vgg16-397923af.pth"
    for file in (images, weights):
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setenv("CELEBA_ROOT", str(project / "faces"))
    monkeypatch.setenv("UNVEIL_WEIGHTS", str(weights.parent))
    done = CliRunner().invoke(app, ["doctor"])
    assert doctor.examine(None).celeba == images
    assert f"  {images}\n" in done.stdout and f"vgg16: {weights}\n" in done.stdout
