"""What a name on the command line means: a file, a folder of the project, or a run in MLflow."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from unveil.errors import UnveilError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID = re.compile(r"[0-9a-f]{32}")


def find_file(name: str, places: Sequence[str], stage: str) -> Path | None:
    """The file that is meant, or the first of ``places`` in the folder that is; None if nothing is there.

    Raises:
        UnveilError: if it is a folder without one; the line says which stage writes it.
    """
    path = Path(name)
    if not path.is_dir():
        return path if path.exists() else None
    found = next((path / place for place in places if (path / place).is_file()), None)
    if found is None:
        raise UnveilError(
            f"{path}: found a folder without {' or '.join(places)}, expected one; `dvc repro {stage}` or "
            "`dvc checkout` writes it"
        )
    return found


@contextmanager
def tracked(run_id: str) -> "Iterator[MlflowClient]":
    """The store of the project around the working folder, to ask for a run.

    Raises:
        UnveilError: if there is no such store, or the block finds no such run.
    """
    from unveil.errors import one_line
    from unveil.run.store import Store

    store = Store.locate(Path.cwd())
    if store.database is not None and not store.database.exists():  # opening would make one
        raise UnveilError(
            f"{run_id}: found no store {store.shown}, expected the one that holds the run; call from its project, or "
            "set MLFLOW_TRACKING_URI"
        )
    client, _ = store.open()
    from mlflow.exceptions import MlflowException

    try:
        yield client
    except MlflowException as error:
        raise UnveilError(f"{run_id}: {store.shown} has no such run ({one_line(error)}); give another") from None


def project_root() -> Path | None:
    """The DVC project around the working folder; None if there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
