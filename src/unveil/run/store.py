"""Where runs are kept: one MLflow store a checkout, or the one that MLFLOW_TRACKING_URI names.

MLflow is imported when a store is opened. ``UNVEIL_TRACKING=off`` does without it altogether.
"""

import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from unveil.errors import UnveilError, one_line, without_secrets
from unveil.files import destination, regular
from unveil.run.checkout import main_checkout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

# Nobody is phoned. Both must stand before the first import of mlflow; MLflow and the Hugging Face
# libraries honour DO_NOT_TRACK as well.
TELEMETRY_OFF = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
os.environ.update(TELEMETRY_OFF)

EXPERIMENT = "unveil"
# Without this tag MLflow asks in a dialog whether it should show model or agent pages.
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
# Of each request to a server. They may be longer in the environment: a stage waits in `unveil.run.writer` alone.
HTTP_SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
WAIT_SECONDS = 5.0  # for a store, at a time
PAUSES = (0.0, 0.4, 0.8, 1.6)  # seconds before each attempt to open the store
OUT_OF_DATE = "out-of-date database schema"  # in MLflow's message
LOCK_SECONDS = 45.0  # a first creation of the store takes some seconds
MOST_DIGITS = 18  # of an experiment's id
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
# How loud MLflow's loggers may be: it prints a traceback for a busy database, and a line for each value that it cuts.
LOUDNESS = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "mlflow.utils.validation": logging.ERROR,
}
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


class NoStoreError(UnveilError):
    """The store cannot be opened."""


def tracking_is_off() -> bool:
    """Whether ``UNVEIL_TRACKING=off`` stands in the environment (machines without MLflow)."""
    return os.environ.get("UNVEIL_TRACKING", "").lower() == "off"


@dataclass(frozen=True)
class Store:
    """Where runs go.

    Attributes:
        uri: MLflow's tracking URI, absolute.
        artifacts: folder for artifacts of a new experiment; None where a server decides.
        database: the SQLite file, if it is one.
    """

    uri: str
    artifacts: Path | None
    database: Path | None

    @property
    def shown(self) -> str:
        """The URI for people and records: without user and password."""
        return without_secrets(self.uri) if self.database is None else f"sqlite:///{self.database}"

    @classmethod
    def locate(cls, start: Path) -> Self:
        """The store of the project at ``start``: MLFLOW_TRACKING_URI, or mlflow.db in its main checkout.

        A relative path in MLFLOW_TRACKING_URI counts from the main checkout, so that it names one store
        for every experiment and not one for each temporary copy.
        """
        root = main_checkout(start)
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            return cls.own(root)
        if uri.startswith("sqlite:///") and "?" not in uri:
            return cls._sqlite(root / unquote(uri.removeprefix("sqlite:///")))
        if uri.startswith(("http://", "https://", "databricks", "uc")):
            return cls(uri.rstrip("/"), None, None)
        if "://" not in uri:
            uri = (root / uri).as_uri()
        return cls(uri, None if uri.startswith("file:") else root / "mlruns", None)

    @classmethod
    def own(cls, root: Path) -> Self:
        """The one in the main checkout ``root``, whatever MLFLOW_TRACKING_URI says."""
        return cls._sqlite(root / "mlflow.db")

    @classmethod
    def _sqlite(cls, database: Path) -> Self:
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
        return cls(uri, database.parent / "mlruns", database)

    def open(self) -> "tuple[MlflowClient, str]":
        """Connect, creating the store and the experiment if need be; safe from many processes at once.

        Returns:
            the client, and the id of the experiment (MLFLOW_EXPERIMENT_NAME, or ``unveil``).

        Raises:
            UnveilError: no MLflow, a store that does not answer, or one of another MLflow version.
        """
        MlflowClient, failures = import_mlflow()
        with self._creation_lock():
            for pause in PAUSES:
                time.sleep(pause)
                try:
                    client = MlflowClient(self.uri)
                    self._mend_places()
                    return client, self._experiment(client)
                except (ImportError, ValueError) as error:  # no driver for such a database, or no such address
                    raise self.cannot_open(error) from error
                except failures as error:  # MLflow's server may be creating the store too, or another machine
                    failure = error
                    if OUT_OF_DATE in str(error):
                        break
            raise self.cannot_open(failure) from failure

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        """Only one of our processes creates the tables: MLflow 3.17 does that outside of its own lock."""
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

    def _experiment(self, client: "MlflowClient") -> str:
        name, number = (os.environ.get(f"MLFLOW_EXPERIMENT_{key}", "").strip() for key in ("NAME", "ID"))
        found = self._numbered(client, number, name) if number else client.get_experiment_by_name(name or EXPERIMENT)
        if found is None:
            location = None if self.artifacts is None else self.artifacts.as_uri()
            return client.create_experiment(name or EXPERIMENT, location, {KIND_TAG: KIND})
        if found.lifecycle_stage != "active":
            raise UnveilError(
                f"MLflow experiment {found.name!r} was deleted in {self.shown}; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}` or set "
                "MLFLOW_EXPERIMENT_NAME to another name"
            )
        return found.experiment_id

    def _numbered(self, client: "MlflowClient", number: str, name: str) -> "Experiment":
        try:
            found = client.get_experiment(number[:MOST_DIGITS])
        except import_mlflow()[1] as error:
            if not is_refusal(error):
                raise
            raise UnveilError(f"MLFLOW_EXPERIMENT_ID={number}: {self.shown} has none of this id; mend it") from error
        if name not in ("", found.name):
            raise UnveilError(
                f"MLFLOW_EXPERIMENT_ID={number} is {found.name!r}, MLFLOW_EXPERIMENT_NAME {name!r}; unset one of them"
            )
        return found

    def _mend_places(self) -> None:
        """Lead the runs of a moved or copied checkout to the artifacts beside the store: MLflow keeps absolute places.

        Only experiments that ``open`` made tell where the artifacts were.
        """
        if self.database is None or self.artifacts is None:
            return
        new = self.artifacts.as_uri()
        with closing(sqlite3.connect(self.database, timeout=WAIT_SECONDS, isolation_level="IMMEDIATE")) as store, store:
            columns = store.execute(COLUMNS).fetchall()
            for (old,) in store.execute(MOVED, [new, KIND_TAG, KIND]).fetchall():
                before = Path(url2pathname(old.removeprefix("file://")))
                if before.is_dir() and not self.artifacts.is_dir():  # the database alone was copied
                    continue
                for table, column in columns:
                    for start, now in ((old, new), (str(before), str(self.artifacts))):
                        store.execute(
                            f"UPDATE {table} SET {column} = ?1 || substr({column}, length(?2) + 1) "
                            f"WHERE {column} = ?2 OR substr({column}, 1, length(?2) + 1) = ?2 || '/'",
                            [now, start],
                        )
                where = f"are now in {self.artifacts.name} beside it"
                print(f"{self.database} was moved or copied: its runs' artifacts {where}", file=sys.stderr)

    def cannot_open(self, error: Exception) -> NoStoreError:
        """What to tell the user when the store raised ``error``."""
        if OUT_OF_DATE in str(error):
            typed = self.uri if self.uri == self.shown else '"$MLFLOW_TRACKING_URI"'
            return NoStoreError(
                f"{self.shown}: made by another version of MLflow; copy the file and run "
                f"`mlflow db upgrade {typed}`, or move it away to start a new store"
            )
        if "database is locked" in str(error):
            return NoStoreError(f"{self.shown}: another process holds the database; end it, or wait until it has ended")
        reason = one_line(error)
        if "Max retries exceeded" in reason:  # of the four errors in each other only the last says something
            reason = reason.rpartition(": ")[2].rstrip("\"')")
        return NoStoreError(
            f"MLflow's store {self.shown} cannot be opened: {reason}; mend MLFLOW_TRACKING_URI, "
            "or set UNVEIL_TRACKING=off to run without tracking"
        )


def import_mlflow() -> "tuple[type[MlflowClient], tuple[type[Exception], ...]]":
    """MLflow's client and the exceptions that a store raises, with MLflow's chatter turned off.

    Raises:
        UnveilError: MLflow is not installed.
    """
    os.environ.update(TELEMETRY_OFF)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password that MLFLOW_TRACKING_URI may have
    quiet = {"GIT_PYTHON_REFRESH": "quiet", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    for name, value in {**HTTP_SETTINGS, **quiet}.items():
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
    for name, level in LOUDNESS.items():
        logging.getLogger(name).setLevel(level)
    return MlflowClient, (MlflowException, SQLAlchemyError, OSError)


def is_refusal(error: Exception) -> bool:
    """Whether MLflow will not take later either what it did not take now: the server itself says so, no proxy does."""
    code = getattr(error, "error_code", None)
    return code in REFUSALS or (code == "BAD_REQUEST" and hasattr(error, "json"))
