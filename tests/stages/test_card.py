"""The stage that writes the page: for people, and into the evaluation's run."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from stages.card import app
from tests.evaluation.card.cards import card
from typer.testing import CliRunner, Result

from unveil.evaluation.card.markdown import render
from unveil.files import write_json
from unveil.run.store import Store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("UNVEIL_TRACKING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    card().save(tmp_path / "reports" / "card.json")
    return tmp_path


def _run() -> Result:
    return CliRunner().invoke(app, [])


def _written(project: Path) -> bool:
    return (project / "reports" / "card.md").read_text() == render(card())


def test_the_page_is_written_and_joins_the_run_that_evaluated(project: Path) -> None:
    client, experiment = Store.locate(project).open()
    run = client.create_run(experiment)
    client.set_terminated(run.info.run_id)
    write_json(project / "metrics" / "run.json", {"run_id": run.info.run_id})
    done = _run()
    assert done.exit_code == 0 and done.output == "" and _written(project)
    client = MlflowClient(Store.locate(project).uri)
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["card.md"]
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.parametrize("away", ["off", "untracked", "no record", "no store", "no run", "server"])
def test_the_page_is_written_where_no_run_can_have_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    if away != "no record":
        write_json(project / "metrics" / "run.json", {"run_id": None if away == "untracked" else "0" * 32})
    if away == "off":
        monkeypatch.setenv("UNVEIL_TRACKING", "off")
    elif away == "no run":
        Store.locate(project).open()
    elif away == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = _run()
    assert done.exit_code == 0 and _written(project)
    said = done.output.splitlines()
    assert len(said) == (away in ("no store", "no run", "server")), done.output
    assert all(line.startswith("note: reports/card.md is not in the run") for line in said)
    assert (project / "mlflow.db").exists() == (away == "no run")


def test_no_card_is_one_line(project: Path) -> None:
    (project / "reports" / "card.json").unlink()
    done = _run()
    assert done.exit_code == 1 and not (project / "reports" / "card.md").exists()
    assert "reports/card.json: not there" in done.stderr and done.stderr.count("\n") == 1
