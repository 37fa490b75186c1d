"""Edits by a model at work: each result by itself, with what the request says, and counted."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.diffusion.affine import last
from tests.serving.models import SIZE, save_conditional

from unveil.data.pixels import to_uint8
from unveil.diffusion.editing import FIXED_POINT_STEPS
from unveil.diffusion.samplers import Step
from unveil.errors import UnveilError
from unveil.serving import edits
from unveil.serving.request import Request
from unveil.serving.studio import Studio

IMAGE = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(SIZE) < 5
ASKED: dict[str, Any] = {
    "attributes": ["Smiling"],
    "guidance": 2.0,
    "sampler": "heun",
    "steps": 4,
    "precision": "fp32",
    "seed": 3,
}
EDITS: dict[str, Callable[[Studio, Request], Iterator[Step]]] = {
    "inpaint": partial(edits.inpaint, image=IMAGE, mask=MASK, resamplings=2, jump=1),
    "change": partial(edits.change, image=IMAGE, known=("-Smiling",), strength=0.75),
    "vary": partial(edits.vary, image=IMAGE, strength=0.5),
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio.load(save_conditional(tmp_path_factory.mktemp("project") / "models"), "cpu")


@pytest.mark.parametrize("name", EDITS)
def test_a_result_depends_on_seed_and_number_alone(studio: Studio, name: str) -> None:
    edit, request = EDITS[name], studio.request(ASKED | {"count": 5})
    together = last(edit(studio, request)).x
    assert len({image.numpy().tobytes() for image in together}) == 5
    alone = last(edit(studio, request.replace(first=3, count=1))).x
    assert torch.equal(to_uint8(alone), to_uint8(together[3:4]))
    assert not torch.equal(last(edit(studio, request.replace(seed=4))).x, together)


@pytest.mark.parametrize("name", EDITS)
def test_a_result_follows_attributes_and_guidance(studio: Studio, name: str) -> None:
    edit, request = EDITS[name], studio.request(ASKED)
    usual = last(edit(studio, request)).x
    for other in (request.replace(attributes=("-Smiling",)), request.replace(guidance=4.0)):
        assert not torch.equal(last(edit(studio, other)).x, usual)


def test_guidance_costs_twice_on_the_way_down_alone(studio: Studio) -> None:
    request = studio.request(ASKED)
    counts = {name: last(edit(studio, request)).nfe for name, edit in EDITS.items()}
    assert counts == {"inpaint": 2 * (2 * 3 * 2 + 1), "change": FIXED_POINT_STEPS * 5 + 2 * 5, "vary": 2 * 3}


def test_between_two_images_lie_as_many_as_are_asked_for(studio: Studio) -> None:
    request = studio.request(ASKED | {"count": 5, "steps": 30})
    steps = list(edits.interpolate(studio, request, IMAGE, IMAGE.flip(2)))
    found = to_uint8(steps[-1].x)
    for end, image in ((0, IMAGE), (-1, IMAGE.flip(2))):
        assert (found[end].int() - image.int()).abs().max() <= 1
    assert len(steps[0].x) == 2 and len(found) == 5
    assert [step.nfe for step in steps] == sorted(step.nfe for step in steps)


def test_what_cannot_be_is_one_line(studio: Studio) -> None:
    request = studio.request(ASKED)
    for made in (
        edits.change(studio, request.replace(sampler="ddpm"), IMAGE),
        edits.inpaint(studio, request.replace(sampler="rk45"), IMAGE, MASK, 2, 1),
    ):
        with pytest.raises(UnveilError, match="sampler: found "):
            last(made)
