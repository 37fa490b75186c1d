"""`unveil sweep` with real DVC, on a project whose one stage is a few lines."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dvc.config import Config
from pandas import DataFrame
from tests.conftest import git

from unveil.cli.sweep import draw, write_report

STAGE = """
    import json, os, pathlib, sys, time
    from ruamel.yaml import YAML

    values = YAML(typ="safe").load(pathlib.Path("params.yaml"))
    lr, number = values["train"]["lr"], values["sample"]["num_samples"]
    calls = pathlib.Path(os.environ["CALLS"])
    with calls.open("a") as stream:
        stream.write(f"{lr}\\n")
    if calls.with_name(f"fails-{lr}").exists():
        sys.exit("error: it fails")
    while calls.with_name(f"waits-{lr}").exists():
        time.sleep(0.05)
    pathlib.Path("metrics").mkdir(exist_ok=True)
    distance = {"": lr * 1000, "_low": lr * 900, "_high": lr * 1100}
    numbers = {f"fd_efficientnet_lite0{end}": value for end, value in distance.items()}
    pathlib.Path("metrics/evaluate.json").write_text(json.dumps(numbers | {"num_samples": number}))
    pathlib.Path("weights").write_text(str(lr))
"""
PIPELINE = """
    stages:
      evaluate:
        cmd: python stage.py
        params: [train.lr, sample.num_samples]
        deps: [stage.py]
        outs: [weights]
        metrics: [{metrics/evaluate.json: {cache: false}}]
"""


class Tiny:
    """A project with a change that is not committed: the number of samples."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root, self.calls = root, root.parent / "calls"
        root.mkdir()
        (root / "stage.py").write_text(textwrap.dedent(STAGE))
        (root / "dvc.yaml").write_text(textwrap.dedent(PIPELINE))
        (root / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
        (root / ".gitignore").write_text("/weights\n/reports\n")
        git(root, "init", "--quiet", "--initial-branch=main")
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(repository / "src"),
            "UNVEIL_TRACKING": "off",
            "CALLS": str(self.calls),
        }
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, env=self.environment, check=True)
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message=start")
        # Both count from the folder of their file.
        (root / ".dvc/config").write_text('[core]\nremote = store\n[remote "store"]\nurl = ../../store\n')
        (root / ".dvc/config.local").write_text('[remote "other"]\nurl = ../../other\n')
        git(root, "commit", "--quiet", "--all", "--message=remote")
        self.change("num_samples: 2000", "num_samples: 2001")

    def change(self, old: str, new: str) -> None:
        path = self.root / "params.yaml"
        path.write_text(path.read_text().replace(old, new))

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "unveil", "sweep", *words],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def sweep(self, *words: str, status: int = 0) -> str:
        process = self.begin(*words)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == status, said
        return said

    def state(self) -> tuple[str, ...]:
        """All that a sweep must leave alone."""
        asked = (["status", "--porcelain", "--branch"], ["diff"], ["stash", "list"], ["rev-parse", "HEAD"])
        return tuple(git(self.root, *words) for words in asked)

    def experiments(self) -> set[str]:
        found = git(self.root, "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").splitlines()
        return {name for name in found if name}

    def called(self) -> list[str]:
        return self.calls.read_text().split()


@pytest.fixture
def tiny(tmp_path: Path, repository: Path) -> Tiny:
    return Tiny(tmp_path / "a project", repository)


def until(condition: Callable[[], object]) -> None:
    waiting_until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < waiting_until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_goes_on_after_failure_and_death_and_leaves_the_workspace_alone(tiny: Tiny) -> None:
    before = tiny.state()
    words = ("-S", "train.lr=1e-3,2e-3,3e-3")
    (tiny.calls.parent / "fails-0.001").touch()
    (tiny.calls.parent / "waits-0.002").touch()
    sweep = tiny.begin(*words)
    until(lambda: tiny.calls.exists() and "0.002" in tiny.called())
    sweep.kill()  # its experiment lives on
    sweep.wait()
    assert "in use by process" in tiny.sweep(*words, status=1)
    (holder,) = tiny.root.glob(".dvc/tmp/exps/sweeps/*.lock")
    experiment = psutil.Process(int(holder.read_text()))
    settings = Config(str(holder.with_suffix("") / ".dvc"))
    assert not (holder.with_suffix("") / ".dvc" / "config.local").stat().st_mode & 0o077
    places = {name: settings["remote"][name]["url"] for name in ("store", "other")}
    assert places == {name: str(tiny.root.parent / name) for name in places}
    assert settings["cache"]["dir"] == str(tiny.root / ".dvc" / "cache")
    (tiny.calls.parent / "waits-0.002").unlink()
    until(lambda: not experiment.is_running() or experiment.status() == psutil.STATUS_ZOMBIE)

    said = tiny.sweep(*words, status=1)
    assert "error: lr=0.001 failed" in said and "lr=0.002: finished" in said
    assert tiny.called() == ["0.001", "0.002", "0.001", "0.003"]
    (tiny.calls.parent / "fails-0.001").unlink()
    tiny.sweep(*words)
    assert tiny.called()[4:] == ["0.001"]
    assert tiny.experiments() == {"lr=0.001", "lr=0.002", "lr=0.003"}
    assert tiny.state() == before
    assert not holder.with_suffix("").exists()
    table = (tiny.root / "reports/sweeps/lr/sweep.md").read_text().splitlines()
    assert cells(table[2]) == ["0.001", "1", "0.9 to 1.1", "`lr=0.001`"] and len(table) == 5
    assert (tiny.root / "reports/sweeps/lr/sweep.png").stat().st_size > 1000
    # What was changed and not committed is part of each.
    commit = git(tiny.root, "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/lr=0.001")
    assert json.loads(git(tiny.root, "show", f"{commit}:metrics/evaluate.json"))["num_samples"] == 2001

    tiny.change("num_samples: 2001", "num_samples: 2002")
    said = tiny.sweep(*words, status=1)
    assert "found an experiment of this name with other parameters" in said


@pytest.mark.long
def test_a_stopped_sweep_stops_its_stage(tiny: Tiny) -> None:
    (tiny.calls.parent / "waits-0.002").touch()
    sweep = tiny.begin("-S", "train.lr=2e-3")
    until(tiny.calls.exists)
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 128 + signal.SIGTERM and "the same command goes on" in said
    assert tiny.experiments() == set()


def test_what_cannot_be_run_is_told_before_anything_runs(tiny: Tiny) -> None:
    assert "lr=-1: params.yaml" in tiny.sweep("-S", "train.lr=1e-3,-1", status=1)
    said = tiny.sweep("-S", "train.nope=1", status=1)
    assert "train.nope: unknown key" in said and "+train" not in said
    many = [word for number in range(40) for word in ("-S", f"train.diffusion.a_long_enough_name_{number}=1")]
    assert "unknown key" in tiny.sweep(*many, status=1)
    assert "lr=0.002: to run" in tiny.sweep("-S", "train.lr=1e-3,2e-3", "--dry")
    assert not tiny.calls.exists()
    assert not [path for path in tiny.root.glob(".dvc/tmp/exps/sweeps/*") if path.is_dir()]


def test_a_plot_has_an_interval_for_each_point(tmp_path: Path) -> None:
    rows = [
        [lr, sampler, 1.0, 0.5, 2.0, f"{lr},{sampler}"]
        for lr in ("1e-05", "0.01", "0.003")
        for sampler in ("ddim", "heun")
    ]
    rows[0][3:5] = math.nan, math.nan
    rows[1][3:5] = 1.1, 1.2  # an interval beside its value, as a biased estimate's
    frame = DataFrame(rows, columns=["lr", "sampler", "fid", "low", "high", "experiment"])
    (axes,) = draw("fid", frame).axes
    assert axes.get_legend_handles_labels()[1] == ["sampler = ddim", "sampler = heun"]
    assert axes.get_xscale() == "log" and len(axes.containers) == 2
    assert cells(write_report("fid", frame, tmp_path).splitlines()[2]) == ["1e-05", "ddim", "1", "", "`1e-05,ddim`"]
    assert draw("fid", frame.assign(lr="a word")).axes[0].get_xscale() == "linear"


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:-1]]
