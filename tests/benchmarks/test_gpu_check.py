"""The check of a GPU, without one: its shapes are the recipes', and it runs where little else than PyTorch is."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from tests.benchmarks.gpu_check import Asked, markdown, outcomes
from tests.benchmarks.gpu_steps import DDPM, DEMO, EDM, Figure, LeftOut, Setting, Shape, Step, start_method

from unveil.data.augmentation import LABELS
from unveil.diffusion.config import Sampler
from unveil.diffusion.design import build_path, denoiser_values
from unveil.diffusion.loss import build_loss
from unveil.diffusion.sampling import build_grid
from unveil.networks.config import UNetConfig
from unveil.params import load_params
from unveil.recipes import load_recipe
from unveil.training.config import Training

NEEDED = ("torch", "torchvision", "safetensors", "pydantic", "pytest")
LEAN = """
import importlib.machinery, sys

REFUSED = set({refused})
OTHERS = importlib.machinery.PathFinder


class Lean(OTHERS):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in REFUSED else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(OTHERS)] = Lean
"""


UNMEASURED = {
    "horizontal_flip",  # which a shape says itself
    "validation_images",
    "attributes",  # a step costs the same
    *(f"{what}_every_images" for what in ("preview", "checkpoint", "validate")),
}


@pytest.mark.parametrize("shape", [DDPM, EDM, DEMO], ids=lambda shape: shape.name)
def test_the_shapes_are_the_recipes(shape: Shape, repository: Path) -> None:
    params = load_params(repository / "params.yaml") if shape is DEMO else load_recipe(shape.name).params
    settings, sampling = params.train, params.sample
    labels = LABELS if settings.augment else 0
    size = params.preprocess.image_size
    assert shape.network == UNetConfig(image_size=size, **settings.network.model_dump(), augment_labels=labels)
    diffusion = settings.diffusion
    assert denoiser_values(shape.diffusion) == denoiser_values(diffusion)
    assert build_loss(shape.diffusion) == build_loss(diffusion)
    recipes = settings.only(Training)
    unmeasured = {key: getattr(shape.training, key) for key in type(recipes).model_fields if key in UNMEASURED}
    assert shape.training == recipes.replace(**unmeasured)
    assert (shape.batch, shape.horizontal_flip) == (settings.batch_size, settings.horizontal_flip)
    assert (settings.device, settings.loader, settings.tf32, settings.channels_last) == ("auto", "auto", True, "auto")
    path, sampler = build_path(diffusion), sampling.only(Sampler)
    assert torch.equal(build_grid(shape.sampler, path), build_grid(sampler, path))
    for name in ("sampler", "eta", "s_churn", "threshold"):
        assert getattr(shape.sampler, name) == getattr(sampler, name)
    assert (settings.compile, sampling.precision) == (False, "auto" if shape is DEMO else "fp32")
    assert (shape.sample_batch, shape.feature_batch) == (sampling.batch_size, params.evaluate.batch_size)


def _lean(folder: Path) -> dict[str, str]:
    """An environment whose Python finds no package but the needed ones and what these need."""
    found, left = {"unveil"}, list(NEEDED)
    while left:
        name = re.sub("[-_.]+", "-", left.pop()).lower()
        if name not in found:
            found.add(name)
            needs = [Requirement(line) for line in requires(name) or ()]
            left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    refused = [
        package
        for package, names in packages_distributions().items()
        if package != "tests" and not any(re.sub("[-_.]+", "-", name).lower() in found for name in names)
    ]
    assert {"typer", "ruamel", "dvc", "mlflow", "hypothesis", "yaml"} <= set(refused)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LEAN.format(refused=refused))
    return {"PYTHONPATH": f"{folder}{os.pathsep}src", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _check(repository: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks.gpu_check", *arguments]
    return subprocess.run(
        command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_few_packages(tmp_path: Path, repository: Path) -> None:
    environment = _lean(tmp_path / "lean")
    refused = subprocess.run(
        [sys.executable, "-c", "import typer"], env=os.environ | environment, capture_output=True, check=False
    )
    assert b"No module named 'typer'" in refused.stderr
    few = ("--device=cpu", "--minutes=5", "--seconds=0.1", "--skip=compiled", f"--output={tmp_path}")
    done = _check(repository, environment, *few)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "gpu-check.json").read_text())["steps"]
    for step in steps:
        peer = step["step"].endswith(("diffusers", "pytorch"))
        assert step["state"] == ("left out" if peer else "done"), step
        assert "not installed" in step["reason"] if peer else step["figures"]
    figures = {step["step"]: {figure["what"]: figure for figure in step["figures"]} for step in steps}
    assert figures["resume a killed training, demo"]["greatest difference of the weights"]["value"] == 0
    assert figures["tests marked gpu"]["skipped"]["value"] > 5
    assert "torchvision's" in figures["features, fp32"]["speed"]["unit"]
    table = (tmp_path / "gpu-check.md").read_text()
    assert all(f"| {step['step']} | " in table for step in steps)


@pytest.mark.slow
def test_it_trains_as_diffusers_where_that_is_installed(tmp_path: Path, repository: Path) -> None:
    few = ("--device=cpu", "--minutes=5", "--seconds=0", "--only=fp32, diffusers", f"--output={tmp_path}")
    done = _check(repository, {"PYTHONPATH": "src"}, *few)
    assert done.returncode == 0, done.stdout + done.stderr
    states = [step["state"] for step in json.loads((tmp_path / "gpu-check.json").read_text())["steps"]]
    assert states == ["done", "done"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, repository: Path) -> None:
    done = _check(repository, {"PYTHONPATH": "src"}, f"--output={tmp_path}")
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch("gpu-check: PyTorch sees no CUDA GPU here; .*--device cpu.*\n", done.stderr)


def test_processes_are_not_forked_where_that_would_refuse_them_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for unfit, method in ((False, "fork"), (True, "spawn")):
        monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda unfit=unfit: unfit)
        assert start_method() == method


def _give(setting: Setting) -> Iterator[Figure]:
    yield Figure("speed", 1234.5, "images/s")


def _fail(setting: Setting) -> Iterator[Figure]:
    yield from _give(setting)
    raise ValueError("first line\nsecond | line")


def _die(setting: Setting) -> Iterator[Figure]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from _give(setting)


def _wait(setting: Setting) -> Iterator[Figure]:
    time.sleep(60)
    yield from _give(setting)


def _refuse(setting: Setting) -> Iterator[Figure]:
    if not setting.seconds:
        raise LeftOut("it is not installed")
    yield from _give(setting)


def test_a_step_that_fails_or_takes_too_long_ends_no_other(tmp_path: Path) -> None:
    setting = Setting("cpu", tmp_path, 0, 1)
    chosen = [
        Step("fails", _fail, 1),
        Step("dies", _die, 1),
        Step("hangs", _wait, 0.05),
        Step("is left out", _refuse, 1),
        Step("goes", _give, 1),
        Step("is too long", _wait, 1),
        Step("is too late", _give, 1),
    ]
    start = time.monotonic()
    found = list(outcomes(chosen, setting, minutes=0.1))
    assert time.monotonic() - start < 12
    states = [outcome.state for outcome in found]
    assert states == ["failed", "failed", "failed", "left out", "done", "no time", "no time"]
    assert found[0].reason == "ValueError: first line second | line"
    assert found[0].figures == found[4].figures == [Figure("speed", 1234.5, "images/s")]
    assert "status -9" in found[1].reason
    lines = markdown({"device": "card", "driver": "1"}, found).splitlines()
    assert lines[0] == "card, driver 1"
    assert lines[4] == "| fails | failed: ValueError: first line second / line; speed 1,234 images/s |"
    assert lines[8] == "| goes | speed 1,234 images/s |"


def test_what_a_step_starts_ends_with_it(tmp_path: Path) -> None:
    def work(setting: Setting) -> Iterator[int]:
        yield subprocess.Popen(["sleep", "60"]).pid
        time.sleep(60)

    asked = Asked(partial(work, Setting("cpu", tmp_path, 0, 1)), seconds=2)
    assert asked.state == "no time"
    stat = Path(f"/proc/{asked.values[0]}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
