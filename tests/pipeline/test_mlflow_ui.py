"""MLflow's pages, as `make ui` serves them, seen by a real browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
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
Page = Callable[[str, tuple[str, ...]], str]


@pytest.fixture(scope="module")
def server(experiments: Experiments, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which the pages are served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("ui") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "unveil", "ui", "--port", str(port)],
            cwd=experiments.root,
            env=os.environ | {"PYTHONPATH": str(repository / "src")},
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


def test_the_address_of_the_evaluations_shows_them_alone(page: Page, by_name: dict[tuple[str, str], Run]) -> None:
    filtered = "tags.%60unveil.stage%60%20%3D%20%27evaluate%27"
    route = f"/experiments/1/runs?workflowType=machine_learning&searchFilter={filtered}"
    html = page(route, tuple(f"{stage} {experiment}" for stage, experiment in by_name if stage == "evaluate"))
    assert "train lower" not in cells(html)


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


def test_two_runs_can_be_compared(page: Page, by_name: dict[tuple[str, str], Run]) -> None:
    pair = [by_name["evaluate", name] for name in ("five", "six")]
    ids = "%2C".join(f"%22{run.info.run_id}%22" for run in pair)
    html = page(f"/compare-runs?runs=%5B{ids}%5D&experiments=%5B%221%22%5D", ("evaluate five", "evaluate six"))
    texts = cells(html)
    places = [index for index, text in enumerate(texts) if text == "sample.steps"]
    assert ["5", "6"] in [texts[index + 1 : index + 3] for index in places]
