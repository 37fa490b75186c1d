"""The frame around a stage: its parameters, its MLflow run, its lineage, and how it ends.

A stage command is one ``with stage(name, params) as run`` block. The block ends the run as FINISHED,
as FAILED with the error, or as KILLED, and the process with the status that a shell expects.
"""

import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError, line_for_user, one_line, without_secrets
from unveil.files import destination, expanded, file_digest, read_json, write_json
from unveil.layout import OUTBOX, PACKAGES, RUNNING
from unveil.params import Params, load_params
from unveil.printing import unheard, warn
from unveil.progress import say
from unveil.rank import first_error, is_main_process, leave_error
from unveil.run.checkout import git_tags, machine_tags, main_checkout, refuse_lost_experiment, source_tags
from unveil.run.dvc import declared_paths, dvc_tags, paths_digest
from unveil.run.lineage import STAGES, content_digest, find_record
from unveil.run.orphans import follow, gone
from unveil.run.script import dotted, keep_failure
from unveil.run.signals import Terminated, signals_ignored, signals_raised
from unveil.run.store import NoStoreError, Store, tracking_is_off
from unveil.run.tracked import TrackedRun
from unveil.section import flatten

RECORD_FORMAT = 1
SUMMARY_STAGE = "evaluate"  # the run that people compare: it repeats what the stages before it logged
SUMMARIZED = ("train", "sample")  # those whose last metrics it repeats


class Run:
    """One execution of a stage, as the stage sees it.

    Attributes:
        params: all of params.yaml.
        project: the main checkout, also in DVC's temporary copy of it.
        record: what ``write_record`` writes; see there.
        log_artifact, log_image, hurry, finish: as of :class:`~unveil.run.tracked.TrackedRun`.
    """

    def __init__(self, name: str, params: Params, root: Path) -> None:
        """Open the run; ``root`` is the folder of dvc.yaml, which paths are relative to."""
        refuse_lost_experiment(root)
        self.name = name
        self.params = params
        self.root = root
        self.project = main_checkout(root)
        self._dataset: tuple[str, str] | None = None
        self._model_id: str | None = None  # only if this store knows it
        self._logged_steps: frozenset[int] = frozenset()  # of a run that is gone on with
        self._dvc_inputs, code_paths, self._dvc_outputs = declared_paths(root / "dvc.yaml", name)
        for output in self._dvc_outputs:  # before any work
            destination(root / output, folder=not Path(output).suffix)
        own = {key: value for key, value in flatten(params, read=True).items() if key.startswith(f"{name}.")}
        self._logged_params = dict(own)
        self._started = time.perf_counter()
        dvc, git, machine = dvc_tags(), git_tags(root), machine_tags()
        experiment = dvc.get("dvc.exp_name")
        code = paths_digest(root, code_paths, code=True)
        self._tags = {"unveil.stage": name, **source_tags(name, experiment), **machine, **git, **dvc}
        if code is not None:
            self._tags["unveil.code"] = code
        self.record: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "stage": name,
            "run_id": None,
            "experiment": None,
            "model_id": None,
            "git_commit": git.get("git.commit"),
            "git_dirty": git.get("git.dirty") == "true" if git else None,
            "dvc_exp_name": experiment,
            "code": code,
            "params": own,
            "metrics": {},
            "inputs": {},
            "outputs": {},
            "upstream": {},
            "seconds": 0.0,
            "machine": {key: value for key, value in machine.items() if key not in ("unveil.host", "unveil.pid")},
        }
        self._tracked = TrackedRun()
        if is_main_process() and not tracking_is_off():
            store = Store.locate(root)
            self._tracked = TrackedRun.start(store, self._tags, own, self.project / OUTBOX)
            self._tracked.guard(self.project / RUNNING)
            self.record |= {"run_id": self._tracked.run_id, "experiment": self._tracked.experiment_id}
            if store.database is None:  # a path would not hold on another machine
                self.record["tracking_uri"] = store.shown
        self.log_artifact, self.log_image = self._tracked.log_artifact, self._tracked.log_image
        self.hurry, self.finish = self._tracked.hurry, self._tracked.finish

    @property
    def seconds(self) -> float:
        """Since this execution began; of a resumed training, without the time before."""
        return time.perf_counter() - self._started

    def say(self, line: str) -> None:
        """Print a line, once for all processes; on a terminal a passing one renews the line before."""
        if is_main_process():
            say(line)

    def locate(self, path: Path | None) -> Path | None:
        """A path of params.yaml; a relative one is meant from the project, also in DVC's temporary copy."""
        if path is None:
            return None
        path = expanded(path)
        elsewhere = self.project / path
        return elsewhere if elsewhere.exists() and not path.exists() else path

    def follow(self, record: Path) -> None:
        """Take up the lineage of the stage that wrote ``record``, and of all before it; a tag says if none is found.

        Their runs become tags; the evaluate run also gets their parameters, and the last metrics of train and sample.
        """
        if not is_main_process():
            return
        declared = (declared_paths(self.root / "dvc.yaml", stage)[2] for stage in STAGES)
        written = next((paths for paths in declared if record.as_posix() in paths), [])
        read = {name: content_digest(self.root, name) for name in self._dvc_inputs if name in written}
        digests = {name: digest for name, digest in read.items() if digest is not None}
        for name, digest in digests.items():
            self.add_input(name, digest)
        try:
            found = find_record(self.root, record, digests, self._tracked.ask)
        except UnveilError as error:
            self.tag("unveil.upstream.missing", one_line(error))
            return
        entry = found.model_dump(exclude_unset=True)
        chain = {**entry.pop("upstream"), found.stage: entry}
        chain = {stage: entry for stage, entry in chain.items() if stage not in self.record["upstream"]}
        self.record["upstream"] |= chain
        for stage, entry in chain.items():
            self.tag(f"unveil.upstream.{stage}", str(entry["run_id"] or "untracked"))
        if model_id := next((entry["model_id"] for entry in chain.values() if entry["model_id"]), None):
            self.record["model_id"] = model_id
            if self._tracked.link_model(model_id):
                self._model_id = model_id
            else:
                self.tag("unveil.model.missing", f"{model_id} was not found in this store")
        if self.name == SUMMARY_STAGE:
            for entry in chain.values():
                new = {key: value for key, value in entry["params"].items() if key not in self._logged_params}
                self._logged_params |= new
                self._tracked.log_params(new)
            for stage in SUMMARIZED:
                metrics = chain[stage]["metrics"] if stage in chain else {}
                self._tracked.log_metrics({f"{stage}.{key}": value for key, value in metrics.items()})

    def add_input(self, name: str, digest: str, dataset: str | None = None, context: str | None = None) -> None:
        """State what was read.

        Args:
            name: the path, relative to the project.
            digest: sha256 of its content.
            dataset: name of the data set (``celeba-64-score-sde``) if it is one: then it becomes an
                MLflow dataset input, and metrics logged with ``model=True`` are tied to it.
            context: what the data set is used for; the stage's name by default.
        """
        self.record["inputs"][name] = digest
        self.tag(f"unveil.input.{name}", digest)
        if dataset is not None:
            self._dataset = (dataset, digest)
            self._tracked.log_dataset(dataset, digest, name, context or self.name)

    def add_output(self, name: str, digest: str) -> None:
        """State what was written; ``write_record`` hashes what is not stated."""
        self.record["outputs"][name] = digest
        self.tag(f"unveil.output.{name}", digest)

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._tags[key] = value
        self._tracked.set_tags({key: value})

    def go_on(self, run_id: str | None) -> None:
        """Go on with the MLflow run of an execution that was interrupted, and delete the one that was just opened.

        What is logged at steps that the run has already is passed over, so a curve has every point once. Nothing is
        done if the run is not there, or had other parameters (MLflow lets none change).
        """
        steps = self._tracked.take_over(run_id, self._tags, self._logged_params) if run_id is not None else None
        if steps is not None:
            self.record["run_id"], self._logged_steps = run_id, steps

    def log_metrics(self, values: Mapping[str, float], step: int = 0, model: bool = False) -> None:
        """Log one point of each metric.

        Args:
            values: metric name to value.
            step: abscissa, in the stage's own unit (training: images seen).
            model: tie the values to the model of ``follow`` and to the data set of ``add_input``.
        """
        numbers = {key: float(value) for key, value in values.items()}
        self.record["metrics"] |= numbers
        if step not in self._logged_steps:
            ties = (self._model_id, self._dataset) if model else (None, None)
            self._tracked.log_metrics(numbers, step, *ties)

    def log_model(self, models: Path, step: int = 0) -> None:
        """Make an MLflow LoggedModel of the trained model in ``models``, which MLflow loads; the record has its id.

        Its parameters are the values of config.json; ``step`` is how many images it has seen. Weights of any size are
        copied once, into MLflow's store. A model that cannot be packaged is a warning: the training is done.
        """
        if self._tracked.run_id is None:
            return
        from unveil.model import CONFIG_FILE, WEIGHTS_FILE  # PyTorch, which other stages start without
        from unveil.serving.package import packaged

        experiment, weights = self.record["dvc_exp_name"], models / WEIGHTS_FILE
        name = f"denoiser-{experiment}" if experiment else "denoiser"
        params = dict(dotted(read_json(models / CONFIG_FILE, dict[str, Any], "train again")))
        tags = {
            "unveil.weights.sha256": file_digest(weights),
            "unveil.weights.bytes": str(weights.stat().st_size),
            "unveil.weights.path": weights.as_posix(),
        }
        place = self.project / PACKAGES / self._tracked.run_id
        try:
            model_id = self._tracked.log_model(name, packaged(models, place), params, tags, step)
            self.record["model_id"] = self._model_id = model_id
        except (OSError, UnveilError, PackageNotFoundError) as error:
            warn(f"MLflow is without the model: {line_for_user(error) or one_line(error)}")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def write_record(self, path: Path) -> None:
        """Write the run record, the last thing that a stage does; it has those of the stages before, by their names.

        Inputs and outputs that dvc.yaml declares and the stage did not state are hashed here.
        """
        top = path.resolve().parent.parent  # the project, or where another generator's samples are evaluated
        for stated, names, add in (
            (self.record["inputs"], self._dvc_inputs if top == self.root.resolve() else [], self.add_input),
            (self.record["outputs"], self._dvc_outputs, self.add_output),
        ):
            for name in names:
                is_new = name not in stated and top / name != path.resolve()
                if is_new and (digest := paths_digest(top, [name])) is not None:
                    add(name, digest)
        self.record["seconds"] = round(self.seconds, 3)
        if is_main_process():
            write_json(path, self.record)
            self.log_artifact(path)


@contextmanager
def stage(name: str, params: Path) -> Iterator[Run]:
    """Run a stage: load parameters, open its MLflow run, and end both process and run as they should.

    ================== ============= ====================================================
    the block          run           process
    ================== ============= ====================================================
    ends               FINISHED      goes on
    raises UnveilError FAILED        prints ``error: ...``, exit status 1, no traceback
    raises OSError     FAILED        the same, if the system's refusal names a path or a lack
    is interrupted     KILLED        prints one line, exit status 130 (SIGINT), 143 (SIGTERM), 129 (SIGHUP)
    raises another     FAILED        the exception goes on, with its traceback
    ================== ============= ====================================================

    An experiment of DVC whose run could not be opened, as for wrong parameters, gets one that is FAILED. What ends by
    ``kill -9``: see :mod:`unveil.run.orphans`.

    Args:
        name: one of download, preprocess, train, sample, oracle, evaluate.
        params: path of params.yaml. The working folder is the project, as DVC has it.
    """
    if name not in STAGES:
        raise ValueError(f"stage {name!r}; expected one of {', '.join(STAGES)}")
    run: Run | None = None
    with unheard() as out, signals_raised():
        try:
            follow()
            run = Run(name, load_params(params), Path.cwd())
            yield run
        except BaseException as error:
            with signals_ignored():
                _end(name, run, error, params, out.log)
            raise
        with signals_ignored():
            run.finish("FINISHED")


def _end(name: str, run: Run | None, error: BaseException, params: Path, log: Iterable[str]) -> None:
    """End the run by what ended its block, and the process too unless its exception goes on."""
    status, reason, said, details = "FAILED", line_for_user(error), "", None
    code: int | None = 1
    if reason is not None:
        said = f"error: {reason}" if leave_error(reason) else ""
    elif isinstance(error, SystemExit):
        status, code = "FAILED" if error.code else "FINISHED", None
        reason = f"exit {error.code}" if error.code else None
    elif (reason := first_error()) is not None:
        pass  # a process that another one has left fails too, or is ended by the launcher
    elif isinstance(error, KeyboardInterrupt | Terminated):
        number, hint = (error.number, error.hint) if isinstance(error, Terminated) else (signal.SIGINT, "")
        status, code = "KILLED", 128 + number
        reason = f"{name} was stopped by {signal.Signals(number).name}{gone()}{hint}"
        said = f"error: {reason}" if is_main_process() else ""
    else:
        code, reason = None, f"{type(error).__name__}: {one_line(error)}"
        details = without_secrets(traceback.format_exc())
    whole = without_secrets("".join([*log, details or (said and f"{said}\n")]))
    if run is not None:
        run.finish(status, reason, details, whole)
    elif status == "FAILED" and not isinstance(error, NoStoreError):
        keep_failure(name, params, reason or "", whole)
    if said:
        print(said, file=sys.stderr, flush=True)
    if code is not None:
        raise SystemExit(code) from None
