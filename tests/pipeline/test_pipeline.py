"""From nothing to the number: what `dvc repro` leaves on disk, in dvc.lock and in MLflow."""

import json
import math
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from PIL import Image
from safetensors import safe_open
from tests.pipeline.conftest import Project, Smoke, stage_of
from tests.serving.elsewhere import Elsewhere

from unveil.params import load_params
from unveil.run.dvc import declared_paths, paths_digest
from unveil.run.lineage import STAGES
from unveil.section import flatten
from unveil.tensors import load_tensors

pytestmark = pytest.mark.slow
# DVC locks the project, which these only look at: they must not do so at once.
one_after_another = pytest.mark.xdist_group("smoke")


@pytest.fixture(scope="session")
def runs(smoke: Smoke) -> dict[str, Run]:
    found = {stage_of(run): run for run in smoke.runs()}
    assert len(found) == len(smoke.runs())
    return found


@pytest.fixture
def changed(smoke: Smoke, tmp_path: Path) -> Project:
    """A project of its own, up to date and without runs."""
    return smoke.copy(tmp_path / "unveil")


@one_after_another
def test_every_stage_ran_once_and_left_what_dvc_yaml_says(smoke: Smoke) -> None:
    for name in (*STAGES, "card"):
        assert smoke.output.count(f"Running stage '{name}'") == 1
        for path in declared_paths(smoke.root / "dvc.yaml", name)[2]:
            assert (smoke.root / path).exists(), path


@one_after_another
def test_git_holds_the_metrics_and_dvc_the_rest(smoke: Smoke) -> None:
    shown = smoke.command("git", "status", "--porcelain", "--untracked-files=all")
    made = {line[3:] for line in shown.splitlines()}
    assert made <= {"dvc.lock", "metrics/evaluate.json"}
    assert "dvc.lock" in made


@one_after_another
def test_the_samples_are_images_and_the_metrics_are_numbers(smoke: Smoke) -> None:
    params = load_params(smoke.root / "params.yaml")
    size, count = params.preprocess.image_size, params.sample.num_samples
    with safe_open(smoke.root / "samples" / "samples.safetensors", "pt") as file:
        images = file.get_tensor("images")
    assert (str(images.dtype), tuple(images.shape)) == ("torch.uint8", (count, 3, size, size))
    assert images.float().std() > 5  # no blank pictures
    for picture in ("samples/grid.png", "samples/trajectory.png"):
        header = (smoke.root / picture).read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:24])
        assert header.startswith(b"\x89PNG")
        assert width >= size
        assert height >= size

    metrics = json.loads((smoke.root / "metrics" / "evaluate.json").read_text())
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values())
    assert metrics["num_samples"] == params.evaluate.num_images
    assert metrics["fd_efficientnet_lite0_floor"] < metrics["fd_efficientnet_lite0"]
    assert metrics["fd_efficientnet_lite0_floor"] < metrics["fd_efficientnet_lite0_noise"]


@one_after_another
def test_one_finished_run_a_stage_with_its_own_parameters(smoke: Smoke, runs: dict[str, Run]) -> None:
    assert set(runs) == set(STAGES) - {"oracle"}  # which has nothing to do without attributes
    params = flatten(load_params(smoke.root / "params.yaml"), read=True)
    del params["launch.processes"]  # decides no result
    commit = smoke.command("git", "rev-parse", "HEAD").strip()
    for name, run in runs.items():
        assert (run.info.status, run.info.run_name) == ("FINISHED", name)
        tags = run.data.tags
        assert (tags["git.commit"], tags["git.dirty"], tags["dvc.stage"]) == (commit, "false", name)
        assert "system/cpu_utilization_percentage" in run.data.metrics
        expected = {key: str(value) for key, value in params.items() if name in ("evaluate", key.split(".")[0])}
        assert run.data.params == expected


@one_after_another
def test_the_evaluate_run_is_the_whole_story(smoke: Smoke, runs: dict[str, Run]) -> None:
    run = runs["evaluate"]
    metrics = json.loads((smoke.root / "metrics" / "evaluate.json").read_text())
    assert metrics.items() <= run.data.metrics.items()
    assert run.data.metrics["train.loss"] == runs["train"].data.metrics["loss"]
    for name in set(STAGES) - {"oracle", "evaluate"}:
        assert run.data.tags[f"unveil.upstream.{name}"] == runs[name].info.run_id
    assert run.inputs is not None
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["cartoon-32-score-sde"]


@one_after_another
def test_what_one_stage_wrote_is_what_the_next_one_read(smoke: Smoke, runs: dict[str, Run]) -> None:
    links = 0
    for reader in runs.values():
        for key, digest in reader.data.tags.items():
            path = key.removeprefix("unveil.input.")
            for writer in runs.values():
                written = writer.data.tags.get(f"unveil.output.{path}")
                if path != key and written is not None:
                    assert digest == written, f"{path}: {stage_of(writer)} wrote another than {stage_of(reader)} read"
                    links += 1
    assert links >= 6
    raw = runs["download"].data.tags["unveil.output.data/raw"]
    assert raw == paths_digest(smoke.root, ["data/raw"])


@one_after_another
def test_the_curves_have_a_point_for_every_interval(smoke: Smoke, runs: dict[str, Run]) -> None:
    settings = load_params(smoke.root / "params.yaml").train
    points = smoke.client.get_metric_history(runs["train"].info.run_id, "loss")
    steps = [point.step for point in points]
    assert steps == list(range(settings.log_every_images, settings.images + 1, settings.log_every_images))
    assert all(math.isfinite(point.value) for point in points)


@one_after_another
def test_the_model_in_mlflow_is_the_model_on_disk(smoke: Smoke, runs: dict[str, Run]) -> None:
    outputs = runs["train"].outputs
    assert outputs is not None
    (output,) = outputs.model_outputs
    model = smoke.client.get_logged_model(output.model_id)
    folder = Path(model.artifact_location.removeprefix("file://"))
    for name in ("config.json", "model.safetensors"):
        assert (folder / "models" / name).read_bytes() == (smoke.root / "models" / name).read_bytes()
    assert (folder / "MLmodel").exists() and not list((smoke.root / ".unveil" / "packages").iterdir())
    on_model = {metric.key: metric.run_id for metric in model.metrics or []}
    assert on_model["fd_efficientnet_lite0"] == runs["evaluate"].info.run_id
    assert on_model["nfe"] == runs["sample"].info.run_id


@one_after_another
def test_the_model_in_mlflow_draws_the_samples_where_nothing_of_the_project_is(
    smoke: Smoke, runs: dict[str, Run], tmp_path: Path
) -> None:
    outputs = runs["train"].outputs
    assert outputs is not None
    (output,) = outputs.model_outputs
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{smoke.root}/mlflow.db"}
    settings = load_params(smoke.root / "params.yaml").sample
    rows = [{"seed": settings.seed, "count": 8}, {"seed": settings.seed, "first": 9}]
    drawn, _ = Elsewhere.made(tmp_path).draw(f"models:/{output.model_id}", rows, **store)
    samples = load_tensors(smoke.root / "samples" / "samples.safetensors", "")["images"]
    images = [np.asarray(Image.open(BytesIO(row["image"]))) for row in drawn]
    assert np.array_equal(np.stack(images), samples[[*range(8), 9]].permute(0, 2, 3, 1).numpy())


@one_after_another
def test_the_pictures_are_artifacts(smoke: Smoke, runs: dict[str, Run]) -> None:
    for name, file in (("sample", "grid.png"), ("sample", "trajectory.png"), ("evaluate", "card.md")):
        folder = smoke.root / "mlruns" / runs[name].info.run_id / "artifacts"
        assert (folder / file).stat().st_size > 0
    shown = {
        path.name.split("+timestamp+")[0]
        for name in ("preprocess", "train", "sample", "evaluate")
        for path in (smoke.root / "mlruns" / runs[name].info.run_id / "artifacts" / "images").glob("*.png")
    }
    figures = ("contact-sheet", "grid", "trajectory", "real-and-samples", "controls", "neighbours")
    assert shown == {f"{name}+step+0" for name in figures} | {"preview+step+256", "preview+step+512"}


@one_after_another
def test_dvc_shows_the_metrics_and_the_plots(smoke: Smoke) -> None:
    shown = smoke.json("metrics", "show", "--json")
    metrics = json.loads((smoke.root / "metrics" / "evaluate.json").read_text())
    assert shown[""]["data"]["metrics/evaluate.json"]["data"] == metrics

    said = smoke.dvc("plots", "show", "--out", "../plots")
    assert "failed" not in said.lower(), said
    page = (smoke.root / ".." / "plots" / "index.html").resolve()
    text = page.read_text(encoding="utf-8")
    for title in ("Training loss", "Learning rate", "Norm of the gradient", "Distance to real images"):
        assert f'id="plot-{title.replace(" ", "-")}' in text or title in text, title
    pictures = {path.name for path in (page.parent / "static").iterdir()}
    for name in ("samples_grid", "samples_trajectory", "real-and-samples", "contact-sheet"):
        assert any(name in picture for picture in pictures), name


@one_after_another
def test_a_second_repro_does_nothing(smoke: Smoke) -> None:
    before = len(smoke.runs())
    said = smoke.dvc("repro")
    assert "Data and pipelines are up to date." in said
    assert "Running stage" not in said
    assert len(smoke.runs()) == before


def test_sample_steps_rerun_sample_and_evaluate_only_and_back_nothing(changed: Project) -> None:
    before = {path: (changed.root / path).read_bytes() for path in ("samples/run.json", "metrics/run.json")}
    card = (changed.root / "reports" / "card.md").read_bytes()
    metrics = (changed.root / "metrics" / "evaluate.json").read_bytes()
    changed.set_params("  steps: 4 ", "  steps: 3 ")
    said = changed.dvc("repro")
    assert [name for name in STAGES if f"Running stage '{name}'" in said] == ["sample", "evaluate"]
    sample, evaluate = changed.runs()
    assert (stage_of(sample), stage_of(evaluate)) == ("sample", "evaluate")
    # The runs of the stages that DVC skipped are in another store; their records say it all.
    everything = flatten(load_params(changed.root / "params.yaml"), read=True)
    del everything["launch.processes"]  # decides no result
    assert evaluate.data.params == {key: str(value) for key, value in everything.items()}
    assert evaluate.data.params["sample.steps"] == "3"
    assert "unveil.model.missing" in evaluate.data.tags
    assert (changed.root / "metrics" / "evaluate.json").read_bytes() != metrics

    changed.set_params("  steps: 3 ", "  steps: 4 ")
    said = changed.dvc("repro")
    assert "Running stage" not in said  # both come from DVC's run cache, records and all
    assert len(changed.runs()) == 2
    assert {path: (changed.root / path).read_bytes() for path in before} == before
    assert (changed.root / "reports" / "card.md").read_bytes() == card
    assert (changed.root / "metrics" / "evaluate.json").read_bytes() == metrics


def test_a_stage_that_fails_says_why_in_one_line_and_its_run_is_failed(changed: Project) -> None:
    changed.set_params("  features: [efficientnet-lite0]", "  features: [inception]")
    changed.set_params("  weights: null ", "  weights: nowhere.pth ")
    said = changed.dvc("repro", fails=True)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "nowhere.pth" in line
    assert "Traceback" not in said
    (run,) = changed.runs()
    assert (stage_of(run), run.info.status) == ("evaluate", "FAILED")
    assert run.data.tags["unveil.error"] == line.removeprefix("error: ")
