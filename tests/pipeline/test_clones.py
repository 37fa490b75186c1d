"""A clone on another day, in another place: a remote brings results, run cache and lineage, and nothing runs again."""

import resource
import sys
from pathlib import Path

import pytest
from tests.pipeline.conftest import Project, Smoke, stage_of

from unveil.files import read_json
from unveil.layout import EVALUATE_RECORD, SAMPLE_RECORD, TRAIN_RECORD
from unveil.run.lineage import STAGES, RunRecord

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clones")]
CONTROLS = ("  controls: [jpeg75, blur, noisy, other_protocol]", "  controls: []")  # evaluates again, in less time
UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture(scope="session")
def origin(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose results and run cache are in its remote."""
    folder = tmp_path_factory.mktemp("origin")
    project = smoke.copy(folder / "unveil")
    project.dvc("remote", "add", "--default", "shared", str(folder / "remote"))
    project.commit("first result")
    project.command(sys.executable, "-m", "unveil", "push")
    return project


def clone(origin: Project, root: Path, *options: str) -> Project:
    origin.command("git", "clone", "--quiet", *options, origin.root.as_uri(), str(root))
    return Project(root)


def worktree(origin: Project, root: Path) -> Project:
    clone(origin, root.with_name("main")).command("git", "worktree", "add", "--quiet", "--detach", str(root))
    return Project(root)


@pytest.mark.parametrize(
    "make",
    [
        clone,
        pytest.param(worktree, marks=pytest.mark.long),
        pytest.param(lambda origin, root: clone(origin, root, "--depth=1"), marks=pytest.mark.long, id="shallow"),
    ],
)
def test_a_clone_has_nothing_to_run(origin: Project, tmp_path: Path, make: object) -> None:
    assert callable(make)
    project: Project = make(origin, tmp_path / "Ein Weg mit Grüßen, 顔" / "unveil")
    project.dvc("pull", "--run-cache")
    assert UP_TO_DATE in project.dvc("repro")
    assert project.command("git", "status", "--porcelain") == ""
    # Without dvc.lock, as with parameters that nobody committed, DVC has the run cache alone.
    (project.root / "dvc.lock").unlink()
    said = project.dvc("repro", "--pull")
    assert "Running stage" not in said
    assert said.count("is cached") == len(STAGES) + 1  # with card
    assert project.command("git", "status", "--porcelain").strip() in ("", "M dvc.lock")  # stages in another order
    assert project.runs() == []


def test_an_evaluation_in_a_clone_without_the_records_leads_to_the_model_s_run(origin: Project, tmp_path: Path) -> None:
    project = clone(origin, tmp_path / "Ein Weg mit Grüßen, 顔" / "unveil")
    project.set_params(*CONTROLS)
    said = project.dvc("repro", "--pull", "--allow-missing")
    assert [name for name in STAGES if f"Running stage '{name}'" in said] == ["evaluate"]
    assert not (project.root / SAMPLE_RECORD).exists()  # DVC brings what the stage depends on, and records are not
    (run,) = project.runs()
    record = read_json(origin.root / TRAIN_RECORD, RunRecord, "")
    assert run.data.tags["unveil.upstream.train"] == record.run_id
    assert run.data.tags["unveil.model.missing"].startswith(str(record.model_id))
    assert run.data.metrics["train.loss"] == record.metrics["loss"]
    evaluated = read_json(project.root / EVALUATE_RECORD, RunRecord, "")
    assert set(evaluated.upstream) == {"download", "preprocess", "train", "sample"}


@pytest.mark.long
def test_an_older_model_that_is_evaluated_again_leads_to_its_own_run(smoke: Smoke, tmp_path: Path) -> None:
    project = smoke.copy(tmp_path / "unveil")
    first = read_json(project.root / TRAIN_RECORD, RunRecord, "").run_id
    project.commit("first")
    project.set_params("  lr: 0.001 ", "  lr: 0.0002 ")
    project.dvc("repro", "sample")
    project.commit("second")
    second, _ = project.runs()
    project.command("git", "checkout", "--quiet", "HEAD~1")
    project.dvc("checkout")
    project.set_params(*CONTROLS)
    project.dvc("repro")
    *_, newest = project.runs()
    assert (len(project.runs()), stage_of(second), stage_of(newest)) == (3, "train", "evaluate")
    assert newest.data.tags["unveil.upstream.train"] == first != second.info.run_id


@pytest.mark.long
def test_status_of_a_clean_tree_takes_three_seconds_at_most(origin: Project) -> None:
    origin.dvc("status")  # which remembers what it hashed
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert UP_TO_DATE in origin.dvc("status")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


@pytest.mark.long
def test_what_was_never_committed_comes_back_after_a_cleaning(smoke: Smoke, tmp_path: Path) -> None:
    project = smoke.copy(tmp_path / "unveil")
    (size,) = (line for line in (project.root / "params.yaml").read_text().splitlines() if "  shard_size:" in line)
    values = (size, "  shard_size: 77")
    for old, new in (values, values[::-1]):
        project.set_params(old, new)
        project.dvc("repro", "preprocess")
    nobodys = project.root / ".dvc/cache/files/md5/00/nobodys"
    nobodys.parent.mkdir(exist_ok=True)
    nobodys.write_text("nobody's")
    said = project.command(sys.executable, "-m", "unveil", "gc", "--force", "--days", "0")
    assert "left alone" not in said and not nobodys.exists(), said
    project.set_params(*values)
    said = project.dvc("repro", "preprocess")
    assert "Running stage" not in said and "Stage 'preprocess' is cached" in said
