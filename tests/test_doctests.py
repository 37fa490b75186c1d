"""The examples in the docstrings run and give what they say."""

import doctest
from importlib import import_module

import pytest

MODULES = (
    "unveil.data.batches",
    "unveil.diffusion.closed_form",
    "unveil.diffusion.denoiser",
    "unveil.diffusion.editing",
    "unveil.diffusion.loss",
    "unveil.diffusion.sampling",
    "unveil.model",
    "unveil.networks.condition",
    "unveil.networks.unet",
    "unveil.seeds",
)
"""Those that have examples."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name))
    assert tried > 0 and failed == 0
