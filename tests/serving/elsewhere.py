"""Another machine, as far as one can be had here: this package is not installed, the folder empty, and no network."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import requests

ONLY_LOOPBACK = """
    import socket

    def guarded(name):
        method = getattr(socket.socket, name)
        def connect(self, address, *rest):
            if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
                raise OSError(f"no network here: {address}")
            return method(self, address, *rest)
        setattr(socket.socket, name, connect)

    guarded("connect"); guarded("connect_ex"); guarded("sendto")
"""
DRAW = """
    import sys
    assert not any("unveil" in name for name in sys.modules)
    try:
        import unveil
    except ImportError:
        pass
    else:
        raise SystemExit(f"installed here too: {unveil.__file__}")
    import json, mlflow
    from base64 import b64encode
    table = mlflow.pyfunc.load_model(sys.argv[1]).predict(json.loads(sys.argv[2]))
    rows = [{**row, "image": b64encode(row["image"]).decode()} for row in table.to_dict("records")]
    loaded = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "unveil"]
    print(json.dumps([rows, loaded]))
"""
Drawn = list[dict[str, Any]]
"""Rows as the model gives them, the images as PNG."""


@dataclass(frozen=True)
class Elsewhere:
    """Everything happens below ``root``."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> "Elsewhere":
        """An environment with what is installed here but for packages of a .pth file, as this one is."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
        (packages,) = (root / "venv" / "lib").glob("python*/site-packages")
        (packages / "others.pth").write_text(str(Path(mlflow.__file__).parents[1]))
        (packages / "sitecustomize.py").write_text(textwrap.dedent(ONLY_LOOPBACK))
        script = root / "venv" / "bin" / "uvicorn"  # which MLflow looks up by its name
        script.write_text(f"#!{script.with_name('python')}\nfrom uvicorn.main import main\nmain()\n")
        script.chmod(0o755)
        (root / "empty").mkdir()
        return cls(root)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process there."""
        own = {"PATH": f"{self.root / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.root)}
        quiet = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "OMP_NUM_THREADS": "1"}
        return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own | quiet

    def draw(self, uri: str, rows: list[dict[str, Any]], **environment: str) -> tuple[Drawn, list[Path]]:
        """What ``mlflow.pyfunc.load_model(uri).predict(rows)`` gives, and the package's modules that were imported."""
        done = subprocess.run(
            [self.root / "venv" / "bin" / "python", "-c", textwrap.dedent(DRAW), uri, json.dumps(rows)],
            cwd=self.root / "empty",
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        drawn, loaded = json.loads(done.stdout)
        assert not list((self.root / "empty").iterdir())
        return [{**row, "image": b64decode(row["image"])} for row in drawn], [Path(file) for file in loaded]

    @contextmanager
    def serving(self, uri: str, **environment: str) -> Iterator[str]:
        """``mlflow models serve`` of a model; yields the address of its server."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", uri, "--port", str(port)]
        with (self.root / "server.log").open("w+") as log:
            server = subprocess.Popen(
                [self.root / "venv" / "bin" / "python", *words],
                cwd=self.root / "empty",
                env=self.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                address, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
                while not is_well(address):
                    assert server.poll() is None and time.monotonic() < until, Path(log.name).read_text()
                    time.sleep(0.2)
                yield address
            finally:
                os.killpg(server.pid, 15)
                server.wait(30)


def is_well(address: str) -> bool:
    """Whether a server answers."""
    try:
        return requests.get(f"{address}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


def asked(address: str, inputs: Any) -> requests.Response:
    """What the server answers to some rows."""
    return requests.post(f"{address}/invocations", json={"inputs": inputs}, timeout=120)
