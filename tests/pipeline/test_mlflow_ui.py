"""MLflow's pages, as `unveil ui` serves them, seen by a real browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tests.chromium import CHROMIUM, FLAGS
from tests.pipeline.conftest import Experiments, stage_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("experiments"),
    pytest.mark.browser,
]
PAGE_FLAGS = [
    "--window-size=1700,1100",
    "--virtual-time-budget=20000",
    "--dump-dom",
]
COMPARED = ("lower", "five", "six")
COLUMNS = (
    *("fd_efficientnet_lite0", "fd_efficientnet_lite0_fraction", "precision_efficientnet_lite0"),
    *("recall_efficientnet_lite0", "sample.sampler", "sample.steps", "sample.nfe"),
    *("train.images_seen", "train.optimizer", "train.lr"),
)
Page = Callable[[str, tuple[str, ...]], str]


@pytest.fixture(scope="module")
def server(experiments: Experiments, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which the pages are served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ui")
    # As the installed package has it: this Python may have another checkout's.
    (folder / "ui-0.dist-info").mkdir()
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]["mlflow.app"]
    lines = ["[mlflow.app]", *(f"{name} = {place}" for name, place in scripts.items())]
    (folder / "ui-0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "unveil", "ui", "--port", str(port)],
            cwd=experiments.root,
            env=os.environ | {"PYTHONPATH": f"{repository / 'src'}{os.pathsep}{folder}"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its workers end with it
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 180
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)
        assert f"{address}/#/experiments/1/runs" in log.read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def page(server: str, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Open a page and wait until it shows all of some texts; its HTML."""
    profile = tmp_path_factory.mktemp("profile")

    def show(route: str, expected: tuple[str, ...]) -> str:
        html = ""
        for _ in range(4):  # the first visit loads and compiles MLflow's scripts
            done = subprocess.run(
                [str(CHROMIUM), *FLAGS, *PAGE_FLAGS, f"--user-data-dir={profile}", f"{server}/#{route}"],
                capture_output=True,
                text=True,
                timeout=180,
            )
            html = unescape(done.stdout)
            if all(text in html for text in expected):
                return html
        missing = [text for text in expected if text not in html]
        raise AssertionError(f"{route} does not show {missing}: {re.sub('<[^>]+>', ' ', html)[-2000:]}")

    return show


@pytest.fixture(scope="module")
def views(server: str, experiments: Experiments, repository: Path) -> dict[str, str]:
    """The routes that `unveil ui` prints where the store is a server, by their titles."""
    done = subprocess.run(
        [sys.executable, "-m", "unveil", "ui", "--compare", *COMPARED],
        cwd=experiments.root,
        env=os.environ | {"PYTHONPATH": str(repository / "src"), "MLFLOW_TRACKING_URI": server},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(rf"^(.+): +{re.escape(server)}/#(\S+)$", done.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def by_name(experiments: Experiments) -> dict[tuple[str, str], Run]:
    """Runs by stage and experiment."""
    return {(stage_of(run), run.data.tags["dvc.exp_name"]): run for run in experiments.runs()}


def cells(html: str) -> list[str]:
    """The texts between tags."""
    return [text.strip() for text in re.split(r"<[^>]*>", html) if text.strip()]


def test_the_runs_table_names_every_run(page: Page, by_name: dict[tuple[str, str], Run]) -> None:
    names = tuple(f"{stage} {experiment}" for stage, experiment in by_name)
    assert len(names) == 9
    page("/experiments/1/runs?workflowType=machine_learning", (*names, "9", "denoiser-lower"))


def test_the_evaluations_are_sorted_by_distance(
    page: Page, views: dict[str, str], by_name: dict[tuple[str, str], Run]
) -> None:
    runs = {f"{stage} {name}": run for (stage, name), run in by_name.items() if stage == "evaluate"}
    texts = cells(page(views["Evaluations by distance"], (*runs, *COLUMNS, "Parameters")))
    shown = [text for text in dict.fromkeys(texts) if text in runs]
    assert shown == sorted(runs, key=lambda name: runs[name].data.metrics["fd_efficientnet_lite0"])
    assert "train lower" not in texts
    assert "Ask questions about your experiments" not in " ".join(texts)  # the assistant's pane


def test_the_trainings_are_shown_as_curves_and_their_previews_over_steps(
    page: Page, views: dict[str, str], by_name: dict[tuple[str, str], Run]
) -> None:
    curves = tuple(f"train lower ({key})" for key in ("loss", "validation_loss", "lr", "grad_norm"))
    page(views["Trainings as curves"], (*curves, "Training"))
    html = page(views["Previews over steps"], ("train lower", "get-artifact?path=images%2Fpreview%2Bstep%2B512%2B"))
    assert "No image logged at this step" not in html


def test_the_evaluate_run_shows_parameters_of_all_stages_and_its_metrics(
    page: Page, by_name: dict[tuple[str, str], Run]
) -> None:
    run = by_name["evaluate", "six"]
    html = page(f"/experiments/1/runs/{run.info.run_id}", ("fd_efficientnet_lite0", *run.data.params))
    texts = cells(html)
    for key in ("sample.steps", "train.lr", "download.cartoon.num_faces", "preprocess.protocol"):
        assert texts[texts.index(key) + 1] == run.data.params[key]
    for key in ("fd_efficientnet_lite0", "fd_efficientnet_lite0_floor"):
        assert float(texts[texts.index(key) + 1]) == pytest.approx(run.data.metrics[key], rel=1e-3)
    assert any("cartoon-32-score-sde" in text for text in texts)
    assert "denoiser-lower" in texts


def test_the_grid_is_shown_as_an_image(
    page: Page, server: str, experiments: Experiments, by_name: dict[tuple[str, str], Run]
) -> None:
    run_id = by_name["sample", "six"].info.run_id
    # The page makes the blob from the picture that it has fetched.
    page(f"/experiments/1/runs/{run_id}/artifacts/grid.png", ('<img alt="grid.png" src="blob:',))
    with urllib.request.urlopen(f"{server}/get-artifact?run_id={run_id}&path=grid.png") as answer:
        served = answer.read()
    stored = experiments.root / "mlruns" / run_id / "artifacts" / "grid.png"
    assert served == stored.read_bytes()
    assert served.startswith(b"\x89PNG")


def test_three_runs_can_be_compared(page: Page, views: dict[str, str], by_name: dict[tuple[str, str], Run]) -> None:
    names = tuple(f"{stage} {name}" for stage in ("sample", "evaluate") for name in COMPARED)
    texts = cells(page(views["Comparison"], (*names, "Parameters that differ", "Previews")))
    place = texts.index("sample.steps")
    assert {"4", "5", "6"} <= set(texts[place + 1 : place + 8])
    assert "train.lr" not in texts  # all three are of one training
    texts = cells(page(views["Parameters compared"], tuple(f"evaluate {name}" for name in COMPARED)))
    places = [index for index, text in enumerate(texts) if text == "sample.steps"]
    assert ["4", "5", "6"] in [texts[index + 1 : index + 4] for index in places]


def test_a_model_has_its_metrics_and_its_version(page: Page, server: str, by_name: dict[tuple[str, str], Run]) -> None:
    outputs = by_name["train", "lower"].outputs
    assert outputs is not None
    model_id, client = outputs.model_outputs[0].model_id, MlflowClient(server, server)
    client.create_registered_model("pages")
    client.create_model_version("pages", f"models:/{model_id}", model_id=model_id)
    client.set_registered_model_alias("pages", "champion", "1")
    wanted = ("denoiser-lower", "fd_efficientnet_lite0", "evaluate lower", "cartoon-32-score-sde")
    html = page(
        f"/experiments/1/models/{model_id}?workflowType=machine_learning", (*wanted, 'href="#/models/pages/versions/1"')
    )
    assert "Not registered" not in html
    page("/models/pages?workflowType=machine_learning", ("@\N{NO-BREAK SPACE}champion", "Version 1"))
