"""Lineage: the records that stages leave, which of them tells of the files that are read, and what a chain lacks."""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, JsonValue

from unveil.errors import UnveilError, one_line
from unveil.files import parse_json, read_json
from unveil.layout import SHARDS
from unveil.run.checkout import has_commit
from unveil.run.dvc import paths_digest
from unveil.run.writer import TOTAL_SECONDS, Writer
from unveil.section import Key

if TYPE_CHECKING:
    from mlflow import MlflowClient

StageName = Literal["download", "preprocess", "train", "sample", "oracle", "evaluate"]
STAGES = get_args(StageName)
RECORD = "run.json"  # how the names of records end, also among the artifacts of their runs
AGAIN = "run that stage again"


class Execution(BaseModel):
    """What is used of the record of one execution of a stage; what else it says is handed on."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
    stage: StageName
    run_id: Key | None
    model_id: Key | None
    params: dict[Key, bool | int | float | Annotated[str, Len(0, 6000)] | None]
    metrics: dict[Key, float]
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    git_commit: str | None = None
    git_dirty: bool | None = None
    dvc_exp_name: str | None = None
    tracking_uri: str | None = None


class RunRecord(Execution):
    """A run record, whole: with those of the stages before it."""

    upstream: dict[StageName, Execution]

    @property
    def chain(self) -> dict[str, Execution]:
        """This execution and those before it, the last first."""
        every = self.upstream | {self.stage: self}
        return {stage: every[stage] for stage in reversed(STAGES) if stage in every}


def tracked_record(client: "MlflowClient", run_id: str) -> RunRecord:
    """The record among the artifacts of a run.

    Raises:
        UnveilError: it has none, as runs of earlier versions.
        MlflowException: the store does not give it.
    """
    names = [item.path for item in client.list_artifacts(run_id) if item.path.endswith(RECORD)]
    if not names:
        raise UnveilError(
            f"run {run_id}: found no {RECORD} among its artifacts, expected the record of a stage; {AGAIN}"
        )
    with tempfile.TemporaryDirectory() as folder:
        return read_json(Path(client.download_artifacts(run_id, names[0], folder)), RunRecord, AGAIN)


def run_that_wrote(client: "MlflowClient", digests: Mapping[str, str]) -> str | None:
    """The id of the newest finished run that wrote outputs (path to sha256) of just this content."""
    words = [f"tags.`unveil.output.{name}` = '{digest}'" for name, digest in digests.items()]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    asked = " AND ".join([*words, "attributes.status = 'FINISHED'"])
    found = client.search_runs(experiments, asked, max_results=1, order_by=["start_time DESC"])
    return found[0].info.run_id if found else None


def content_digest(root: Path, name: str) -> str | None:
    """The sha256 by which stages name an input or output; None if it is not there."""
    if name == SHARDS.as_posix():
        from unveil.data.shards import ShardIndex

        try:
            return ShardIndex.load(root / SHARDS).digest()
        except (OSError, UnveilError):
            pass
    return paths_digest(root, [name])


def _locked_record(root: Path, path: Path) -> RunRecord:
    """The record that dvc.lock names, from DVC's cache or a remote, whatever lies in its place.

    Raises:
        UnveilError: if it cannot be had, or not within a minute.
    """

    def read() -> bytes:
        repo: Any = import_module("dvc.repo").Repo(str(root))  # a second's work that few need
        with repo:
            return repo.datafs.cat_file(path.as_posix())

    try:
        content = Writer(lambda *_: True).ask(read, TOTAL_SECONDS)
    except Exception as error:  # DVC and its remotes raise what they like
        raise UnveilError(f"DVC has none: {one_line(error)}") from error
    if content is None:
        raise UnveilError("DVC's remote does not answer")
    return parse_json(content, RunRecord, f"{path.as_posix()} of dvc.lock", AGAIN)


def find_record(
    root: Path,
    path: Path,
    digests: Mapping[str, str],
    ask: Callable[[Callable[[Any], RunRecord | None]], RunRecord | None],
) -> RunRecord:
    """The record of the execution that wrote the files that are there.

    Where the one in its place is of others, it is sought in DVC's cache and remote, and in MLflow by their content.

    Args:
        root: folder of dvc.yaml, and the working folder.
        path: of the record, from there.
        digests: sha256 of the files that its stage writes, by path.
        ask: puts a question to MLflow's client.

    Raises:
        UnveilError: if there is none; says what is in its place.
    """
    refusals: list[str] = []
    for read in (partial(read_json, path, RunRecord, AGAIN), partial(_locked_record, root, path)):
        try:
            found = read()
        except (OSError, UnveilError) as error:
            refusals.append(f"{path.as_posix()}: {one_line(error)}")
            continue
        others = [name for name, digest in digests.items() if found.outputs.get(name, digest) != digest]
        if not others:
            return found
        refusals.append(f"{path.as_posix()}: it tells of another {', '.join(others)} than is there")

    def search(client: "MlflowClient") -> RunRecord | None:
        run_id = run_that_wrote(client, digests) if digests else None
        return tracked_record(client, run_id) if run_id is not None else None

    if (record := ask(search)) is None:
        raise UnveilError(refusals[0])
    return record


def lacking(
    record: RunRecord, runs: Mapping[str, object] | None, models: Collection[str], root: Path, store: str
) -> Iterator[str]:
    """What the chain of a record lacks, in lines.

    Args:
        record: the last execution's.
        runs: those that the store has, by stage; None if it cannot be asked.
        models: ids of the LoggedModels that it has.
        root: a folder of the repository.
        store: its name for people.
    """
    chain = record.chain
    before = STAGES[: 2 if record.stage == "oracle" else STAGES.index(record.stage)]
    if runs is None:
        yield f"{store} does not answer, or is not there: which runs and models it has is not known"
    yield from (f"{stage}: no record of it" for stage in before if stage not in {*chain, "oracle"})
    for stage, one in chain.items():
        where = f"; it went to {one.tracking_uri}" if one.tracking_uri else ""
        if one.run_id is None:
            yield f"{stage}: MLflow did not track it"
        elif runs is not None and stage not in runs:
            yield f"{stage}: {store} has no run {one.run_id}{where}"
        if runs is not None and stage == "train" and one.model_id is not None and one.model_id not in models:
            yield f"{stage}: {store} has no model {one.model_id}{where}"
        if one.git_commit is not None and not has_commit(root, one.git_commit):
            yield f"{stage}: Git has no commit {one.git_commit} here; `git fetch` may bring it"
        for name, digest in one.inputs.items():
            others = [writer for writer in chain.values() if writer.outputs.get(name, digest) != digest]
            yield from (f"{stage}: it read another {name} than {writer.stage} wrote" for writer in others)
