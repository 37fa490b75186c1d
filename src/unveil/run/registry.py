"""MLflow's model registry: versions of a model, each with the number that an evaluation gave it, and their champion."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unveil.errors import UnveilError, one_line
from unveil.evaluation.card.card import Card
from unveil.evaluation.card.comparison import LIMIT, compare_cards
from unveil.evaluation.metrics.metric import Metric
from unveil.files import file_digest
from unveil.run.store import Store
from unveil.weights import WeightsChoice

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"  # the alias
DESCRIPTION = "MLmodel"  # the file that makes a folder a model for MLflow
RUN_TAG, WEIGHTS_TAG, HASH_TAG = "unveil.run", "unveil.weights", "unveil.weights.sha256"
PARENT_TAG = "unveil.model"  # the LoggedModel whose averages the weights are
VERSIONS_TAG = "mlflow.modelVersions"  # by which MLflow's pages lead from a LoggedModel to its versions


@dataclass(frozen=True)
class Registry:
    """The registered model ``name`` in a store."""

    client: "MlflowClient"
    store: Store
    name: str

    @classmethod
    @contextmanager
    def opened(cls, store: Store, name: str) -> Iterator["Registry"]:
        """Open the store. What MLflow refuses within the block becomes an UnveilError."""
        client, _ = store.open()
        from mlflow.exceptions import MlflowException

        try:
            yield cls(client, store, name)
        except MlflowException as error:
            line = f"registered model {name!r} in {store.shown}: {one_line(error)}; mend that, and repeat the command"
            raise UnveilError(line) from None

    def model_of(self, run: "Run", card: Card) -> "LoggedModel":
        """The LoggedModel that an evaluate run's lineage names, whole, with the weights that its card is of.

        Raises:
            UnveilError: if it names none, one of other weights, or one that MLflow cannot load (yet).
        """
        of, mend = f"run {run.info.run_id}", "`dvc repro --force train`, or give another run"
        linked = run.inputs.model_inputs if run.inputs is not None else []
        if not linked:
            why = run.data.tags.get("unveil.model.missing", "its samples have no record of their training")
            raise UnveilError(f"{of}: found no model in its lineage ({why}), expected that of its train stage; {mend}")
        model = self.client.get_logged_model(linked[0].model_id)
        of += f", model {model.model_id}"
        if model.status != "READY":
            wait = "its upload did not end; `unveil sync` where it was trained ends it"
            raise UnveilError(f"{of}: found status {model.status}, expected READY: {wait}")
        if DESCRIPTION not in {file.path for file in self.client.list_logged_model_artifacts(model.model_id)}:
            why = f"found no {DESCRIPTION}, by which MLflow loads it; an earlier version trained it"
            raise UnveilError(f"{of}: {why}; {mend}")
        stated, digest = card.choices.model.get("weights_sha256"), model.tags.get(HASH_TAG)
        if stated != digest:
            raise UnveilError(f"{of}: found a card of weights {stated}, expected {digest}, the model's; {mend}")
        return model

    @contextmanager
    def files_of(self, model: "LoggedModel", project: Path) -> Iterator[Path]:
        """The model's folder: ``project`` if its weights are there, else a download of its artifacts.

        Raises:
            UnveilError: if neither has averages of its weights.
        """
        from unveil.averages import FOLDER
        from unveil.model import WEIGHTS_FILE

        weights = project / WEIGHTS_FILE
        if weights.exists() and file_digest(weights) == model.tags.get(HASH_TAG):
            yield project
            return
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as folder:
            download_artifacts(model.artifact_location, dst_path=folder, tracking_uri=self.store.uri)
            averages = next(Path(folder).rglob(FOLDER), None)
            if averages is None:
                raise UnveilError(
                    f"{weights}: found none or those of another model, expected those of {model.model_id} and their "
                    "averages, which MLflow is without; `dvc exp apply` or `dvc checkout` brings them"
                )
            yield averages.parent

    def with_weights(self, model: "LoggedModel", files: Path, choice: WeightsChoice, step: int) -> "LoggedModel":
        """The LoggedModel of an average of a model's weights after ``step`` images; made of ``files`` if there is none.

        Raises:
            UnveilError: if there is no such average.
        """
        words = f"tags.`{PARENT_TAG}` = '{model.model_id}' AND tags.`{WEIGHTS_TAG}` = '{choice}'"
        for existing in self.client.search_logged_models([model.experiment_id], words):
            if existing.status == "READY":  # else its upload did not end
                return existing
        from mlflow.artifacts import download_artifacts
        from mlflow.entities import LoggedModelOutput

        from unveil.serving.package import PARAMS_FILE, packaged

        with tempfile.TemporaryDirectory() as folder:
            digest = write_variant(files, choice, Path(folder) / "models")
            if PARAMS_FILE in {file.path for file in self.client.list_logged_model_artifacts(model.model_id)}:
                place = f"{model.artifact_location}/{PARAMS_FILE}"  # the project's own may have changed since
                download_artifacts(place, dst_path=folder, tracking_uri=self.store.uri)
            made = self.client.create_logged_model(
                model.experiment_id,
                re.sub(r"[^\w-]", "-", f"{model.name}-{choice}"),
                model.source_run_id,
                {PARENT_TAG: model.model_id, WEIGHTS_TAG: str(choice), HASH_TAG: digest},
                model.params,
                model.model_type,
            )
            self.client.log_outputs(str(model.source_run_id), [LoggedModelOutput(made.model_id, step)])
            packed = packaged(Path(folder) / "models", Path(folder) / "packed")
            self.client.log_model_artifacts(made.model_id, str(packed))
        return self.client.finalize_logged_model(made.model_id, "READY")

    def version_of(self, run: "Run", model: "LoggedModel", tags: Mapping[str, object]) -> "ModelVersion":
        """The version of a model that a run evaluated, with these tags too; made if there is none."""
        source, words = f"models:/{model.model_id}", f"name = '{self.name}'"
        stated = {key: str(value) for key, value in tags.items()} | {RUN_TAG: run.info.run_id}
        if not self.client.search_registered_models(words):
            self.client.create_registered_model(self.name)
        for version in self.client.search_model_versions(words):
            if version.source == source and version.tags.get(RUN_TAG) == run.info.run_id:
                for key, value in stated.items():
                    self.client.set_model_version_tag(self.name, version.version, key, value)
                return version
        made = self.client.create_model_version(self.name, source, run.info.run_id, stated, model_id=model.model_id)
        known = json.loads(self.client.get_logged_model(model.model_id).tags.get(VERSIONS_TAG, "[]"))
        if (entry := {"name": self.name, "version": int(made.version)}) not in known:  # a server has written it
            self.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps([*known, entry])})
        return made

    def champion(self) -> "ModelVersion | None":
        """The version that has the alias."""
        number = self.client.get_registered_model(self.name).aliases.get(CHAMPION)
        return None if number is None else self.client.get_model_version(self.name, number)


def write_variant(models: Path, choice: WeightsChoice, into: Path) -> str:
    """Write a model whose own weights are an average of another's; their sha256."""
    from unveil.model import WEIGHTS_FILE, ModelConfig, load_denoiser, save_model

    config = ModelConfig.load(models)
    training = {key: value for key, value in config.training.items() if key != "ema_half_life_images"}
    network = load_denoiser(models, weights=choice).network
    save_model(into, network, replace(config, training=training | {"weights": str(choice)}))
    return file_digest(into / WEIGHTS_FILE)


def is_better(card: Card, champion: Card, name: str) -> tuple[bool, str]:
    """Whether a metric is better than the champion's beyond noise and both intervals, and why or why not."""
    move = next(move for move in compare_cards(champion, card).movements if move.name == name)
    a, b = champion.metric(name), card.metric(name)
    if a is None or b is None or move.verdict in ("not comparable", "unknown"):
        return False, f"{name} cannot be compared: {move.reason} (A: the champion, B: this version)"
    numbers = f"{name} {shown(b)} against the champion's {shown(a)}"
    low, high = (b, a) if b.lower_is_better else (a, b)
    if move.verdict != "better":
        reasons = {"same": "the same", "worse": "worse"}
        return False, f"{numbers} is {reasons.get(move.verdict, f'within noise ({LIMIT:g} standard errors)')}"
    if low.high is not None and high.low is not None and low.high >= high.low:
        return False, f"{numbers} is better, but the intervals overlap"
    return True, f"{numbers} is better beyond noise"


def shown(metric: Metric) -> str:
    """A value with its interval, if it has one."""
    return f"{metric.value:.4g}" + ("" if metric.low is None else f" ({metric.low:.4g} to {metric.high:.4g})")
