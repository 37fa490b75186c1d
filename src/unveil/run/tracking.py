"""What a stage tells MLflow, and where: one run a stage execution, one store a checkout.

Only stages call this module (through ``unveil.run.stage``); the library returns values and knows nothing of
MLflow, which is imported when the first run opens. ``UNVEIL_TRACKING=off`` does without it altogether.

``python -m unveil.run.tracking ui`` opens MLflow's pages on this project's store.
"""

import getpass
import json
import logging
import os
import platform
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote
from urllib.request import url2pathname

import typer
from filelock import FileLock, Timeout

import unveil
from unveil.errors import UnveilError
from unveil.files import destination, file_digest, regular
from unveil.rank import is_main_process
from unveil.run.writer import WAIT_SECONDS, Writer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

# Nobody is phoned. Both must stand before the first import of mlflow; MLflow and the Hugging Face
# libraries honour DO_NOT_TRACK as well.
TELEMETRY_OFF = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
os.environ.update(TELEMETRY_OFF)

EXPERIMENT = "unveil"
# Without this tag MLflow asks in a dialog whether it should show model or agent pages.
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
EVALUATIONS = "tags.`unveil.stage` = 'evaluate'"  # MLflow's search for the rows that people compare
SYSTEM_METRICS_SECONDS = 5.0  # between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
LOCK_SECONDS = 45.0  # a first creation of the store takes some seconds
# Of each request to a server. They may be longer in the environment: a stage waits in `unveil.run.writer` alone.
HTTP_SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
OPEN_ATTEMPTS = 6
WEIGHTS_COPY_BYTES = 64 << 20  # larger weights stay in DVC alone; MLflow then holds their hash
# Where MLflow's database has absolute places of artifacts: those of a moved store's own experiments, and all columns.
MOVED = """
    SELECT DISTINCT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id)
    WHERE artifact_location LIKE 'file:///%/mlruns' AND artifact_location <> ? AND key = ? AND value = ?
"""
COLUMNS = """
    SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c
    WHERE t.type = 'table' AND (c.name IN ('artifact_location', 'artifact_uri', 'storage_location')
        OR t.name = 'model_versions' AND c.name = 'source')
"""
# MLflow's own limits
BATCH_ITEMS = {"params": 100, "tags": 100, "metrics": 1000}
KEY_LENGTH = 250
TAG_LENGTH = 8000
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36
MOST_DIGITS = 18  # of an experiment's id
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}


def tracking_is_off() -> bool:
    """Whether ``UNVEIL_TRACKING=off`` stands in the environment (machines without MLflow)."""
    return os.environ.get("UNVEIL_TRACKING", "").lower() == "off"


# ---------------------------------------------------------------------------------------- where


def _git(folder: Path, *arguments: str, warn: bool = False) -> str | None:
    """Git's answer without its last newline, or None where there is no Git or no repository.

    Another reason for None is said on stderr if ``warn`` is true.
    """
    # Git sets these in hooks; they would point every question at another repository.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    }
    # Looking must not take Git's lock: another experiment may be committing.
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",  # names that are not UTF-8
            check=True,
            env=environment,
        )
    except OSError:
        return None
    except subprocess.CalledProcessError as error:
        if warn and "not a git repository" not in error.stderr:
            # For a folder of another user, Git itself says which command mends that.
            _warn(f"the run is without its commit, as git fails in {folder}: {' '.join(error.stderr.split())}")
        return None
    return done.stdout.rstrip("\n")


def main_checkout(start: Path) -> Path:
    """The folder of the main checkout of the project that ``start`` is a copy of.

    ``dvc exp run --temp`` and DVC's queue run a stage in ``<main>/.dvc/tmp/exps/...``, a repository of its
    own that is deleted afterwards; a Git worktree shares the repository of its main checkout. Anything
    else is its own main checkout.

    Args:
        start: root of the project as the stage sees it (the folder of dvc.yaml).
    """
    start = start.resolve()
    start = _copied_from(start) or start
    common = _git(start, "rev-parse", "--path-format=absolute", "--git-common-dir")
    prefix = _git(start, "rev-parse", "--show-prefix")
    if common is None or prefix is None or Path(common).name != ".git":  # no Git, a bare one, a submodule
        return start
    candidate = Path(common).parent / prefix
    return candidate if candidate.is_dir() else start


def _copied_from(start: Path) -> Path | None:
    """The project of which ``start`` is DVC's temporary copy."""
    places = (folder.parents[2] for folder in start.parents if folder.parts[-3:] == (".dvc", "tmp", "exps"))
    return next(places, None)


def refuse_lost_experiment(start: Path) -> None:
    """Refuse DVC's temporary copy of a shallow clone: DVC would report success, and keep nothing of the experiment."""
    main = _copied_from(start.resolve())
    if main is not None and _git(main, "rev-parse", "--is-shallow-repository") == "true":
        raise UnveilError(
            f"{main} is a shallow clone, from which DVC keeps no experiment of --temp or --queue; "
            "run `git fetch --unshallow`, or `dvc exp run` without them"
        )


@dataclass(frozen=True)
class Store:
    """Where runs go.

    Attributes:
        uri: MLflow's tracking URI, absolute.
        artifacts: folder for artifacts of a new experiment; None where a server decides.
        database: the SQLite file, if it is one.
        is_default: whether it is the project's own store, not one that MLFLOW_TRACKING_URI names.
    """

    uri: str
    artifacts: Path | None
    database: Path | None
    is_default: bool

    @property
    def shown(self) -> str:
        """The URI for people and records: without user and password."""
        return without_secrets(self.uri) if self.database is None else f"sqlite:///{self.database}"

    @property
    def _named(self) -> str:
        """The URI in a command that is to be typed."""
        return self.uri if self.uri == self.shown else '"$MLFLOW_TRACKING_URI"'

    @classmethod
    def locate(cls, start: Path) -> Self:
        """The store of the project at ``start``: MLFLOW_TRACKING_URI, or mlflow.db in its main checkout.

        A relative path in MLFLOW_TRACKING_URI counts from the main checkout, so that it names one store
        for every experiment and not one for each temporary copy.
        """
        root = main_checkout(start)
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            return cls._sqlite(root / "mlflow.db", is_default=True)
        if uri.startswith("sqlite:///") and "?" not in uri:
            return cls._sqlite(root / unquote(uri.removeprefix("sqlite:///")), is_default=False)
        if uri.startswith(("http://", "https://", "databricks", "uc")):
            return cls(uri, None, None, False)
        if "://" not in uri:
            uri = (root / uri).as_uri()
        return cls(uri, None if uri.startswith("file:") else root / "mlruns", None, False)

    @classmethod
    def _sqlite(cls, database: Path, is_default: bool) -> Self:
        try:
            place = quote(str(database))
        except UnicodeEncodeError as error:
            raise UnveilError(
                f"{str(database.parent)!a}: MLflow cannot store in a folder whose name is not UTF-8, here at "
                f"character {error.start + 1}; rename it, or set MLFLOW_TRACKING_URI to a file elsewhere"
            ) from error
        uri = f"sqlite:///{database}"
        if {"?", "%"} & set(uri):  # which end a path, or are decoded; MLflow makes folders of any other address
            from sqlalchemy import URL

            url = URL.create("sqlite+pysqlite", database=f"file:{place}", query={"uri": "true"})
            uri = url.render_as_string(hide_password=False)
        return cls(uri, database.parent / "mlruns", database, is_default)

    def open(self) -> "tuple[MlflowClient, str]":
        """Connect, creating the store and the experiment if need be; safe from many processes at once.

        Returns:
            the client, and the id of the experiment (MLFLOW_EXPERIMENT_NAME, or ``unveil``).

        Raises:
            UnveilError: no MLflow, a store that does not answer, or one of another MLflow version.
        """
        MlflowClient, failures = _import_mlflow()
        with self._creation_lock():
            self._mend_places()
            attempt = 1
            # On a server, another process may make the experiment in between.
            attempts = OPEN_ATTEMPTS if self.database is not None else 2
            while True:
                try:
                    client = MlflowClient(self.uri)
                    return client, self._experiment(client)
                except (ImportError, ValueError) as error:  # no driver for such a database, or no such address
                    raise self.cannot_open(error) from error
                except failures as error:
                    # The lock binds only our own processes: MLflow's server may be creating it too.
                    if attempt == attempts or "out-of-date database schema" in str(error):
                        raise self.cannot_open(error) from error
                time.sleep(0.1 * 2**attempt)
                attempt += 1

    def _experiment(self, client: "MlflowClient") -> str:
        name = self._experiment_name(client)
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if self.artifacts is None else self.artifacts.as_uri()
            return client.create_experiment(name, artifact_location=location, tags={KIND_TAG: KIND})
        if found.lifecycle_stage != "active":
            raise UnveilError(
                f"MLflow experiment {name!r} was deleted in {self.shown}; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}` or set "
                "MLFLOW_EXPERIMENT_NAME to another name"
            )
        return found.experiment_id

    def _experiment_name(self, client: "MlflowClient") -> str:
        name, number = (os.environ.get(f"MLFLOW_EXPERIMENT_{key}", "").strip() for key in ("NAME", "ID"))
        if not number:
            return name or EXPERIMENT
        try:
            found = client.get_experiment(number[:MOST_DIGITS]).name
        except _import_mlflow()[1] as error:
            if not _is_refusal(error):
                raise
            raise UnveilError(f"MLFLOW_EXPERIMENT_ID={number}: {self.shown} has none of this id; mend it") from error
        if name not in ("", found):
            raise UnveilError(
                f"MLFLOW_EXPERIMENT_ID={number} is {found!r}, MLFLOW_EXPERIMENT_NAME {name!r}; unset one of them"
            )
        return found

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        if self.database is None:
            yield
            return
        try:
            destination(self.database).parent.mkdir(parents=True, exist_ok=True)
            if self.database.exists():
                regular(self.database)
            with FileLock(f"{self.database}.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise UnveilError(
                f"{self.database}: another process has held its lock for {LOCK_SECONDS:.0f} s; "
                f"if none runs, remove {error.lock_file}"
            ) from error
        except (OSError, sqlite3.Error) as error:
            raise self.cannot_open(error) from error

    def _mend_places(self) -> None:
        """Lead the runs of a moved or copied checkout to the artifacts beside the store: MLflow keeps absolute places.

        Only experiments that ``open`` made tell where the artifacts were.
        """
        if self.database is None or self.artifacts is None or not self.database.exists():
            return
        new = self.artifacts.as_uri()
        with closing(sqlite3.connect(self.database, timeout=WAIT_SECONDS, isolation_level="IMMEDIATE")) as store, store:
            columns = store.execute(COLUMNS).fetchall()
            moved = store.execute(MOVED, [new, KIND_TAG, KIND]).fetchall() if columns else []
            for (old,) in moved:
                before = Path(url2pathname(old.removeprefix("file://")))
                if before.is_dir() and not self.artifacts.is_dir():  # the database alone was copied
                    continue
                for table, column in columns:
                    for start, now in ((old, new), (str(before), str(self.artifacts))):
                        store.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            [now, len(start) + 1, start, len(start) + 1, f"{start}/"],
                        )
                where = f"are now in {self.artifacts.name} beside it"
                print(f"{self.database} was moved or copied: its runs' artifacts {where}", file=sys.stderr)

    def cannot_open(self, error: Exception) -> UnveilError:
        """What to tell the user when the store raised ``error``."""
        if "out-of-date database schema" in str(error):
            return UnveilError(
                f"{self.shown}: made by another version of MLflow; copy the file and run "
                f"`mlflow db upgrade {self._named}`, or move it away to start a new store"
            )
        if "database is locked" in str(error):
            return UnveilError(f"{self.shown}: another process holds the database; end it, or wait until it has ended")
        reason = one_line(error)
        if "Max retries exceeded" in reason:  # of the four errors in each other only the last says something
            reason = reason.rpartition(": ")[2].rstrip("\"')")
        return UnveilError(
            f"MLflow's store {self.shown} cannot be opened: {reason}; mend MLFLOW_TRACKING_URI, "
            "or set UNVEIL_TRACKING=off to run without tracking"
        )


def _import_mlflow() -> "tuple[type[MlflowClient], tuple[type[Exception], ...]]":
    """MLflow's client and the exceptions that a store raises, with MLflow's chatter turned off."""
    os.environ.update(TELEMETRY_OFF)
    for name, value in {**HTTP_SETTINGS, "GIT_PYTHON_REFRESH": "quiet"}.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError as error:
        raise UnveilError(
            f"the Python package {error.name} is not installed; `pip install mlflow`, or set "
            "UNVEIL_TRACKING=off to run without tracking"
        ) from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints a traceback for every busy database, which is tried again here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient, (MlflowException, SQLAlchemyError, OSError)


# ------------------------------------------------------------------------------------------ who


def one_line(error: BaseException) -> str:
    """An exception as one line of text; its type's name if it says nothing."""
    return without_secrets(" ".join(str(error).split())) or type(error).__name__


def without_secrets(text: str) -> str:
    """The text with user and password cut out of its URIs, and what a query calls a secret masked."""
    text = re.sub(r"(?<=://)[^/\s@]+@", "", text)
    return re.sub(r"(?i)\b(user|password|passwd|pwd|token|secret)=[^&\s]+", r"\1=***", text)


def git_tags(root: Path) -> dict[str, str]:
    """Commit and uncommitted changes of the checkout at ``root``; empty without Git.

    What the pipeline itself writes (dvc.lock, metrics, reports) is no change of its source.
    """
    status = _git(
        root,
        "status",
        "--porcelain",
        "--",
        ".",
        ":(exclude)dvc.lock",
        ":(exclude)metrics",
        ":(exclude)reports",
        warn=True,
    )
    if status is None:
        return {}
    changed = [line[3:] for line in status.splitlines()]
    tags = {"git.dirty": str(bool(changed)).lower()}
    if changed:
        tags["git.changed"] = ", ".join(changed)
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        tags |= {"git.commit": commit, "mlflow.source.git.commit": commit}
    return tags


def machine_tags() -> dict[str, str]:
    """Versions, processor, and the host and process by which a run that never ended can be told."""
    tags = {
        "unveil.version.python": platform.python_version(),
        "unveil.version.unveil": unveil.__version__,
        "unveil.platform": platform.platform(),
        "unveil.cpu": _cpu_name(),
        "unveil.cpu_cores": str(os.cpu_count()),
        "unveil.host": socket.gethostname(),
        "unveil.pid": str(os.getpid()),
    }
    for package in ("torch", "torchvision", "mlflow", "dvc"):
        try:
            tags[f"unveil.version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    # A stage that computes has imported torch already; for the others it would cost seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        tags |= {"unveil.gpu": ", ".join(names), "unveil.version.cuda": str(torch.version.cuda)}
    return tags


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def dvc_tags() -> dict[str, str]:
    """Stage and experiment, as DVC names them in the environment of what it runs."""
    names = {
        "DVC_STAGE": "dvc.stage",
        "DVC_EXP_NAME": "dvc.exp_name",
        "DVC_EXP_BASELINE_REV": "dvc.exp_baseline_rev",
    }
    return {tag: os.environ[key] for key, tag in names.items() if os.environ.get(key)}


def source_tags(stage: str, experiment: str | None) -> dict[str, str]:
    """The tags from which MLflow fills its own columns: run name, user, source."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return {
        "mlflow.runName": f"{stage} {experiment}" if experiment else stage,
        "mlflow.user": user,
        "mlflow.source.name": f"stages/{stage}.py",
        "mlflow.source.type": "LOCAL",
    }


# ----------------------------------------------------------------------------------------- what


class TrackedRun:
    """One MLflow run: it takes what a stage tells it, at once, so that a killed stage loses nothing.

    A store that stops answering does not stop the stage, which may have computed for days: what was not written is
    kept, tried again, and named at the end. Without a client (tracking switched off) everything is accepted and
    nothing is kept.
    """

    def __init__(self, client: "MlflowClient | None", experiment_id: str, run_id: str | None) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._failures: tuple[type[Exception], ...] = ()
        self._warned: set[str] = set()
        self._ended = threading.Event()
        self._sampler: threading.Thread
        self._writer: Writer

    @classmethod
    def off(cls) -> Self:
        """A run that keeps nothing."""
        return cls(None, "", None)

    @classmethod
    def start(cls, store: Store, tags: Mapping[str, str], params: Mapping[str, object]) -> Self:
        """Open a run in ``store`` with its tags and parameters, and begin to sample system metrics.

        Raises:
            UnveilError: the store cannot be opened or written.
        """
        _, failures = _import_mlflow()
        run = cls(None, "", None)
        run._failures = failures
        run._writer = Writer(run._is_final)

        # A file may have to be created first, by another process or by this one.
        seconds = WAIT_SECONDS + (LOCK_SECONDS if store.database is not None else 0.0)
        try:
            if opened := run._writer.ask(store.open, seconds):
                client, run.experiment_id = opened
                made = run._writer.ask(
                    lambda: client.create_run(run.experiment_id, tags=_clipped(tags)),
                    undo=lambda made: run._delete(client, made.info.run_id),
                )
                run.client, run.run_id = client, made.info.run_id if made is not None else None
        except failures as error:
            raise store.cannot_open(error) from error
        if run.run_id is None:
            raise store.cannot_open(TimeoutError("it does not answer"))
        run.log_params(params)
        run._sampler = threading.Thread(target=run._sample, args=[store.uri], name="system metrics", daemon=True)
        run._sampler.start()
        return run

    def take_over(
        self, run_id: str, tags: Mapping[str, str], params: Mapping[str, object], curve: str = "loss"
    ) -> frozenset[int] | None:
        """Write into an earlier run from now on, and delete this one.

        Args:
            run_id: of the earlier run, in the same experiment.
            tags: to set anew.
            params: what it must have been run with.
            curve: a metric that is logged at every step.

        Returns:
            the steps that its curve has; None, and this run stays, if it is finished or cannot be gone on with.
        """
        client = self.client
        if client is None or self.run_id is None or run_id == self.run_id:
            return None
        wanted = {key[:KEY_LENGTH]: str(value)[:PARAM_LENGTH] for key, value in params.items()}

        def reopened() -> tuple[frozenset[int], Mapping[str, str]] | None:
            earlier = client.get_run(run_id)
            is_other = earlier.info.experiment_id != self.experiment_id or earlier.data.params != wanted
            if is_other or earlier.info.lifecycle_stage != "active" or earlier.info.status == "FINISHED":
                return None
            steps = frozenset(point.step for point in client.get_metric_history(run_id, curve))
            client.update_run(run_id, status="RUNNING")
            return steps, earlier.data.tags

        def closed(found: object) -> None:
            if found is not None:
                client.set_terminated(run_id, "KILLED")

        try:
            found = self._writer.ask(reopened, undo=closed)
        except self._failures:
            found = None
        if found is None:
            return None
        steps, before = found
        self._write("deletion of an empty run", self.run_id, self._delete)
        self.run_id = run_id
        if "unveil.error" in before:
            self._write("deletion of a tag", "unveil.error", lambda c, r: c.delete_tag(r, "unveil.error"))
        self.set_tags({**tags, "unveil.resumed": str(int(before.get("unveil.resumed", 0)) + 1)})
        return steps

    def _delete(self, client: "MlflowClient", run_id: str) -> None:
        """Delete a run that has nothing in it; where that is not allowed, end it as KILLED."""
        try:
            client.delete_run(run_id)
        except self._failures:
            client.set_terminated(run_id, "KILLED")

    def hurry(self) -> None:
        """Do not wait for the store any more before the end of the run."""
        if self.client is not None:
            self._writer.hurry()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters, dotted names to plain values."""
        if self.client is None:
            return
        from mlflow.entities import Param

        rows = [Param(key[:KEY_LENGTH], str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        self._log_batch("parameters", "params", rows)

    def set_tags(self, tags: Mapping[str, str], wait: bool = True) -> None:
        """Set tags; a long value is cut at MLflow's limit."""
        if self.client is None:
            return
        from mlflow.entities import RunTag

        rows = [RunTag(key, value) for key, value in _clipped(tags).items()]
        self._log_batch("tags", "tags", rows, wait)

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int = 0,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        """Log one point of each metric, in one transaction.

        Args:
            values: metric name to value.
            step: abscissa, the stage's own unit (training: images seen).
            model_id: LoggedModel that the values also belong to.
            dataset: name and digest of the data set that they were measured on.
            wait: a few seconds for the store.
        """
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        name, digest = dataset or (None, None)
        if digest is not None:
            digest = digest[:DIGEST_LENGTH]
        rows = [
            Metric(key, float(value), now, int(step), model_id, name, digest, self.run_id)
            for key, value in values.items()
        ]
        self._log_batch("metric values", "metrics", rows, wait)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below ``folder`` if given."""
        self._write("artifact", path.as_posix(), lambda c, r: c.log_artifact(r, str(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Write a text into the run's artifacts."""
        self._write("artifact", name, lambda c, r: c.log_text(r, text, name))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Log a data set input: no data, only its name, digest and path.

        Args:
            name: such as ``celeba-64-score-sde``.
            digest: hexadecimal; cut to MLflow's 36 characters.
            source: path relative to the project.
            context: what it was used for, such as ``training``.
        """
        self._write("data set", name, lambda c, r: c.log_inputs(r, [_dataset(name, digest, source, context)]))

    def link_model(self, model_id: str) -> bool:
        """Mark a LoggedModel as an input of this run; False if this store has no such model, or does not say."""
        client = self.client
        if client is None:
            return False
        from mlflow.entities import LoggedModelInput

        try:
            if self._writer.ask(lambda: client.get_logged_model(model_id)) is None:
                return False
        except self._failures:
            return False
        self._write("model input", model_id, lambda c, r: c.log_inputs(r, models=[LoggedModelInput(model_id)]))
        return True

    def log_model(
        self, name: str, config: Path, weights: Path, params: Mapping[str, object], step: int = 0
    ) -> str | None:
        """Make a LoggedModel of this run from a configuration and safetensors weights.

        No pickle is made. Weights above 64 MiB are not copied: the model then holds their hash and
        path, and DVC the file.

        Returns:
            the model's id; None if tracking is off or the store did not take it in time.
        """
        client, run_id = self.client, self.run_id
        if client is None or run_id is None:
            return None
        from mlflow.entities import LoggedModelOutput

        made: list[str] = []
        digest, size = file_digest(weights), weights.stat().st_size
        tags = {
            "unveil.weights.sha256": digest,
            "unveil.weights.bytes": str(size),
            "unveil.weights.path": weights.as_posix(),
        }

        def create() -> None:
            model = client.create_logged_model(
                self.experiment_id,
                name=re.sub(r"[^\w-]", "-", name),
                source_run_id=run_id,
                tags=tags,
                params={key: str(value)[:KEY_LENGTH] for key, value in params.items()},
                model_type="denoiser",
            )
            made.append(model.model_id)

        left: list[Callable[[], object]] = [
            create,
            lambda: client.log_outputs(run_id, [LoggedModelOutput(made[0], step)]),
            lambda: client.log_model_artifact(made[0], str(config)),
            lambda: client.log_model_artifact(made[0], str(weights)) if size <= WEIGHTS_COPY_BYTES else None,
            lambda: client.finalize_logged_model(made[0], "READY"),
        ]

        def write(*_: object) -> None:
            while left:  # each once, also if a later one has to be tried again
                left[0]()
                del left[0]

        self._write("model", name, write)
        return made[0] if made else None

    def finish(self, status: str, error: str | None = None) -> None:
        """End the run, and name on stderr what the store did not take.

        Args:
            status: FINISHED, FAILED or KILLED.
            error: the one line that says why, kept as the tag ``unveil.error``.
        """
        if self.client is None:
            return
        self._ended.set()
        self._sampler.join(WAIT_SECONDS)  # it logs the interval that did not end, which for a short stage is all
        if error is not None:
            self.set_tags({"unveil.error": error}, wait=False)
        self._write("end of the run", f"({status})", lambda c, r: c.set_terminated(r, status), wait=False)
        if lost := self._writer.close():
            _warn(f"MLflow's store did not answer, and is without: {', '.join(lost)}")

    def _log_batch(self, name: str, kind: str, rows: list[Any], wait: bool = True) -> None:
        if self.client is not None and self.run_id is not None and rows:
            self._writer.write(name, _Batch(self.client, self.run_id, kind), rows, wait)

    def _write(self, kind: str, name: str, call: "Callable[[MlflowClient, str], object]", wait: bool = True) -> None:
        client, run_id = self.client, self.run_id
        if client is not None and run_id is not None:
            self._writer.write(kind, lambda _: call(client, run_id), [name], wait)

    def _is_final(self, kind: str, error: Exception) -> bool:
        """Whether the store will not take it later either; says the first refusal of each kind and the first outage.

        It refuses for good what belongs to a run that was deleted in the pages while it went on.
        """
        is_final = _is_refusal(error) or isinstance(error, FileNotFoundError)
        reason = kind if is_final else "outage"
        if reason not in self._warned:
            self._warned.add(reason)
            hint = "" if is_final else "; what it does not take is kept and tried again"
            _warn(f"MLflow did not take the {kind}: {one_line(error)}{hint}")
        return is_final

    def _sample(self, uri: str) -> None:
        """Log system metrics until the end. MLflow's own thread would wait for a store that does not answer."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        step, has_ended = 0, False
        try:
            monitor = SystemMetricsMonitor(self.run_id, sampling_interval=SYSTEM_METRICS_SECONDS, tracking_uri=uri)
            prefix = f"system/{monitor.node_id}/" if monitor.node_id else "system/"
            while not has_ended:
                for _ in range(monitor.samples_before_logging):
                    has_ended = has_ended or self._ended.wait(monitor.sampling_interval)
                    monitor.collect_metrics()
                values = monitor.aggregate_metrics()
                self.log_metrics({prefix + key: value for key, value in values.items()}, step, wait=False)
                for part in monitor.monitors:
                    part.clear_metrics()
                step += 1
        except Exception as error:  # noqa: BLE001 - psutil and NVML raise what they like
            _warn(f"no system metrics: {one_line(error)}")


@dataclass(frozen=True)
class _Batch:
    """Writes rows of one kind (params, tags, metrics), as many at once as MLflow takes."""

    client: "MlflowClient"
    run_id: str
    kind: str

    def __call__(self, rows: list[Any]) -> None:
        size = BATCH_ITEMS[self.kind]
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            try:
                self._log(part)
            except Exception as error:
                if len(part) == 1 or not _is_refusal(error):
                    raise
                self._log_singly(part)

    def _log(self, rows: list[Any]) -> None:
        batch: dict[str, Any] = {self.kind: rows}
        self.client.log_batch(self.run_id, **batch)

    def _log_singly(self, rows: list[Any]) -> None:
        """Log the rows that the store takes; raises the refusal of another in the end."""
        refusal: Exception | None = None
        for row in rows:
            try:
                self._log([row])
            except Exception as error:
                if not _is_refusal(error):
                    raise
                refusal = error
        if refusal is not None:
            raise refusal


def _is_refusal(error: Exception) -> bool:
    return getattr(error, "error_code", None) in REFUSALS


def _dataset(name: str, digest: str, source: str, context: str) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source}))
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])


def _clipped(tags: Mapping[str, str]) -> dict[str, str]:
    return {key[:KEY_LENGTH]: value[:TAG_LENGTH] for key, value in tags.items()}


def _warn(line: str) -> None:
    if is_main_process():
        print(f"warning: {line}\n", end="", file=sys.stderr, flush=True)  # at once: threads print too


# ------------------------------------------------------------------------------------------- ui

app = typer.Typer(add_completion=False, help="MLflow, as this project uses it.")


@app.callback()
def _commands() -> None:
    """Keep ``ui`` a named command."""


@app.command()
def ui(
    port: int = typer.Option(5000, min=1, max=65535, help="Port on 127.0.0.1."),
) -> None:
    """Open MLflow's pages on this project's store, for this machine only."""
    try:
        command, address = ui_command(Store.locate(Path.cwd()), port)
    except UnveilError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
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
    _, experiment = store.open()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if store.artifacts is not None:
        command += ["--artifacts-destination", str(store.artifacts)]
    # Without the query MLflow 3 shows its pages for agents.
    return command, f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"


if __name__ == "__main__":
    app()
