"""Which device and which arithmetic."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unveil.errors import UnveilError
from unveil.precision import (
    autocast,
    has_bf16,
    optimizer_precision,
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


HARDWARE = {
    "avx512_bf16": {"avx512_bf16": True},
    "amx": {"amx_bf16": True, "avx512_bf16": False},
    "arm": {"architecture": "arm64", "bf16": True},
    "without": {"avx2": True, "avx512_f": True, "amx_bf16": False},
    "unknown": {},
}


@pytest.mark.parametrize(
    ("hardware", "pytorch", "onednn", "isa", "expected"),
    [
        ("avx512_bf16", "AVX512", True, None, True),
        ("amx", "AVX512", True, None, True),
        ("amx", "AVX512", True, "AVX512_CORE_BF16", True),
        ("arm", "DEFAULT", True, None, True),
        ("without", "AVX512", True, None, False),
        ("unknown", "AVX512", True, None, False),
        ("avx512_bf16", "AVX2", True, None, False),
        ("avx512_bf16", "AVX512", False, None, False),
        ("avx512_bf16", "AVX512", True, "avx512_core", False),
    ],
)
def test_a_cpu_has_bf16_where_its_hardware_and_both_libraries_do(
    hardware: str, pytorch: str, onednn: bool, isa: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: HARDWARE[hardware], raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: pytorch)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert has_bf16(CPU) is expected
    assert resolve_precision("auto", CPU) == ("bf16" if expected else "fp32")
    assert optimizer_precision("muon", CPU) == ("bf16" if expected else "fp32")
    assert optimizer_precision("adam", CPU) == "fp32"


def test_a_cpu_has_no_bf16_where_pytorch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bf16(CPU)


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


@pytest.mark.parametrize("emulate", [True, False])
def test_nothing_on_a_cpu_computes_in_a_type_that_it_emulates(emulate: bool, repository: Path) -> None:
    """The demo under ``auto``: on a processor without bf16, imitated, and on this one, whichever it is."""
    if emulate and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only an x86 processor can be kept from its newer instructions")
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"} if emulate else {}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "training" / "any_processor.py"],
        cwd=repository,
        env=os.environ | older,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}
    in_hardware = {"torch.float32", "torch.float64"} | ({"torch.bfloat16"} if has_bf16(CPU) and not emulate else set())
    assert seen.keys() == {"train", "sample", "evaluate"}
    for stage, types in seen.items():
        assert "torch.float32" in types and types <= in_hardware, stage
    assert ("torch.bfloat16" in seen["train"]) == ("torch.bfloat16" in in_hardware)
