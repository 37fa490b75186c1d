"""What a name on the command line means: a file, a folder of the project, or a run in MLflow."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from unveil.errors import UnveilError, one_line
from unveil.files import parse_json, read_text
from unveil.layout import EVALUATE_RECORD

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REMOTE_SECONDS = 20.0  # that DVC has for a small file, also on a busy machine
RUN_ID = re.compile(r"[0-9a-f]{32}")


class _Record(BaseModel):
    """What is used here of the record of an execution."""

    run_id: str | None


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


def needed_root() -> Path:
    """The DVC project around the working folder. Raises UnveilError if there is none."""
    if (root := project_root()) is None:
        raise UnveilError("found no DVC project here, expected params.yaml and dvc.yaml; call from its folder")
    return root


def revision_file(path: Path, name: str, expected: str) -> bytes:
    """The bytes of a file of the pipeline's, of a Git revision or a DVC experiment, from DVC's cache or remote.

    Raises:
        UnveilError: if there is none, or a remote keeps it waiting; ``expected`` says what the name may mean.
    """
    root = project_root()
    if root is None:
        raise UnveilError(f"{name}: found no such file or folder, and no DVC project here; {expected}; give another")
    import dvc.api
    from dvc.exceptions import DvcException, FileMissingError, OutputNotFoundError, PathMissingError
    from dvc.scm import RevError

    from unveil.run.writer import Writer

    try:
        read = partial(dvc.api.read, path.as_posix(), repo=str(root), rev=name, mode="rb")
        content: bytes | None = Writer(lambda *_: True).ask(read, REMOTE_SECONDS)
    except RevError:
        raise UnveilError(f"{name}: found no such file, folder or revision; {expected}; give another") from None
    except (FileMissingError, OutputNotFoundError, PathMissingError):
        raise UnveilError(
            f"{name}: found no {path} of this revision here, expected one in DVC's cache; if you made it here, "
            "`git commit -am 'my result'` after `dvc repro` gives it a name; "
            "`dvc fetch --all-commits` brings it from a remote"
        ) from None
    except (DvcException, OSError) as error:
        line = one_line(error)
        raise UnveilError(f"{name}: DVC cannot give its {path} ({line}); {expected}; give another") from None
    if content is None:
        raise UnveilError(f"{name}: {path} is not in DVC's cache, and DVC's remote does not answer; try it later")
    return content


RUN_MEANT = "an MLflow run's id or name, a DVC experiment, a Git revision, or a folder with metrics/run.json"


def find_run(name: str, stage: str = "evaluate") -> "Run":
    """The run of a stage that a name on the command line means: the newest, if several have it.

    In this order: a folder of a project, a run's id, a DVC experiment, a run's name, a Git revision.

    Raises:
        UnveilError: if it means none in the store of the project around the working folder.
    """
    expected = f"expected {RUN_MEANT}"
    if (path := find_file(name, (EVALUATE_RECORD.as_posix(),), stage)) is not None:
        return _recorded(read_text(path), str(path))
    with tracked(name) as client:
        if RUN_ID.fullmatch(name):
            return client.get_run(name)
        quoted = name.replace("'", "")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        for words in (f"tags.`dvc.exp_name` = '{quoted}'", f"tags.`mlflow.runName` = '{quoted}'"):
            asked = f"{words} AND tags.`unveil.stage` = '{stage}'" if "exp_name" in words else words
            if found := client.search_runs(experiments, asked, max_results=1, order_by=["start_time DESC"]):
                return client.get_run(found[0].info.run_id)  # a search says nothing of a run's models
    return _recorded(revision_file(EVALUATE_RECORD, name, expected), f"{EVALUATE_RECORD} of {name}")


def _recorded(record: str | bytes, source: str) -> "Run":
    """The run of which a record tells."""
    run_id = parse_json(record, _Record, source, "run `dvc repro` again").run_id
    if run_id is None:
        raise UnveilError(f"{source}: the record of an execution that MLflow did not track; give another")
    with tracked(run_id) as client:
        return client.get_run(run_id)
