"""``unveil doctor`` on machines that the tests make up, and on this one."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import ROOT
from typer.testing import CliRunner, Result

from unveil.cli import doctor
from unveil.cli.doctor import GIB, Machine, examine
from unveil.cli.main import app
from unveil.recipes import names

GOOD = Machine(
    packages={"torch": "2.9.0", "dvc": "3.60.0", "mlflow": "3.9.0"},
    processor="a processor",
    instructions=("AVX2", "AVX-512", "bf16"),
    cores=2,
    memory=16 * GIB,
    free=500 * GIB,
    gpus=(("a card", 80 * GIB),),
    project=Path("/project"),
    git="main, no changed files",
    params_problem=None,
    store="sqlite:////project/mlflow.db",
    store_problem=None,
    weights={"inception": Path("/weights/inception.pth"), "dinov2": None},
    weights_places="/cache",
    celeba=Path("/celeba/img_align_celeba.zip"),
    celeba_places="/celeba",
)


def examined(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> tuple[Result, dict[str, str]]:
    """The result, and its lines by title, the last of each."""
    monkeypatch.setattr(doctor, "examine", lambda: machine)
    done = CliRunner().invoke(app, ["doctor"])
    columns = [line.split("  ", 1)[1].lstrip() for line in done.stdout.splitlines()[:-1]]
    return done, {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in columns}


def test_a_machine_that_has_all_can_run_all(monkeypatch: pytest.MonkeyPatch) -> None:
    done, lines = examined(monkeypatch, GOOD)
    assert done.exit_code == 0
    assert lines["GPU"] == "a card, 80 GiB" and "bf16" in lines["processor"]
    assert all("can run" in lines[name] or "changes" in lines[name] for name in names())
    assert "9.9 minutes" in lines["demo"] and "not measured" in lines["celeba64-ddpm"]
    starts = {len(line) - len(line[4:].partition("  ")[2].lstrip()) for line in done.stdout.splitlines()[:-1]}
    assert len(starts) == 1  # aligned


@pytest.mark.parametrize(
    ("change", "title", "said"),
    [
        ({"packages": GOOD.packages | {"torch": None}}, "torch", "not installed; `make repro`"),
        ({"memory": GIB}, "memory", "1.0 GiB, expected 2; "),
        ({"free": GIB // 2}, "free disk", "0.5 GiB, expected 2; make room"),
        ({"project": None}, "DVC project", "go to the clone"),
        ({"params_problem": "params.yaml:3: wrong"}, "params.yaml", "params.yaml:3: wrong"),
    ],
)
def test_what_the_demo_lacks_is_named_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], title: str, said: str
) -> None:
    done, lines = examined(monkeypatch, replace(GOOD, **change))  # type: ignore[arg-type]
    assert done.exit_code == 1
    assert said in lines[title]
    assert next(line for line in done.stdout.splitlines() if line.startswith("!!")).split("  ")[1] == title
    assert "cannot run" in lines["demo"]


def test_what_a_recipe_lacks_does_not_stop_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = replace(GOOD, instructions=("AVX2",), gpus=(), celeba=None, free=5 * GIB, git=None, store_problem="locked")
    done, lines = examined(monkeypatch, poor)
    assert done.exit_code == 0
    assert "13.4 minutes" in lines["demo"] and "without bf16" in lines["processor"]
    assert lines["celeba64-ddpm"].startswith("lacks ") and "GiB of free disk; a GPU" in lines["celeba64-ddpm"]
    assert "CELEBA_ROOT" in lines["CelebA"] and "locked" in lines["MLflow store"]


def test_this_machine_is_examined_and_nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CELEBA_ROOT", "UNVEIL_WEIGHTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    bare = examine()
    assert bare.cores >= 1 and bare.memory > 0 and bare.free > 0
    assert (bare.project, bare.git, bare.celeba) == (None, None, None)
    assert bare.params_problem is not None and not list(tmp_path.iterdir())
    images = tmp_path / "faces" / "Img" / "img_align_celeba.zip"
    images.parent.mkdir(parents=True)
    images.touch()
    weights = tmp_path / "weights" / "vgg16-397923af.pth"
    weights.parent.mkdir()
    weights.touch()
    monkeypatch.setenv("CELEBA_ROOT", str(tmp_path / "faces"))
    monkeypatch.setenv("UNVEIL_WEIGHTS", str(weights.parent))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    found = examine()
    assert (found.celeba, found.weights["vgg16"], found.params_problem) == (images, weights, None)
