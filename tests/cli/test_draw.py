"""The command: pictures that say how they were made, and refusals in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.serving.models import NETWORK, SIZE, save_conditional
from typer.testing import CliRunner, Result

from unveil.cli.main import app
from unveil.figures import PADDING, WHITE
from unveil.serving.studio import Studio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_conditional(tmp_path_factory.mktemp("project") / "models")


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["draw", "--models", str(folder), "--device", "cpu", "--steps", "3", *arguments])


def tiles(path: Path, columns: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """The images of a picture, and its facts."""
    with Image.open(path) as picture:
        facts = json.loads(picture.text["unveil"])  # type: ignore[attr-defined]
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    side = SIZE + PADDING
    rows = pixels[:, PADDING:, PADDING:].unfold(1, SIZE, side).unfold(2, SIZE, side)
    assert rows.shape[2] == columns
    return rows.permute(1, 2, 0, 3, 4).flatten(0, 1), facts


def test_a_picture_of_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces.png"
    done = call(folder, "--attributes", "-Bald,Smiling", "--count", "3", "--seed", "7", "--guidance", "2", str(out))
    assert done.exit_code == 0, done.output
    assert "images 0 to 2 of seed 7, not Bald, Smiling, guidance 2; heun, 3 steps" in done.output
    images, facts = tiles(out, 2)
    studio = Studio.load(folder, "cpu")
    asked = {"attributes": ["-Bald", "Smiling"], "count": 3, "seed": 7, "guidance": 2.0, "steps": 3}
    assert torch.equal(images[:3], studio.images(studio.request(asked)))
    assert (images[3] == WHITE).all()
    assert facts["model"] == studio.digest
    assert {key: facts[key] for key in asked} == asked


def test_rows_of_switches_and_a_strip_of_scales_share_their_noise(folder: Path, tmp_path: Path) -> None:
    out, studio = tmp_path / "rows.png", Studio.load(folder, "cpu")

    def drawn(**asked: Any) -> torch.Tensor:
        return studio.images(studio.request({"count": 2, "steps": 3, **asked}))

    assert call(folder, "--switch", "Smiling,Bald", "--attributes", "Bald", "--count", "2", str(out)).exit_code == 0
    images, facts = tiles(out, 4)
    assert facts["switch"] == ["Smiling", "Bald"]
    for row, name, other in ((0, "Smiling", ["Bald"]), (1, "Bald", [])):
        for column, sign in enumerate(("-", "")):
            assert torch.equal(images[4 * row + column : 4 * row + 4 : 2], drawn(attributes=[*other, sign + name]))
    assert call(folder, "--scales", "0,1,3", "--attributes", "Bald", "--count", "2", str(out)).exit_code == 0
    images, _ = tiles(out, 3)
    for column, scale in enumerate((0, 1, 3)):
        assert torch.equal(images[column::3], drawn(attributes=["Bald"], guidance=scale))
    assert torch.equal(images[0::3], drawn())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("faces.jpg",), "faces.jpg: found the suffix .jpg, expected .png"),
        (("--attributes", "Smilling", "x.png"), "attributes: found Smilling, did you mean Smiling?"),
        (("--switch", "Blad", "x.png"), "switch: found Blad, did you mean Bald?"),
        (("--scales", "1,two", "x.png"), "--scales: found 1,two, expected numbers such as 0,1,2,4"),
        (("--scales", "1,2", "--switch", "Bald", "x.png"), "scales: found [1.0, 2.0], expected [] with switch"),
        (("--set", "gird=karras", "x.png"), "gird: unknown key, did you mean grid?"),
        (("--set", "grid", "x.png"), "--set: found grid, expected key=value"),
        (("--set", "sigma_max=[", "x.png"), "--set sigma_max:1: not valid YAML"),
        (("--count", "5000", "x.png"), "count: found 5000, expected a whole number in [1, 1024]"),
        (("--guide", "nowhere", "--guidance", "2", "x.png"), "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(folder, *arguments)
    assert done.exit_code == 1
    assert words in done.output
    assert len(done.output.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert NETWORK.attributes == ("Smiling", "Bald")


def test_what_cannot_be_drawn_is_said(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    done = call(folder, "--sampler", "rk45", "--set", "rtol=1e-300", "--set", "atol=1e-300", str(out))
    assert done.exit_code == 1
    assert "cannot be drawn by rk45" in done.output.splitlines()[-1]
    assert not out.exists()
