"""unveil.run.stage: how a run ends, what a record holds, and how lineage travels from stage to stage."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from tests.conftest import git

from unveil.errors import UnveilError
from unveil.params import load_params
from unveil.run.dvc import paths_digest
from unveil.run.stage import Run, stage
from unveil.run.store import Store
from unveil.section import flatten

REPOSITORY = Path(__file__).parents[2]

PARAMS = Path("params.yaml")
BEFORE = ("download", "preprocess", "train", "sample")  # evaluate; oracle only where attributes are told


def stored(project: Path, run: Run) -> MlflowRun:
    return MlflowClient(Store.locate(project).uri).get_run(run.record["run_id"])


def section(project: Path, name: str) -> dict[str, str]:
    values = flatten(load_params(project / "params.yaml"), read=True)
    return {key: str(value) for key, value in values.items() if key.startswith(f"{name}.")}


# ----------------------------------------------------------------------------------- endings


def test_a_run_holds_its_own_section_and_where_it_came_from(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_EXP_NAME", "hazy-gyps")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    with stage("train", PARAMS) as run:
        run.log_metrics({"loss": 0.5}, step=640)
        assert stored(project, run).info.status == "RUNNING"
    found = stored(project, run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "train hazy-gyps"
    assert found.data.params == section(project, "train")
    assert found.data.metrics["loss"] == 0.5
    commit = git(project, "rev-parse", "HEAD")
    expected = {
        "unveil.stage": "train",
        "dvc.stage": "train",
        "dvc.exp_name": "hazy-gyps",
        "dvc.exp_baseline_rev": "0" * 40,
        "git.commit": commit,
        "mlflow.source.git.commit": commit,
        "git.dirty": "false",
        "unveil.pid": str(os.getpid()),
    }
    assert expected.items() <= found.data.tags.items()
    assert {"unveil.host", "unveil.cpu", "unveil.version.torch", "unveil.version.python"} <= set(found.data.tags)


def test_what_a_user_can_mend_is_one_line_and_a_failed_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, stage("sample", PARAMS) as run:  # noqa: PT012
        run.log_metrics({"images": 3})
        run.say("drawing")
        raise UnveilError("models/config.json: not there;\n  run train")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: models/config.json: not there; run train\n"
    found = stored(project, run)
    assert found.info.status == "FAILED"
    assert found.data.tags["unveil.error"] == "models/config.json: not there; run train"
    assert found.data.metrics["images"] == 3
    log = project / "mlruns" / run.record["run_id"] / "artifacts" / "log.txt"
    assert log.read_text() == "drawing\nerror: models/config.json: not there; run train\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "models/x"),
            "models/x: the system says: Not a directory",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300),
            "x: the system says: File name too long; choose",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: the system says: No space left on device; make room",
        ),
        (OSError(errno.EIO, "Input/output error", "data/raw"), "data/raw: the system says: Input/output error; "),
    ],
)
def test_what_the_system_refuses_is_one_line_and_a_failed_run(
    project: Path, capsys: pytest.CaptureFixture[str], error: OSError, line: str
) -> None:
    with pytest.raises(SystemExit) as ended, stage("sample", PARAMS) as run:
        raise error
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    found = stored(project, run)
    assert (found.info.status, f"error: {found.data.tags['unveil.error']}\n") == ("FAILED", said)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dvc.yaml").write_text("stages: {download: {cmd: x, outs: [data/raw]}}")
    (project / "data").symlink_to(project / "unmounted")
    database = project / "mlflow.db"
    before = database.read_bytes()
    with pytest.raises(SystemExit), stage("download", PARAMS):
        pytest.fail("this is work")
    assert re.fullmatch(r"error: \S*data: a link to \S*unmounted, which is not there; .*\n", capsys.readouterr().err)
    assert database.read_bytes() == before


def test_a_stage_that_nobody_listens_to_goes_on(project: Path, repository: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from unveil.run.stage import stage\n"
        "with stage('sample', Path('params.yaml')) as run:\n"
        "    sys.stdin.readline(); [run.say('line') for _ in range(9)]; Path('done').touch()"
    )
    theirs, ours = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=project, stdin=subprocess.PIPE, stdout=ours)
    os.close(ours)
    os.close(theirs)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert (project / "done").exists()


def test_wrong_parameters_are_one_line_and_no_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PARAMS.read_text(encoding="utf-8").replace("batch_size: 32", "batch_sise: 32")
    PARAMS.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended, stage("train", PARAMS):
        raise AssertionError("not reached")
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: params.yaml")
    assert "batch_sise" in line


def test_a_defect_keeps_its_traceback_and_fails_the_run(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), stage("train", PARAMS) as run:
        print(1 // 0)
    found = stored(project, run)
    assert found.info.status == "FAILED"
    assert found.data.tags["unveil.error"].startswith("ZeroDivisionError: ")
    artifact = project / "mlruns" / run.record["run_id"] / "artifacts" / "traceback.txt"
    assert "print(1 // 0)" in artifact.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_kills_the_run_and_gives_the_shell_s_status(
    project: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    # A shell that starts the tests in the background has made some signals ignored.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, usual)
    before = [signal.getsignal(each) for each in signal.valid_signals()]
    with pytest.raises(SystemExit) as ended, stage("train", PARAMS) as run:  # noqa: PT012
        run.log_metrics({"loss": 1.0}, step=1)
        os.kill(os.getpid(), number)
        time.sleep(10)  # the signal cuts it short
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"error: train was stopped by {number.name}\n"
    found = stored(project, run)
    assert (found.info.status, found.data.metrics["loss"]) == ("KILLED", 1.0)
    assert [signal.getsignal(each) for each in signal.valid_signals()] == before
    signal.signal(number, inherited)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_worker_that_is_terminated_does_not_end_the_run(project: Path) -> None:
    with stage("preprocess", PARAMS) as run:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert stored(project, run).info.status == "RUNNING"
    assert stored(project, run).info.status == "FINISHED"


@pytest.mark.parametrize(("code", "status"), [(0, "FINISHED"), (None, "FINISHED"), (3, "FAILED")])
def test_a_stage_that_exits_itself(project: Path, code: int | None, status: str) -> None:
    with pytest.raises(SystemExit) as ended, stage("train", PARAMS) as run:
        sys.exit(code)
    assert ended.value.code == code
    assert stored(project, run).info.status == status


def test_another_name_is_a_defect(project: Path) -> None:
    with pytest.raises(ValueError, match="'trian'; expected one of download, "), stage("trian", PARAMS):
        pass


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_logged(project: Path, repository: Path) -> None:
    code = """
        import time
        from pathlib import Path
        from unveil.run.stage import stage

        with stage("train", Path("params.yaml")) as run:
            for step in range(5):
                run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            run.say(run.record["run_id"])
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(repository / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    client = MlflowClient(Store.locate(project).uri)
    found = client.get_run(run_id)
    assert found.info.status == "RUNNING"
    assert found.data.tags["unveil.pid"] == str(process.pid)
    points = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1 / (step + 1)) for step in range(5)]


def test_without_tracking_the_record_is_written_all_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    with stage("train", PARAMS) as run:
        run.log_metrics({"loss": 0.25}, step=1)
        run.log_model(project)
        run.write_record(Path("models/run.json"))
    record = json.loads(Path("models/run.json").read_text())
    assert (record["run_id"], record["model_id"], record["metrics"]) == (None, None, {"loss": 0.25})
    monkeypatch.delenv("UNVEIL_TRACKING")
    with stage("sample", PARAMS) as after:
        after.follow(Path("models/run.json"))
    assert stored(project, after).data.tags["unveil.upstream.train"] == "untracked"


# ------------------------------------------------------------------------------------ lineage


def pipeline(project: Path, weights: str = "weights", shards: str | None = "ab" * 32) -> dict[str, Run]:
    """The five stages' bare frames, with the files that they would leave."""
    runs: dict[str, Run] = {}

    def write(name: str, text: str) -> str:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
        return paths_digest(project, [name]) or ""

    with stage("download", PARAMS) as runs["download"]:
        write("data/raw/source.json", "{}")
        runs["download"].log_metrics({"images": 100})
        runs["download"].write_record(Path("data/download.run.json"))
    with stage("preprocess", PARAMS) as run:
        run.follow(Path("data/download.run.json"))
        write("data/shards/index.json", "{}")
        run.write_record(Path("data/preprocess.run.json"))
        runs["preprocess"] = run
    with stage("train", PARAMS) as run:
        run.follow(Path("data/preprocess.run.json"))
        for step in (640, 1280):
            run.log_metrics({"loss": 1 / step}, step=step)
        write("models/config.json", '{"format": 1, "network": {"channels": 128}}')
        write("models/model.safetensors", weights)
        run.log_model(Path("models"))
        run.write_record(Path("models/run.json"))
        runs["train"] = run
    with stage("sample", PARAMS) as run:
        run.follow(Path("models/run.json"))
        write("samples/samples.safetensors", "samples")
        run.log_metrics({"nfe": 35}, model=True)
        run.write_record(Path("samples/run.json"))
        runs["sample"] = run
    with stage("evaluate", PARAMS) as run:
        run.follow(Path("samples/run.json"))
        run.add_input("data/shards", shards or str(paths_digest(project, ["data/shards"])), dataset="celeba-64-ddim")
        write("metrics/evaluate.json", "{}")
        write("reports/card.json", f'{{"of": "{weights}"}}')
        run.log_metrics({"fid": 3.5}, model=True)
        run.write_record(Path("metrics/run.json"))
        runs["evaluate"] = run
    return runs


def test_the_evaluate_run_holds_the_whole_lineage(project: Path) -> None:
    runs = pipeline(project)
    found = stored(project, runs["evaluate"])
    everything = {key: str(value) for key, value in flatten(load_params(project / "params.yaml"), read=True).items()}
    everything.pop("launch.processes")  # changes no result
    everything = {key: value for key, value in everything.items() if not key.startswith("oracle.")}  # not run here
    assert found.data.params == everything
    for name in BEFORE:
        assert found.data.tags[f"unveil.upstream.{name}"] == runs[name].record["run_id"]
        # only the last repeats what others logged
        assert stored(project, runs[name]).data.params == section(project, name)
    assert found.data.metrics["fid"] == 3.5
    assert found.data.metrics["train.loss"] == 1 / 1280
    assert found.data.metrics["sample.nfe"] == 35
    assert "download.images" not in found.data.metrics

    record = json.loads(Path("metrics/run.json").read_text())
    assert set(record["upstream"]) == set(BEFORE)
    assert all("upstream" not in entry for entry in record["upstream"].values())
    assert record["upstream"]["train"]["params"]["train.lr"] == load_params(project / "params.yaml").train.lr
    assert record["model_id"] == runs["train"].record["model_id"] != ""


def test_the_model_s_page_has_the_metrics_of_later_stages(project: Path) -> None:
    runs = pipeline(project)
    model = MlflowClient(Store.locate(project).uri).get_logged_model(runs["train"].record["model_id"])
    assert model.params == {"format": "1", "network.channels": "128"}
    metrics = {metric.key: metric for metric in model.metrics or []}
    assert {key: metric.value for key, metric in metrics.items()} == {"nfe": 35, "fid": 3.5}
    assert metrics["fid"].dataset_name == "celeba-64-ddim"
    assert metrics["fid"].run_id == runs["evaluate"].record["run_id"]


def test_inputs_outputs_and_code_are_hashed_as_dvc_yaml_declares_them(project: Path) -> None:
    (project / "stages").mkdir()
    (project / "stages" / "sample.py").write_text("code")
    runs = pipeline(project)
    sample = runs["sample"].record
    assert sample["inputs"] == {
        name: paths_digest(project, [name])
        for name in ("data/shards", "models/model.safetensors", "models/config.json")
    }
    assert sample["outputs"] == {
        "samples/samples.safetensors": paths_digest(project, ["samples/samples.safetensors"])
    }  # neither the record itself nor what is not there
    assert sample["code"] == paths_digest(project, ["src", "stages/sample.py"])
    assert stored(project, runs["sample"]).data.tags["unveil.code"] == sample["code"]
    # what the stage states is not hashed again
    assert runs["evaluate"].record["inputs"]["data/shards"] == "ab" * 32
    tags = stored(project, runs["evaluate"]).data.tags
    assert tags["unveil.input.samples/samples.safetensors"] == sample["outputs"]["samples/samples.safetensors"]
    assert tags["unveil.output.metrics/evaluate.json"] == paths_digest(project, ["metrics/evaluate.json"])


def test_records_hold_no_path_of_this_machine(project: Path) -> None:
    pipeline(project)
    for record in project.rglob("*run.json"):
        text = record.read_text()
        assert str(project) not in text
        assert str(Path.home()) not in text.replace('"/', "")


def test_a_model_of_another_store_is_no_failure(project: Path) -> None:
    pipeline(project)
    record = json.loads(Path("models/run.json").read_text()) | {"model_id": "m-" + "0" * 32}
    Path("models/run.json").write_text(json.dumps(record))
    with stage("sample", PARAMS) as run:
        run.follow(Path("models/run.json"))
        run.log_metrics({"nfe": 35}, model=True)
    found = stored(project, run)
    assert found.data.tags["unveil.model.missing"] == f"m-{'0' * 32} was not found in this store"
    assert (found.info.status, found.data.metrics["nfe"]) == ("FINISHED", 35)


def test_the_first_of_two_different_upstream_values_stays(project: Path) -> None:
    pipeline(project)
    record = json.loads(Path("data/preprocess.run.json").read_text())
    record["params"]["preprocess.image_size"] = 32
    Path("data/preprocess.run.json").write_text(json.dumps(record))
    with stage("evaluate", PARAMS) as run:
        run.follow(Path("samples/run.json"))
        run.follow(Path("data/preprocess.run.json"))
    assert stored(project, run).data.params["preprocess.image_size"] == "64"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["stage", "run_id", "upstream", "params", "metrics", "model_id", "x"]), inner)
    ),
    max_leaves=12,
)


@given(content=json_values.map(json.dumps) | st.text(max_size=20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damaged_record_stops_a_stage(project: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    Path("damaged.json").write_text(content, encoding="utf-8")
    with stage("evaluate", PARAMS) as run:
        run.follow(Path("damaged.json"))
    assert run.record["upstream"] == {}


def test_what_a_newer_record_says_is_handed_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    with stage("train", PARAMS) as run:
        run.write_record(Path("models/run.json"))
    record = json.loads(Path("models/run.json").read_text()) | {"of_the_future": [1, {"a": None}]}
    Path("models/run.json").write_text(json.dumps(record))
    with stage("sample", PARAMS) as run:
        run.follow(Path("models/run.json"))
    del record["upstream"]
    assert run.record["upstream"] == {"train": record}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_record_that_is_no_regular_file_is_a_tag(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    make(tmp_path / "run.json")
    with stage("sample", PARAMS) as run:
        run.follow(tmp_path / "run.json")
    assert run.record["upstream"] == {}


def test_a_missing_record_is_a_tag(project: Path) -> None:
    with stage("sample", PARAMS) as run:
        run.follow(Path("models/run.json"))
    found = stored(project, run)
    assert found.info.status == "FINISHED"
    assert found.data.tags["unveil.upstream.missing"].startswith("models/run.json: ")


def test_a_relative_path_is_found_from_a_temporary_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    monkeypatch.setenv("HOME", str(tmp_path))
    copy = tmp_path / "main" / ".dvc" / "tmp" / "exps" / "standalone" / "tmpcopy"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for folder, name in ((copy, "both"), (tmp_path / "main", "both"), (tmp_path / "main", "one"), (tmp_path, "mine")):
        (folder / name).touch()
    run = Run("train", load_params(REPOSITORY / "params.yaml"), copy)
    assert run.project == tmp_path / "main"
    assert run.locate(None) is None
    assert run.locate(Path("both")) == Path("both")
    assert run.locate(Path("one")) == tmp_path / "main" / "one"
    assert run.locate(Path("~/mine")) == tmp_path / "mine"
    assert run.locate(Path("nowhere")) == Path("nowhere")
    assert run.locate(tmp_path / "mine") == tmp_path / "mine"
