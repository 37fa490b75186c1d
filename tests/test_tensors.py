"""unveil.tensors: what is written is whole, and what cannot be read is one line."""

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from unveil.errors import UnveilError
from unveil.tensors import load_shapes, load_tensors, open_tensors, save_tensors


def test_tensors_of_any_layout_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = torch.arange(6.0).reshape(2, 3)
    save_tensors(path, {"a": values.T, "b": values[:, ::2].requires_grad_()}, {"facts": "{}"})
    assert load_tensors(path, "")["a"].equal(values.T)
    with open_tensors(path, "") as file:
        assert file.metadata() == {"facts": "{}"}
        assert file.get_slice("b").get_shape() == [2, 2]


def test_what_is_no_such_file_is_one_line_that_says_how_to_mend_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UnveilError, match=r"x.safetensors: not there; train again$"):
        load_tensors(path, "train again")
    save_tensors(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    for content in (b"", b"\xff" * 100, whole[:-1], whole[:20], b"\xff\xff\xff\xff\xff\xff\xff\x7f" + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(UnveilError, match=r"x.safetensors: damaged or not a safetensors file .*; train again$"):
            load_tensors(path, "train again")
    header = b'{"a":{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UnveilError, match=r"a is F32 \[9223372036854775808, 0\], expected weights .*; train again$"):
        load_shapes(path, "train again")
    path.write_bytes((2**24 + 1).to_bytes(8, "little") + b" " * 100)
    with pytest.raises(UnveilError, match=r"a header of 16,777,217 bytes, expected at most 16,777,216"):
        load_tensors(path, "train again")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnveilError, match="found a pipe"):
        load_tensors(path, "train again")


def run(code: str, *limits: tuple[int, int]) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for kind, most in limits:
            resource.setrlimit(kind, (most, most))

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, preexec_fn=limit
    )


def test_a_disk_that_takes_no_more_is_the_system_s_refusal_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()
    code = f"""
        import torch
        from pathlib import Path
        from unveil.errors import line_for_user
        from unveil.tensors import save_tensors
        try:
            save_tensors(Path({str(path)!r}), {{"a": torch.zeros(2**20)}})
        except OSError as error:
            print(line_for_user(error))
        """
    done = run(code, (resource.RLIMIT_FSIZE, 2**16))
    assert done.stdout.startswith(f"{path}: the system says: File too large"), done.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_too_many_open_files_are_not_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    code = f"""
        from pathlib import Path
        from unveil.errors import line_for_user
        from unveil.tensors import open_tensors
        held = []
        try:
            while True:
                held.append(open({str(path)!r}))
        except OSError:
            pass
        try:
            with open_tensors(Path({str(path)!r}), "preprocess again"):
                pass
        except OSError as error:
            print(line_for_user(error))
        """
    assert "ulimit -n" in run(code, (resource.RLIMIT_NOFILE, 64)).stdout
