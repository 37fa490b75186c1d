"""``python -m unveil.run.script stages/train.py``: a stage that cannot even begin leaves a run that says why.

So an experiment of DVC's queue that failed is found in MLflow, whatever it failed with.
"""

import os
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from unveil.errors import one_line
from unveil.files import read_text
from unveil.parameter_file import parse_mapping
from unveil.rank import is_main_process
from unveil.run.checkout import git_tags, machine_tags, source_tags
from unveil.run.dvc import dvc_tags
from unveil.run.orphans import CHECK_SECONDS, follow
from unveil.run.store import Store, tracking_is_off
from unveil.run.tracked import TrackedRun


def main(script: Path) -> None:
    """Run a stage's command in this process."""
    follow()
    sys.argv = sys.argv[1:]
    try:
        command = runpy.run_path(str(script))["app"]
    except Exception as error:
        details = traceback.format_exc()
        keep_failure(script.stem, Path("params.yaml"), f"{type(error).__name__}: {one_line(error)}", details)
        raise
    command()


def keep_failure(name: str, params: Path, error: str, log: str) -> None:
    """Log that an experiment's stage failed before its run was open: its error, its parameters as they are, its log.

    Nothing is done where no experiment of DVC is run, whose user sees the error, or if the store takes nothing.
    """
    tags = dvc_tags()
    if "dvc.exp_name" not in tags or tracking_is_off() or not is_main_process():
        return
    with suppress(Exception):
        root, values = Path.cwd(), {}
        tags |= {"unveil.stage": name, **source_tags(name, tags["dvc.exp_name"]), **machine_tags(), **git_tags(root)}
        with suppress(Exception):  # an unreadable file has no values, but is an artifact
            values = dict(dotted(parse_mapping(read_text(params), params.name)[1].get(name), name))
        run = TrackedRun.start(Store.locate(root), tags, values)
        run.log_artifact(params)
        run.finish("FAILED", error, log=log)


def dotted(value: Any, key: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and the values in nested mappings."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from dotted(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _end_with_parent() -> None:
    """End a process that a stage spawned: it would wait for work for ever if the stage was killed."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
elif __name__ == "__mp_main__":  # what a spawned process of a stage begins with
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
