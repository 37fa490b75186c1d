"""A file for a run that has ended."""

from pathlib import Path

from unveil.errors import one_line
from unveil.layout import OUTBOX
from unveil.run.calls import CopiedFile
from unveil.run.checkout import main_checkout
from unveil.run.outbox import Outbox
from unveil.run.store import Store, is_refusal, tracking_is_off
from unveil.run.writer import TOTAL_SECONDS, Writer


def attach(run_id: str, file: Path, start: Path) -> str | None:
    """Copy a file into the artifacts of a run in the store of the project at ``start``; keep it if that is away.

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
        if is_refusal(error):
            return one_line(error)
        reason = one_line(error)
    else:
        if done:
            return None
        reason = f"{store.shown} does not answer"
    outbox = Outbox(main_checkout(start) / OUTBOX / run_id)
    if not (run_id.isalnum() and outbox.hold()):
        return reason
    outbox.save([*outbox.calls(), CopiedFile(run_id=run_id, path=file.absolute())])
    return f"{reason}; `unveil sync` uploads it"
