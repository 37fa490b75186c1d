"""``unveil evaluate``: measure any generator's samples; ``unveil compare``: set evaluations beside each other."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.find import RUN_ID, find_file, revision_file, tracked
from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card, parse_card, read_card
from unveil.evaluation.card.comparison import compare_cards, describe_difference
from unveil.files import read_text

CARD = "reports/card.json"  # in a project
ARTIFACT = "card.json"  # of an evaluate run
STAGE = Path("stages/evaluate.py")
EXPECTED = "expected a card.json, a folder with one, a Git revision, a DVC experiment or the id of an MLflow run"
MEANT = "A card.json, a folder with one, a Git revision, a DVC experiment, or an MLflow run"


def evaluate(
    samples: Annotated[Path, typer.Option(help="Samples of any generator: .safetensors, .npz, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the card, the metrics and the plots.")],
    protocol: Annotated[
        str | None, typer.Option(help="The protocol of the data that the generator was trained on.")
    ] = None,
    params: Annotated[Path, typer.Option(help="The file of parameters.")] = Path("params.yaml"),
) -> None:
    """Measure how far any generator's samples are from the project's real images, by its params.yaml."""
    if not STAGE.exists():
        raise UnveilError(f"{STAGE}: not there, expected a project's stages; call from the folder of its dvc.yaml")
    command = [sys.executable, str(STAGE), "--params", str(params), "--samples", str(samples), "--out", str(out)]
    command += ["--protocol", protocol] if protocol is not None else []
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": "src"})


def compare(
    first: Annotated[str, typer.Argument(help=f"{MEANT}.", metavar="A")],
    others: Annotated[list[str], typer.Argument(help="What to compare it with, in the same ways.", metavar="B")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a document each, instead of sentences.")] = False,
) -> None:
    """Compare an evaluation card with one or more others.

    Exits with 0: equal, or no metric differs by more than noise; 1: one does, or cannot be compared, or its noise
    is not known; 2: bad input.
    """
    card, within_noise = find_card(first), True
    for number, (name, other) in enumerate([(name, find_card(name)) for name in others]):
        found = compare_cards(card, other)
        within_noise = within_noise and found.within_noise
        if as_json:
            typer.echo(json.dumps({"a": first, "b": name, **found.to_dict()}, indent=2, ensure_ascii=False))
        else:
            typer.echo("\n".join([*[""][:number], *describe_difference(found, first, name)]))
    if not within_noise:
        raise typer.Exit(1)


def find_card(name: str) -> Card:
    """The card that a name on the command line means: what exists as a path, else an MLflow run, else a revision.

    Raises UnveilError if it means none, or its card cannot be had or read.
    """
    if (path := find_file(name, (CARD, ARTIFACT), "evaluate")) is not None:
        return read_card(path)
    if RUN_ID.fullmatch(name):
        return parse_card(_tracked_card(name), f"run {name}")
    return parse_card(revision_file(Path(CARD), name, EXPECTED), f"{CARD} of {name}")


def _tracked_card(run_id: str) -> str:
    """The text of the card of an evaluate run in the project's store."""
    with tracked(run_id) as client, tempfile.TemporaryDirectory() as folder:
        stage = client.get_run(run_id).data.tags.get("unveil.stage", "no")
        if ARTIFACT not in {artifact.path for artifact in client.list_artifacts(run_id)}:
            raise UnveilError(
                f"{run_id}: found no {ARTIFACT} in this run of the {stage} stage, expected a run of the evaluate "
                "stage; give another"
            )
        return read_text(Path(client.download_artifacts(run_id, ARTIFACT, folder)))
