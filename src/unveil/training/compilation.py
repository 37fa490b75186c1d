"""Compiling the network, where that is possible."""

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn


def compile_network(network: nn.Module, device: torch.device) -> str | None:
    """Let the network be compiled, in place, when it is first called; its weights and their names stay.

    ``torch.compile`` writes C++ for a CPU, and Triton for a GPU.

    Returns:
        why it cannot, so that the network runs as it is; None if it can.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    compiler = os.environ.get("CXX") or "g++"  # what PyTorch takes
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"no C++ compiler is installed ({compiler}; CXX names another)"
    network.compile()
    return None
