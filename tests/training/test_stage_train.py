"""The train stage: what it writes, and that a run which was stopped ends as one that was not."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from stages import train
from unveil import precision
from unveil.averages import Averages
from unveil.data.shards import ShardIndex, write_shard
from unveil.diffusion.paths import EDM, VE, VPSDE, Flow, NoisePath, SubVP, VPCosine, VPLinear, VPSigmoid
from unveil.distributed import Processes
from unveil.model import ModelConfig, load_denoiser
from unveil.params import load_params
from unveil.recipes import apply_recipe
from unveil.run.stage import Run
from unveil.training.assembly import shared_images
from unveil.training.loop import Trainer
from unveil.training.preview import preview_sampler
from unveil.training.progress import Progress
from unveil.weights import WeightsChoice

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16


def make_project(folder: Path) -> Path:
    """A folder with shards and the smoke recipe's parameters, in which the stage can run."""
    shards = folder / "data" / "shards"
    shards.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    shard = write_shard(shards, "train", 0, images, torch.zeros(50, 40, dtype=torch.bool), torch.arange(1, 51))
    held_out = write_shard(
        shards, "valid", 0, images[:40].flip(3), torch.zeros(40, 40, dtype=torch.bool), torch.arange(40)
    )
    splits = {"train": (shard,), "valid": (held_out,), "test": ()}
    ShardIndex.of(
        splits, (0.0,) * 3, (1.0,) * 3, source="cartoon", protocol="squash", image_size=SIZE, attributes=("Smiling",)
    ).save(shards)
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    apply_recipe("smoke", folder / "params.yaml")
    set_params(
        folder,
        images=320,
        log_every_images=64,
        preview_every_images=128,
        checkpoint_every_images=128,
        validate_every_images=192,
        lr_schedule="constant",
        ema_more_half_lives=[10],
        ema_profiles=[0.05, 0.1],
        snapshot_every_images=96,
    )
    return folder


def set_params(folder: Path, **changes: Any) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["train"] |= changes
    yaml.dump(params, folder / "params.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    monkeypatch.chdir(make_project(tmp_path / "project"))
    return tmp_path / "project"


def _run() -> Result:
    return CliRunner().invoke(train.app, [])


def _curves(folder: Path) -> list[dict[str, str]]:
    """The curves, without what the clock decides."""
    with (folder / "plots" / "train" / "curves.csv").open(newline="") as stream:
        return [{key: row[key] for key in ("images", "loss", "grad_norm", "lr")} for row in csv.DictReader(stream)]


def _averages(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "models" / "averages").iterdir()}


def _stop_at(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C at a point of the curves."""

    def report(run: Run, point: Progress) -> None:
        if point.images == images:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "report", report)


def test_it_leaves_a_model_its_curves_and_its_previews(project: Path) -> None:
    done = _run()
    assert done.exit_code == 0, done.output
    assert [int(row["images"]) for row in _curves(project)] == [64, 128, 192, 256, 320]
    previews = sorted((project / "plots" / "train" / "previews").iterdir())
    assert [path.name for path in previews] == ["000000128.png", "000000256.png"]
    with Image.open(previews[0]) as picture:
        assert picture.size == (8 * (SIZE + 2) + 2, 3 * (SIZE + 2) + 2)

    config = ModelConfig.load(project / "models")
    index = ShardIndex.load(project / "data" / "shards")
    assert config.data == {"source": "cartoon", "protocol": "squash", "image_size": SIZE, "shards": index.digest()}
    assert config.network.image_size == SIZE
    assert config.training["images"] == 320 and config.training["precision"] in ("fp32", "bf16")
    denoised = load_denoiser(project / "models")(torch.randn(2, 3, SIZE, SIZE), torch.tensor([0.1, 10.0]))
    assert denoised.isfinite().all() and denoised.abs().max() > 0

    record = json.loads((project / "models" / "run.json").read_text())
    assert record["metrics"]["loss"] == pytest.approx(float(_curves(project)[-1]["loss"]), rel=1e-4)
    assert record["inputs"]["data/shards"] == index.digest()
    assert not list((project / ".unveil").rglob("*.safetensors"))

    averages = Averages.load(project / "models" / "averages")
    assert averages.images == 320
    assert [snapshot.images for snapshot in averages.snapshots] == [96, 192, 288, 320]
    for weights in (*averages.choices(), WeightsChoice("power", 0.07)):
        other = load_denoiser(project / "models", weights=weights)(torch.zeros(1, 3, SIZE, SIZE), torch.tensor([1.0]))
        assert other.isfinite().all()
        assert not torch.equal(other, load_denoiser(project / "models")(torch.zeros(1, 3, SIZE, SIZE), torch.ones(1)))


def test_without_further_averages_there_is_an_empty_folder_and_the_same_model(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _run()
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(make_project(tmp_path / "plain"))
    path, yaml = tmp_path / "plain" / "params.yaml", YAML(typ="safe")  # without comments, which lists would displace
    params = yaml.load(path)
    params["train"] |= {"ema_more_half_lives": [], "ema_profiles": [], "snapshot_every_images": 0}
    yaml.dump(params, path)
    done = _run()
    assert done.exit_code == 0, done.output
    model = "models/model.safetensors"
    assert (project / model).read_bytes() == (tmp_path / "plain" / model).read_bytes()
    assert [path.name for path in (tmp_path / "plain" / "models" / "averages").iterdir()] == ["index.json"]


@pytest.mark.parametrize(("stopped", "resumed"), [(192, 128), (256, 128), (320, 256)])
def test_stopped_and_run_again_is_the_same_model(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int, resumed: int
) -> None:
    with monkeypatch.context() as patch:
        _stop_at(stopped, patch)
        first = _run()
    assert first.exit_code == 130
    assert not (project / "models").exists()
    again = _run()
    assert again.exit_code == 0, again.output
    assert f"going on from step {resumed // 32} in {project / '.unveil' / 'checkpoints'}" in again.output
    assert f"at {resumed} images" in again.output

    monkeypatch.chdir(make_project(tmp_path / "whole"))
    whole = _run()
    assert whole.exit_code == 0 and "going on" not in whole.output
    for name in ("model.safetensors", "config.json"):
        assert (project / "models" / name).read_bytes() == (tmp_path / "whole" / "models" / name).read_bytes()
    assert _averages(project) == _averages(tmp_path / "whole")
    assert _curves(project) == _curves(tmp_path / "whole")


@pytest.mark.parametrize(("key", "value"), [("lr", 1e-5), ("seed", 1), ("batch_size", 16), ("gradient_clip", 0.5)])
def test_a_changed_parameter_starts_anew(
    project: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float
) -> None:
    with monkeypatch.context() as patch:
        _stop_at(192, patch)
        _run()
    set_params(project, **{key: value})
    done = _run()
    assert done.exit_code == 0 and "going on" not in done.output


def test_a_changed_length_goes_on_if_it_can(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for images, said in ((384, "going on from step 4"), (128, "images/s")):
        with monkeypatch.context() as patch:
            set_params(project, images=320)
            _stop_at(192, patch)
            _run()
        set_params(project, images=images)
        done = _run()
        assert done.exit_code == 0, done.output
        assert said in done.output
        assert ("going on" in done.output) == (images > 128)
        assert int(_curves(project)[-1]["images"]) == images


def test_a_changed_length_starts_anew_if_the_learning_rate_follows_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(project, lr_schedule="cosine")
    with monkeypatch.context() as patch:
        _stop_at(192, patch)
        _run()
    set_params(project, images=384)
    done = _run()
    assert done.exit_code == 0 and "going on" not in done.output
    assert float(_curves(project)[-1]["lr"]) == 0


@pytest.fixture
def attentive() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and under nohup SIGHUP; these tests need them heard."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("attentive")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_a_checkpoint_of_that_moment(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step = Trainer._step

    def interrupted(trainer: Trainer) -> Any:
        if trainer.step == 4:  # in the midst of the fifth step, between two points and two checkpoints
            os.kill(os.getpid(), number)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        first = _run()
    assert first.exit_code == 128 + number
    last = first.output.strip().splitlines()[-1]
    assert last.startswith(f"error: train was stopped by {number.name}; ")
    assert "step-00000005 has all 160 images so far: run the same command to go on" in last
    again = _run()
    assert again.exit_code == 0 and "going on from step 5 " in again.output

    monkeypatch.chdir(make_project(tmp_path / "whole"))
    assert _run().exit_code == 0
    weights = [(folder / "models" / "model.safetensors").read_bytes() for folder in (project, tmp_path / "whole")]
    assert weights[0] == weights[1]
    assert _curves(project) == _curves(tmp_path / "whole")


def test_minutes_end_it_cleanly(project: Path) -> None:
    set_params(project, max_minutes=1e-4)
    done = _run()
    assert done.exit_code == 0, done.output
    assert ModelConfig.load(project / "models").training["images_seen"] == 32
    assert [int(row["images"]) for row in _curves(project)] == [32]


def test_the_losses_of_both_splits_and_of_each_noise_level_are_plotted(project: Path) -> None:
    assert _run().exit_code == 0
    plots = project / "plots" / "train"
    with (plots / "validation.csv").open(newline="") as stream:
        assert [int(row["images"]) for row in csv.DictReader(stream)] == [192, 320]
    with (plots / "loss_by_sigma.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) >= 3


def test_a_damaged_shard_is_one_line(project: Path) -> None:
    shard = project / "data" / "shards" / "train-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    done = _run()
    assert done.exit_code == 1
    assert done.output.count("\n") == 1 and "error: " in done.output and "run the preprocess stage again" in done.output


def test_previews_stay_within_the_noise_levels_that_the_path_has() -> None:
    paths: list[NoisePath] = [EDM(), Flow(), VPLinear(), VPCosine(), VPSigmoid(), VPSDE(), SubVP(), VE(0.02, 180.0)]
    for path in paths:
        found = preview_sampler(path)
        assert (found.sigma_min, found.sigma_max) == pytest.approx((0.03, 80.0))
    short = VPLinear(500)  # the tutorial's: it ends at sigma 12
    assert preview_sampler(short).sigma_max == pytest.approx(float(short.sigmas[-1]))
    assert preview_sampler(short).sigma_min == pytest.approx(0.03)
    assert preview_sampler(VE(0.05, 20.0)).sigma_min == 0.05
    for quiet in (VPLinear(2, 1e-4, 2e-4), VPLinear(2, 1e-4, 1.1e-4)):  # their greatest sigma is below 0.03
        found = preview_sampler(quiet)
        assert quiet.sigma_range()[0] <= found.sigma_min < found.sigma_max <= quiet.sigma_range()[1]


@pytest.mark.parametrize(
    "parts",
    [
        {"path": "vp-cosine", "parameterization": "v", "objective": "min-snr"},
        {"path": "vp-sde", "parameterization": "v", "objective": "simple"},
        {"path": "sub-vp", "parameterization": "edm", "objective": "simple", "input_perturbation": 0.1},
        {"path": "ve", "parameterization": "x0", "objective": "flow", "flow_times": "uniform"},
    ],
    ids=lambda parts: parts["path"],
)
def test_other_paths_are_trained_and_previewed(project: Path, parts: dict[str, Any]) -> None:
    diffusion = YAML(typ="safe").load(project / "params.yaml")["train"]["diffusion"]
    set_params(project, images=64, preview_every_images=64, diffusion=diffusion | parts)
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["sample"]["sigma_max"] = 40.0  # within ve's range
    yaml.dump(params, project / "params.yaml")
    done = _run()
    assert done.exit_code == 0, done.output
    config = ModelConfig.load(project / "models").diffusion
    assert {key: getattr(config, key) for key in parts} == parts
    assert len(list((project / "plots" / "train" / "previews").iterdir())) == 1


def test_checkpoints_outlive_a_temporary_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = make_project(tmp_path / "main" / ".dvc" / "tmp" / "exps" / "standalone" / "tmpcopy")
    monkeypatch.chdir(copy)
    _stop_at(192, monkeypatch)
    assert _run().exit_code == 130
    assert not (copy / ".unveil").exists()
    assert list((tmp_path / "main" / ".unveil" / "checkpoints").glob("*/step-*/state.safetensors"))


def test_two_trainings_of_one_name_at_once_leave_each_others_checkpoints_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one runs whole while the first is between two of its steps."""
    outputs: list[str] = []

    def report(run: Run, point: Progress) -> None:
        if point.images == 192 and not outputs:
            outputs.append("")
            second = _run()
            assert second.exit_code == 0, second.output
            outputs[0] = second.output
            folders = sorted((project / ".unveil" / "checkpoints").glob("*/step-*"))
            assert [folder.name for folder in folders] == ["step-00000004"]  # the first's; the second's are removed

    monkeypatch.setattr(train, "report", report)
    first = _run()
    assert first.exit_code == 0, first.output
    assert "going on" not in outputs[0]
    assert not list((project / ".unveil").rglob("step-*"))


def test_other_code_starts_anew(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "code.py").write_text("one")
    (project / "dvc.yaml").write_text("stages: {train: {cmd: x, deps: [code.py]}}")
    with monkeypatch.context() as patch:
        _stop_at(192, patch)
        assert _run().exit_code == 130
    (project / "code.py").write_text("another")
    again = _run()
    assert again.exit_code == 0 and "going on" not in again.output


def test_other_arithmetic_of_the_optimizer_starts_anew_and_is_recorded(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(project, optimizer="muon")
    with monkeypatch.context() as patch:
        _stop_at(192, patch)
        patch.setattr(precision, "optimizer_precision", lambda optimizer, device: "fp32")
        assert _run().exit_code == 130
    monkeypatch.setattr(precision, "optimizer_precision", lambda optimizer, device: "bf16")
    again = _run()
    assert again.exit_code == 0 and "going on" not in again.output
    assert ModelConfig.load(project / "models").training["optimizer_precision"] == "bf16"


def test_threads_share_a_batch_that_one_process_trains_on_without_dropout(project: Path) -> None:
    settings = load_params(project / "params.yaml").train
    changes: dict[str, Any] = {"batch_size": 32, "gradient_accumulation": 2}
    settings = settings.model_copy(update=changes)
    assert shared_images(settings, 0.0, Processes()) == 16
    assert shared_images(settings, 0.0, Processes(0, 2)) == 0
    assert shared_images(settings.model_copy(update={"compile": True}), 0.0, Processes()) == 0
    assert shared_images(settings, 0.1, Processes()) == 0


def test_a_shorter_training_keeps_its_own_checkpoints(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the longer one that was stopped are in its way."""
    with monkeypatch.context() as patch:
        _stop_at(320, patch)
        _run()
    set_params(project, images=224)
    with monkeypatch.context() as patch:
        _stop_at(192, patch)
        _run()
    assert [path.name for path in (project / ".unveil" / "checkpoints").glob("*/step-*")] == ["step-00000004"]
    assert "going on from step 4" in _run().output


def test_less_time_than_was_spent_ends_it_with_its_last_point(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._step

    def interrupted(trainer: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        assert _run().exit_code == 128 + signal.SIGTERM
    set_params(project, max_minutes=1e-6)
    done = _run()
    assert done.exit_code == 0, done.output
    assert [row["images"] for row in _curves(project)] == ["32"]


def test_augmentation_is_one_key(project: Path) -> None:
    set_params(project, augment=0.15, channels_last=True)
    done = _run()
    assert done.exit_code == 0, done.output
    config = ModelConfig.load(project / "models")
    assert config.network.augment_labels == 9
    assert config.training["augment"] == 0.15
    assert config.training["tf32"] is (torch.cuda.is_available())
    assert config.training["channels_last"] is True  # and so in the name of its checkpoints
    assert load_denoiser(project / "models")(torch.randn(2, 3, SIZE, SIZE), torch.ones(2)).isfinite().all()
    metrics = json.loads((project / "models" / "run.json").read_text())["metrics"]
    assert {"memory_gib"} <= set(metrics) or {"gpu_memory_gib"} <= set(metrics)
