"""What a project has kept and nobody needs: how large it is, why it may go, and how it goes.

Nothing is waste that was touched in the last days, or that a process holds, or that anything leads to: a commit,
an experiment, an MLflow run that was not deleted, or a registered model.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

from unveil import layout
from unveil.errors import UnveilError, one_line
from unveil.files import parse_json, read_bytes, read_json, read_text
from unveil.layout import CHECKPOINTS, OUTBOX, PACKAGES, RUNNING
from unveil.parameter_file import parse_mapping
from unveil.printing import warn
from unveil.run.checkout import git_answer
from unveil.run.store import Store, import_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

FEATURES, DOWNLOADS = CHECKPOINTS.with_name("features"), CHECKPOINTS.with_name("downloads")
EXPERIMENTS = Path(".dvc/tmp/exps")  # where DVC's copies of the project are, and those of sweeps
CACHE = Path(".dvc/cache")
RECORDS = {path.as_posix() for name, path in vars(layout).items() if name.endswith("_RECORD")}
LEFT = "a copy of the project that an experiment left {} ago"
REMOVING = "Removing "  # how a line of `dvc gc --dry` begins
DAY_SECONDS = 86_400
PAGE = 1000  # runs that are asked for at once


@dataclass(frozen=True)
class Waste:
    """Something that may go: of what kind, its name, bytes on this disk, the reason, and what removes it."""

    kind: str
    name: str
    size: int
    reason: str
    remove: Callable[[], object]


@dataclass
class Tracked:
    """What the store that is named and the project's own have, also of deleted runs and of other experiments.

    Attributes:
        client: of the store, if that is a file of this project's, and no server that others use.
        unread: why a store does not say what its runs need; empty if all do.
    """

    project: Path
    client: "MlflowClient | None" = None
    unread: str = ""
    runs: "list[Run]" = field(default_factory=list)
    models: "list[LoggedModel]" = field(default_factory=list)
    registered: set[str] = field(default_factory=set)  # ids of runs and models that have a registered version

    def __post_init__(self) -> None:
        named, own = Store.locate(self.project), Store.own(self.project)
        for store in dict.fromkeys((named, own)):
            if store.database is None or store.database.exists():
                self._ask(store, opened=store == named)
            elif store != own:
                self.unread = f"{store.shown} is not there"
        if self.unread:
            self.client = None

    def _ask(self, store: Store, opened: bool) -> None:
        MlflowClient, of_store = import_mlflow()
        failures: tuple[type[Exception], ...] = (UnveilError, *of_store)
        try:  # what is named of experiments in the environment is not of the project's own store beside another
            client = store.open()[0] if opened else MlflowClient(store.uri)
            from mlflow.entities import ViewType

            places = [experiment.experiment_id for experiment in _all(client.search_experiments)]
            self.runs += _all(partial(client.search_runs, places, run_view_type=ViewType.ALL, max_results=PAGE))
            self.models += _all(partial(client.search_logged_models, places))
            for version in _all(client.search_model_versions):
                self.registered |= {str(version.run_id), str(version.model_id)}
        except failures as error:
            self.unread = one_line(error if isinstance(error, UnveilError) else store.cannot_open(error))
        else:
            if opened and store.database is not None:
                self.client = client

    @cached_property
    def needed(self) -> set[str]:
        """The runs that a registered model, a run with results or what waits on this disk leads to."""
        sources = {model.source_run_id for model in self.models if model.model_id in self.registered}
        waiting = {path.name for path in (self.project / OUTBOX).glob("*")}
        resumable = {
            read_json(path, dict[str, str | None], "remove it").get("run_id")
            for path in (self.project / CHECKPOINTS).glob("*/run.json")
        }
        needed = self.registered | {*filter(None, sources | resumable)} | waiting
        return needed | {
            value
            for run in self.runs
            if run.info.lifecycle_stage == "active" or run.info.run_id in needed
            for key, value in run.data.tags.items()
            if key.startswith("unveil.upstream.")
        }

    @cached_property
    def unneeded(self) -> set[str]:
        """The runs that were deleted, wherever they are, and to which nothing leads."""
        active = {run.info.run_id for run in self.runs if run.info.lifecycle_stage == "active"}
        return {run.info.run_id for run in self.runs} - active - self.needed


def _all(search: Callable[..., Any]) -> list[Any]:
    """Every page of what MLflow finds."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def find_waste(project: Path, days: float) -> list[Waste]:
    """What may go of the main checkout ``project``, of what nobody touched for ``days``.

    A warning says why DVC's cache is left alone, if it is.

    Raises:
        UnveilError: if a checkpoint does not say whose it is.
    """
    before = time.time() - days * DAY_SECONDS
    tracked = Tracked(project)
    found = [*_unused(project, before), *_runs(tracked, before)]
    try:
        objects = _objects(project, tracked, before)
    except UnveilError as error:
        warn(f"DVC's cache is left alone: {error}")
        objects = set()
    if objects:
        reason = "no commit, no experiment, and no execution whose run was not deleted"
        remove = partial(_remove_objects, project, tracked, objects)
        found.append(Waste("DVC cache", f"{len(objects)} objects", sum(map(_size, objects)), reason, remove))
    return found


def _unused(project: Path, before: float) -> Iterator[Waste]:
    """Files and folders that nobody uses; of the copies, those without any experiments that the project lacks."""
    for kind, pattern, reason in (
        ("checkpoints", f"{CHECKPOINTS}/*/", "of a training that stopped {} ago, and could be gone on with"),
        ("features", f"{FEATURES}/*.safetensors", "not used for {}; computed again if it is needed"),
        ("downloads", f"{DOWNLOADS}/", "of a download that stopped {} ago, and could be gone on with"),
        ("packages", f"{PACKAGES}/*/", "of a training that was killed {} ago"),
        *(("copies", f"{EXPERIMENTS}/{names}/", LEFT) for names in ("tmp*", "standalone/tmp*", "sweeps/*")),
    ):
        for path in sorted(project.glob(pattern)):
            with _free(path, before) as is_free:
                if is_free:
                    name = path.relative_to(project).as_posix()
                    ago = _ago(_touched(path))
                    yield Waste(kind, name, _size(path), reason.format(ago), partial(_remove, path, before))


def _remove(path: Path, before: float) -> None:
    with _free(path, before) as is_free:
        if not is_free:
            raise UnveilError(f"{path}: taken up meanwhile, so it stays")
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _free(path: Path, before: float) -> Iterator[bool]:
    """Whether nobody touched or has a file or folder; if so, no training and no sweep takes it within the block."""
    lock = path.parents[1] / RUNNING.name / path.name if path.parent.name == PACKAGES.name else Path(f"{path}.lock")
    with _locked(lock) as is_locked:
        yield is_locked and _touched(path) < before and not _is_busy(path) and not _has_results(path)


@contextmanager
def _locked(lock: Path) -> Iterator[bool]:
    """Have a lock for the block, if there is one; whether no other process has it."""
    with ExitStack() as held:
        try:
            handle = os.open(lock, os.O_RDWR)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except OSError:
            yield False
            return
        yield True


def _has_results(folder: Path) -> bool:
    """Whether it is a clone with experiments, or one that Git cannot read."""
    if not (folder / ".git").exists():
        return False
    return git_answer(folder, "--git-dir=.git", "for-each-ref", "refs/exps/??/*/*") != ""


def _is_busy(folder: Path) -> bool:
    """Whether a process of this machine works in it."""
    return any(Path(process.info["cwd"] or "/").is_relative_to(folder) for process in psutil.process_iter(["cwd"]))


def _runs(tracked: Tracked, before: float) -> Iterator[Waste]:
    client = tracked.client
    if client is None:
        return
    store: Any = client._tracking_client.store  # only the store itself can delete for good, as `mlflow gc` does
    gone = set(store._get_deleted_runs((time.time() - before) * 1000))
    for run in tracked.runs:
        info, ended = run.info, (run.info.end_time or run.info.start_time) / 1000
        if info.run_id in tracked.needed or "unveil.stage" not in run.data.tags:
            continue
        name = f"{info.run_id} {info.run_name}"
        if info.run_id in gone:
            models = [model for model in tracked.models if model.source_run_id == info.run_id]
            places = [info.artifact_uri, *(model.artifact_location for model in models)]
            size = sum(_size(Path(url2pathname(urlsplit(uri).path))) for uri in places if uri.startswith("file:"))
            remove = partial(_delete_for_good, client, run, models)
            yield Waste("deleted runs", name, size, "was deleted in MLflow; nothing leads to it", remove)
        elif info.lifecycle_stage == "active" and info.status in ("FAILED", "KILLED") and ended < before:
            reason = f"{info.status} {_ago(ended)} ago; goes to MLflow's deleted runs, from which it can be restored"
            yield Waste("failed runs", name, 0, reason, partial(client.delete_run, info.run_id))


def _delete_for_good(client: "MlflowClient", run: "Run", models: "Iterable[LoggedModel]") -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store: Any = client._tracking_client.store
    for model in models:
        get_artifact_repository(model.artifact_location).delete_artifacts()
        client.delete_logged_model(model.model_id)
        store._hard_delete_logged_model(model.model_id)
    get_artifact_repository(run.info.artifact_uri).delete_artifacts()
    store._hard_delete_run(run.info.run_id)


def _refuse_use(project: Path, tracked: Tracked) -> None:
    """Raise UnveilError if something may need of DVC's cache what neither DVC nor a run says."""
    if tracked.unread:
        raise UnveilError(f"{tracked.unread}; nobody knows what its runs need")
    if git_answer(project, "for-each-ref", "refs/stash", "refs/exps/stash", "refs/exps/celery") != "":
        raise UnveilError("found a stash or a queue; look at `git stash list` and `dvc queue status`")
    if len((git_answer(project, "worktree", "list", "--porcelain") or "").split("\n\n")) > 1:
        raise UnveilError("found a further worktree; look at `git worktree list`")
    clones = (path.parent for depth in ("*", "*/*") for path in (project / EXPERIMENTS).glob(f"{depth}/.git"))
    if clone := next(filter(_has_results, clones), None):
        raise UnveilError(f"{clone}: has experiments that the project may lack; the same sweep again brings them")
    locks = [*(project / RUNNING).glob("*"), *(project / EXPERIMENTS).glob("sweeps/*.lock")]
    with ExitStack() as held:
        if _is_busy(project / EXPERIMENTS) or not all(held.enter_context(_locked(lock)) for lock in locks):
            raise UnveilError("a stage or an experiment runs; wait for its end")


def _objects(project: Path, tracked: Tracked, before: float) -> set[Path]:
    """DVC's objects that no commit, experiment or run has; none of a cache that other projects may share.

    Raises:
        UnveilError: if it is not known what is needed.
    """
    dvc = partial(subprocess.run, cwd=project, capture_output=True, text=True)
    if not (project / CACHE).is_dir():
        return set()
    _refuse_use(project, tracked)
    place = Path(dvc([sys.executable, "-m", "dvc", "cache", "dir"]).stdout.strip())
    if place.resolve() != (project / CACHE).resolve():
        return set()
    done = dvc([sys.executable, "-m", "dvc", "gc", "--workspace", "--all-commits", "--all-experiments", "--dry"])
    if done.returncode:
        raise UnveilError(f"DVC does not say what it needs: {' '.join(done.stderr.split())}")
    lines = (line.removeprefix(REMOVING) for line in done.stdout.splitlines() if line.startswith(REMOVING))
    objects = {path.parent.name + path.name: path for path in map(Path, lines) if path.is_file()}
    kept = _of_runs(project, tracked, before)
    kept |= {md5 for md5, path in objects.items() if path.stat().st_mtime >= before}
    for md5 in [md5 for md5 in kept & objects.keys() if md5.endswith(".dir")]:
        parts = parse_json(read_bytes(objects[md5]), list[dict[str, Any]], str(objects[md5]), "remove it")
        kept |= {part["md5"] for part in parts}
    return {path for md5, path in objects.items() if md5 not in kept}


def _of_runs(project: Path, tracked: Tracked, before: float) -> set[str]:
    """MD5 of what executions wrote, as DVC's run cache has it, but of old ones whose run nobody needs."""
    kept: set[str] = set()
    for entry in (path for path in (project / CACHE / "runs").glob("*/*/*") if path.is_file()):
        outs = parse_mapping(read_text(entry), str(entry))[1].get("outs", [])
        written = {out["path"]: out["md5"] for out in outs if "md5" in out}
        if entry.stat().st_mtime >= before or _run_of(project, written) not in tracked.unneeded:
            kept |= {*written.values()}
    return kept


def _run_of(project: Path, written: dict[str, str]) -> str | None:
    """The run whose record is among the outputs; None if that does not say."""
    for md5 in (written[path] for path in RECORDS & written.keys()):
        place = project / CACHE / "files" / "md5" / md5[:2] / md5[2:]
        try:
            return read_json(place, dict[str, Any], "").get("run_id")
        except (UnveilError, OSError):
            break
    return None


def _remove_objects(project: Path, tracked: Tracked, paths: Iterable[Path]) -> None:
    _refuse_use(project, tracked)
    for path in paths:
        path.unlink(missing_ok=True)


def _touched(folder: Path) -> float:
    """When something in a folder was last written, in seconds since 1970."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder; 0 if there is none."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if not file.is_symlink() and file.is_file()]
    return sum(file.stat().st_size for file in files)


def _ago(moment: float) -> str:
    """How long ago it was."""
    return f"{(time.time() - moment) / DAY_SECONDS:.0f} days"
