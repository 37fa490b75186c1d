"""A model at work: the same bytes alone and among others, and as the sample stage draws them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.models import DIFFUSION, NETWORK, save_conditional

from unveil.data.pixels import to_uint8
from unveil.diffusion.config import Diffusion, Guidance, Sampler
from unveil.errors import UnveilError
from unveil.generation import asking, generate, load_guided
from unveil.networks.condition import told
from unveil.params import Params, render
from unveil.serving.request import Request
from unveil.serving.studio import Studio
from unveil.weights import WeightsChoice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a params.yaml."""
    return save_conditional(tmp_path_factory.mktemp("project") / "models")


@pytest.fixture(scope="module")
def studio(folder: Path) -> Studio:
    return Studio.load(folder, "cpu")


@pytest.mark.parametrize("asked", [{}, {"attributes": ["Smiling", "-Bald"], "guidance": 2.0}])
def test_an_image_alone_is_the_one_in_a_batch_of_the_sample_stage(
    folder: Path, studio: Studio, asked: dict[str, Any]
) -> None:
    request = studio.request({"seed": 3, "precision": "fp32", **asked})
    sampler = request.only(Sampler)
    denoiser, _ = load_guided(folder, "cpu", WeightsChoice(), request.only(Guidance))
    tell = asking(told(request.attributes, NETWORK.attributes)[None], 3)
    batch, nfe = generate(denoiser, sampler, 3, studio.shape, [range(20)], lambda line: None, tell=tell)
    assert torch.equal(studio.images(request.replace(count=20)), batch)
    for first in (0, 7, 19):
        assert torch.equal(studio.images(request.replace(first=first)), batch[first : first + 1])
    assert torch.equal(studio.images(request.replace(first=4, count=3)), batch[4:7])
    *_, last = studio.steps(request)
    assert last.nfe == nfe == (request.nfe or 0) * (2 if asked else 1)


def test_steps_begin_with_noise_and_count_evaluations(studio: Studio) -> None:
    request = studio.request({"sampler": "heun", "steps": 4, "count": 2})
    steps = list(studio.steps(request))
    assert len(steps) == 5
    assert (steps[0].nfe, steps[-1].nfe) == (0, request.nfe)
    assert torch.equal(steps[0].x, steps[0].denoised)
    assert torch.equal(to_uint8(steps[-1].x), studio.images(request))


def test_the_usual_settings_are_those_beside_the_model_if_they_are_its(folder: Path) -> None:
    beside = folder.parent / "params.yaml"
    general = Studio.load(folder, "cpu").usual
    params = Params()
    ours = params.sample.replace(sampler="dpmpp-2m", steps=7, grid="karras", sigma_max=60.0, precision="fp32")
    for diffusion, expected in ((DIFFUSION, (7, "fp32")), (Diffusion(), (general.steps, general.precision))):
        grid = {} if diffusion == DIFFUSION else {"grid": "ddim-leading"}
        train = params.train.replace(diffusion=diffusion)
        beside.write_text(render(params.replace(train=train, sample=ours.replace(**grid))))
        usual = Studio.load(folder, "cpu").usual
        assert (usual.steps, usual.precision) == expected
    beside.unlink()


def test_what_cannot_be_drawn_is_one_line(studio: Studio) -> None:
    for values, words in (
        ({"steps": "ten"}, 'steps: found "ten", expected a whole number'),
        ({"sampler": "huen"}, "did you mean heun?"),
        ({"stpes": 3}, "did you mean steps?"),
        ({"grid": "ddim-leading"}, "grid: found ddim-leading, expected karras"),
        ({"weights": "best"}, 'weights: found "best", expected ema'),
        ({"precision": "fp16"}, "fp16 on a CPU"),
        ({"attributes": ["Smilin"]}, "attributes: found Smilin, did you mean Smiling?"),
        ({"guidance_interval": [2, 1]}, "guidance_interval: found [2, 1], expected [], or two sigmas"),
        ({"count": 0}, "count: found 0, expected a whole number in [1, 1024]"),
    ):
        with pytest.raises(UnveilError) as caught:
            studio.request(values)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_picture_says_how_to_draw_it_again(studio: Studio) -> None:
    request = studio.request({"seed": 5, "count": 2, "steps": 3, "attributes": ["-Bald"], "guidance": 3})
    facts = studio.facts(request)
    values = {name: facts[name] for name in Request.model_fields if name in facts}
    assert torch.equal(studio.images(studio.request(values)), studio.images(request))


def test_a_model_without_attributes_is_told_none(folder: Path, tmp_path: Path) -> None:
    studio = Studio.load(save_conditional(tmp_path / "models", NETWORK.replace(attributes=())), "cpu")
    assert studio.images(studio.usual).shape == (1, *studio.shape)
    with pytest.raises(UnveilError, match="guidance: found 2, expected 1"):
        studio.images(studio.request({"guidance": 2}))
    with pytest.raises(UnveilError, match="a model that is told no attributes"):
        studio.request({"attributes": ["Smiling"]})
    by_another = studio.request({"guidance": 2, "guide": str(folder)})
    assert studio.facts(by_another)["guide_sha256"] == Studio.load(folder, "cpu").digest
    *_, last = studio.steps(by_another)
    assert last.nfe == 2 * (by_another.nfe or 0)
