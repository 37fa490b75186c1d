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
    from unveil.run.calls import named
    from unveil.run.outbox import Outbox, upload
    from unveil.run.store import Store

    store = Store.locate(root)
    client, _ = store.open()
    is_whole = True
    for folder in folders:
        run, outbox = f"run {folder.name}", Outbox(folder)
        if not outbox.hold():
            typer.echo(f"{run}: it goes on, and uploads this itself")
            continue
        try:
            client.get_run(folder.name)
        except Exception as error:  # noqa: BLE001 - the libraries beneath a store raise what they like
            typer.echo(f"{run}: {store.shown}: {one_line(error)}; set MLFLOW_TRACKING_URI to the run's store", err=True)
            is_whole = False
            continue
        done, failures = upload(outbox, client)
        for kind, failure in failures.items():
            typer.echo(f"{run}: MLflow did not take the {kind}: {one_line(failure)}", err=True)
        typer.echo(f"{run}: uploaded {named(done) or 'nothing'}")
        if folder.exists():
            typer.echo(f"{run}: {named(outbox.calls())} waits in {folder}", err=True)
            is_whole = False
    if not is_whole:
        raise UnveilError("something still waits; call `unveil sync` again, or remove its folder to give it up")
