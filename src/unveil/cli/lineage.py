"""``unveil lineage``: what a result was made of, from the images to the number."""

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unveil.cli.find import RUN_MEANT, find_file, find_run, revision_file, tracked
from unveil.errors import UnveilError
from unveil.files import file_digest, parse_json, read_json
from unveil.layout import CARD, EVALUATE_RECORD
from unveil.run.lineage import AGAIN, RECORD, Execution, RunRecord, lacking, run_that_wrote, tracked_record

if TYPE_CHECKING:
    from mlflow.entities import Run

DIGITS = 12  # of a hash


def lineage(
    name: Annotated[str, typer.Argument(help=f"A card.json, or {RUN_MEANT}.", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all digits.")] = False,
) -> None:
    """Print the runs that led to a result, with their commits and the hashes of what they read and wrote.

    Exits with 0: the chain is whole; 1: something is missing, which the last lines name; 2: bad input.
    """
    record = find_lineage(name)
    runs, missing = look_up(record)
    if as_json:
        chain = [one.model_dump(exclude={"upstream"}) for one in record.chain.values()]
        typer.echo(json.dumps({"chain": chain, "missing": missing}, indent=2, ensure_ascii=False))
    else:
        for stage, one in record.chain.items():
            typer.echo("\n".join(describe(one, runs.get(stage))))
        typer.echo("\n".join(["missing:", *(f"  {line}" for line in missing)] if missing else ["nothing is missing"]))
    if missing:
        raise typer.Exit(1)


def find_lineage(name: str) -> RunRecord:
    """The record of what a name on the command line means; its run need not be in the store.

    Raises:
        UnveilError: if there is none.
    """
    if (path := find_file(name, (EVALUATE_RECORD.as_posix(),), "evaluate")) is not None:
        return read_json(path, RunRecord, AGAIN) if path.name.endswith(RECORD) else _record_of_card(path)
    try:
        run_id = find_run(name).info.run_id
        with tracked(run_id) as client:
            return tracked_record(client, run_id)
    except UnveilError:
        with suppress(UnveilError):  # the first reason says more
            content = revision_file(EVALUATE_RECORD, name, f"expected {RUN_MEANT}")
            return parse_json(content, RunRecord, f"{EVALUATE_RECORD} of {name}", AGAIN)
        raise


def _record_of_card(card: Path) -> RunRecord:
    """The record of the evaluation that wrote just this card: the one beside it, or that of a run in the store."""
    digest, beside = file_digest(card), card.resolve().parent.parent / EVALUATE_RECORD
    if beside.is_file():
        record = read_json(beside, RunRecord, AGAIN)
        if record.outputs.get(CARD.as_posix()) == digest:
            return record
    with tracked(str(card)) as client:
        if (run_id := run_that_wrote(client, {CARD.as_posix(): digest})) is not None:
            return tracked_record(client, run_id)
    raise UnveilError(
        f"{card}: found no record of the evaluation that wrote it, expected a card.json of a run in this store; give "
        "its run or experiment"
    )


def look_up(record: RunRecord) -> "tuple[dict[str, Run], list[str]]":
    """The runs of a chain that the store around the working folder has, by stage, and what is missing."""
    from unveil.run.store import Store

    store = Store.locate(Path.cwd()).shown
    runs: dict[str, Run] = {}
    models: set[str] = set()
    try:
        with tracked(store) as client:
            client.search_experiments(max_results=1)
    except UnveilError:
        return {}, list(lacking(record, None, models, Path.cwd(), store))
    for stage, one in record.chain.items():
        with suppress(UnveilError), tracked(str(one.run_id)) as client:
            runs[stage] = client.get_run(str(one.run_id))
        if stage == "train" and one.model_id is not None:
            with suppress(UnveilError), tracked(one.model_id) as client:
                models.add(client.get_logged_model(one.model_id).model_id)
    return runs, list(lacking(record, runs, models, Path.cwd(), store))


def describe(one: Execution, run: "Run | None") -> list[str]:
    """The lines that are printed of an execution."""
    dirty = ", with uncommitted changes" if one.git_dirty else ""
    began = f"{datetime.fromtimestamp(run.info.start_time / 1000):%Y-%m-%d %H:%M}  {run.info.status}" if run else ""
    lines = [f"{one.stage:<10}  {one.run_id or 'untracked'}  {began}".rstrip()]
    for word, value in (("experiment", one.dvc_exp_name), ("commit", one.git_commit), ("model", one.model_id)):
        if value is not None and (word != "model" or one.stage == "train"):
            lines.append(f"  {word:<10}{value}{dirty if word == 'commit' else ''}")
    for word, digests in (("read", one.inputs), ("wrote", one.outputs)):
        lines += [f"  {word:<10}{digest[:DIGITS]}  {name}" for name, digest in digests.items()]
    return lines
