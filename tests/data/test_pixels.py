"""Pixels as bytes and as numbers in [-1, 1]."""

import torch

from unveil.data.pixels import ROUNDING, to_float, to_uint8


def test_pixels_come_back_as_they_were_and_others_go_to_the_nearest_level() -> None:
    """Truncation, as in guided-diffusion's and Score SDE's code, would lose half a level."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    for shift in (-0.4, 0.4):
        assert torch.equal(to_uint8(to_float(levels) + shift / 127.5), levels)
    assert ROUNDING == "to the nearest level"
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]
