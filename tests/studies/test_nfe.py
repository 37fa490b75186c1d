"""The study of quality against evaluations: what it measures, that it goes on, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from studies.__main__ import app
from studies.nfe import Point, cases, reference_case, table, verdict
from typer.testing import CliRunner, Result

from studies import nfe
from unveil.data.shards import ShardIndex, write_shard
from unveil.diffusion.config import Diffusion, Sampler
from unveil.model import ModelConfig, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet

SIZE = 16
ARGUMENTS = ["--images", "6", "--reference-images", "8", "--evaluations", "3,5", "--batch-size", "4", "--no-reference"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and the shards that it says it was trained on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    folder = tmp_path / "data" / "shards"
    folder.mkdir(parents=True)
    shard = write_shard(folder, "train", 0, images, torch.zeros(8, 40, dtype=torch.bool), torch.arange(8))
    names = tuple(f"attribute {number}" for number in range(40))
    index = ShardIndex.of(
        {"train": (shard,)},
        (0.0,) * 3,
        (1.0,) * 3,
        source="cartoon",
        protocol="squash",
        image_size=SIZE,
        attributes=names,
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
        )
    )
    data = {"source": "cartoon", "protocol": "squash", "image_size": SIZE, "shards": index.digest()}
    save_model(
        tmp_path / "models",
        network,
        ModelConfig(network.config, Diffusion(path="flow", parameterization="x0", objective="flow"), data, {}),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["nfe", *ARGUMENTS, *arguments])


def points(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "reports" / "nfe" / "points.json").read_text())["points"]
    return found


def test_it_measures_writes_and_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("--samplers", "ddim,heun")
    assert done.exit_code == 0, done.output
    found = points(project)
    assert [(p["config"]["sampler"], p["nfe"]) for p in found] == [("ddim", 3), ("heun", 3), ("ddim", 5), ("heun", 5)]
    text = (project / "reports" / "nfe" / "nfe.md").read_text()
    assert f"| ddim | {found[0]['distance']:.2f} | {found[2]['distance']:.2f} |" in text
    with Image.open(project / "reports" / "nfe" / "nfe.png") as picture:
        assert picture.width > 500
    measured: list[Sampler] = []
    original = nfe.NfeStudy.measure

    def watched(study: nfe.NfeStudy, config: Sampler) -> Point:
        measured.append(config)
        return original(study, config)

    monkeypatch.setattr(nfe.NfeStudy, "measure", watched)
    assert run("--samplers", "ddim,heun,dpmpp-2m").exit_code == 0
    assert [config.sampler for config in measured] == ["dpmpp-2m", "dpmpp-2m"]
    assert points(project)[:4] == found


def test_a_point_does_not_depend_on_the_batch_size(project: Path) -> None:
    assert run("--samplers", "ddpm").exit_code == 0
    found = points(project)
    (project / "reports" / "nfe" / "points.json").unlink()
    assert run("--samplers", "ddpm", "--batch-size", "6").exit_code == 0
    for one, other in zip(found, points(project), strict=True):
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-2)


def test_what_does_not_fit_the_time_is_left_out_and_said(project: Path) -> None:
    assert run("--samplers", "ddim").exit_code == 0
    done = run("--samplers", "ddim,heun", "--budget", "0")
    assert done.exit_code == 0 and "left out: heun" in done.output
    assert len(points(project)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samplers", "huen"], "--samplers: found 'huen', expected ddpm"),
        (["--grids", "even"], "--grid: found 'even'"),
        (["--evaluations", "3,x"], "--evaluations: found '3,x', expected whole numbers"),
        (["--reference-images", "9"], "has 8 images"),
        (["--models", "elsewhere"], "elsewhere"),
        (["--sigma-min", "90", "--sigma-max", "80"], "--sigma-min: found 90, expected a number below --sigma-max, 80"),
        (["--sigma-min", "2000", "--sigma-max", "3000"], "that the model's path has (0.001 to 999)"),
        (["--samplers", "ddim,heun", "--grids", "karras,ddim-trailing"], "on grid ddim-trailing: grid ddim-trailing"),
    ],
)
def test_a_mistake_is_one_line(project: Path, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1 and words in done.output and done.output.count("\n") == 1


def _save(project: Path, diffusion: Diffusion, weight: float) -> None:
    model = ModelConfig.load(project / "models")
    network = UNet(model.network)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, weight)
    save_model(project / "models", network, ModelConfig(model.network, diffusion, model.data, {}))


def test_more_evaluations_than_timesteps_are_refused_before_anything_is_measured(project: Path) -> None:
    _save(project, Diffusion(path="vp-linear", parameterization="x0", objective="flow", timesteps=20), 0.0)
    done = run("--samplers", "ddim", "--grids", "ddim-trailing", "--evaluations", "5,21", "--sigma-min", "0.011")
    assert done.exit_code == 1 and "21 steps, but the path has 20 timesteps" in done.output, done.output
    assert done.output.count("\n") == 1 and not (project / "reports").exists()


@pytest.mark.parametrize("sampler", ["ddim", "rk45"])
def test_samples_that_are_not_finite_are_one_line(project: Path, sampler: str) -> None:
    _save(project, Diffusion(path="flow", parameterization="x0", objective="flow"), float("nan"))
    done = run("--samplers", sampler)
    assert done.exit_code == 1, done.output
    assert f"models/model.safetensors: samples of {sampler} with " in done.output and "train again" in done.output
    assert not (project / "reports").exists()


def test_points_of_another_study_are_not_mixed_with(project: Path) -> None:
    assert run("--samplers", "ddim").exit_code == 0
    done = run("--samplers", "ddim", "--seed", "1")
    assert done.exit_code == 1 and "measured with another seed" in done.output
    (project / "reports" / "nfe" / "points.json").write_text("{")
    done = run("--samplers", "ddim")
    assert done.exit_code == 1 and "not valid JSON" in done.output and done.output.count("\n") == 1


def test_a_model_of_other_shards_is_refused(project: Path) -> None:
    config = json.loads((project / "models" / "config.json").read_text())
    config["data"]["shards"] = "abc"
    (project / "models" / "config.json").write_text(json.dumps(config))
    done = run()
    assert done.exit_code == 1 and "trained on shards abc" in done.output


def test_every_case_takes_about_the_evaluations_that_were_asked_for() -> None:
    names = [
        "ddpm",
        "ddim",
        "euler",
        "heun",
        "euler-maruyama",
        "predictor-corrector",
        "dpmpp-2m",
        "dpmpp-2m-sde",
        "rk45",
    ]
    found = list(cases(names, ["karras", "uniform-t"], 0.1, 80.0, (5, 15, 36)))
    assert {config.sampler for config in found} == set(names)
    assert {config.grid for config in found} == {"karras", "uniform-t"}
    assert len(set(found)) == len(found)
    counts = {config.nfe for config in found if config.nfe is not None}
    assert counts == {5, 15, 36, 35}
    assert reference_case(0.1, 80.0).nfe == 1000


def point(sampler: Any, nfe: int, distance: float) -> Point:
    return Point(Sampler(sampler=sampler, steps=nfe, grid="karras"), nfe, distance, 1.0)


def test_the_verdict_compares_with_the_reference() -> None:
    few = [point("ddim", 35, 12.0), point("dpmpp-2m", 15, 10.4), point("dpmpp-2m", 35, 10.0)]
    assert "was not measured yet" in verdict(few, "fd")
    text = verdict([*few, point("ddpm", 1000, 10.0), point("ddim", 51, 1.0)], "fd")
    assert text == (
        "Best with at most 35 evaluations: dpmpp-2m with 35, fd 10.00, 0.0% below DDPM's 10.00 with 1000. "
        "Fewest within 5% of it: dpmpp-2m with 15, 10.40."
    )
    assert "None is within 5% of it" in verdict([*few, point("ddpm", 1000, 5.0)], "fd")
    assert "No sampler was measured" in verdict([point("ddim", 51, 1.0)], "fd")


def test_the_table_has_a_row_a_sampler_and_says_what_rk45_needed() -> None:
    adaptive = Point(Sampler(sampler="rk45", steps=2, grid="karras", rtol=0.01), 74, 9.5, 1.0)
    text = table([point("ddim", 35, 12.0), point("ddpm", 5, 40.0), point("ddim", 5, 30.0), adaptive])
    assert text.splitlines()[:4] == [
        "| sampler | 5 | 35 |",
        "| --- | ---: | ---: |",
        "| ddpm | 40.00 |  |",
        "| ddim | 30.00 | 12.00 |",
    ]
    assert "tolerance 0.01: 9.50 with 74 evaluations" in text
