"""Samples at several scales: what the sample stage writes is read, and what does not belong together is refused."""

import json
from pathlib import Path

import pytest
import torch

from unveil.diffusion.config import Guidance
from unveil.errors import UnveilError
from unveil.evaluation.images.scales import load_scales
from unveil.generation import save_scales
from unveil.networks.condition import Condition
from unveil.tensors import load_tensors, save_tensors

FACTS = {"model": "aa" * 32, "guidance": 5.0, "nfe": 7, "attributes": ["Bald", "Smiling"]}
ASKED = Condition(attributes=torch.tensor([[1, -1], [0, 1], [1, 1]], dtype=torch.int8))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "by_guidance.safetensors"
    images = [torch.full((3, 3, 8, 8), value, dtype=torch.uint8) for value in (3, 9)]
    save_scales(path, images, [Guidance(guidance=scale) for scale in (2.0, 0.0)], ASKED, FACTS)
    found = load_scales(path, "aa" * 32)
    assert {scale: int(rows[0, 0, 0, 0]) for scale, rows in found.images.items()} == {2.0: 3, 0.0: 9}
    assert found.names == ("Bald", "Smiling") and found.attributes is not None
    assert torch.equal(found.attributes, torch.as_tensor(ASKED.attributes))
    assert {name: part.count for name, part in found.sets().items()} == {"guidance 2": 3, "guidance 0": 3}
    (rows,) = found.sets()["guidance 0"].parts()
    assert torch.equal(rows, images[1])


def test_without_scales_there_is_nothing_in_it(tmp_path: Path) -> None:
    path = tmp_path / "by_guidance.safetensors"
    save_scales(path, [], [], ASKED, FACTS)
    assert load_tensors(path, "")["images"].numel() == 0 and not load_scales(path, None).images


@pytest.mark.parametrize(
    ("tensors", "facts", "said"),
    [
        ({}, {"model": "bb" * 32}, "samples of another model"),
        ({"images": torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8)}, {}, r"expected uint8 \[2, n, 3, H, W\]"),
        ({"images": torch.zeros(2, 3, 3, 8, 8)}, {}, "float32"),
        (
            {"attributes": torch.zeros(3, 1, dtype=torch.int8)},
            {},
            r"int8 \[3, 1\], expected int8 \[3, 2\]",
        ),
        ({}, {"scales": "all"}, "scales"),
    ],
)
def test_what_does_not_belong_together_is_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, object], said: str
) -> None:
    path = tmp_path / "by_guidance.safetensors"
    whole = {"images": torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), "attributes": torch.zeros(3, 2, dtype=torch.int8)}
    save_tensors(path, whole | tensors, {"facts": json.dumps(FACTS | {"scales": [0.0, 2.0]} | facts)})
    with pytest.raises(UnveilError, match=said) as caught:
        load_scales(path, "aa" * 32)
    assert "\n" not in str(caught.value) and "by_guidance" in str(caught.value)
