"""Compiling is an option: the same network, sooner; and a clear word where there is no compiler."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from unveil.networks.condition import Condition
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.training import compilation
from unveil.training.compilation import compile_network

CPU = torch.device("cpu")


def test_without_a_compiler_it_says_so_and_the_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    network = nn.Linear(2, 2)
    reason = compile_network(network, CPU)
    assert reason is not None and "C++ compiler" in reason
    assert network(torch.ones(1, 2)).shape == (1, 2)


def test_without_triton_a_gpu_is_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert "triton" in str(compile_network(nn.Linear(2, 2), torch.device("cuda")))


def test_a_condition_leaves_the_network_in_one_graph() -> None:
    network = UNet(
        UNetConfig(
            image_size=8, channels=32, channel_multipliers=(1,), blocks=1, attention_resolutions=(), augment_labels=9
        )
    )
    found = torch._dynamo.explain(network)(torch.randn(2, 3, 8, 8), torch.zeros(2), Condition(torch.randn(2, 9)))
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@pytest.mark.slow
def test_the_network_is_the_same_function_with_the_same_names_compiled_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch's own cache would give back what was compiled for another kind of processor.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    expected, names = network(x), list(network.state_dict())
    reason = compile_network(network, CPU)
    assert (reason is None) == (shutil.which(os.environ.get("CXX") or "g++") is not None)
    is_compiled = network._compiled_call_impl is not None
    assert is_compiled == (reason is None)
    assert torch.allclose(network(x), expected, atol=1e-6)
    assert list(network.state_dict()) == names
