"""A file for a run that has ended."""

from pathlib import Path

from unveil.errors import one_line
from unveil.run.store import Store, tracking_is_off
from unveil.run.writer import TOTAL_SECONDS, Writer


def attach(run_id: str, file: Path, start: Path) -> str | None:
    """Copy a file into the artifacts of a run in the store of the project at ``start``.

    Returns:
        Why that could not be done, in a clause; None if it was, or if tracking is switched off.
    """
    if tracking_is_off():
        return None
    store = Store.locate(start)
    if store.database is not None and not store.database.exists():  # opening would make one
        return f"there is no store {store.shown}"

    def copy() -> bool:
        client, _ = store.open()
        client.log_artifact(run_id, str(file))
        return True

    try:
        done = Writer(lambda *_: True).ask(copy, TOTAL_SECONDS)  # importing MLflow alone takes seconds
    except Exception as error:  # noqa: BLE001 - the file is where it belongs, and its copy decides nothing
        return one_line(error)
    return None if done else f"{store.shown} does not answer"
