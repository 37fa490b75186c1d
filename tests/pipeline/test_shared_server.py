"""A team's server as docs/compose.yaml starts it: PostgreSQL, files and DVC's remote on S3, a password for each."""

import csv
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.server import get_app_client
from tests.pipeline.conftest import Project, Smoke, stage_of
from tests.pipeline.servers import BUCKET, POSTGRESQL, Server, mlflow_server, postgresql, s3, s3_client

from unveil.layout import OUTBOX

pytestmark = [pytest.mark.slow, pytest.mark.postgresql, pytest.mark.xdist_group("shared server")]

TEAM_HOST = "unveil.example.org:5000"


@dataclass(frozen=True)
class Team:
    """What a team shares.

    Attributes:
        store: the address of S3.
        environment: what a member of the team has set.
        passwords: all of them.
    """

    server: Server
    database: Server
    store: str
    environment: Mapping[str, str]
    passwords: tuple[str, ...]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.environment["MLFLOW_TRACKING_URI"])

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        if (experiment := self.client.get_experiment_by_name("unveil")) is None:
            return []
        return list(self.client.search_runs([experiment.experiment_id], order_by=["start_time"]))

    def files(self) -> dict[str, bytes]:
        """What lies in the bucket, by its key."""
        client = s3_client(self.store)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def dump(self) -> bytes:
        """All that the database holds."""
        address = self.database.address.replace("+psycopg2", "")
        return subprocess.run([f"{POSTGRESQL}/pg_dump", address], check=True, capture_output=True).stdout


def composed(text: str, values: Mapping[str, str]) -> Any:
    """A Compose file with its variables filled in."""
    return yaml.safe_load(re.sub(r"\$\{(\w+):([-?])([^}]*)\}", lambda found: values.get(found[1], found[3]), text))


@pytest.fixture(scope="module")
def servers(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    names = ("DATABASE_PASSWORD", "S3_PASSWORD", "ADMIN_PASSWORD", "SESSION_SECRET", "MEMBER_PASSWORD")
    values = {name: secrets.token_hex(16) for name in names}
    passwords = tuple(values.values())
    values["TEAM_HOST"] = TEAM_HOST
    text = (repository / "docs" / "compose.yaml").read_text(encoding="utf-8")
    assert f"mlflow[auth]=={version('mlflow')}" in text
    folder = tmp_path_factory.mktemp("server")
    with postgresql("mlflow", values["DATABASE_PASSWORD"]) as database, s3() as store:
        places = {"http://store:7070": store, "@database/mlflow": f"@{database.address.partition('@')[2]}"}
        for before, after in {**places, "/auth.ini": str(folder / "auth.ini")}.items():
            text = text.replace(before, after)
        compose = composed(text, values)
        services = compose["services"]
        for _ in range(2):  # a second start finds the bucket
            subprocess.run(
                services["bucket"]["command"], check=True, env=os.environ | services["bucket"]["environment"]
            )
        (folder / "auth.ini").write_text(compose["configs"]["auth"]["content"])
        program, command, *options = services["mlflow"]["command"]
        assert (program, command) == ("mlflow", "server")
        with mlflow_server(folder, services["mlflow"]["environment"], *options) as server:
            admin = server.address.replace("://", f"://admin:{values['ADMIN_PASSWORD']}@")
            get_app_client("basic-auth", admin).create_user("member", values["MEMBER_PASSWORD"])
            member = server.address.replace("://", f"://member:{values['MEMBER_PASSWORD']}@")
            keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": values["S3_PASSWORD"]}
            yield Team(server, database, store, {**keys, "MLFLOW_TRACKING_URI": member}, passwords)


@pytest.fixture
def team(servers: Team, monkeypatch: pytest.MonkeyPatch) -> Team:
    """The team, of which the test is a member."""
    for key, value in servers.environment.items():
        monkeypatch.setenv(key, value)
    return servers


def share(project: Project, team: Team) -> None:
    """Give the project the team's remote, as the page says."""
    project.dvc("remote", "add", "--default", "team", f"s3://{BUCKET}/dvc")
    project.dvc("remote", "modify", "team", "endpointurl", team.store)


def test_a_stage_leaves_its_run_in_the_database_and_its_files_in_s3(
    team: Team, smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "member")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", team.passwords[-1])
    project = smoke.copy(tmp_path / "unveil")
    project.command("sh", "stages/run", "train")
    run = team.runs()[-1]
    assert (run.info.status, stage_of(run)) == ("FINISHED", "train")
    assert len(team.client.get_metric_history(run.info.run_id, "loss")) > 1
    files = team.files()
    for path in ("models/model.safetensors", "models/config.json"):
        assert (project.root / path).read_bytes() in files.values()
    assert any(key.startswith(f"mlflow/{run.info.experiment_id}/{run.info.run_id}/artifacts/") for key in files)
    assert not (project.root / "mlflow.db").exists()

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "nobody")
    refused = project.command("sh", "stages/run", "train", fails=True)
    assert refused.startswith(f"error: MLflow's store {team.server.address} cannot be opened: ")


def test_the_pages_work_under_the_name_of_the_server(team: Team) -> None:
    search = f"{team.environment['MLFLOW_TRACKING_URI']}/ajax-api/2.0/mlflow/experiments/search"
    for host, status in ((TEAM_HOST, 200), ("elsewhere.example.org", 403)):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert requests.post(search, json={"max_results": 1}, headers=headers, timeout=30).status_code == status


@pytest.mark.long
def test_one_pushes_another_pulls_and_nobody_leaves_a_password(team: Team, smoke: Smoke, tmp_path: Path) -> None:
    pristine = smoke.root.with_name("pristine")
    (project := Project(tmp_path / "one" / "unveil")).root.parent.mkdir()
    said = [smoke.command("git", "clone", "--quiet", str(pristine), str(project.root))]
    share(project, team)
    project.commit("the team's remote")
    before = len(team.runs())
    said += [project.dvc("repro")]
    assert [stage_of(run) for run in team.runs()[before:]] == ["download", "preprocess", "train", "sample", "evaluate"]
    project.commit("the first result")
    said += [project.dvc("push", "--run-cache")]

    (other := Project(tmp_path / "two" / "unveil")).root.parent.mkdir()
    said += [smoke.command("git", "clone", "--quiet", str(project.root), str(other.root))]
    said += [other.dvc("pull", "--run-cache"), other.dvc("repro")]
    assert "Running stage" not in said[-1]
    assert "up to date" in said[-1]
    assert other.dvc("status").strip() == "Data and pipelines are up to date."
    weights = Path("models", "model.safetensors")
    assert (other.root / weights).read_bytes() == (project.root / weights).read_bytes()

    other.set_params("  num_samples: 40 ", "  num_samples: 44 ")
    said += [other.dvc("repro")]
    *_, sample, evaluate = team.runs()
    (train,) = [run for run in team.runs()[before:] if stage_of(run) == "train"]
    for run in (sample, evaluate):
        assert run.data.tags["unveil.upstream.train"] == train.info.run_id
        assert "unveil.model.missing" not in run.data.tags

    found = {path.as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} | team.files()
    found |= {"messages": "".join(said).encode(), "database": team.dump(), "log": team.server.log.read_bytes()}
    for place, content in found.items():
        assert not [password for password in team.passwords if password.encode() in content], place


@pytest.mark.long
def test_nothing_is_lost_of_a_training_in_which_server_and_database_were_killed(
    team: Team, smoke: Smoke, tmp_path: Path
) -> None:
    project = smoke.copy(tmp_path / "unveil")
    project.set_params("  images: 512 ", "  images: 1024 ")
    command = ["sh", "stages/run", "train"]
    process = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += " images  loss " in line
        server = team.database if 9 < seen < 15 else team.server  # without it, MLflow's server answers 500
        if seen in (4, 10, 15) and server.is_up():
            server.kill()
        if seen in (8, 14) and not server.is_up():  # which takes longer than the rest of this training
            process.send_signal(signal.SIGSTOP)
            server.start()
            process.send_signal(signal.SIGCONT)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 0, said
    assert "`unveil sync`" in said.splitlines()[-1]
    kept = [path.read_bytes() for path in (project.root / OUTBOX).rglob("*") if path.is_file()]
    assert kept
    assert not [password for password in team.passwords if password.encode() in b"".join([said.encode(), *kept])]
    team.server.start()
    project.command("env", "PYTHONPATH=src", sys.executable, "-m", "unveil", "sync")
    assert not list((project.root / OUTBOX).glob("*"))
    run = team.runs()[-1]
    assert run.info.status == "FINISHED"
    for name in ("loss", "grad_norm", "validation_loss"):
        points = [(point.step, point.value) for point in team.client.get_metric_history(run.info.run_id, name)]
        file = "validation.csv" if name == "validation_loss" else "curves.csv"
        rows = csv.DictReader((project.root / "plots" / "train" / file).read_text().splitlines())
        written = {int(row["images"]): float(row[name]) for row in rows}
        assert len(points) == len(written)
        assert dict(points) == pytest.approx(written, rel=1e-4)
    (model,) = team.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert model.status == "READY"
    assert (project.root / "models" / "model.safetensors").read_bytes() in team.files().values()
    assert "curves.csv" in {item.path for item in team.client.list_artifacts(run.info.run_id)}
    images = [item.path.split("+") for item in team.client.list_artifacts(run.info.run_id, "images")]
    assert {int(step) for _, _, step, *_ in images} == {256, 512, 768, 1024}
