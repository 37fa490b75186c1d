"""The arithmetic of the network: which device, and which type of floating-point number."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch

from unveil.errors import UnveilError
from unveil.section import Precision

ISA_WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")
"""Levels at which oneDNN says that it takes bf16, and emulates it."""


def resolve_device(device: str) -> torch.device:
    """``auto`` becomes cuda if there is one, else cpu.

    Raises:
        UnveilError: if cuda is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnveilError("device: found cuda, but PyTorch sees no GPU here; expected auto or cpu")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """``auto`` becomes bf16 where the device has it in hardware, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        UnveilError: if fp16 is asked for on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UnveilError("precision: found fp16 on a CPU, expected auto, fp32 or bf16")
    if precision != "auto":
        return cast(Precision, precision)
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def resolve_training(
    precision: str, optimizer: str, tf32: bool, channels_last: bool | Literal["auto"], device: torch.device
) -> dict[str, Any]:
    """The arithmetic of a training, each ``auto`` decided, as it is recorded; TF32 is switched as it says.

    Raises:
        UnveilError: as :func:`resolve_precision`.
    """
    return {
        "precision": resolve_precision(precision, device),
        "optimizer_precision": optimizer_precision(optimizer, device),
        "tf32": set_tf32(tf32, device),
        "channels_last": resolve_channels_last(channels_last, device),
    }


def optimizer_precision(optimizer: str, device: torch.device) -> str:
    """``bf16`` for Muon's products where the device has that in hardware, else ``fp32``."""
    return "bf16" if optimizer == "muon" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware, and PyTorch and oneDNN will let it.

    An emulated bf16 is several times slower than fp32. Both libraries can be kept from newer instructions by
    ``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    query = getattr(torch.cpu, "get_capabilities", None)  # older versions of PyTorch cannot tell
    capabilities = query() if query is not None else {}
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return False
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if capabilities.get("bf16"):  # an ARM processor, where the levels below are not named
        return True
    allowed = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    old = torch.backends.cpu.get_cpu_capability() in ("NO AVX", "DEFAULT", "AVX2")
    return not old and allowed not in ISA_WITHOUT_BF16


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context in which the network's matrix products and convolutions use ``precision``; weights stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def set_tf32(wanted: bool, device: torch.device) -> bool:
    """Let products of float32 numbers on a GPU round them to TF32 (10 bits of the fraction), in all of the process.

    Returns:
        whether they are; on a CPU nothing is changed.
    """
    if device.type != "cuda":
        return False
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    return wanted


def resolve_channels_last(wanted: bool | Literal["auto"], device: torch.device) -> bool:
    """``auto`` keeps channels last in memory on a GPU, whose convolutions take them so; a CPU gains nothing by it."""
    return device.type == "cuda" if wanted == "auto" else wanted
