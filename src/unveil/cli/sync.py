"""``unveil sync``: what MLflow's store did not take while it was away."""

import os
from pathlib import Path
from typing import Any

import typer

from unveil.errors import UnveilError, one_line
from unveil.layout import OUTBOX
from unveil.run.store import Store


def sync() -> None:
    """Upload what MLflow's store did not take while it was away: curves, files, models, the ends of runs.

    It may be called again at any time; what still fails stays. Exits with 1 if anything does.
    """
    from unveil.run.checkout import main_checkout

    root = main_checkout(Path.cwd())
    files = sorted((root / OUTBOX).glob("*/calls.jsonl"))
    if not files:
        typer.echo("nothing waits to be uploaded")
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # nobody waits, and files may be large
    store = Store.locate(root)
    client, _ = store.open()
    waiting = 0
    for file in files:
        try:
            _upload(file.parent, store, client)
        except (UnveilError, OSError) as error:
            if file.exists():  # else another command has uploaded it meanwhile
                waiting += 1
                typer.echo(f"run {file.parent.name}: {one_line(error)}", err=True)
    if waiting:
        raise UnveilError("something still waits; mend that, and call `unveil sync` again")


def _upload(folder: Path, store: Store, client: Any) -> None:
    """Upload what waits of a run, and say so. Raises UnveilError if something still does."""
    from unveil.run.calls import named
    from unveil.run.outbox import Outbox, upload

    run, outbox, or_give_up = f"run {folder.name}", Outbox(folder), f"; to give it up, remove {folder}"
    if not outbox.hold():
        typer.echo(f"{run}: it goes on, or another command uploads this")
        return
    try:
        client.get_run(folder.name)
    except Exception as error:
        raise UnveilError(
            f"{store.shown}: {one_line(error)}; set MLFLOW_TRACKING_URI to the run's store{or_give_up}"
        ) from error
    done, lost, failures = upload(outbox, client)
    for kind, failure in failures.items():
        typer.echo(f"{run}: MLflow did not take the {kind}: {one_line(failure)}", err=True)
    if lost:
        typer.echo(f"{run}: lost, since their files are gone from {folder}: {named(lost)}", err=True)
    if done or failures:  # else another command was faster
        typer.echo(f"{run}: uploaded {named(done) or 'nothing'}")
    if failures:
        raise UnveilError(f"{named(outbox.calls())} still waits{or_give_up}")
