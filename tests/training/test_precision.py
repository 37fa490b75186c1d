"""Which device and which arithmetic."""

from types import SimpleNamespace

import pytest
import torch

from unveil.errors import UnveilError
from unveil.training import precision
from unveil.training.precision import (
    autocast,
    resolve_channels_last,
    resolve_device,
    resolve_precision,
    set_tf32,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto").type == ("cuda" if there else "cpu")
        assert resolve_device("cpu") == CPU
    assert resolve_device("cuda") == CUDA


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnveilError, match=r"^device: found cuda, .*expected auto or cpu$"):
        resolve_device("cuda")


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken(wanted: str) -> None:
    assert resolve_precision(wanted, CUDA) == wanted
    if wanted != "fp16":
        assert resolve_precision(wanted, CPU) == wanted


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UnveilError, match=r"^precision: found fp16 on a CPU, expected auto, fp32 or bf16$"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"architecture": "arm64", "bf16": True}, "bf16"),
        ({"avx2": True, "avx512_f": True, "amx_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_it_has_that(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == expected


def test_auto_on_a_cpu_is_fp32_where_pytorch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision.resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("hardware", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_bf16_where_it_has_that(
    hardware: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or hardware  # emulated, any GPU has it

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_precision("auto", CUDA) == expected


def test_autocast_is_for_products_and_for_its_block_alone() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with autocast("fp32", CPU):
        assert layer(x).dtype == torch.float32
    with autocast("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16
        assert (x * x).dtype == torch.float32
    assert layer(x).dtype == torch.float32 and layer.weight.dtype == torch.float32


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_switched_on_a_gpu_alone(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    cudnn = SimpleNamespace(allow_tf32=not wanted)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    assert set_tf32(wanted, CPU) is False
    assert asked == [] and cudnn.allow_tf32 is not wanted
    assert set_tf32(wanted, CUDA) is wanted
    assert asked == ["high" if wanted else "highest"] and cudnn.allow_tf32 is wanted


def test_channels_last_by_itself_is_for_a_gpu() -> None:
    assert resolve_channels_last("auto", CUDA) and not resolve_channels_last("auto", CPU)
    for device in (CPU, CUDA):
        assert resolve_channels_last(True, device) and not resolve_channels_last(False, device)
