"""unveil.run.orphans: no process goes on after its DVC was killed, and no run is RUNNING after its process was."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.run.conftest import client_of, start

from unveil.layout import RUNNING
from unveil.run.orphans import CHECK_SECONDS, REASON, end_orphans, is_dvc


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dvc repro", True),
        ("/opt/dvc/dvc exp run", True),
        ("/x/.venv/bin/python3.11 /x/.venv/bin/dvc repro", True),
        ("python -m dvc exp run --temp", True),
        ("/Library/Python.framework/Python -X utf8 -m dvc repro", True),
        ("/x/bin/python /x/lib/site-packages/dvc/__main__.py exp queue-worker name", True),
        ("/bin/sh -c dvc repro", False),
        ("timeout 3600 dvc repro", False),
        ("python stages/train.py", False),
        ("-bash", False),
        ("", False),
    ],
)
def test_dvc_is_told_by_its_command_line(words: str, expected: bool) -> None:
    assert is_dvc(words.split()) is expected


WORKS = """
import os, time
from unveil.run.orphans import follow
follow()
print(os.getpid(), flush=True)
time.sleep(60)
"""


def below(tmp_path: Path, repository: Path, *names: str, **variables: str) -> list[psutil.Process]:
    """A chain of processes of these names, each below a shell, and last one that follows those that it works for."""
    (tmp_path / "stage").write_text(WORKS)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'stage'))}"
    for name in reversed(names):
        (tmp_path / name).write_text("import subprocess, sys; subprocess.run(['sh', '-c', sys.argv[1]])")
        command = shlex.join([sys.executable, str(tmp_path / name), f"{command}; true"])
    outer = subprocess.Popen(
        shlex.split(command),
        env=os.environ | {"PYTHONPATH": str(repository / "src")} | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert outer.stdout is not None
    last = psutil.Process(int(outer.stdout.readline()))
    chain = [last, *last.parents()]
    return [found for name in names for found in chain if str(tmp_path / name) in found.cmdline()[:2]] + [last]


def test_a_stage_ends_with_dvc_but_not_with_a_shell_above(tmp_path: Path, repository: Path) -> None:
    shell, dvc, stage = below(tmp_path, repository, "login", "dvc")
    shell.kill()
    time.sleep(2.5 * CHECK_SECONDS)
    assert stage.is_running()
    dvc.kill()
    stage.wait(10)


def test_one_of_several_processes_ends_with_torchrun(tmp_path: Path, repository: Path) -> None:
    launcher, process = below(tmp_path, repository, "torchrun", TORCHELASTIC_RUN_ID="1")
    launcher.children()[0].kill()
    process.wait(10)


def test_only_a_run_whose_process_is_gone_is_ended(project: Path, tmp_path: Path) -> None:
    living, killed, done, foreign = (start(project) for _ in range(4))
    folder = project / RUNNING
    for run in (living, killed, done):
        run.guard(folder)
    time.sleep(0.01)
    done.finish("FINISHED")
    assert {path.name for path in folder.iterdir()} == {living.run_id, killed.run_id}
    assert killed._living is not None and killed._living._mark is not None
    os.close(killed._living._mark[1])  # as the system does it
    killed._living = None
    killed.finish("RUNNING")  # which only writes the last system metrics
    (folder / ("0" * 32)).touch()  # of another store

    foreign.guard(folder)
    client = client_of(project)
    found = {run: client.get_run(run.run_id) for run in (living, killed, done)}
    assert [run.info.status for run in found.values()] == ["RUNNING", "KILLED", "FINISHED"]
    assert found[killed].data.tags["unveil.error"] == REASON
    assert found[killed].info.end_time >= found[killed].info.start_time
    assert {path.name for path in folder.iterdir()} == {living.run_id, foreign.run_id, "0" * 32}
    assert end_orphans(folder, client) == []


def test_a_run_that_is_gone_on_with_is_the_one_that_is_marked(project: Path) -> None:
    earlier, later = start(project, a=1), start(project, a=1)
    earlier.finish("KILLED")
    later.guard(project / RUNNING)
    assert later.take_over(earlier.run_id, {}, {"a": 1}) is not None
    assert [path.name for path in (project / RUNNING).iterdir()] == [earlier.run_id]
    later.finish("FINISHED")
    assert list((project / RUNNING).iterdir()) == []
