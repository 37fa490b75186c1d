"""Safetensors files: written whole or not at all, and read by one rule for what is missing, damaged or no file."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import strerror
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unveil.errors import UnveilError
from unveil.files import atomic_path, regular

MOST_HEADER_BYTES = 1 << 24  # about 200,000 tensors
FLOATS = ("F64", "F32", "F16", "BF16")  # the types of weights, as safetensors names them
GREATEST_SIDE = 2**31 - 1  # of a tensor of weights


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically, from whatever device they are on.

    Raises:
        OSError: with the path, for what the system refuses, such as a full disk.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), strerror(int(code[1])), str(path)) from None


@contextmanager
def open_tensors(path: Path, mend: str) -> Iterator[Any]:
    """Open a file for reading its shapes and tensors, as ``safetensors.safe_open`` does.

    ``mend`` says how to get a good one, and ends each message.

    Raises:
        UnveilError: if the file is missing, damaged or no regular file, also if that is seen within the block.
        OSError: if the system refuses to open it; safetensors calls each refusal a missing file.
    """
    try:
        with regular(path).open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        if header > MOST_HEADER_BYTES:
            raise SafetensorError(f"a header of {header:,} bytes, expected at most {MOST_HEADER_BYTES:,}")
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there; {mend}") from None
    except RuntimeError as error:  # of PyTorch, where no more files may be open
        code = re.search(r"unable to open file .*\((\d+)\)$", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), strerror(int(code[1])), str(path)) from None
    except SafetensorError as error:
        raise UnveilError(f"{path}: damaged or not a safetensors file ({error}); {mend}") from None


def load_tensors(path: Path, mend: str) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU. Raises as ``open_tensors`` does."""
    with open_tensors(path, mend) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping


def load_shapes(path: Path, mend: str) -> dict[str, Tensor]:
    """The tensors of a file as float32 without values, on the meta device: no memory. Raises as ``open_tensors``."""
    with open_tensors(path, mend) as file:
        shapes = {}
        for name in file.keys():  # noqa: SIM118, no mapping
            kind, shape = (part := file.get_slice(name)).get_dtype(), part.get_shape()
            if kind not in FLOATS or max(shape, default=0) > GREATEST_SIDE:
                expected = f"weights of type {', '.join(FLOATS)}"
                raise UnveilError(f"{path}: {name} is {kind} {shape}, expected {expected}; {mend}")
            shapes[name] = torch.empty(shape, device="meta")
        return shapes
