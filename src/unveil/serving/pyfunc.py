"""The model as MLflow loads and serves it; :mod:`unveil.serving.package` puts this file beside it.

MLflow runs it by itself (models from code), with the packaged code first on the path.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from pkgutil import get_data
from typing import Any
from zipfile import ZipFile

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST, RESOURCE_EXHAUSTED
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pandas.api.types import is_scalar

import unveil
from unveil.diffusion.sampling import NotDrawn
from unveil.errors import UnveilError, line_for_user
from unveil.figures import picture
from unveil.files import regular
from unveil.serving import bounds
from unveil.serving.request import Request
from unveil.serving.studio import Studio

TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"  # seconds, which `mlflow models serve` sets
SHARE = 0.9  # of them for drawing and waiting, so that the answer says why there is no picture


class Painter(PythonModel):
    """Draws the images of rows: each row is a :class:`~unveil.serving.request.Request`, or what of it is not usual."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the model. Raises UnveilError if another version of the code is at work in this process."""
        models = Path(context.artifacts["models"])
        check_code(models.parent / "code" / "unveil.zip")
        self._studio = Studio.load(models, context.model_config["device"])
        self._bounded = bool(context.model_config["bounded"])
        self._places = threading.BoundedSemaphore(bounds.MOST_WAITING)
        self._lock = threading.Lock()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The images of all rows, one a row: ``row`` of the input, ``seed``, ``first`` (its number) and the PNG.

        Raises:
            MlflowException: as a bad request, in one line, if a row cannot be drawn; too many, if others wait.
        """
        until = time.monotonic() + SHARE * float(os.environ.get(TIMEOUT, "inf"))
        if not self._places.acquire(blocking=False):
            raise MlflowException(f"{bounds.MOST_WAITING} requests wait already; try again", RESOURCE_EXHAUSTED)
        try:
            with self._lock:
                return self._drawn(rows_of(model_input), until)
        except (UnveilError, NotDrawn, OSError) as error:
            line = line_for_user(error) or str(error)
            raise MlflowException(line.replace(str(self._studio.folder), "the model"), BAD_REQUEST) from error
        finally:
            self._places.release()

    def _drawn(self, rows: list[dict[str, Any]], until: float) -> pd.DataFrame:
        studio, size = self._studio, self._studio.shape[-1]
        if self._bounded:
            bounds.check_count(len(rows))
        requests = [self._request(number, values) for number, values in enumerate(rows)]
        if self._bounded:
            bounds.check_together(requests, size)
        drawn = []
        for number, request in enumerate(requests):
            studio.watch = partial(watch, bounds.budget(request, size), until) if self._bounded else bool
            with of_row(number):
                images = studio.images(request)
            for image, single in zip(images, request.singles(), strict=True):
                png = picture(image[None], 1, studio.facts(single))
                drawn.append({"row": number, "seed": single.seed, "first": single.first, "image": png})
        return pd.DataFrame(drawn, columns=["row", "seed", "first", "image"])

    def _request(self, number: int, values: Mapping[str, Any]) -> Request:
        with of_row(number):
            request = self._studio.request(values)
            if self._bounded:
                bounds.check_bounds(request, self._studio.shape[-1], (self._studio.usual.guide,))
        return request


@contextmanager
def of_row(number: int) -> Iterator[None]:
    """Name the row in what is raised within."""
    try:
        yield
    except (UnveilError, NotDrawn) as error:
        raise UnveilError(f"row {number}: {error}") from None


def watch(spend: Callable[[], None], until: float) -> None:
    """Stop what takes too much, or more time than who asked waits for. Raises UnveilError."""
    spend()
    if time.monotonic() > until:
        raise UnveilError(f"stopped: it takes longer than {TIMEOUT} lets it; ask for fewer images or steps")


def rows_of(given: Any) -> list[dict[str, Any]]:
    """The rows of what MLflow hands on: a table, in which missing values are as usual, or a list of rows.

    Raises:
        UnveilError: if it is neither.
    """
    if isinstance(given, pd.DataFrame):
        return [
            {key: plain(value) for key, value in row.items() if not (is_scalar(value) and pd.isna(value))}
            for row in given.to_dict("records")
        ]
    rows = [given] if isinstance(given, dict) else given
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnveilError('inputs: found no rows, expected a list of them, as [{"seed": 1}, {"seed": 2, "steps": 10}]')
    return rows


def plain(value: Any) -> Any:
    """A value of a table as JSON has it; beside missing ones pandas makes whole numbers floats."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_code(archive: Path) -> None:
    """Refuse to draw by other code than the packaged one, which another model or an installation may have brought.

    Raises:
        UnveilError: if this process runs another version.
    """
    if archive in Path(unveil.__file__).parents:
        return
    with ZipFile(regular(archive)) as packed:
        for name in (name for name in packed.namelist() if name.endswith(".py")):
            package, _, place = name.partition("/")
            loaded = None
            with suppress(OSError):
                loaded = get_data(package, place)
            if loaded != packed.read(name):
                raise UnveilError(
                    f"{archive}: found the code of {Path(unveil.__file__).parent} at work, expected that of the model, "
                    f"whose {place} differs; load this model in a process of its own, before unveil is imported"
                )


set_model(Painter())
