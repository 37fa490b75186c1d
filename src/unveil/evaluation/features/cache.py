"""Features that were computed before: a sweep of forty samplers pays once for its reference."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.distributed import Processes
from unveil.errors import UnveilError, line_for_user
from unveil.tensors import open_tensors, save_tensors

FORMAT = 1
MEND = "its features are computed again"


def facts_key(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts that JSON can hold: the same for equal facts in any order of keys."""
    text = json.dumps({"format": FORMAT, "facts": facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class FeatureCache:
    """A folder of features, one safetensors file for each set of facts that decides them.

    Several runs may use one folder at once: files appear whole, and one that disappears is computed again.
    """

    folder: Path
    """Made when it is first written to."""
    limit: int | None = None
    """Bytes that all files may have together; the least recently used go first. None = no limit, 0 = none are kept."""
    processes: Processes = field(default_factory=Processes)
    """Rank 0 reads and writes, all compute."""
    say: Callable[[str], None] = print
    """Takes a line about a file that is damaged, or cannot be kept."""
    hits: int = 0
    """Sets that were found."""
    misses: int = 0

    def get_or(
        self, facts: Mapping[str, Any], compute: Callable[[], dict[str, Tensor] | None]
    ) -> dict[str, Tensor] | None:
        """The features with these facts at rank 0, None elsewhere: from the folder, or from ``compute`` and then kept.

        ``facts`` are everything that decides the features, as JSON can hold it; see ``extraction.feature_facts``.
        ``compute`` gives a tensor for each layer at rank 0, and is called by all processes or by none.
        """
        path = self.folder / f"{facts_key(facts)}.safetensors"
        found = self._read(path, facts) if self.processes.is_main and path.exists() else None
        if self.processes.from_main(found is not None):
            self.hits += 1
            return found
        self.misses += 1
        computed = compute()
        if computed is not None and self.processes.is_main and self.limit != 0:
            self._write(path, facts, computed)
        return computed

    def _read(self, path: Path, facts: Mapping[str, Any]) -> dict[str, Tensor] | None:
        try:
            with open_tensors(path, MEND) as file:
                said = (file.metadata() or {}).get("features", "")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            if said != _said(facts, tensors):
                raise UnveilError(f"{path}: damaged (other content than it says); {MEND}")
            path.touch()  # used now
        except (OSError, UnveilError) as error:
            self.say(line_for_user(error) or f"{path}: {error}; {MEND}")
            return None
        return tensors

    def _write(self, path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.limit is not None and size > self.limit:
            self.say(f"{self.folder}: features of {size:,} bytes are not kept; the limit is {self.limit:,}")
            return
        try:
            save_tensors(path, tensors, {"features": _said(facts, tensors)})
            self._make_room(path)
        except (OSError, UnveilError) as error:
            self.say(f"{path}: cannot be written ({error}); the features are used, but not kept")

    def _make_room(self, newest: Path) -> None:
        """Delete what was not used for longest until all fits."""
        files = {path: path.stat() for path in self.folder.glob("*.safetensors")}
        total = sum(facts.st_size for facts in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if self.limit is not None and total > self.limit and path != newest:
                path.unlink(missing_ok=True)
                total -= files[path].st_size


def _said(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """What a file says of itself: its facts, and SHA-256 over names, shapes and bytes.

    Under one key of its metadata, because safetensors writes several in random order.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return json.dumps({"format": FORMAT, "facts": facts, "sha256": digest.hexdigest()}, sort_keys=True)
