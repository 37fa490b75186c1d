"""What a stage tells MLflow: one run a stage execution, which keeps what it is told when the stage is killed.

Only the frame of a stage uses this; the library returns values and knows nothing of MLflow.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from unveil.errors import one_line
from unveil.files import file_digest
from unveil.printing import warn
from unveil.run.store import LOCK_SECONDS, Store, import_mlflow, is_refusal
from unveil.run.writer import WAIT_SECONDS, Writer

SYSTEM_METRICS_SECONDS = 5.0  # between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
WEIGHTS_COPY_BYTES = 64 << 20  # larger weights stay in DVC alone; MLflow then holds their hash
# MLflow's own limits; of rows, how many it takes at once.
ROWS = {"Param": ("params", 100), "RunTag": ("tags", 100), "Metric": ("metrics", 1000)}
KEY_LENGTH, TAG_LENGTH, PARAM_LENGTH = 250, 8000, 6000
DIGEST_LENGTH = 36
STATUS = "end of the run"  # one kind of call for each status, so that the last one stays
T = TypeVar("T")


class TrackedRun:
    """One MLflow run: it takes what a stage tells it, at once, so that a killed stage loses nothing.

    A store that stops answering does not stop the stage, which may have computed for days: what was not written is
    kept, tried again, and named at the end. Without a client (tracking switched off) everything is accepted and
    nothing is kept.
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

    @classmethod
    def start(cls, store: Store, tags: Mapping[str, str], params: Mapping[str, object]) -> Self:
        """Open a run in ``store`` with its tags and parameters, and begin to sample system metrics.

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
        run.log_params(params)
        run._sampler = threading.Thread(target=run._sample, args=[store.uri], name="system metrics", daemon=True)
        run._sampler.start()
        return run

    def take_over(self, run_id: str, tags: Mapping[str, str], params: Mapping[str, object]) -> frozenset[int] | None:
        """Write into the earlier run ``run_id`` from now on, with the tags set anew, and delete this one.

        Returns:
            the steps that its loss has; None, and this run stays, if that one is of another experiment or had other
            parameters than ``params``, is finished, or cannot be gone on with.
        """
        client = self.client
        if client is None or self.run_id is None or run_id == self.run_id:
            return None
        wanted = {key[:KEY_LENGTH]: str(value)[:PARAM_LENGTH] for key, value in params.items()}

        def earlier() -> tuple[Any, frozenset[int]]:
            points = client.get_metric_history(run_id, "loss")
            return client.get_run(run_id), frozenset(point.step for point in points)

        if (answer := self._ask(earlier)) is None:
            return None
        found, steps = answer
        is_other = found.info.experiment_id != self.experiment_id or found.data.params != wanted
        if is_other or found.info.lifecycle_stage != "active" or found.info.status == "FINISHED":
            return None
        self._write("deletion of an empty run", self.run_id, self._delete)
        self.run_id, before = run_id, found.data.tags
        self._write(STATUS, "(RUNNING)", lambda c, r: c.update_run(r, status="RUNNING"))
        if "unveil.error" in before:
            self._write("deletion of a tag", "unveil.error", lambda c, r: c.delete_tag(r, "unveil.error"))
        self.set_tags({**tags, "unveil.resumed": str(int(before.get("unveil.resumed", 0)) + 1)})
        return steps

    def _delete(self, client: Any, run_id: str) -> None:
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
        self._log("parameters", "Param", ((key, str(value)) for key, value in params.items()))

    def set_tags(self, tags: Mapping[str, str], wait: bool = True) -> None:
        """Set tags; MLflow cuts a long value at its limit."""
        self._log("tags", "RunTag", tags.items(), wait)

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
        belongs = (time.time_ns() // 1_000_000, int(step), model_id, name, digest[:DIGEST_LENGTH] or None, self.run_id)
        self._log("metric values", "Metric", ((key, float(value), *belongs) for key, value in values.items()), wait)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below ``folder`` if given."""
        self._write("artifact", path.as_posix(), lambda c, r: c.log_artifact(r, str(path), folder))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Log a data set input: no data, only its name, digest, path and what it was used for."""

        def write(client: Any, run_id: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            entity = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source}))
            client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

        self._write("data set", name, write)

    def link_model(self, model_id: str) -> bool:
        """Mark a LoggedModel as an input of this run; False if this store has no such model, or does not say."""
        client = self.client
        if client is None or self._ask(lambda: client.get_logged_model(model_id)) is None:
            return False
        from mlflow.entities import LoggedModelInput

        self._write("model input", model_id, lambda c, r: c.log_inputs(r, models=[LoggedModelInput(model_id)]))
        return True

    def log_model(
        self, name: str, config: Path, weights: Path, params: Mapping[str, object], step: int = 0
    ) -> str | None:
        """Make a LoggedModel of this run from a configuration and safetensors weights: no pickle.

        Weights above 64 MiB are not copied: the model then holds their hash and path, and DVC the file.

        Returns:
            the model's id; None if tracking is off or the store did not take it in time.
        """
        if self.client is None:
            return None
        from mlflow.entities import LoggedModelOutput

        made: list[str] = []
        size = weights.stat().st_size
        tags = {
            "unveil.weights.sha256": file_digest(weights),
            "unveil.weights.bytes": str(size),
            "unveil.weights.path": weights.as_posix(),
        }

        def create(client: Any, run_id: str) -> None:
            model = client.create_logged_model(
                self.experiment_id,
                name=re.sub(r"[^\w-]", "-", name),
                source_run_id=run_id,
                tags=tags,
                params={key: str(value)[:KEY_LENGTH] for key, value in params.items()},
                model_type="denoiser",
            )
            made.append(model.model_id)

        self._write("model", name, create)
        self._write("model", name, lambda c, r: c.log_outputs(r, [LoggedModelOutput(made[0], step)]))
        for file in [config, weights] if size <= WEIGHTS_COPY_BYTES else [config]:
            self._write("model", name, partial(lambda file, c, _: c.log_model_artifact(made[0], str(file)), file))
        self._write("model", name, lambda c, _: c.finalize_logged_model(made[0], "READY"))
        return made[0] if made else None

    def finish(self, status: str, error: str | None = None, details: str | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, and name on stderr what the store did not take.

        The line ``error`` says why, and is kept as the tag ``unveil.error``; ``details`` (a traceback) are an artifact.
        """
        if self.client is None:
            return
        if details is not None:
            self._write("artifact", "traceback.txt", lambda c, r: c.log_text(r, details, "traceback.txt"))
        self._ended.set()
        self._sampler.join(WAIT_SECONDS)  # it logs the interval that did not end, which for a short stage is all
        if error is not None:
            self.set_tags({"unveil.error": error}, wait=False)
        self._write(STATUS, f"({status})", lambda c, r: c.set_terminated(r, status), wait=False)
        if lost := self._writer.close():
            warn(f"MLflow's store did not answer, and is without: {', '.join(lost)}")

    def _log(self, kind: str, entity: str, values: Iterable[tuple[Any, ...]], wait: bool = True) -> None:
        if self.client is None:
            return
        from mlflow import entities

        if rows := [getattr(entities, entity)(key[:KEY_LENGTH], *value) for key, *value in values]:
            self._writer.write(kind, self._put, rows, wait)

    def _put(self, rows: list[Any]) -> None:
        """Write rows of one kind, as many at once as MLflow takes; a row that it refuses takes no other with it."""
        field, most = ROWS[type(rows[0]).__name__]
        refusal: Exception | None = None
        parts = [rows[first : first + most] for first in range(0, len(rows), most)]
        for part in parts:
            try:
                self.client.log_batch(self.run_id, **{field: part})
            except Exception as error:
                if not is_refusal(error):
                    raise
                if len(part) == 1:
                    refusal = error
                else:
                    parts += [[row] for row in part]  # which this loop comes to
        if refusal is not None:
            raise refusal

    def _write(self, kind: str, name: str, call: Callable[[Any, str], object], wait: bool = True) -> None:
        client, run_id = self.client, self.run_id
        if client is not None and run_id is not None:
            self._writer.write(kind, lambda _: call(client, run_id), [name], wait)

    def _ask(self, question: Callable[[], T]) -> T | None:
        """What the store answers; None if it refuses, or not in time."""
        with suppress(*self._failures):
            return self._writer.ask(question)
        return None

    def _is_final(self, kind: str, error: Exception) -> bool:
        """Whether the store will not take it later either; says the first refusal of each kind and the first outage.

        It refuses for good what belongs to a run that was deleted in the pages while it went on.
        """
        is_final = is_refusal(error) or isinstance(error, FileNotFoundError | IndexError)  # of a model refused itself
        reason = kind if is_final else "outage"
        if reason not in self._warned:
            self._warned.add(reason)
            hint = "" if is_final else "; what it does not take is kept and tried again"
            warn(f"MLflow did not take the {kind}: {one_line(error)}{hint}")
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
