"""``python -m unveil.evaluation compare A B``: do two evaluations differ, in what, and by more than noise?"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from unveil.commands import one_line_errors
from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card, parse_card, read_card
from unveil.evaluation.card.comparison import compare as compare_cards
from unveil.evaluation.card.comparison import describe
from unveil.files import read_text

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
RUN_ID = re.compile(r"[0-9a-f]{32}")
BAD_INPUT = 2  # 1 says that the two differ
CARD = Path("reports/card.json")  # in a project
ARTIFACT = "card.json"  # of an evaluate run
PLACES = (CARD, Path(CARD.name))  # within a folder
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Tools for evaluations.")


@app.callback()
def main() -> None:
    """Tools for evaluations."""


@app.command()
def compare(
    first: Annotated[
        str,
        typer.Argument(
            help="A card.json, a folder with one, a Git revision, a DVC experiment, or an MLflow run.", metavar="A"
        ),
    ],
    second: Annotated[str, typer.Argument(help="What to compare it with, in the same ways.", metavar="B")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of sentences.")] = False,
) -> None:
    """Compare two evaluation cards.

    Exits with 0: equal, or no metric differs by more than noise; 1: one does, or cannot be compared, or its noise
    is not known; 2: bad input.
    """
    with one_line_errors(BAD_INPUT):
        found = compare_cards(find_card(first), find_card(second))
    if as_json:
        typer.echo(json.dumps({"a": first, "b": second, **found.to_dict()}, indent=2, ensure_ascii=False))
    else:
        for line in describe(found, first, second):
            typer.echo(line)
    if not found.within_noise:
        raise typer.Exit(1)


def find_card(name: str) -> Card:
    """The card that a name on the command line means: what exists as a path, else an MLflow run, else a revision.

    Raises:
        UnveilError: if it means none, or its card cannot be had or read.
    """
    path = Path(name)
    if path.is_dir():
        found = next((path / place for place in PLACES if (path / place).is_file()), None)
        if found is None:
            raise UnveilError(
                f"{path}: found a folder without {' or '.join(map(str, PLACES))}, expected one; `dvc repro evaluate` "
                "or `dvc checkout` writes it"
            )
        return read_card(found)
    if path.exists():
        return read_card(path)
    if RUN_ID.fullmatch(name):
        return tracked_card(name)
    return revision_card(name)


def tracked_card(run_id: str) -> Card:
    """The card of an evaluate run in the store of the project around the working folder.

    Raises:
        UnveilError: if there is no such store, run or card.
    """
    from unveil.run.tracking import Store, one_line

    store = Store.locate(Path.cwd())
    if store.database is not None and not store.database.exists():  # opening would make one
        raise UnveilError(
            f"{run_id}: found no store {store.shown}, expected the one that holds the run; call from its project, or "
            "set MLFLOW_TRACKING_URI"
        )
    client, _ = store.open()
    from mlflow.exceptions import MlflowException

    try:
        stage = client.get_run(run_id).data.tags.get("unveil.stage", "no")
        held = {artifact.path for artifact in client.list_artifacts(run_id)}
        if ARTIFACT not in held:
            raise UnveilError(
                f"{run_id}: found no {ARTIFACT} in this run of the {stage} stage, expected a run of the evaluate "
                "stage; give another"
            )
        with tempfile.TemporaryDirectory() as folder:
            text = read_text(Path(client.download_artifacts(run_id, ARTIFACT, folder)))
    except MlflowException as error:
        raise UnveilError(f"{run_id}: {store.shown} has no such run ({one_line(error)}); give another") from None
    return parse_card(text, f"run {run_id}")


def revision_card(name: str) -> Card:
    """The card of a Git revision or a DVC experiment, from DVC's cache.

    Raises:
        UnveilError: if there is no such revision, or it or the cache has no card.
    """
    root = _project_root()
    expected = "expected a card.json, a folder with one, a Git revision, a DVC experiment or the id of an MLflow run"
    if root is None:
        raise UnveilError(f"{name}: found no such file or folder, and no DVC project here; {expected}; give another")
    import dvc.api
    from dvc.exceptions import DvcException, FileMissingError, OutputNotFoundError, PathMissingError
    from dvc.scm import RevError

    try:
        text = dvc.api.read(CARD.as_posix(), repo=str(root), rev=name, mode="rb")
    except RevError:
        raise UnveilError(f"{name}: found no such file, folder or revision; {expected}; give another") from None
    except (FileMissingError, OutputNotFoundError, PathMissingError):
        raise UnveilError(
            f"{name}: found no {CARD} of this revision here, expected one in DVC's cache; `dvc fetch --all-commits` "
            "brings it from a remote, if the evaluate stage of that revision wrote one"
        ) from None
    except (DvcException, OSError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise UnveilError(f"{name}: DVC cannot give its {CARD} ({line}); {expected}; give another") from None
    return parse_card(text, f"{CARD} of {name}")


def _project_root() -> Path | None:
    """The DVC project around the working folder; None if there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)


if __name__ == "__main__":
    app()
