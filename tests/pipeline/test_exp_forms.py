"""`dvc exp` in all its forms, and what is left of an experiment that fails or is killed."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from mlflow.entities import Run
from tests.pipeline.conftest import Project, Smoke, stage_of

from unveil.params import parse_params
from unveil.run.store import Store
from unveil.section import flatten

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("exp-forms")]

T = TypeVar("T")


@pytest.fixture(scope="module")
def project(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with results, committed."""
    project = smoke.copy(tmp_path_factory.mktemp("exp-forms") / "unveil")
    project.commit("baseline")
    Store.locate(project.root).open()  # before anybody looks into it
    try:
        yield project
    finally:
        project.dvc("queue", "stop", "--kill")


def awaited(answer: Callable[[], T | None], seconds: float = 200) -> T:
    """What ``answer`` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := answer()):
        assert time.monotonic() < until
        time.sleep(0.5)
    return found


def of(project: Project, experiment: str) -> list[Run]:
    return [run for run in project.runs() if run.data.tags.get("dvc.exp_name") == experiment]


def shown(project: Project) -> dict[str, Any]:
    """What `dvc exp show` says of each experiment: its data, and the state of its task."""
    return {
        experiment["name"] or experiment["revs"][0]["rev"]: experiment
        for baseline in project.json("exp", "show", "--json")
        for experiment in baseline.get("experiments") or []
    }


def artifact(run: Run, name: str) -> str:
    return Path(run.info.artifact_uri.removeprefix("file://"), name).read_text(encoding="utf-8")


def start_queue(project: Project, jobs: int = 1) -> None:
    """Start workers, which keep the output of `dvc queue start` open."""
    words = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    subprocess.run(
        words,
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        check=True,
    )


def drain(project: Project, jobs: int = 1) -> str:
    """Run the queue to its end; its last status."""
    start_queue(project, jobs)
    busy = ("Running", "Queued")
    return awaited(
        lambda: None if any(word in (said := project.dvc("queue", "status")) for word in busy) else said, seconds=600
    )


def test_any_value_can_be_set(project: Project) -> None:
    values = {
        "train.lr": ("1e-4", 1e-4),
        "train.attributes": ("[Smiling,Male]", '["Smiling","Male"]'),
        "train.ema_more_half_lives": ("[]", "[]"),
        "train.horizontal_flip": ("true", True),
        "train.network.channel_multipliers": ("[1,2,2]", "[1,2,2]"),
        "train.diffusion.path": ("vp-cosine", "vp-cosine"),
        "sample.guide": ("'a folder/models'", "a folder/models"),
        "evaluate.weights": ("null", None),
        "download.celeba.path": ("'/mnt/a b/ü'", "/mnt/a b/ü"),
    }
    options = [word for key, (text, _) in values.items() for word in ("-S", f"{key}={text}")]
    project.dvc("exp", "run", "--queue", "--name", "any", *options)
    text = project.command("git", "show", "refs/exps/celery/stash:params.yaml")
    found = flatten(parse_params(text, "params.yaml"))
    assert {key: found[key] for key in values} == {key: value for key, (_, value) in values.items()}
    assert "Could not override" in project.dvc("exp", "run", "--queue", "-S", "train.lrr=1", fails=True)
    project.dvc("queue", "remove", "--queued")


def test_a_grid_of_ranges_and_choices_goes_through_the_queue(project: Project) -> None:
    project.dvc(
        "exp", "run", "--queue", "-S", "sample.steps=range(2,4)", "-S", "sample.sampler=euler,heun", "-n", "grid"
    )
    status = drain(project, jobs=2)
    assert status.count("Success") == 4, status
    found = shown(project)
    points = set()
    for number in range(1, 5):
        (evaluation,) = [run for run in of(project, f"grid-{number}") if stage_of(run) == "evaluate"]
        data = found[f"grid-{number}"]["revs"][0]["data"]
        params = data["params"]["params.yaml"]["data"]["sample"]
        assert evaluation.info.status == "FINISHED"
        assert evaluation.data.params["sample.steps"] == str(params["steps"])
        assert data["metrics"]["metrics/evaluate.json"]["data"].items() <= evaluation.data.metrics.items()
        points.add((params["steps"], params["sampler"]))
    assert points == {(steps, sampler) for steps in (2, 3) for sampler in ("euler", "heun")}


@pytest.mark.parametrize("form", ["queue", "temp"])
def test_a_task_that_fails_is_in_mlflow(project: Project, form: str) -> None:
    """With a wrong parameter, with code that cannot be imported, and in the midst of its work."""
    code = project.root / "src" / "unveil" / "generation.py"
    right = code.read_text(encoding="utf-8")
    broken = {
        "parameter": (["-S", "sample.steps=-1"], right, "params.yaml:"),
        "import": (["-S", "sample.steps=7"], f"import no_such_module\n{right}", "ModuleNotFoundError: "),
        "work": (["-S", "sample.sigma_min=1000000.0"], right, ""),
    }
    for name, (options, text, _) in broken.items():
        code.write_text(text, encoding="utf-8")
        project.dvc("exp", "run", f"--{form}", "--name", f"{form}-{name}", *options, fails=form == "temp")
    code.write_text(right, encoding="utf-8")
    if form == "queue":
        assert drain(project).count("Failed") == len(broken)
    for name, (options, _, said) in broken.items():
        (run,) = of(project, f"{form}-{name}")
        assert (stage_of(run), run.info.status) == ("sample", "FAILED"), name
        assert run.data.tags["unveil.error"].startswith(said)
        key, value = options[1].split("=")
        assert run.data.params[key] == value
        assert run.data.tags["unveil.error"].split(": ")[-1] in " ".join(artifact(run, "log.txt").split())


def test_a_dirty_workspace_is_what_runs_and_what_stays(project: Project) -> None:
    changed = project.root / "src" / "unveil" / "generation.py"
    before = changed.read_text(encoding="utf-8")
    project.set_params("  steps: 4 ", "  steps: 5 ")
    changed.write_text(f"{before}\n# a change\n", encoding="utf-8")
    (project.root / "notes.txt").write_text("mine", encoding="utf-8")
    status = project.command("git", "status", "--porcelain")
    project.dvc("exp", "run", "--temp", "--name", "dirty-temp")
    assert project.command("git", "status", "--porcelain") == status
    project.dvc("exp", "run", "--name", "dirty", "-S", "sample.seed=1")  # else the other's samples would do
    for name in ("dirty-temp", "dirty"):
        (sampling,) = [run for run in of(project, name) if stage_of(run) == "sample"]
        assert (sampling.data.params["sample.steps"], sampling.data.tags["git.dirty"]) == ("5", "true")
        assert "src/unveil/generation.py" in sampling.data.tags["git.changed"]
    assert "# a change" in changed.read_text(encoding="utf-8")
    assert (project.root / "notes.txt").read_text(encoding="utf-8") == "mine"
    project.command("git", "checkout", "--", ".")
    project.command("git", "clean", "--force", "--quiet", "notes.txt")
    project.dvc("checkout")


def test_experiments_are_renamed_branched_applied_and_removed(project: Project) -> None:
    project.dvc("exp", "run", "--name", "one", "-S", "sample.steps=8")
    project.dvc("exp", "run", "--name", "two", "-S", "sample.steps=9")
    project.dvc("exp", "rename", "one", "uno")
    assert {"uno", "two"} <= set(shown(project)) and "one" not in shown(project)
    project.dvc("exp", "branch", "uno", "kept")
    assert "steps: 8" in project.command("git", "show", "kept:params.yaml")
    project.dvc("exp", "apply", "uno")
    assert "steps: 8" in (project.root / "params.yaml").read_text(encoding="utf-8")
    assert "up to date" in project.dvc("status")
    project.dvc("exp", "remove", "uno", "two")
    assert not {"uno", "two"} & set(shown(project))
    assert of(project, "one")  # MLflow keeps what DVC forgets
    project.command("git", "checkout", "--", ".")
    project.dvc("checkout")


LONG = ["-S", "train.images=100000000", "-S", "train.checkpoint_every_images=100000000"]


@pytest.mark.parametrize(
    ("form", "killed", "processes"),
    [
        ([], "exp run", 1),
        (["--temp"], "exp run", 2),
        (["--queue"], "exec-run", 1),
        (["--queue"], "queue-worker", 1),
        (["--temp"], "launch", 2),
    ],
    ids=["workspace", "temp", "executor", "worker", "torchrun"],
)
def test_nothing_goes_on_after_what_ran_it_was_killed(
    project: Project, form: list[str], killed: str, processes: int, request: pytest.FixtureRequest
) -> None:
    name = f"killed-{request.node.callspec.id}"
    seed = sum(map(ord, name))  # else it would go on from what the case before left
    own = ["-S", f"launch.processes={processes}", "-S", f"train.seed={seed}"]
    words = ["exp", "run", *form, "--name", name, *LONG, *own]
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", *words], cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL
    )
    if "--queue" in form:
        dvc.wait()
        start_queue(project)
    run = awaited(lambda: next((run for run in of(project, name) if "loss" in run.data.metrics), None))
    stage = psutil.Process(int(run.data.tags["unveil.pid"]))
    above = [found for found in stage.parents() if killed in " ".join(found.cmdline())]
    below = [*above[0].children(recursive=True)]
    assert stage in below
    above[0].kill()
    _, alive = psutil.wait_procs(below, 60)
    assert not alive
    dvc.wait(60)
    run = awaited(lambda: next((run for run in of(project, name) if run.info.status != "RUNNING"), None), 10)
    assert run.info.status == "KILLED"
    assert "had ended" in run.data.tags["unveil.error"] and "step" in run.data.tags["unveil.error"]
    if "--queue" in form:
        project.dvc("queue", "stop", "--kill")
    project.command("git", "checkout", "--", ".")
    project.dvc("checkout", "--force")  # over what the training had written


def test_the_run_of_a_stage_that_was_killed_is_ended_by_the_next(project: Project) -> None:
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "exp", "run", "--name", "victim", *LONG],
        cwd=project.root,
        env=project.environment,
    )
    run = awaited(lambda: next((run for run in of(project, "victim") if "loss" in run.data.metrics), None))
    psutil.Process(int(run.data.tags["unveil.pid"])).kill()
    assert dvc.wait(60) != 0
    assert of(project, "victim")[0].info.status == "RUNNING"
    project.command("git", "checkout", "--", ".")
    project.dvc("checkout")
    project.dvc("exp", "run", "--temp", "--name", "next", "-S", "sample.steps=11")
    (run,) = of(project, "victim")
    assert run.info.status == "KILLED" and "was killed" in run.data.tags["unveil.error"]
    assert run.info.end_time < of(project, "next")[0].info.start_time + 5000
