"""What a stage tells MLflow, and where: one run a stage execution, one store a checkout.

Only stages call this module (through ``unveil.stage``); the library returns values and knows nothing of
MLflow, which is imported when the first run opens. ``UNVEIL_TRACKING=off`` does without it altogether.

``python -m unveil.tracking ui`` opens MLflow's pages on this project's store.
"""

import getpass
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import typer
from filelock import FileLock, Timeout

import unveil
from unveil.errors import UnveilError
from unveil.files import file_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

# Nobody is phoned. Both must stand before the first import of mlflow; MLflow and the Hugging Face
# libraries honour DO_NOT_TRACK as well.
TELEMETRY_OFF = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
os.environ.update(TELEMETRY_OFF)

EXPERIMENT = "unveil"
EVALUATIONS = "tags.`unveil.stage` = 'evaluate'"  # MLflow's search for the rows that people compare
SYSTEM_METRICS_SECONDS = 5.0  # between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
LOCK_SECONDS = 120.0  # a first creation of the store takes some seconds
OPEN_ATTEMPTS = 6
WEIGHTS_COPY_BYTES = 64 << 20  # larger weights stay in DVC alone; MLflow then holds their hash
# MLflow's own limits
BATCH_ITEMS = 100
KEY_LENGTH = 250
TAG_LENGTH = 8000
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}


def tracking_is_off() -> bool:
    """Whether ``UNVEIL_TRACKING=off`` stands in the environment (machines without MLflow)."""
    return os.environ.get("UNVEIL_TRACKING", "").lower() == "off"


# ---------------------------------------------------------------------------------------- where


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's answer without its last newline, or None where there is no Git or no repository."""
    # Git sets these in hooks; they would point every question at another repository.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    }
    # Looking must not take Git's lock: another experiment may be committing.
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.CalledProcessError):
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
    for folder in start.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            start = folder.parents[2]
            break
    common = _git(start, "rev-parse", "--path-format=absolute", "--git-common-dir")
    prefix = _git(start, "rev-parse", "--show-prefix")
    if common is None or prefix is None or Path(common).name != ".git":  # no Git, a bare one, a submodule
        return start
    candidate = Path(common).parent / prefix
    return candidate if candidate.is_dir() else start


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
        return without_secrets(self.uri)

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
        if uri.startswith("sqlite:///"):
            return cls._sqlite(root / uri.removeprefix("sqlite:///"), is_default=False)
        if uri.startswith(("http://", "https://", "databricks", "uc")):
            return cls(uri, None, None, False)
        if "://" not in uri:
            uri = (root / uri).as_uri()
        return cls(uri, None if uri.startswith("file:") else root / "mlruns", None, False)

    @classmethod
    def _sqlite(cls, database: Path, is_default: bool) -> Self:
        return cls(f"sqlite:///{database}", database.parent / "mlruns", database, is_default)

    def open(self) -> "tuple[MlflowClient, str]":
        """Connect, creating the store and the experiment if need be; safe from many processes at once.

        Returns:
            the client, and the id of the experiment (MLFLOW_EXPERIMENT_NAME, or ``unveil``).

        Raises:
            UnveilError: no MLflow, a store that does not answer, or one of another MLflow version.
        """
        MlflowClient, failures = _import_mlflow()
        with self._creation_lock():
            attempt = 1
            # MLflow repeats a request to a server by itself.
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
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if self.artifacts is None else self.artifacts.as_uri()
            # Without this tag MLflow asks in a dialog whether it should show model or agent pages.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return client.create_experiment(name, artifact_location=location, tags=tags)
        if found.lifecycle_stage != "active":
            raise UnveilError(
                f"MLflow experiment {name!r} was deleted in {self.shown}; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}` or set "
                "MLFLOW_EXPERIMENT_NAME to another name"
            )
        return found.experiment_id

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        if self.database is None:
            yield
            return
        try:
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.database}.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise UnveilError(
                f"{self.database}: another process has held its lock for {LOCK_SECONDS:.0f} s; "
                f"if none runs, remove {error.lock_file}"
            ) from error
        except OSError as error:
            raise self.cannot_open(error) from error

    def cannot_open(self, error: Exception) -> UnveilError:
        """What to tell the user when the store raised ``error``."""
        if "out-of-date database schema" in str(error):
            return UnveilError(
                f"{self.shown}: made by another version of MLflow; copy the file and run "
                f"`mlflow db upgrade {self._named}`, or move it away to start a new store"
            )
        return UnveilError(
            f"MLflow's store {self.shown} cannot be opened: {one_line(error)}; mend MLFLOW_TRACKING_URI, "
            "or set UNVEIL_TRACKING=off to run without tracking"
        )


def _import_mlflow() -> "tuple[type[MlflowClient], tuple[type[Exception], ...]]":
    """MLflow's client and the exceptions that a store raises, with MLflow's chatter turned off."""
    os.environ.update(TELEMETRY_OFF)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
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

    A store that stops answering does not stop the stage, which may have computed for days: the points
    are kept and written with the next ones, and a line on stderr says so. Without a client (tracking
    switched off) everything is accepted and nothing is kept.
    """

    def __init__(self, client: "MlflowClient | None", experiment_id: str, run_id: str | None) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._failures: tuple[type[Exception], ...] = ()
        self._pending: list[Metric] = []
        self._monitor: SystemMetricsMonitor | None = None
        self._warned: set[str] = set()
        self._uri = ""

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
        client, experiment_id = store.open()
        _, failures = _import_mlflow()
        try:
            info = client.create_run(experiment_id, tags=_clipped(tags)).info
        except failures as error:
            raise store.cannot_open(error) from error
        run = cls(client, experiment_id, info.run_id)
        run._failures = failures
        run.log_params(params)
        run._uri = store.uri
        run._start_monitor(store.uri)
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
        if self.client is None or self.run_id is None or run_id == self.run_id:
            return None
        try:
            earlier = self.client.get_run(run_id)
            wanted = {key[:KEY_LENGTH]: str(value)[:PARAM_LENGTH] for key, value in params.items()}
            is_other = earlier.info.experiment_id != self.experiment_id or earlier.data.params != wanted
            if is_other or earlier.info.lifecycle_stage != "active" or earlier.info.status == "FINISHED":
                return None
            steps = frozenset(point.step for point in self.client.get_metric_history(run_id, curve))
            if "unveil.error" in earlier.data.tags:
                self.client.delete_tag(run_id, "unveil.error")
            self.client.update_run(run_id, status="RUNNING")
        except self._failures:
            return None
        self._stop_monitor()
        superseded, self.run_id = self.run_id, run_id
        resumed = int(earlier.data.tags.get("unveil.resumed", 0)) + 1
        self.set_tags({**tags, "unveil.resumed": str(resumed)})
        self._start_monitor(self._uri)
        self._delete(superseded)
        return steps

    def _delete(self, run_id: str) -> None:
        """Delete a run that has nothing in it; where that is not allowed, end it as KILLED."""
        assert self.client is not None
        try:
            self.client.delete_run(run_id)
        except self._failures:
            self._write("end of an empty run", lambda client, _: client.set_terminated(run_id, "KILLED"))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters, dotted names to plain values."""
        if self.client is None:
            return
        from mlflow.entities import Param

        rows = [Param(key[:KEY_LENGTH], str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        self._write("parameters", _batches("params", rows))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a long value is cut at MLflow's limit."""
        if self.client is None:
            return
        from mlflow.entities import RunTag

        rows = [RunTag(key, value) for key, value in _clipped(tags).items()]
        self._write("tags", _batches("tags", rows))

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int = 0,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Log one point of each metric, in one transaction.

        Args:
            values: metric name to value.
            step: abscissa, the stage's own unit (training: images seen).
            model_id: LoggedModel that the values also belong to.
            dataset: name and digest of the data set that they were measured on.
        """
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        name, digest = dataset or (None, None)
        if digest is not None:
            digest = digest[:DIGEST_LENGTH]
        self._pending += [
            Metric(key, float(value), now, int(step), model_id, name, digest, self.run_id)
            for key, value in values.items()
        ]
        self._flush()

    def _flush(self) -> None:
        # MLflow takes a point twice as one, so a list of which a part was written can be repeated.
        if self._pending and self._write("metrics", _batches("metrics", self._pending)):
            self._pending = []

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below ``folder`` if given."""
        self._write(f"artifact {path}", lambda c, r: c.log_artifact(r, str(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Write a text into the run's artifacts."""
        self._write(f"artifact {name}", lambda c, r: c.log_text(r, text, name))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Log a data set input: no data, only its name, digest and path.

        Args:
            name: such as ``celeba-64-score-sde``.
            digest: hexadecimal; cut to MLflow's 36 characters.
            source: path relative to the project.
            context: what it was used for, such as ``training``.
        """
        self._write("data set", lambda c, r: c.log_inputs(r, [_dataset(name, digest, source, context)]))

    def link_model(self, model_id: str) -> bool:
        """Mark a LoggedModel as an input of this run; False if this store has no such model."""
        if self.client is None:
            return False
        from mlflow.entities import LoggedModelInput

        try:
            self.client.get_logged_model(model_id)
        except self._failures:
            return False
        self._write("model input", lambda c, r: c.log_inputs(r, models=[LoggedModelInput(model_id)]))
        return True

    def log_model(
        self, name: str, config: Path, weights: Path, params: Mapping[str, object], step: int = 0
    ) -> str | None:
        """Make a LoggedModel of this run from a configuration and safetensors weights.

        No pickle is made. Weights above 64 MiB are not copied: the model then holds their hash and
        path, and DVC the file.

        Returns:
            the model's id; None if tracking is off or the store did not take it.
        """
        made: list[str] = []
        digest, size = file_digest(weights), weights.stat().st_size
        tags = {
            "unveil.weights.sha256": digest,
            "unveil.weights.bytes": str(size),
            "unveil.weights.path": weights.as_posix(),
        }

        def write(client: "MlflowClient", run_id: str) -> None:
            from mlflow.entities import LoggedModelOutput

            model = client.create_logged_model(
                self.experiment_id,
                name=re.sub(r"[^\w-]", "-", name),
                source_run_id=run_id,
                tags=tags,
                params={key: str(value)[:KEY_LENGTH] for key, value in params.items()},
                model_type="denoiser",
            )
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
            client.log_model_artifact(model.model_id, str(config))
            if size <= WEIGHTS_COPY_BYTES:
                client.log_model_artifact(model.model_id, str(weights))
            client.finalize_logged_model(model.model_id, "READY")
            made.append(model.model_id)

        self._write("model", write)
        return made[0] if made else None

    def finish(self, status: str, error: str | None = None) -> None:
        """End the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            error: the one line that says why, kept as the tag ``unveil.error``.
        """
        self._stop_monitor()
        if error is not None:
            self.set_tags({"unveil.error": error})
        self._flush()
        if self._pending:
            _warn(f"{len(self._pending)} metric values could not be written to MLflow and are lost")
        self._write("end of the run", lambda c, r: c.set_terminated(r, status))

    def _write(self, what: str, call: "Callable[[MlflowClient, str], object]") -> bool:
        """Call the store; False if the same call may succeed later.

        The first failure of each kind is said on stderr. What the store refuses for good (a run that
        was deleted in the pages while it went on) is not worth repeating.
        """
        if self.client is None or self.run_id is None:
            return True
        try:
            call(self.client, self.run_id)
        except self._failures as error:
            if what not in self._warned:
                _warn(f"MLflow did not take the {what}: {one_line(error)}")
                self._warned.add(what)
            return getattr(error, "error_code", None) in REFUSALS
        return True

    def _start_monitor(self, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            self._monitor = SystemMetricsMonitor(
                self.run_id, sampling_interval=SYSTEM_METRICS_SECONDS, tracking_uri=uri
            )
            self._monitor.start()
        except Exception as error:  # noqa: BLE001 - psutil and NVML raise what they like
            _warn(f"no system metrics: {one_line(error)}")

    def _stop_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is None:
            return
        monitor.finish()
        # MLflow drops the samples of an interval that did not end, which for a short stage are all.
        self._write("system metrics", lambda c, r: _publish_last(monitor))


def _batches(kind: str, rows: Sequence[Any]) -> "Callable[[MlflowClient, str], None]":
    """A call that writes rows of one kind (params, tags, metrics), as many at once as MLflow takes."""

    def write(client: "MlflowClient", run_id: str) -> None:
        for first in range(0, len(rows), BATCH_ITEMS):
            batch: dict[str, Any] = {kind: rows[first : first + BATCH_ITEMS]}
            client.log_batch(run_id, **batch)

    return write


def _publish_last(monitor: "SystemMetricsMonitor") -> None:
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()


def _dataset(name: str, digest: str, source: str, context: str) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source}))
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])


def _clipped(tags: Mapping[str, str]) -> dict[str, str]:
    return {key[:KEY_LENGTH]: value[:TAG_LENGTH] for key, value in tags.items()}


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


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
