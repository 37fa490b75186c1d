"""What a stage tells MLflow, as plain data: made at once, or kept in a file until its store is back.

A call may be made again after it was made in part, or whole: it then changes nothing more.
"""

import json
import time
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal, TypeAlias
from uuid import NAMESPACE_OID, uuid5

from pydantic import BaseModel, ConfigDict, Field

from unveil.files import regular
from unveil.run.store import is_refusal

Pair: TypeAlias = tuple[str, str]
Point: TypeAlias = tuple[str, float, int, int, str | None, str | None, str | None]
"""Key, value, time, step, id of the model, name and digest of the data set: the order of MLflow's Metric."""
ENTITIES = {"parameters": ("Param", "params"), "tags": ("RunTag", "tags"), "metric values": ("Metric", "metrics")}


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Call(BaseModel):
    """One thing to write into a run. Those of one kind, which is in words for people, keep their order.

    Attributes:
        title: which of its values names it.
        is_file: whether it goes to a disk, which may fail alone, and has a ``path``.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    title: ClassVar[str] = "name"
    is_file: ClassVar[bool] = False
    run_id: str
    kind: str
    path: Path | None = None

    @property
    def is_lost(self) -> bool:
        """Whether what it is to copy is gone: it can never be made."""
        return self.path is not None and not self.path.exists()

    @abstractmethod
    def make(self, client: Any) -> None:
        """Write it with an MlflowClient. Raises what that raises."""

    def take(self, later: "Call") -> bool:
        """Take up a later call, which then needs not be made; False if that cannot be."""
        return False

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


class Rows(Call):
    """Parameters, tags, or points of metrics."""

    kind: Literal["parameters", "tags", "metric values"]
    rows: list[Pair | Point]

    def take(self, later: Call) -> bool:
        if not isinstance(later, Rows) or (later.kind, later.run_id) != (self.kind, self.run_id):
            return False
        self.rows += later.rows
        return True

    def make(self, client: Any) -> None:
        """A row that MLflow refuses takes no other with it; the refusal is raised in the end."""
        from mlflow import entities

        entity, argument = ENTITIES[self.kind]
        made = [getattr(entities, entity)(*row) for row in self.rows]
        for parts in ([made], [[row] for row in made]):  # all at once; each for itself, if that is refused
            refusals = []
            for part in parts:
                try:
                    client.log_batch(self.run_id, **{argument: part})
                except Exception as error:
                    if not is_refusal(error):
                        raise
                    refusals.append(error)
            if not refusals:
                return
        raise refusals[0]


class CopiedFile(Call):
    """An artifact, below ``folder`` if given."""

    kind: Literal["artifact"] = "artifact"
    title, is_file = "path", True
    path: Path
    folder: str | None = None

    def make(self, client: Any) -> None:
        client.log_artifact(self.run_id, str(self.path), self.folder)


class TextFile(Call):
    """An artifact that is a text."""

    kind: Literal["text"] = "text"
    is_file = True
    name: str
    text: str

    def make(self, client: Any) -> None:
        client.log_text(self.run_id, self.text, self.name)


class Picture(Call):
    """One of MLflow's grid of images."""

    kind: Literal["image"] = "image"
    title, is_file = "key", True
    key: str
    path: Path
    step: int
    time: int

    def make(self, client: Any) -> None:
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        # As `client.log_image` does, but for its random names: what failed half way would stand there twice.
        number = uuid5(NAMESPACE_OID, f"{self.run_id} {self.key} {self.step} {self.time}")
        name = f"{self.key}+step+{self.step}+timestamp+{self.time}+{number}"
        with TemporaryDirectory() as folder, Image.open(regular(self.path)) as image:
            files = [f"{folder}/{name}.png", f"{folder}/{name}+compressed.webp"]
            image.save(files[0])
            compress_image_size(image).save(files[1])
            for file in files:
                client.log_artifact(self.run_id, file, "images")
        client.set_tag(self.run_id, "mlflow.loggedImages", True)


class DatasetInput(Call):
    """A data set as an input: no data, only its name, digest, path and what it was used for."""

    kind: Literal["data set"] = "data set"
    name: str
    digest: str
    source: str
    context: str

    def make(self, client: Any) -> None:
        from mlflow import entities

        data = entities.Dataset(self.name, self.digest, "local", json.dumps({"uri": self.source}))
        tag = entities.InputTag("mlflow.data.context", self.context)
        client.log_inputs(self.run_id, [entities.DatasetInput(data, [tag])])


class ModelInput(Call):
    """A LoggedModel as an input."""

    kind: Literal["model input"] = "model input"
    title = "model_id"
    model_id: str

    def make(self, client: Any) -> None:
        from mlflow.entities import LoggedModelInput

        if all(found.model_id != self.model_id for found in client.get_run(self.run_id).inputs.model_inputs):
            client.log_inputs(self.run_id, models=[LoggedModelInput(self.model_id)])


class ModelFolder(Call):
    """A LoggedModel as an output, with the files of a folder; ``model_id`` is of MLflow, once it has the model."""

    kind: Literal["model"] = "model"
    is_file = True
    name: str
    path: Path
    params: dict[str, str]
    tags: dict[str, str]
    step: int
    model_id: str | None = None

    def make(self, client: Any) -> None:
        from mlflow.entities import LoggedModelOutput

        # The largest file comes last, so that it is rarely sent again.
        place = self.path  # which may be another one, where it is kept, before this has ended
        place.stat()  # without files it would be a model all the same
        files = sorted((file for file in place.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
        run = client.get_run(self.run_id)
        self.model_id = self.model_id or self._made(client, run.info.experiment_id)
        if all(output.model_id != self.model_id for output in run.outputs.model_outputs):
            client.log_outputs(self.run_id, [LoggedModelOutput(self.model_id, self.step)])
        for file in files:
            folder = file.parent.relative_to(place).as_posix()
            client.log_model_artifact(self.model_id, str(file), None if folder == "." else folder)
        client.finalize_logged_model(self.model_id, "READY")

    def _made(self, client: Any, experiment: str) -> str:
        """The id of a new model, or of one that an attempt made whose end was not heard."""
        for found in client.search_logged_models([experiment], f"source_run_id = '{self.run_id}'"):
            if (found.name, found.params) == (self.name, self.params) and self.tags.items() <= found.tags.items():
                return str(found.model_id)
        made = client.create_logged_model(experiment, self.name, self.run_id, self.tags, self.params, "denoiser")
        return str(made.model_id)


class RunDeletion(Call):
    """The end of a run that has nothing in it; where that is not allowed, it ends as KILLED."""

    kind: Literal["deletion of the empty run"] = "deletion of the empty run"
    title = "run_id"

    def make(self, client: Any) -> None:
        try:
            client.delete_run(self.run_id)
        except Exception:  # noqa: BLE001 - the next call raises what is of the store
            client.set_terminated(self.run_id, "KILLED")


class RunStatus(Call):
    """The end of a run, or its being taken up again, without the error that it ended with."""

    kind: Literal["status"] = "status"
    title = "status"
    status: str
    time: int

    def make(self, client: Any) -> None:
        if self.status != "RUNNING":
            client.set_terminated(self.run_id, self.status, self.time)
            return
        client.update_run(self.run_id, status=self.status)
        if "unveil.error" in client.get_run(self.run_id).data.tags:
            client.delete_tag(self.run_id, "unveil.error")


_Files: TypeAlias = CopiedFile | TextFile | Picture | ModelFolder
_Others: TypeAlias = Rows | DatasetInput | ModelInput | RunDeletion | RunStatus
AnyCall = Annotated[_Files | _Others, Field(discriminator="kind")]


def named(calls: Iterable[Call]) -> str:
    """What calls write, in words: ``12 metric values, artifact a.csv, b.csv``."""
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        kinds.setdefault(call.kind, []).append(call)
    said = []
    for kind, some in kinds.items():
        rows = sum(len(call.rows) for call in some if isinstance(call, Rows))
        titles = (getattr(call, call.title, "") for call in some)
        names = dict.fromkeys(title.name if isinstance(title, Path) else title for title in titles)
        said.append(f"{rows} {kind}" if rows else f"{kind} {', '.join(names)}")
    return ", ".join(said)
