"""What a training takes of the machine."""

import sys

import psutil
import pynvml
import pytest
import torch

from unveil.training.usage import usage

CUDA = torch.device("cuda", 0)


def test_on_a_cpu_it_is_the_memory_of_the_process() -> None:
    held = torch.ones(2**26)  # 256 MiB
    found = usage(torch.device("cpu"))
    assert set(found) == {"memory_gib"}
    assert held.nbytes / 2**30 < found["memory_gib"] < psutil.virtual_memory().total / 2**30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of which PyTorch has 3 GiB, and which computes for three quarters of the time."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 75)


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_it_is_its_memory_and_its_load() -> None:
    assert usage(CUDA) == {"gpu_memory_gib": 3.0, "gpu_utilization": 75.0}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("error", [RuntimeError("no driver"), pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)])
def test_a_load_that_is_not_told_is_left_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert usage(CUDA) == {"gpu_memory_gib": 3.0}


@pytest.mark.usefixtures("gpu")
def test_without_nvidias_package_there_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert usage(CUDA) == {"gpu_memory_gib": 3.0}
