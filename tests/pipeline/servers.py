"""What a team shares, started by tests on loopback alone: PostgreSQL, an S3 store, MLflow's server on both."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

# Debian keeps PostgreSQL's programs off the path, in a folder for each version.
_PLACES = [*os.environ["PATH"].split(os.pathsep), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
_INITDB = shutil.which("initdb", path=os.pathsep.join(_PLACES))
POSTGRESQL = Path(_INITDB).resolve().parent if _INITDB else None
START_SECONDS = 180.0  # on a busy machine
BUCKET = "team"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(address: str) -> bool:
    """Whether a server says there that all is well."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@dataclass
class Server:
    """A program and its children, up as long as a ``with`` block; it can be killed there, and started again.

    Attributes:
        address: where it is, and the same after another start.
        folder: its working folder, which gets its log.
        account: of this machine, that it runs as; the test's own by default.
        last_signal: what ends it at once.
    """

    address: str
    command: list[str]
    folder: Path
    is_up: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    account: str | None = None
    last_signal: int = signal.SIGKILL
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "log"

    def start(self) -> None:
        """Return when it answers."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=os.environ | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self.account,
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    def send(self, number: int) -> None:
        """Send a signal to all its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, without a word to its clients."""
        if self.process is not None and self.process.poll() is None:
            self.send(self.last_signal)
            self.process.wait(30)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def mlflow_server(folder: Path, environment: Mapping[str, str], *options: str) -> Server:
    """``mlflow server`` with one worker, told by its environment where runs and artifacts go.

    Everybody on a machine may read arguments, so that an address with a password is none.
    """
    port = free_port()
    own = {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", *options]
    address = f"http://127.0.0.1:{port}"
    return Server(address, command, folder, lambda: answers(f"{address}/health"), {**environment, **own})


@contextmanager
def postgresql(user: str, password: str) -> Iterator[Server]:
    """A PostgreSQL server with one empty database, whose address is SQLAlchemy's."""
    assert POSTGRESQL is not None
    port = free_port()
    account = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        folder, secret = Path(name), Path(name) / "password"
        secret.write_text(password)
        if account is not None:
            for path in (folder, secret):
                shutil.chown(path, account)
        make = [str(POSTGRESQL / "initdb"), "--pgdata=data", f"--username={user}", "--pwfile=password"]
        make += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(make, check=True, cwd=folder, user=account, stdout=subprocess.DEVNULL)
        serve = [str(POSTGRESQL / "postgres"), "-D", "data", "-p", str(port), "-k", name, "-F"]
        ready = [str(POSTGRESQL / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={port}"]
        address = f"postgresql+psycopg2://{user}:{password}@127.0.0.1:{port}/postgres"

        def is_up() -> bool:
            return subprocess.run(ready).returncode == 0

        # SIGKILL would leave its children behind, which hold its memory.
        with Server(address, serve, folder, is_up, account=account, last_signal=signal.SIGQUIT) as server:
            yield server


@contextmanager
def s3() -> Iterator[str]:
    """An S3 store in this process's memory, with one bucket; its address. It takes every key."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port := free_port(), verbose=False)
    server.start()
    try:
        s3_client(f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def s3_client(address: str) -> Any:
    """A client of the store ``s3``."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
