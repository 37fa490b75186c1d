"""The search for the best average: what it measures, that it goes on, and what it says to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tests.training.test_stage_train import ROOT
from typer.testing import CliRunner, Result

from stages import evaluate, sample
from unveil.averages import save_snapshot, write_averages
from unveil.cli import search as study
from unveil.cli.main import app
from unveil.cli.search import SearchPoint, half_life_deviation, table, verdict
from unveil.data.celeba import ATTRIBUTES
from unveil.data.shards import ShardIndex, write_shard
from unveil.diffusion.config import Diffusion
from unveil.model import ModelConfig, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.recipes import apply_recipe
from unveil.weights import WeightsChoice

SIZE = 16


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A tiny model with snapshots, the shards that it says it was trained on, and parameters to sample with.

    The model is told the attributes that a test names.
    """
    told: tuple[str, ...] = getattr(request, "param", ())
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "data" / "shards"
    folder.mkdir(parents=True)
    splits = {}
    for split in ("train", "test"):
        images = torch.randint(256, (8, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        shard = write_shard(folder, split, 0, images, torch.arange(320).reshape(8, 40) % 3 == 0, torch.arange(8))
        splits[split] = (shard,)
    index = ShardIndex.of(
        splits, (0.0,) * 3, (1.0,) * 3, source="cartoon", protocol="squash", image_size=SIZE, attributes=ATTRIBUTES
    )
    index.save(folder)
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(
            image_size=SIZE,
            channels=32,
            channel_multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            attention_head_channels=32,
            stem=4,
            attributes=told,
        )
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    data = {"source": "cartoon", "protocol": "squash", "image_size": SIZE, "shards": index.digest()}
    config = ModelConfig(
        network.config,
        Diffusion(path="flow", parameterization="x0", objective="flow"),
        data,
        {"ema_half_life_images": 50, "ema_rampup": 0.09},
    )
    save_model(tmp_path / "models", network, config)
    paths = []
    for number in range(1, 9):
        path = tmp_path / "scratch" / f"{number}.safetensors"
        scaled = {
            s: {name: (1 + s * number) * value.detach() for name, value in network.named_parameters()}
            for s in (0.05, 0.1)
        }
        save_snapshot(path, 100 * number, scaled)
        paths.append(path)
    state = load_file(tmp_path / "models" / "model.safetensors")
    write_averages(tmp_path / "models" / "averages", 800, 0.09, [(90, state)], (0.05, 0.1), paths)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    apply_recipe("smoke", tmp_path / "params.yaml")
    set_params(tmp_path, "sample", num_samples=8, batch_size=5, precision="fp32", grid_rows=2, grid_columns=4)
    set_params(tmp_path, "evaluate", num_images=8, reference_images=8, kid_subset_size=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    return tmp_path


def set_params(folder: Path, section: str, **changes: Any) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params[section] |= changes
    yaml.dump(params, folder / "params.yaml")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["averages", *arguments])


def points(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "reports" / "averages" / "points.json").read_text())["points"]
    return found


def test_it_measures_writes_and_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("search", "--weights", "ema,half-life:90")
    assert done.exit_code == 0, done.output
    found = points(project)
    assert [point["weights"] for point in found] == ["ema", "half-life:90"]
    assert found[0]["distance"] == found[1]["distance"]  # the same weights
    measured: list[str] = []
    original = study.Search.measure

    def watched(search: study.Search, choice: WeightsChoice) -> SearchPoint:
        measured.append(str(choice))
        return original(search, choice)

    monkeypatch.setattr(study.Search, "measure", watched)
    done = run("search", "--weights", "ema,half-life:90,power:0.07,half-life:60")
    assert done.exit_code == 0, done.output
    assert measured == ["power:0.07", "half-life:60"]
    found = points(project)
    assert found[2]["error"] > 0 == found[0]["error"]
    out = project / "reports" / "averages"
    best = json.loads((out / "best.json").read_text())
    assert best["distance"] == min(point["distance"] for point in found)
    assert f"weights: {best['weights']}" in (out / "averages.md").read_text()
    with Image.open(out / "averages.png") as picture:
        assert picture.width > 500


def test_a_point_is_what_the_stages_would_measure(project: Path) -> None:
    weights = "power:0.07"
    assert run("search", "--weights", weights).exit_code == 0
    set_params(project, "sample", weights=weights)
    for stage in (sample, evaluate):
        done = CliRunner().invoke(stage.app, [])
        assert done.exit_code == 0, done.output
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    assert points(project)[0]["distance"] == metrics["fd_efficientnet_lite0"]


@pytest.mark.parametrize("project", [("Smiling", "Bald")], indirect=True)
def test_of_a_conditional_model_too_a_point_is_what_the_stages_would_measure(project: Path) -> None:
    set_params(project, "train", attributes=["Smiling", "Bald"])
    set_params(project, "sample", attributes=["data"], guidance=2.0)
    done = run("search", "--weights", "ema")
    assert done.exit_code == 0, done.output
    for stage in (sample, evaluate):
        done = CliRunner().invoke(stage.app, [])
        assert done.exit_code == 0, done.output
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    assert points(project)[0]["distance"] == metrics["fd_efficientnet_lite0"]
    set_params(project, "sample", guidance=1.0)
    assert "measured with another guidance" in run("search", "--weights", "ema").output


def test_the_candidates_are_what_the_snapshots_reach(project: Path) -> None:
    said: list[str] = []
    params = study_params(project)
    search = study.Search(Path("models"), Path("data/shards"), project / "out", params, 8, 0, said.append)
    found = [str(choice) for choice in search.candidates()]
    assert found[:2] == ["ema", "half-life:90"]
    assert {"power:0.05", "power:0.1", "power:0.04", "power:0.16"} <= set(found)
    assert "power:0.02" not in found and "power:0.25" not in found
    assert "power:0.02" in said[0] and "power:0.25" in said[0]


def study_params(folder: Path) -> Any:
    from unveil.params import load_params

    return load_params(folder / "params.yaml")


def test_another_model_or_another_evaluation_is_another_search(project: Path) -> None:
    assert run("search", "--weights", "ema").exit_code == 0
    done = run("search", "--weights", "ema", "--images", "6")
    assert done.exit_code == 1 and "measured with another images" in done.output
    done = run("search", "--weights", "ema", "--seed", "1", "--out", "elsewhere")
    assert done.exit_code == 0
    set_params(project, "sample", steps=5)
    done = run("search", "--weights", "ema")
    assert done.exit_code == 1 and "measured with another sampler" in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "power:2"], "--weights: found 'power:2', expected ema | half-life:N | power:S"),
        (["--weights", ","], "--weights: found ','"),
        (["--weights", "snapshot:800"], "--weights: found snapshot:800, expected averages of the whole training"),
        (["--weights", "power:0.01"], "only with an error of"),
        (["--models", "nowhere"], "nowhere/config.json: not there"),
        (["--params", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(project: Path, arguments: list[str], said: str) -> None:
    done = run("search", *arguments)
    assert done.exit_code == 1 and said in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (project / "reports").exists()


def test_a_model_without_averages_has_nothing_to_search(project: Path) -> None:
    write_averages(project / "models" / "averages", 800, 0.09, [], [], [])
    done = run("search")
    assert done.exit_code == 1 and "found no averages" in done.output
    done = run("list")
    assert done.exit_code == 0
    assert done.output.splitlines() == ["ema: the model's own, half-life 50 images, after 800 images of training"]


def test_the_list_names_what_can_be_sampled_with(project: Path) -> None:
    done = run("list")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[1] == "half-life:90: stored in half-life-90.safetensors"
    assert lines[2] == "power:0.05, power:0.1: 8 snapshots, 100 to 800 images"
    assert lines[3].startswith("power:S with S from 0.03")


def test_what_is_best_is_said(project: Path) -> None:
    own, other = SearchPoint("ema", 0.1, 0, 0.2, 1.0), SearchPoint("power:0.07", 0.07, 0.01, 0.19, 1.0)
    assert "Best: power:0.07, fd 0.19, 5.0% below the model's own 0.2" in verdict([own, other], "fd")
    assert "`weights: power:0.07`" in verdict([own, other], "fd")
    assert "Keep `weights: ema`" in verdict([own, SearchPoint("power:0.2", 0.2, 0, 0.3, 1.0)], "fd")
    assert table([own, other]).splitlines()[2:] == [
        "| power:0.07 | 0.070 | 1.0% | **0.19** |",
        "| ema | 0.100 | 0.0% | 0.2 |",
    ]


def test_the_deviation_of_a_half_life() -> None:
    """Far from the ramp it is that of an exponential function, h / ln 2."""
    assert half_life_deviation(100, 0.09, 100_000) == pytest.approx(100 / 0.693147 / 100_000, rel=1e-3)
    assert half_life_deviation(0, 0.09, 1000) == 0
    assert half_life_deviation(100, 0.0, 1000) is None
