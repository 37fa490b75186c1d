"""What a stage tells MLflow: one run a stage execution, which keeps what it is told when the stage is killed.

Only the frame of a stage uses this; the library returns values and knows nothing of MLflow.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from unveil.errors import one_line
from unveil.files import file_digest
from unveil.printing import warn
from unveil.run.store import LOCK_SECONDS, Store, import_mlflow, is_refusal
from unveil.run.writer import WAIT_SECONDS, Writer

if TYPE_CHECKING:
    from mlflow import MlflowClient

SYSTEM_METRICS_SECONDS = 5.0  # between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
WEIGHTS_COPY_BYTES = 64 << 20  # larger weights stay in DVC alone; MLflow then holds their hash
# MLflow's own limits
ROWS = {
    "parameters": ("params", "Param", 100),
    "tags": ("tags", "RunTag", 100),
    "metric values": ("metrics", "Metric", 1000),
}
KEY_LENGTH, TAG_LENGTH, PARAM_LENGTH = 250, 8000, 6000
DIGEST_LENGTH = 36


class TrackedRun:
    """One MLflow run: it takes what a stage tells it, at once, so that a killed stage loses nothing.

    A store that stops answering does not stop the stage, which may have computed for days: what was not written is
    kept, tried again, and named at the end. Without a client (tracking switched off) everything is accepted and
    nothing is kept.
    """

    def __init__(self) -> None:
        self.client: MlflowClient | None = None
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
                made = run._writer.ask(
                    lambda: client.create_run(run.experiment_id, tags=first_tags),
                    undo=lambda made: run._delete(client, made.info.run_id),
                )
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
        """Write into an earlier run from now on, and delete this one.

        Args:
            run_id: of the earlier run, in the same experiment.
            tags: to set anew.
            params: what it must have been run with.

        Returns:
            the steps that its loss has; None, and this run stays, if it is finished or cannot be gone on with.
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
            steps = frozenset(point.step for point in client.get_metric_history(run_id, "loss"))
            client.update_run(run_id, status="RUNNING")
            return steps, earlier.data.tags

        try:
            found = self._writer.ask(
                reopened, undo=lambda late: client.set_terminated(run_id, "KILLED") if late else None
            )
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
        self._log("parameters", ((key, str(value)) for key, value in params.items()))

    def set_tags(self, tags: Mapping[str, str], wait: bool = True) -> None:
        """Set tags; MLflow cuts a long value at its limit."""
        self._log("tags", tags.items(), wait)

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int = 0,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        """Log one point of each metric, which may belong to a LoggedModel and a data set (name, digest)."""
        now = time.time_ns() // 1_000_000
        measured_on = (None, None) if dataset is None else (dataset[0], dataset[1][:DIGEST_LENGTH])
        belongs = (model_id, *measured_on, self.run_id)
        self._log(
            "metric values", ((key, float(value), now, int(step), *belongs) for key, value in values.items()), wait
        )

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below ``folder`` if given."""
        self._write("artifact", path.as_posix(), lambda c, r: c.log_artifact(r, str(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Write a text into the run's artifacts."""
        self._write("artifact", name, lambda c, r: c.log_text(r, text, name))

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Log a data set input: no data, only its name, digest, path and what it was used for."""

        def write(client: "MlflowClient", run_id: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            entity = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source}))
            client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

        self._write("data set", name, write)

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
        size = weights.stat().st_size
        tags = {
            "unveil.weights.sha256": file_digest(weights),
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
            warn(f"MLflow's store did not answer, and is without: {', '.join(lost)}")

    def _log(self, kind: str, values: Iterable[tuple[Any, ...]], wait: bool = True) -> None:
        if self.client is None or self.run_id is None:
            return
        from mlflow import entities

        name, entity, most = ROWS[kind]
        if rows := [getattr(entities, entity)(key[:KEY_LENGTH], *value) for key, *value in values]:
            self._writer.write(kind, _Batch(self.client, self.run_id, name, most), rows, wait)

    def _write(self, kind: str, name: str, call: "Callable[[MlflowClient, str], object]", wait: bool = True) -> None:
        client, run_id = self.client, self.run_id
        if client is not None and run_id is not None:
            self._writer.write(kind, lambda _: call(client, run_id), [name], wait)

    def _is_final(self, kind: str, error: Exception) -> bool:
        """Whether the store will not take it later either; says the first refusal of each kind and the first outage.

        It refuses for good what belongs to a run that was deleted in the pages while it went on.
        """
        is_final = is_refusal(error) or isinstance(error, FileNotFoundError)
        reason = kind if is_final else "outage"
        if reason not in self._warned:
            self._warned.add(reason)
            hint = "" if is_final else "; what it does not take is kept and tried again"
            warn(f"MLflow did not take the {kind}: {one_line(error)}{hint}")
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
            warn(f"no system metrics: {one_line(error)}")


@dataclass(frozen=True)
class _Batch:
    """Writes rows of one kind, as many at once as MLflow takes; a row that it refuses takes no other with it."""

    client: "MlflowClient"
    run_id: str
    kind: str
    most: int

    def __call__(self, rows: list[Any]) -> None:
        refusal: Exception | None = None
        parts = [rows[first : first + self.most] for first in range(0, len(rows), self.most)]
        for part in parts:
            batch: dict[str, Any] = {self.kind: part}
            try:
                self.client.log_batch(self.run_id, **batch)
            except Exception as error:
                if not is_refusal(error):
                    raise
                if len(part) == 1:
                    refusal = error
                else:
                    parts += [[row] for row in part]  # which this loop comes to
        if refusal is not None:
            raise refusal
