"""The stage's command: parameters in, data/raw and a run record out, and one line when it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML
from tests.data.archives import make_celeba

ROOT = Path(__file__).resolve().parents[2]


def run(project: Path, on_corrupt: str = "error", **download: object) -> subprocess.CompletedProcess[str]:
    """Run the stage in ``project`` with params.yaml's download section changed."""
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text())
    for key, value in download.items():
        section, _, name = key.rpartition("__")
        (params["download"][section] if section else params["download"])[name] = value
    params["preprocess"]["on_corrupt"] = on_corrupt
    if download["source"] == "folder":
        params["preprocess"]["protocol"] = "squash"  # the default crops CelebA's canvas
        params["train"]["attributes"] = []  # there is no table of them
    yaml.dump(params, project / "params.yaml")
    return subprocess.run(
        [sys.executable, str(ROOT / "stages" / "download.py")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "UNVEIL_TRACKING": "off"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_relative_path_is_meant_from_the_project(tmp_path: Path) -> None:
    make_celeba(tmp_path / "mine", num_images=10)
    done = run(tmp_path, source="celeba", celeba__path="mine")
    assert done.returncode == 0, done.stderr
    source = json.loads((tmp_path / "data/raw/source.json").read_text())
    assert source["images"] == 10
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("data/raw: 10 images")
    assert source["origin"] in last
    record = json.loads((tmp_path / "data/download.run.json").read_text())
    assert record["stage"] == "download"
    assert record["metrics"]["images"] == 10
    assert record["params"]["download.celeba.path"] == "mine"


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGBA", (30, 20 + number), (number, 2, 3, 200)).save(tmp_path / "photos" / f"{number}.png")
    done = run(tmp_path, source="folder", folder__path="photos")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "data/raw/source.json").read_text())["images"] == 5


def test_what_preprocess_is_to_do_about_unreadable_pictures_is_done_here_too(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (30, 20), (number, 2, 3)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    done = run(tmp_path, source="folder", folder__path="photos")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "1 of 7 images cannot be read: \\udcff.png (not an image" in done.stderr
    done = run(tmp_path, on_corrupt="skip", source="folder", folder__path="photos")
    assert done.returncode == 0, done.stderr
    assert "left out, 1 of 7 images cannot be read" in done.stdout
    assert json.loads((tmp_path / "data/raw/source.json").read_text())["images"] == 6


@pytest.mark.parametrize("old", [True, False])
def test_a_failure_is_one_line(tmp_path: Path, old: bool) -> None:
    if old:
        (tmp_path / "data/raw").mkdir(parents=True)
        (tmp_path / "data/raw/kept").write_text("x")
    done = run(tmp_path, source="celeba", celeba__path="nowhere")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "data/raw/kept").exists() == old
