"""Several processes give what one gives: losses, weights, samples; and a run may go on with another number."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from tests.training.test_stage_train import ROOT, make_project, set_params

from unveil.distributed import Processes
from unveil.params import load_params
from unveil.recipes import apply_recipe

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
    "PYTHONPATH": str(ROOT / "src"),
    "UNVEIL_TRACKING": "off",
    "OMP_NUM_THREADS": "1",
}
COMMON = {
    "precision": "fp32",
    "batch_size": 30,
    "images": 300,
    "gradient_accumulation": 2,
    "preview_every_images": 0,
    "augment": 0.3,
}


def _command(stage: str, processes: int) -> list[str]:
    """As ``accelerate launch`` and torchrun start it."""
    runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *runner, str(ROOT / "stages" / f"{stage}.py")]


def _run(project: Path, stage: str, processes: int) -> str:
    command = _command(stage, processes)
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _losses(project: Path) -> list[float]:
    """And the norms of the gradient."""
    with (project / "plots" / "train" / "curves.csv").open(newline="") as stream:
        return [float(row[key]) for row in csv.DictReader(stream) for key in ("loss", "grad_norm")]


def _children(parent: int) -> list[int]:
    return [child.pid for child in psutil.Process(parent).children(recursive=True)]


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _attentive() -> None:
    """What a shell starts in the background ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("alone") / "project")
    set_params(project, **COMMON)
    _run(project, "train", 1)
    _run(project, "sample", 1)
    return project


@pytest.mark.slow
def test_two_processes_of_accelerate_or_torchrun_give_the_losses_and_samples_of_one(
    alone: Path, tmp_path: Path
) -> None:
    """With accelerate's ``--cpu`` instead of ``--multi_gpu`` there would be one process, whatever is asked for."""
    pytest.importorskip("accelerate", reason="needs accelerate, which the dependencies for development bring")
    project = make_project(tmp_path / "project")
    set_params(project, **COMMON, device="cpu")
    (project / ".git").mkdir()
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    environment = {**ENVIRONMENT, "HF_HOME": str(tmp_path), "UNVEIL_TRACKING": ""}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [*launch, str(ROOT / "stages" / "train.py")]
    done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("in 2 processes") == 1
    assert _losses(project) == pytest.approx(_losses(alone), rel=1e-5)
    _assert_same_weights(project, alone)
    _assert_one_run_with_the_curve_of(project)

    (project / "models" / "model.safetensors").write_bytes((alone / "models" / "model.safetensors").read_bytes())
    assert _run(project, "sample", 2).count("look at") == 1
    files = [folder / "samples" / "samples.safetensors" for folder in (project, alone)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (project / "samples" / "grid.png").read_bytes() == (alone / "samples" / "grid.png").read_bytes()


def _assert_same_weights(project: Path, alone: Path) -> None:
    ours, theirs = (load_file(folder / "models" / "model.safetensors") for folder in (project, alone))
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=1e-4), name


def _assert_one_run_with_the_curve_of(project: Path) -> None:
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "loss")
    with (project / "plots" / "train" / "curves.csv").open(newline="") as stream:
        assert [point.step for point in points] == [int(row["images"]) for row in csv.DictReader(stream)]
    assert run.data.metrics["memory_gib"] > 0


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    set_params(project, **COMMON, checkpoint_every_images=60)
    command = [*_command("train", 2)]
    process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list((project / ".unveil").glob("checkpoints/*/step-*/state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    for number in [process.pid, *_children(process.pid)]:  # as a scheduler does: those that get it, get it twice
        os.kill(number, signal.SIGTERM)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode != 0
    assert said.count("error: train was stopped by SIGTERM; ") == said.count("run the same command to go on") == 1
    assert "None has all" not in said
    assert "going on from step" in _run(project, "train", 1)
    _assert_same_weights(project, alone)


@pytest.mark.slow
def test_plain_dvc_uses_the_processes_that_params_yaml_asks_for_and_ctrl_c_ends_all(
    alone: Path, tmp_path: Path
) -> None:
    """The signal goes to the one process that a shell or a scheduler knows of; the same command then goes on."""
    project = make_project(tmp_path / "project")
    set_params(project, **COMMON, checkpoint_every_images=60)
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("processes: 0", "processes: 2"))
    assert load_params(project / "params.yaml").launch.processes == 2
    process = subprocess.Popen(
        _command("train", 1),
        cwd=project,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_attentive,
    )
    while not list((project / ".unveil").glob("checkpoints/*/step-*/state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    children = _children(process.pid)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + signal.SIGINT, said
    assert said.count("error: train was stopped by SIGINT; ") == said.count("run the same command") == 1
    assert "Traceback" not in said
    assert len(children) >= 2 and not any(_is_alive(child) for child in children)

    said = _run(project, "train", 1)
    assert "in 2 processes" in said and "going on from step" in said
    _assert_same_weights(project, alone)
    assert json.loads((project / "models" / "run.json").read_text())["stage"] == "train"
    apply_recipe("smoke", project / "params.yaml")


def test_the_parts_are_the_whole() -> None:
    for count in range(1, 9):
        for things in range(20):
            parts = [list(range(things))[Processes(rank, count).part(things)] for rank in range(count)]
            assert [thing for part in parts for thing in part] == list(range(things))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_agrees_with_itself() -> None:
    one = Processes()
    rows = torch.arange(6).reshape(3, 2)
    assert one.is_main and one.agree(1.5, True) == [1.5, True] and one.from_main("x") == "x"
    gathered = one.gather(rows)
    assert gathered is not None and torch.equal(gathered, rows)
    assert torch.equal(one.sum(rows), rows)
