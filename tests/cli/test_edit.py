"""The commands: pictures in and out, what was done in words, and refusals in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.serving.models import SIZE, save_conditional
from torch import Tensor
from typer.testing import CliRunner, Result

from unveil.cli.main import app
from unveil.data.pixels import to_float, to_uint8
from unveil.data.resampling import resize
from unveil.diffusion import editing
from unveil.diffusion.config import Sampler
from unveil.diffusion.sampling import draw
from unveil.figures import PADDING
from unveil.files import file_digest
from unveil.model import ModelConfig, load_denoiser, save_model
from unveil.networks.condition import Condition
from unveil.serving.studio import Studio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_conditional(tmp_path_factory.mktemp("project") / "models")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two faces, one of the model's size, and a mask of its right half."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save("large.jpg", quality=95)
    Image.fromarray(pixels[:SIZE, :SIZE]).save("face.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, SIZE // 2 :] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["edit", arguments[0], "--models", str(folder), "--device", "cpu", *arguments[1:]])


def image_of(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def facts_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        facts: dict[str, Any] = json.loads(picture.text["unveil"])  # type: ignore[attr-defined]
    return facts


def test_the_known_part_of_a_picture_is_kept_bit_for_bit(folder: Path, here: Path) -> None:
    done = call(
        folder, "inpaint", "face.png", "mask.png", "out.png", "--steps", "3", "--seed", "5", "--attributes", "-Bald"
    )
    assert done.exit_code == 0, done.output
    assert f"face.png: {SIZE} x {SIZE} pixels, taken as it is" in done.output
    assert f"mask.png: 50% of the {SIZE} x {SIZE} pixels are painted" in done.output
    assert "out.png: inpaint, not Bald, seed 5; ddpm, 21 network evaluations an image" in done.output
    found, given, half = image_of(here / "out.png"), image_of(here / "face.png"), SIZE // 2
    assert torch.equal(found[..., :half], given[..., :half])
    assert not torch.equal(found[..., half:], given[..., half:])
    facts = facts_of(here / "out.png")
    assert facts["model"] == Studio.load(folder, "cpu").digest
    assert facts["given"] == [file_digest(here / "face.png")] and facts["mask"] == file_digest(here / "mask.png")
    assert (facts["kind"], facts["seed"], facts["steps"], facts["resamplings"]) == ("inpaint", 5, 3, 10)


def test_a_picture_gets_other_attributes_by_way_of_its_noise(folder: Path, here: Path) -> None:
    arguments = ["face.png", "out.png", "--attributes", "Smiling", "--known", "-Smiling", "--guidance", "2"]
    done = call(folder, "attributes", *arguments, "--steps", "6", "--beside")
    assert done.exit_code == 0, done.output
    given, picture = image_of(here / "face.png"), image_of(here / "out.png")
    assert torch.equal(picture[:, PADDING : PADDING + SIZE, PADDING : PADDING + SIZE], given)
    denoiser, facts = load_denoiser(folder), facts_of(here / "out.png")
    sampler = Sampler(**{key: facts[key] for key in Sampler.model_fields if key in facts})
    yes, no = (Condition(attributes=torch.tensor([[sign, 0]], dtype=torch.int8)) for sign in (1, -1))

    def guided(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return 2 * denoiser(x, sigma, condition) - denoiser(x, sigma)

    how: dict[str, Any] = {"path": denoiser.path, "inverse": denoiser, "known": no, "condition": yes}
    *_, last = editing.edit(guided, sampler, 0, to_float(given)[None], **how)
    found = picture[:, PADDING : PADDING + SIZE, 2 * PADDING + SIZE : -PADDING]
    assert (found.int() - to_uint8(last.x[0]).int()).abs().max() <= 1
    assert "edit, Smiling, seed 0; ddim," in done.output


def test_between_two_pictures_are_others_and_the_ends_are_the_two(folder: Path, here: Path) -> None:
    done = call(folder, "interpolate", "large.jpg", "face.png", "out.png", "--count", "4", "--steps", "100")
    assert done.exit_code == 0, done.output
    assert f"large.jpg: 60 x 40 pixels, its central 40 x 40 pixels resized to {SIZE} x {SIZE}" in done.output
    assert facts_of(here / "out.png")["count"] == 4
    tiles = image_of(here / "out.png")[:, PADDING:-PADDING, PADDING:].unfold(2, SIZE, SIZE + PADDING)
    with Image.open("large.jpg") as large:
        first = torch.tensor(resize(np.asarray(large)[:, 10:50].copy(), SIZE, "pil"))
    for tile, given, name in ((0, first, "large.jpg"), (3, image_of(here / "face.png"), "face.png")):
        assert (tiles[:, :, tile].int() - given.int()).abs().max() <= 1
        assert float(done.output.split(f"{name}: comes back from its noise at ")[1].split()[0]) > 45
    assert not torch.equal(tiles[:, :, 1], tiles[:, :, 0])


def test_variations_of_a_picture(folder: Path, here: Path) -> None:
    for strength, name in (("0", "none.png"), ("0.5", "half.png"), ("1", "all.png")):
        done = call(folder, "vary", "face.png", name, "--strength", strength, "--count", "1", "--seed", "3")
        assert done.exit_code == 0, done.output
    given = image_of(here / "face.png")
    assert torch.equal(image_of(here / "none.png"), given)
    studio = Studio.load(folder, "cpu")
    request = studio.request({"seed": 3})
    assert torch.equal(image_of(here / "all.png"), studio.images(request)[0])
    half = image_of(here / "half.png")
    assert not torch.equal(half, given) and not torch.equal(half, image_of(here / "all.png"))
    *_, plain = draw(studio.denoiser(request), request.only(Sampler), 3, [0], studio.shape, **studio.how(request))
    assert torch.equal(image_of(here / "all.png"), to_uint8(plain.x[0]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vary", "none.png", "out.png"], "none.png: the system says: No such file or directory"),
        (["vary", "text.txt", "out.png"], "text.txt: not an image, it begins with b'words'; give a picture such as"),
        (["vary", "face.png", "out.jpg"], "out.jpg: found the suffix .jpg, expected .png"),
        (["vary", "face.png", "out.png", "--attributes", "Smilng"], "attributes: found Smilng, did you mean Smiling?"),
        (["vary", "face.png", "out.png", "--weights", "best"], "weights: found"),
        (["inpaint", "face.png", "large.jpg", "out.png"], "large.jpg: found 60 x 40 pixels, expected 16 x 16"),
        (["inpaint", "face.png", "black.png", "out.png"], "black.png: found no white pixel"),
        (["inpaint", "face.png", "mask.png", "out.png", "--sampler", "rk45"], "sampler: found rk45, which chooses"),
        (["attributes", "face.png", "out.png", "--attributes", ","], "--attributes: found none, expected some of"),
        (["attributes", "face.png", "out.png", "--attributes", "Bald", "--known", "Bold"], "--known: found Bold, did"),
        (["attributes", "face.png", "out.png", "--attributes", "Bald", "--sampler", "ddpm"], "sampler: found ddpm, wh"),
        (["interpolate", "face.png", "text.txt", "out.png"], "text.txt: not an image"),
    ],
)
def test_what_cannot_be_edited_is_one_line(folder: Path, here: Path, arguments: list[str], said: str) -> None:
    (here / "text.txt").write_text("words")
    Image.new("L", (SIZE, SIZE)).save("black.png")
    done = call(folder, *arguments)
    assert done.exit_code == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.output
    assert not list(here.glob("out.*"))


def test_a_model_that_is_told_nothing_gives_no_attributes_but_edits(folder: Path, here: Path) -> None:
    config = ModelConfig.load(folder)
    network = config.network.replace(attributes=())
    plain = ModelConfig(network, config.diffusion, {}, {})
    save_model(here / "plain", plain.build().network, plain)
    done = call(here / "plain", "attributes", "face.png", "out.png", "--attributes", "Smiling")
    assert done.exit_code == 1 and "a model that is told no attributes; train one with train.attributes" in done.stderr
    assert call(here / "plain", "vary", "large.jpg", "out.png").exit_code == 0
    weights = {name: tensor * torch.nan for name, tensor in plain.build().network.state_dict().items()}
    save_file(weights, here / "plain" / "model.safetensors")
    done = call(here / "plain", "vary", "face.png", "other.png")
    assert done.exit_code == 1 and "samples 0 to 3 are not finite numbers; choose other settings" in done.stderr
