"""Compiling the network, where that is possible."""

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn


def why_not(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot be used on a device, or None: it writes C++ for a CPU and Triton for a GPU."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    compiler = os.environ.get("CXX") or "g++"  # what PyTorch takes
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"no C++ compiler is installed ({compiler}; CXX names another)"
    return None


def compile_network(network: nn.Module, device: torch.device) -> str | None:
    """Let the network be compiled, in place, when it is first called; its weights and their names stay.

    Returns:
        why it is not compiled and runs as it is; None if it is.
    """
    reason = why_not(device)
    if reason is None:
        network.compile()
    return reason
