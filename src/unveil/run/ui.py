"""MLflow's pages on this project's store: views of the runs, and a server for this machine only."""

import os
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from unveil.errors import UnveilError, one_line
from unveil.layout import RUNNING
from unveil.printing import warn
from unveil.run.checkout import main_checkout
from unveil.run.orphans import end_orphans
from unveil.run.store import Store, import_mlflow
from unveil.run.views import PAGES, compared_address, comparison, last_preview, put, standing_views, upstream

if TYPE_CHECKING:
    from mlflow.entities import Run

NEWEST = 10  # evaluations whose metrics decide the columns


def serve_ui(port: int = 5000, compared: Sequence["Run"] = ()) -> None:
    """Put views of the runs into the store, print their addresses, and become MLflow's server of the store.

    It is the store of the project around the working folder. One that is a server itself has pages already.

    Args:
        port: on 127.0.0.1.
        compared: evaluations to compare, which get views of their own.

    Raises:
        UnveilError: they are too many for a view, and as ``ui_command`` and ``Store.open`` do.
    """
    store = Store.locate(Path.cwd())
    if store.uri.startswith(("http://", "https://")):
        command, base = None, store.shown.rstrip("/")
    else:
        command, base = ui_command(store, port)
    for title, address in addresses(store, base, compared):
        print(f"{title + ':':<27}{address}")
    if command is None:
        return
    print("Ctrl-C ends it.", flush=True)
    # No job runner: nothing here uses MLflow's background jobs, and each would be a process.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store.uri  # which may hold a password, and every user sees a command line
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # deprecations within MLflow are no news for its reader
    os.execv(command[0], command)


def addresses(store: Store, base: str, compared: Sequence["Run"] = ()) -> list[tuple[str, str]]:
    """Put the views into the store, which is made if there is none; their titles and addresses at ``base``.

    A store that does not take them has its plain pages still.
    """
    client, experiment = store.open()
    found = [("All runs", f"{base}/#/experiments/{experiment}/runs?{PAGES}")]
    if compared:
        found.append(("Parameters compared", compared_address(base, compared)))
    try:
        end_orphans(main_checkout(Path.cwd()) / RUNNING, client)
        evaluations, trainings = (
            client.search_runs(
                [experiment], f"tags.`unveil.stage` = '{stage}'", max_results=count, order_by=["start_time DESC"]
            )
            for stage, count in (("evaluate", NEWEST), ("train", 1))
        )
        previewed = last_preview(client, [run.info.run_id for run in trainings])
        found += put(client, experiment, base, standing_views(evaluations, previewed))
        if compared:
            view = comparison(compared, last_preview(client, upstream(compared, "train")))
            found += put(client, compared[0].info.experiment_id, base, [view])
    except import_mlflow()[1] as error:
        warn(f"{store.shown} takes no views of the runs: {one_line(error)}")
    return found


def ui_command(store: Store, port: int) -> tuple[list[str], str]:
    """The command line that serves ``store``, given to it by the environment, and the address at which it does.

    Raises:
        UnveilError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UnveilError(f"port {port} of 127.0.0.1 is in use; choose another with --port") from None
    command = [sys.executable, "-m", "mlflow", "server"]
    if "unveil" in entry_points(group="mlflow.app").names:  # not where the package was only put on the path
        command += ["--app-name", "unveil"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if store.artifacts is not None:
        command += ["--artifacts-destination", str(store.artifacts)]
    return command, f"http://127.0.0.1:{port}"
