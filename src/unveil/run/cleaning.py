"""What a project has kept and nobody needs: how large it is, why it may go, and how it goes.

Nothing is waste that was touched in the last days, or that a process holds, or that anything leads to: a commit,
an experiment, an MLflow run that was not deleted, or a registered model.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil
from filelock import FileLock, Timeout

from unveil.errors import UnveilError
from unveil.files import file_digest, parse_json, read_bytes, read_json
from unveil.layout import CHECKPOINTS, OUTBOX
from unveil.run.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

FEATURES, DOWNLOADS = CHECKPOINTS.with_name("features"), CHECKPOINTS.with_name("downloads")
EXPERIMENTS = Path(".dvc/tmp/exps")  # where DVC's copies of the project are, and those of sweeps
CACHE = Path(".dvc/cache")
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
    """What the project's MLflow store has, also of deleted runs and of other experiments; nothing if there is none.

    Raises:
        UnveilError: if the store does not answer: nobody knows then what its runs need.
    """

    project: Path
    client: "MlflowClient | None" = None  # if the store is a file of this project's, and no server that others use
    runs: "list[Run]" = field(default_factory=list)
    models: "list[LoggedModel]" = field(default_factory=list)
    registered: set[str] = field(default_factory=set)  # ids of runs and models that have a registered version

    def __post_init__(self) -> None:
        store = Store.locate(self.project)
        if store.database is not None and not store.database.exists():
            return
        client, _ = store.open()
        from mlflow.entities import ViewType

        self.client = client if store.database is not None else None
        places = [experiment.experiment_id for experiment in _all(client.search_experiments)]
        self.runs = _all(partial(client.search_runs, places, run_view_type=ViewType.ALL, max_results=PAGE))
        self.models = _all(partial(client.search_logged_models, places))
        for version in _all(client.search_model_versions):
            self.registered |= {str(version.run_id), str(version.model_id)}

    @cached_property
    def needed(self) -> set[str]:
        """The runs that a registered model, a run with results or what waits on this disk leads to."""
        sources = {model.source_run_id for model in self.models if model.model_id in self.registered}
        upstream = {
            value
            for run in self.runs
            if run.info.lifecycle_stage == "active"
            for key, value in run.data.tags.items()
            if key.startswith("unveil.upstream.")
        }
        waiting = {path.name for path in (self.project / OUTBOX).glob("*")}
        resumable = {
            read_json(path, dict[str, str | None], "remove it").get("run_id")
            for path in (self.project / CHECKPOINTS).glob("*/run.json")
        }
        return self.registered | {*filter(None, sources | resumable)} | upstream | waiting

    @cached_property
    def digests(self) -> dict[str, set[str]]:
        """SHA-256 of what runs that were not deleted wrote, by the path that they wrote."""
        found: dict[str, set[str]] = {}
        for run in self.runs:
            if run.info.lifecycle_stage == "active" or run.info.run_id in self.needed:
                for key, value in run.data.tags.items():
                    if key.startswith("unveil.output."):
                        found.setdefault(key.removeprefix("unveil.output."), set()).add(value)
        return found


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

    Raises:
        UnveilError: if MLflow's store or DVC does not say what is needed.
    """
    before = time.time() - days * DAY_SECONDS
    tracked = Tracked(project)
    return [
        *_checkpoints(project, before),
        *_unused(project, before),
        *_runs(tracked, before),
        *_cache(project, tracked, before),
    ]


def _checkpoints(project: Path, before: float) -> Iterator[Waste]:
    for folder in sorted((project / CHECKPOINTS).glob("*/")):
        lock = FileLock(f"{folder}.lock", timeout=0)
        with suppress(Timeout), lock:  # a training holds it
            if _touched(folder) < before:
                reason = f"of a training that stopped {_ago(_touched(folder))} ago, and could be gone on with"
                yield Waste("checkpoints", folder.name, _size(folder), reason, partial(_remove_unlocked, folder, lock))


def _remove_unlocked(folder: Path, lock: FileLock) -> None:
    with suppress(Timeout), lock:
        shutil.rmtree(folder)


def _unused(project: Path, before: float) -> Iterator[Waste]:
    """Features, downloads, and copies in which DVC or a sweep ran experiments, without any that the project lacks."""
    for kind, pattern, reason in (
        ("features", f"{FEATURES}/*.safetensors", "not used for {}; computed again if it is needed"),
        ("downloads", f"{DOWNLOADS}/", "of a download that stopped {} ago, and could be gone on with"),
        *(("copies", f"{EXPERIMENTS}/{names}/", LEFT) for names in ("tmp*", "standalone/tmp*", "sweeps/*")),
    ):
        for path in sorted(project.glob(pattern)):
            has_results = any((path / ".git" / "refs" / "exps").glob("[0-9a-f][0-9a-f]/*/*"))
            if not has_results and (touched := _touched(path)) < before and not _is_busy(path):
                name = path.relative_to(project).as_posix()
                remove = partial(shutil.rmtree, path) if path.is_dir() else path.unlink
                yield Waste(kind, name, _size(path), reason.format(_ago(touched)), remove)


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


def _cache(project: Path, tracked: Tracked, before: float) -> Iterator[Waste]:
    """DVC's objects that no commit, experiment or run has.

    None while an experiment runs, which may take up an old one, and none of a cache that other projects may share.
    """
    if not (project / CACHE).is_dir() or _is_busy(project / EXPERIMENTS):
        return
    dvc = partial(subprocess.run, cwd=project, capture_output=True, text=True)
    place = Path(dvc([sys.executable, "-m", "dvc", "cache", "dir"]).stdout.strip())
    if place.resolve() != (project / CACHE).resolve():
        return
    done = dvc([sys.executable, "-m", "dvc", "gc", "--workspace", "--all-commits", "--all-experiments", "--dry"])
    if done.returncode:
        raise UnveilError(f"DVC does not say what its cache needs: {' '.join(done.stderr.split())}; mend it")
    lines = (line.removeprefix(REMOVING) for line in done.stdout.splitlines() if line.startswith(REMOVING))
    paths = {path for line in lines if (path := Path(line)).is_file() and path.stat().st_mtime < before}
    paths -= _of_runs(paths, tracked.digests)
    if paths:
        reason = "in no commit, no experiment and no MLflow run"
        size = sum(map(_size, paths))
        yield Waste("DVC cache", f"{len(paths)} objects", size, reason, partial(_remove_files, paths))


def _remove_files(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _of_runs(paths: set[Path], digests: Mapping[str, set[str]]) -> set[Path]:
    """Those of the cached objects that are what a run wrote: a file, or a folder with all that is in it."""
    if not digests:
        return set()
    by_md5 = {path.parent.name + path.name: path for path in paths}
    sha256 = {md5: file_digest(path) for md5, path in by_md5.items() if not md5.endswith(".dir")}
    every = set().union(*digests.values())
    kept = {by_md5[md5] for md5, digest in sha256.items() if digest in every}
    for md5 in by_md5.keys() - sha256.keys():
        root = by_md5[md5].parents[1]
        listed = parse_json(read_bytes(by_md5[md5]), list[dict[str, Any]], md5, "run `dvc gc`")
        parts = {PurePosixPath(entry["relpath"]): root / entry["md5"][:2] / entry["md5"][2:] for entry in listed}
        if all(part.is_file() for part in parts.values()):
            files = {place: file_digest(part) for place, part in parts.items()}
            if any(_folder_digest(PurePosixPath(name), files) in known for name, known in digests.items()):
                kept |= {by_md5[md5], *paths.intersection(parts.values())}
    return kept


def _folder_digest(name: PurePosixPath, files: Mapping[PurePosixPath, str]) -> str:
    """What ``paths_digest`` says of a folder of this name with files of these digests."""
    shown = (place for place in sorted(files) if not any(part.startswith(".") for part in place.parts))
    return hashlib.sha256("".join(f"{name / place}\0{files[place]}\n" for place in shown).encode()).hexdigest()


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
