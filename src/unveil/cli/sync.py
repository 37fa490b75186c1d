"""``unveil sync``: what MLflow's store did not take while it was away."""

import os
from pathlib import Path

import typer

from unveil.errors import UnveilError, one_line
from unveil.layout import OUTBOX


def sync() -> None:
    """Upload what MLflow's store did not take while it was away: curves, files, models, the ends of runs.

    It may be called again at any time; what still fails stays. Exits with 1 if anything does.
    """
    from unveil.run.checkout import main_checkout

    root = main_checkout(Path.cwd())
    folders = sorted(file.parent for file in (root / OUTBOX).glob("*/calls.jsonl"))
    if not folders:
        typer.echo("nothing waits to be uploaded")
        return
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # nobody waits, and files may be large
    from unveil.run.calls import Call, named
    from unveil.run.outbox import Outbox, upload
    from unveil.run.store import Store

    store = Store.locate(root)
    client, _ = store.open()
    is_whole = True
    for folder in folders:
        outbox = Outbox.found(folder)
        if outbox.store != Outbox.of_run(folder.parent, folder.name, store).store:
            typer.echo(f"run {folder.name}: it is of {outbox.store or 'mlflow.db'}; set MLFLOW_TRACKING_URI", err=True)
            is_whole = False
            continue
        if not outbox.hold():
            typer.echo(f"run {folder.name}: it goes on, and uploads this itself")
            continue

        def tell(call: Call, error: Exception, run: str = folder.name) -> None:
            typer.echo(f"run {run}: MLflow did not take the {call.kind}: {one_line(error)}", err=True)

        typer.echo(f"run {folder.name}: uploaded {named(upload(outbox, client, tell)) or 'nothing'}")
        if outbox.folder.exists():
            typer.echo(f"run {folder.name}: {named(outbox.calls())} waits in {outbox.folder}", err=True)
            is_whole = False
    if not is_whole:
        raise UnveilError("something still waits; call `unveil sync` again, or remove its folder to give it up")
