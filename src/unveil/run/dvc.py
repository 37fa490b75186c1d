"""What DVC says of a stage: the paths that dvc.yaml declares, their digests, and the experiment that runs it."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from unveil.errors import UnveilError, one_line
from unveil.files import file_digest, read_text

SWEEP_VARIABLE = "UNVEIL_SWEEP"  # set by `unveil sweep` for what it runs
VARIABLES = {
    "dvc.stage": "DVC_STAGE",
    "dvc.exp_name": "DVC_EXP_NAME",
    "dvc.exp_baseline_rev": "DVC_EXP_BASELINE_REV",
    "unveil.sweep": SWEEP_VARIABLE,
}

WRITTEN = ("outs", "metrics", "plots")


def dvc_tags() -> dict[str, str]:
    """Stage, experiment and sweep, as they are named in the environment of what DVC runs."""
    return {tag: os.environ[name] for tag, name in VARIABLES.items() if os.environ.get(name)}


def declared_paths(dvc_file: Path, name: str) -> tuple[list[str], list[str], list[str]]:
    """What dvc.yaml declares for a stage: data it reads, code it uses, what it writes.

    Data is what another stage writes; every other dependency is code. A file that is not there or
    does not name the stage (a stage run by hand) gives empty lists.

    Raises:
        UnveilError: dvc.yaml is not readable.
    """
    try:
        stages = (YAML(typ="safe").load(read_text(dvc_file)) or {}).get("stages") or {}
        if name not in stages:
            return [], [], []
        written = [path for entry in stages.values() for path in _paths(entry, *WRITTEN)]
        reads = list(_paths(stages[name], "deps"))
        data = [path for path in reads if any(f"{path}/".startswith(f"{out}/") for out in written)]
        return data, [path for path in reads if path not in data], list(_paths(stages[name], *WRITTEN))
    except FileNotFoundError:
        return [], [], []
    except (YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise UnveilError(f"{dvc_file.name}: not readable as YAML of DVC's: {one_line(error)}") from error


def _paths(entry: Mapping[str, Any], *keys: str) -> Iterator[str]:
    for item in (item for key in keys for item in entry.get(key) or []):
        (path,) = [item] if isinstance(item, str) else item  # with options, a path is the one key
        yield path


def paths_digest(root: Path, names: list[str], code: bool = False) -> str | None:
    """sha256 over files and folders below ``root``: a file's own, else over all names and digests.

    Hidden files are left out, and of code all but modules, tables and templates, as by .dvcignore.

    Returns:
        None if nothing is there.
    """
    if len(names) == 1 and (root / names[0]).is_file():
        return file_digest(root / names[0])
    lines = []
    for top in (root / name for name in sorted(names)):
        for file in [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file()):
            place = file.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in place.parts)
            if not hidden and (file.suffix in (".py", ".yaml", ".j2") or not code):
                lines.append(f"{place.as_posix()}\0{file_digest(file)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
