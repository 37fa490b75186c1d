"""Scratch checkpoints of a training on disk: safetensors and JSON, never pickle."""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unveil.averages import save_snapshot
from unveil.distributed import Processes
from unveil.errors import UnveilError
from unveil.files import atomic_directory, file_digest, read_json, write_json
from unveil.section import Amount, FileName, Sha256
from unveil.tensors import load_tensors, save_tensors

STATE_FILE = "state.safetensors"
FACTS_FILE = "state.json"
RUN_FILE = "run.json"
SNAPSHOTS = "snapshots"


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name a training run's configuration and data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def claimed_folder(root: Path, name: str) -> Iterator[Path]:
    """Yield a folder in ``root`` that no other process has within its own such block: ``name``, ``name-2``, ...

    One with checkpoints that nobody has, such as those of a run that was killed, comes first. The claim is a lock on
    an empty file beside the folder, which the system releases when a process ends, however it ends. The file stays:
    it could not be removed without another process taking a lock on a file that is gone.
    """
    root.mkdir(parents=True, exist_ok=True)
    numbered = chain([name], (f"{name}-{number}" for number in count(2)))
    left = sorted(path.parent for pattern in (name, f"{name}-*") for path in root.glob(f"{pattern}/step-*"))
    with ExitStack() as held:
        for folder in chain(dict.fromkeys(left), (root / part for part in numbered)):
            try:
                held.enter_context(FileLock(f"{folder}.lock", timeout=0))
            except Timeout:
                continue
            yield folder
            return


@contextmanager
def checkpoints_for(
    root: Path, model: Mapping[str, Any], code: str | None, processes: Processes
) -> Iterator["Checkpoints"]:
    """Scratch checkpoints named by all that decides the weights, the code too, but not the length of training.

    The length is in the name where the learning rate follows it. No other training has them within the block, not
    even one of the same name that runs at once. The main process claims the folder in ``root`` for all. ``model`` is
    what config.json will say, ``code`` a digest.
    """
    training = model["training"]
    length = {"max_minutes"} if training["lr_schedule"] == "cosine" else {"max_minutes", "images"}
    lasting = {key: value for key, value in training.items() if key not in length}
    with ExitStack() as held:
        folder = None
        if processes.is_main:
            name = fingerprint({**model, "code": code, "training": lasting})
            folder = held.enter_context(claimed_folder(root, name))
        yield Checkpoints(Path(processes.from_main(folder)))


class _Facts(BaseModel):
    """The part of ``state.json`` by which a checkpoint is known to be whole."""

    model_config = ConfigDict(extra="allow")
    step: Amount
    sha256: Sha256
    snapshots: dict[FileName, Sha256] = {}


class Checkpoints:
    """Scratch checkpoints of one run: ``<root>/<fingerprint>/step-00000500/``; the newest ``keep`` are kept.

    Beside them lie the snapshots of its power-function averages, all of them: ``snapshots/``.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps, whole or not at all, and remove the oldest."""
        path = self.folder / f"step-{step:08d}"
        with atomic_directory(path) as temporary:
            save_tensors(temporary / STATE_FILE, tensors)
            write_json(temporary / FACTS_FILE, {**facts, "step": step, "sha256": file_digest(temporary / STATE_FILE)})
        for old in self._paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def save_snapshot(self, images: int, averages: Mapping[float, Mapping[str, Tensor]]) -> dict[str, str]:
        """Store averages, by relative standard deviation and parameter, after ``images`` images.

        Returns:
            the file's name and sha256, which a checkpoint states as ``snapshots``: without them it is not whole.
        """
        path = self.folder / SNAPSHOTS / f"snapshot-{images:012d}.safetensors"
        save_snapshot(path, images, averages)
        return {path.name: file_digest(path)}

    def snapshots(self) -> list[Path]:
        """The stored snapshots, the earliest first."""
        return sorted((self.folder / SNAPSHOTS).glob("*.safetensors"))

    def load(self, before: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint, or None; one with a wrong hash, its own or a snapshot's, is passed over.

        Args:
            before: leave out checkpoints of this step and of later ones.
        """
        for path, facts in self._whole():
            if before is None or facts["step"] < before:
                return load_tensors(path / STATE_FILE, "remove its folder and train again"), facts
        return None

    def newest(self) -> Path | None:
        """Path of the newest whole checkpoint, or None."""
        return next((path for path, _ in self._whole()), None)

    def note(self, run_id: str | None) -> None:
        """Keep the id of the tracked run that these checkpoints belong to, also before there is one of them."""
        write_json(self.folder / RUN_FILE, {"run_id": run_id})

    def noted(self) -> str | None:
        """What ``note`` kept, or None."""
        try:
            return read_json(self.folder / RUN_FILE, dict[str, str | None], "it is written anew").get("run_id")
        except (OSError, UnveilError):
            return None

    def go_back(self, step: int, snapshots: Collection[str]) -> None:
        """Remove the checkpoints of later steps, and the snapshots that a training at ``step`` has not made yet.

        They are of a longer training, or of this one, which begins anew or further back.
        """
        for path in self._paths():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.snapshots():
            if path.name not in snapshots:
                path.unlink()

    def remove(self) -> None:
        """Remove all checkpoints of this run."""
        (self.folder / RUN_FILE).unlink(missing_ok=True)  # first: no later run may go on with a finished one
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _whole(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Whole checkpoints with their facts, the newest first."""
        for path in reversed(self._paths()):
            try:
                facts = read_json(path / FACTS_FILE, _Facts, "remove it", finite=False)
                whole = file_digest(path / STATE_FILE) == facts.sha256
                for name, digest in facts.snapshots.items():
                    whole = whole and file_digest(self.folder / SNAPSHOTS / name) == digest
            except (OSError, UnveilError):
                continue
            if whole:
                yield path, facts.model_dump()
