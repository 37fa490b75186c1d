"""``unveil register``: versions, the champion among them, and models of other weights, in a real registry."""

import shutil
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, Run
from mlflow.entities.model_registry import ModelVersion
from tests.evaluation.card.cards import FLAT, card
from tests.run.conftest import client_of
from typer.testing import CliRunner, Result

from unveil.averages import save_snapshot, write_averages
from unveil.cli.main import app
from unveil.diffusion.config import Diffusion
from unveil.files import file_digest
from unveil.model import ModelConfig, load_denoiser, save_model
from unveil.networks.config import UNetConfig
from unveil.run.registry import DESCRIPTION
from unveil.run.store import Store
from unveil.serving.package import packaged
from unveil.weights import WeightsChoice


@pytest.fixture
def name(project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own in the store that tests share."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # which is put back
    monkeypatch.setattr("unveil.serving.package.packaged", packed)
    Store.locate(project).open()  # which makes the experiment
    return str(request.node.name).removeprefix("test_")


def packed(models: Path, into: Path) -> Path:
    """In the place of the real one, which takes longer."""
    shutil.copytree(models, into / "models", dirs_exist_ok=True)
    (into / DESCRIPTION).write_text("flavors: {}")
    shutil.copyfile(models.parent / "params.yaml", into / "params.yaml")
    return into


def write_models(folder: Path) -> None:
    """A tiny model with two snapshots."""
    config = UNetConfig(image_size=8, channels=32, channel_multipliers=(1,), blocks=1, attention_resolutions=())
    flow = Diffusion(path="flow", parameterization="x0", objective="flow")
    whole = ModelConfig(config, flow, {"source": "cartoon"}, {"images": 300, "ema_half_life_images": 50})
    network = whole.build().network
    save_model(folder, network, whole)
    paths = []
    for images in (100, 300):
        paths.append(folder.parent / "scratch" / f"{images}.safetensors")
        averages = {name: torch.full_like(value, images / 1000) for name, value in network.named_parameters()}
        save_snapshot(paths[-1], images, {0.05: averages, 0.1: averages})
    digest = file_digest(folder / "model.safetensors")
    write_averages(folder / "averages", 300, 0.0, [], (0.05, 0.1), paths, digest)


def train(project: Path, described: bool = True, ended: bool = True) -> LoggedModel:
    """A train run with the model in ``models/``; if it is ``described``, as MLflow loads it."""
    write_models(project / "models")
    client = client_of(project)
    run = new_run(client, "train")
    digest = file_digest(project / "models" / "model.safetensors")
    model = client.create_logged_model(
        run.info.experiment_id,
        "denoiser",
        run.info.run_id,
        {"unveil.weights.sha256": digest},
        {"train.lr": "0.1"},
        "denoiser",
    )
    folder = packed(project / "models", project / "packed")
    if not described:
        (folder / DESCRIPTION).unlink()
    client.log_model_artifacts(model.model_id, str(folder))
    return client.finalize_logged_model(model.model_id, "READY") if ended else model


def evaluated(project: Path, model: LoggedModel | None, fid: float, digest: str | None = None, **changes: Any) -> str:
    """An evaluate run of the model with a card of this FID; its id."""
    digest = digest or (model.tags["unveil.weights.sha256"] if model is not None else None)
    flat = FLAT | {"fid": fid, "fid_low": fid - 0.1, "fid_high": fid + 0.1}
    card(flat, **{"model": {"weights_sha256": digest}} | changes).save(project / "card.json")
    client = client_of(project)
    run_id: str = new_run(client, "evaluate").info.run_id
    if model is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    client.log_artifact(run_id, str(project / "card.json"))
    client.set_terminated(run_id)
    return run_id


def new_run(client: MlflowClient, stage: str) -> Run:
    experiment = client.get_experiment_by_name("unveil")
    assert experiment is not None
    return client.create_run(experiment.experiment_id, tags={"unveil.stage": stage})


def register(name: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["register", *arguments, "--name", name])


def said(name: str, *arguments: str) -> list[str]:
    done = register(name, *arguments)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))


def test_the_alias_moves_to_what_is_better_and_stays_for_all_else(project: Path, name: str) -> None:
    client, model = client_of(project), train(project)
    first = evaluated(project, model, 12.0)
    line, alias = said(name, first)
    assert line == f"version 1 of {name}: models:/{model.model_id}, ema weights, fid 12 (11.9 to 12.1)"
    assert alias == "champion: version 1: the first"
    assert said(name, first) == [line, "champion: version 1 is it already"]

    client.set_tag(first, "dvc.exp_name", f"exp-{first}")
    assert said(name, f"exp-{first}")[0] == line  # by name too

    noise = said(name, evaluated(project, model, 12.01))
    assert noise[1].startswith("champion: version 1 stays: fid 12.01") and "within noise" in noise[1]
    other = said(name, evaluated(project, model, 5.0, data={"protocol": "gan"}))
    assert "version 1 stays: fid cannot be compared: data.protocol is ddim in A and gan in B" in other[1]
    better = evaluated(project, model, 11.0)
    assert said(name, better)[1].startswith("champion: version 4: fid 11")
    assert said(name, first)[1].startswith("champion: version 4 stays: fid 12")
    assert said(name, better, "--metric", "kid")[1] == "champion: version 4 is it already"

    assert [int(version.version) for version in versions(client, name)] == [1, 2, 3, 4]
    version = client.get_model_version_by_alias(name, "champion")
    assert version.run_id == better and version.source == f"models:/{model.model_id}"
    tags = {"unveil.run": better, "fid": "11.0", "fid_low": "10.9", "sampling.sampler": "heun", "sampling.steps": "18"}
    assert tags.items() <= version.tags.items()
    assert version.tags["unveil.weights.sha256"] == model.tags["unveil.weights.sha256"]
    linked = client.get_logged_model(model.model_id).tags["mlflow.modelVersions"]
    assert linked.count(name) == 4
    found = mlflow.artifacts.download_artifacts(f"models:/{name}@champion", tracking_uri=client.tracking_uri)
    assert (Path(found) / DESCRIPTION).exists()


def test_a_champion_without_a_card_keeps_the_alias(project: Path, name: str) -> None:
    client, model = client_of(project), train(project)
    client.create_registered_model(name)
    client.create_model_version(name, model.artifact_location, model.source_run_id)
    client.set_registered_model_alias(name, "champion", "1")
    assert "version 1 stays: its card cannot be had" in said(name, evaluated(project, model, 1.0))[1]
    client.delete_registered_model_alias(name, "champion")
    assert said(name, evaluated(project, model, 1.0))[1] == "champion: version 3: the first"


@pytest.mark.parametrize("here", [True, False], ids=["project", "download"])
def test_a_version_has_the_weights_that_were_measured(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    if not here:
        monkeypatch.setattr("unveil.serving.package.packaged", packaged)
        monkeypatch.setattr("tests.cli.test_register.packed", packaged)
        params = project / "params.yaml"  # of an experiment that samples with this average, so that MLflow has it
        params.write_text(params.read_text().replace("  weights: ema", "  weights: power:0.1"))
    client, model = client_of(project), train(project)
    run = evaluated(project, model, 12.0, sampling={"weights": "power:0.1"})
    with (project / "params.yaml").open("a") as params_file:
        params_file.write("# changed since\n")
    if not here:
        shutil.rmtree(project / "models")
    line, alias = said(name, run)
    assert "power:0.1 weights, fid 12" in line and alias == "champion: version 1: the first"
    assert said(name, run)[0] == line
    (version,) = versions(client, name)
    made = client.get_logged_model(str(version.source).removeprefix("models:/"))
    assert made.source_run_id == model.source_run_id and made.params["train.lr"] == "0.1"
    folder = Path(made.artifact_location.removeprefix("file://"))
    usual = (folder / "params.yaml").read_text()
    assert "changed since" not in usual and "  weights: ema" in usual
    weights = load_denoiser(folder / "models").network.state_dict()
    write_models(project / "models")
    expected = load_denoiser(project / "models", weights=WeightsChoice("power", 0.1)).network.state_dict()
    assert {key: value.tolist() for key, value in weights.items()} == {k: v.tolist() for k, v in expected.items()}
    assert version.tags["unveil.weights.sha256"] == file_digest(folder / "models" / "model.safetensors")


def test_other_weights_than_those_measured_are_a_version_that_is_no_champion(project: Path, name: str) -> None:
    client, model = client_of(project), train(project)
    run = evaluated(project, model, 12.0)
    done = said(name, run, "--weights", "all-snapshots")
    assert [line.rpartition(": ")[0] for line in done] == ["snapshot:100", "snapshot:300"]
    assert said(name, run, "--weights", "all-snapshots") == done
    line, alias = said(name, run, "--weights", "snapshot:100")
    assert f"version 1 of {name}: {done[0].partition(': ')[2]}, snapshot:100 weights" in line and "fid" not in line
    assert alias.startswith("champion: none: these weights were not measured: `dvc exp run -S sample.weights=snapshot")
    assert "fid" not in versions(client, name)[0].tags
    outputs = client.get_run(str(model.source_run_id)).outputs
    assert outputs is not None and {output.step for output in outputs.model_outputs} == {100, 300}


def test_what_cannot_be_registered_is_said_in_one_line(project: Path, name: str) -> None:
    old, half = train(project, described=False), train(project, ended=False)
    model = train(project)
    good = evaluated(project, model, 12.0)
    for arguments, line in (
        ([evaluated(project, old, 12.0)], f"found no {DESCRIPTION}, by which MLflow loads"),
        (
            [evaluated(project, half, 12.0)],
            "status PENDING, expected READY: its upload did not end; `unveil sync`",
        ),
        ([evaluated(project, None, 12.0)], "found no model in its lineage"),
        ([evaluated(project, model, 12.0, "abcd")], "found a card of weights abcd, expected "),
        ([str(old.source_run_id)], "found no card.json in this run of the train stage"),
        ([good, "--metric", "fid_dinov2"], "--metric: found 'fid_dinov2', expected one of its card's: fid, kid"),
        ([good, "--weights", "best"], "--weights: found 'best', expected ema | half-life:N"),
        ([good, "--weights", "snapshot:200"], "found snapshots 100, 300, expected snapshot:200"),
        (["nowhere"], "nowhere"),
    ):
        done = register(name, *arguments)
        assert done.exit_code == 1 and line in done.output
        assert len(done.output.strip().splitlines()) == 1
    done = CliRunner().invoke(app, ["register", good, "--name", "a/b"])
    assert done.exit_code == 1 and "a/b" in done.output and len(done.output.strip().splitlines()) == 1
    assert not [model for model in client_of(project).search_registered_models() if model.name in (name, "a/b")]
