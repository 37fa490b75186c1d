"""MLflow's pages on this project's store, for this machine only."""

import os
import socket
import sys
from pathlib import Path
from urllib.parse import quote

from unveil.errors import UnveilError
from unveil.layout import RUNNING
from unveil.run.checkout import main_checkout
from unveil.run.orphans import end_orphans
from unveil.run.store import Store

EVALUATIONS = "tags.`unveil.stage` = 'evaluate'"  # MLflow's search for the rows that people compare


def serve_ui(port: int = 5000) -> None:
    """Become MLflow's server of the store of the project around the working folder, and print its addresses.

    Raises:
        UnveilError: as ``ui_command`` and ``Store.open`` do.
    """
    command, address = ui_command(Store.locate(Path.cwd()), port)
    print(f"all runs:    {address}")
    print(f"evaluations: {address}&searchFilter={quote(EVALUATIONS)}")
    print("Ctrl-C ends it.", flush=True)
    # No job runner: nothing here uses MLflow's background jobs, and each would be a process.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # deprecations within MLflow are no news for its reader
    os.execv(command[0], command)


def ui_command(store: Store, port: int) -> tuple[list[str], str]:
    """The command line that serves ``store``, and the address of its runs; a store is made if there is none.

    Raises:
        UnveilError: the store is a server itself, or the port is taken.
    """
    if store.uri.startswith(("http://", "https://")):
        raise UnveilError(f"MLFLOW_TRACKING_URI is a server; open {store.shown} in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UnveilError(f"port {port} of 127.0.0.1 is in use; choose another with --port") from None
    client, experiment = store.open()
    end_orphans(main_checkout(Path.cwd()) / RUNNING, client)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if store.artifacts is not None:
        command += ["--artifacts-destination", str(store.artifacts)]
    # Without the query MLflow 3 shows its pages for agents.
    return command, f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
