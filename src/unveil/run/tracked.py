"""What a stage tells MLflow: one run a stage execution, which keeps what it is told when the stage is killed.

Only the frame of a stage uses this; the library returns values and knows nothing of MLflow.
"""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from unveil.errors import one_line, without_secrets
from unveil.printing import warn
from unveil.run.calls import (
    Call,
    CopiedFile,
    DatasetInput,
    ModelFolder,
    ModelInput,
    Picture,
    Rows,
    RunDeletion,
    RunStatus,
    TextFile,
    now,
)
from unveil.run.orphans import LivingRun, end_orphans
from unveil.run.outbox import Outbox
from unveil.run.store import LOCK_SECONDS, WAIT_SECONDS, Store, import_mlflow, is_refusal
from unveil.run.writer import Writer

SYSTEM_METRICS_SECONDS = 5.0  # between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
# MLflow's own limits.
KEY_LENGTH, TAG_LENGTH, PARAM_LENGTH = 250, 8000, 6000
DIGEST_LENGTH = 36
T = TypeVar("T")
AnyKind = TypeVar("AnyKind", bound=Call)


class TrackedRun:
    """One MLflow run: it takes what a stage tells it, at once, so that a killed stage loses nothing.

    Without a client (tracking switched off) everything is accepted and nothing is kept.
    """

    def __init__(self) -> None:
        self.client: Any = None  # an MlflowClient
        self.experiment_id = ""
        self.run_id: str | None = None
        self._failures: tuple[type[Exception], ...] = ()
        self._warned: set[str] = set()
        self._ended = threading.Event()
        self._sampler: threading.Thread
        self._writer: Writer
        self._outbox: Outbox | None = None
        self._living: LivingRun | None = None

    @classmethod
    def start(
        cls, store: Store, tags: Mapping[str, str], params: Mapping[str, object], outboxes: Path | None = None
    ) -> Self:
        """Open a run in ``store`` with its tags and parameters, and begin to sample system metrics.

        What the store does not take is kept in a folder of the run in ``outboxes``, if given.

        Raises:
            UnveilError: the store cannot be opened or written.
        """
        run = cls()
        _, run._failures = import_mlflow()
        run._writer = Writer(run._is_final)
        first_tags = {key: value[:TAG_LENGTH] for key, value in tags.items()}  # MLflow cuts later ones itself
        try:
            if opened := run._writer.ask(store.open, WAIT_SECONDS + (LOCK_SECONDS if store.database else 0.0)):
                client, run.experiment_id = opened
                made = run._writer.ask(lambda: client.create_run(run.experiment_id, tags=first_tags))
                run.client, run.run_id = client, made.info.run_id if made is not None else None
        except run._failures as error:
            raise store.cannot_open(error) from error
        if run.run_id is None:
            raise store.cannot_open(TimeoutError("it does not answer"))
        run._writer.client = run.client
        if outboxes is not None:
            run._outbox = run._writer.outbox = Outbox(outboxes / run.run_id)
        run.log_params(params)
        run._sampler = threading.Thread(target=run._sample, args=[store.uri], name="system metrics", daemon=True)
        run._sampler.start()
        return run

    def guard(self, folder: Path) -> None:
        """Have the run ended by a later stage if this process is killed, and end those that were left so.

        Args:
            folder: where the processes of this store's checkout mark their runs.
        """
        if self.run_id is None:
            return
        self._living = LivingRun(folder)
        self._living.set(self.run_id)
        self.ask(partial(end_orphans, folder))

    def take_over(self, run_id: str, tags: Mapping[str, str], params: Mapping[str, object]) -> frozenset[int] | None:
        """Write into the earlier run ``run_id`` from now on, with the tags set anew, and delete this one.

        Returns:
            the steps that its loss has; None, and this run stays, if that one is of another experiment, had other
            parameters, or is finished, deleted or unknown.
        """
        if self.run_id is None or run_id == self.run_id:
            return None
        wanted = {key[:KEY_LENGTH]: str(value)[:PARAM_LENGTH] for key, value in params.items()}

        def earlier(client: Any) -> tuple[Any, frozenset[int]]:
            points = client.get_metric_history(run_id, "loss")
            return client.get_run(run_id), frozenset(point.step for point in points)

        if (answer := self.ask(earlier)) is None:
            return None
        found, steps = answer
        outbox = self._outbox and Outbox(self._outbox.folder.with_name(run_id))
        waiting = outbox.calls() if outbox is not None else []  # what it could not write when it was killed
        rows = [(call.kind, row) for call in waiting if isinstance(call, Rows) for row in call.rows]
        given = {row[0]: row[1] for kind, row in rows if kind == "parameters"}
        is_other = found.info.experiment_id != self.experiment_id or found.data.params | given != wanted
        if is_other or found.info.lifecycle_stage != "active" or found.info.status == "FINISHED":
            return None
        if outbox is not None and outbox.hold():
            steps |= {row[3] for _, row in rows if len(row) == 7 and row[0] == "loss"}
            self._writer.take_over(outbox, waiting)
        if self._living is not None:
            self._living.set(run_id)
        self._write(RunDeletion)
        self.run_id = run_id
        self._write(RunStatus, status="RUNNING", time=now())
        self.set_tags({**tags, "unveil.resumed": str(int(found.data.tags.get("unveil.resumed", 0)) + 1)})
        return steps

    def hurry(self) -> None:
        """Do not wait for the store any more before the end of the run."""
        if self.client is not None:
            self._writer.hurry()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters, dotted names to plain values."""
        rows = [(key[:KEY_LENGTH], str(value)) for key, value in params.items()]
        self._write(Rows, kind="parameters", rows=rows)

    def set_tags(self, tags: Mapping[str, str], wait: bool = True) -> None:
        """Set tags; MLflow cuts a long value at its limit."""
        rows = [(key[:KEY_LENGTH], value) for key, value in tags.items()]
        self._write(Rows, wait, kind="tags", rows=rows)

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int = 0,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        """Log one point of each metric, which may belong to a LoggedModel and a data set (name, digest)."""
        name, digest = dataset or (None, "")
        belongs = (now(), int(step), model_id, name, digest[:DIGEST_LENGTH] or None)
        rows = [(key[:KEY_LENGTH], float(value), *belongs) for key, value in values.items()]
        self._write(Rows, wait, kind="metric values", rows=rows)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below ``folder`` if given."""
        self._write(CopiedFile, path=path.absolute(), folder=folder)

    def log_image(self, key: str, path: Path, step: int = 0) -> None:
        """Copy an image file into MLflow's grid, which shows those of a key (without "/") over steps and across runs.

        ``step`` is as of ``log_metrics``.
        """
        self._write(Picture, key=key, path=path.absolute(), step=step, time=now())

    def ask(self, question: Callable[[Any], T | None]) -> T | None:
        """What the store's client answers; None without one, or if it refuses, or not in time."""
        client = self.client
        if client is not None:
            with suppress(*self._failures):
                return self._writer.ask(lambda: question(client))
        return None

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Log a data set input: no data, only its name, digest, path and what it was used for."""
        self._write(DatasetInput, name=name, digest=digest[:DIGEST_LENGTH], source=source, context=context)

    def link_model(self, model_id: str) -> bool:
        """Mark a LoggedModel as an input of this run; False if this store has no such model, or does not say."""
        if self.ask(lambda client: client.get_logged_model(model_id)) is None:
            return False
        self._write(ModelInput, model_id=model_id)
        return True

    def log_model(
        self, name: str, folder: Path, params: Mapping[str, object], tags: Mapping[str, str], step: int = 0
    ) -> str | None:
        """Make a LoggedModel of this run from the files of a folder, which may be removed afterwards.

        Returns:
            the model's id; None if tracking is off or the store did not take it in time.
        """
        model = self._write(
            ModelFolder,
            name=re.sub(r"[^\w-]", "-", name),
            path=folder.absolute(),
            params={key: str(value)[:KEY_LENGTH] for key, value in params.items()},
            tags=dict(tags),
            step=step,
        )
        return None if model is None else model.model_id

    def finish(self, status: str, error: str | None = None, details: str | None = None, log: str = "") -> None:
        """End the run as FINISHED, FAILED or KILLED, and name on stderr what the store did not take.

        The line ``error`` says why, and is kept as the tag ``unveil.error``; ``details`` (a traceback) and ``log``
        (what was printed) are artifacts.
        """
        if self.run_id is None:
            return
        for name, text in (("traceback.txt", details), ("log.txt", log)):
            if text:
                self._write(TextFile, name=name, text=without_secrets(text))
        self._ended.set()
        self._sampler.join(WAIT_SECONDS)  # it logs the interval that did not end, which for a short stage is all
        if error is not None:
            self.set_tags({"unveil.error": error}, wait=False)
        self._write(RunStatus, wait=False, status=status, time=now())
        lost = self._writer.close()
        if self._living is not None:
            self._living.clear()
        if lost:
            kept = "`unveil sync` uploads that when it does" if self._writer.outbox is not None else "that is lost"
            warn(f"MLflow's store did not answer, and is without: {lost}; {kept}")

    def _write(self, call_type: type[AnyKind], wait: bool = True, **values: Any) -> AnyKind | None:
        """Have a call made, unless it has no rows or tracking is off; the call."""
        if self.run_id is None or values.get("rows") == []:
            return None
        call = call_type(run_id=self.run_id, **values)
        self._writer.write(call, wait)
        return call

    def _is_final(self, call: Call, error: Exception) -> bool:
        """Whether the store will not take it later either; says the first refusal of each kind and the first outage.

        It refuses for good what belongs to a run that was deleted in the pages while it went on.
        """
        is_final = call.is_lost or is_refusal(error)
        reason = call.kind if is_final else "outage"
        if reason not in self._warned:
            self._warned.add(reason)
            hint = "" if is_final else "; what it does not take is kept and tried again"
            warn(f"MLflow did not take the {call.kind}: {one_line(error)}{hint}")
        return is_final

    def _sample(self, uri: str) -> None:
        """Log system metrics until the end. MLflow's own thread would wait for a store that does not answer."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        has_ended = False
        try:
            monitor: Any = SystemMetricsMonitor(self.run_id, sampling_interval=SYSTEM_METRICS_SECONDS, tracking_uri=uri)
            monitor.mlflow_logger.record_metrics = partial(self.log_metrics, wait=False)
            while not has_ended:
                for _ in range(monitor.samples_before_logging):
                    has_ended = has_ended or self._ended.wait(monitor.sampling_interval)
                    monitor.collect_metrics()
                monitor.publish_metrics(monitor.aggregate_metrics())
        except Exception as error:  # noqa: BLE001 - psutil and NVML raise what they like
            warn(f"no system metrics: {one_line(error)}")
