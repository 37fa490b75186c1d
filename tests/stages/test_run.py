"""stages/run: which Python runs a stage."""

import subprocess
import sys
from pathlib import Path

import pytest

FAKE = '#!/bin/sh\necho "$0" "$PYTHONPATH" "$@"\n'


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("folder", [".", ".dvc/tmp/exps/standalone/tmp1234"])
@pytest.mark.parametrize("active", [True, False])
def test_an_activated_environment_comes_before_the_project_s_own(
    repository: Path, tmp_path: Path, folder: str, active: bool
) -> None:
    own = executable(tmp_path / "a project" / ".venv" / "bin" / "python")
    other = executable(tmp_path / "other" / "bin" / "python")
    if active:
        executable(other.with_name("dvc"))
    copy = tmp_path / "a project" / folder
    copy.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["/bin/sh", repository / "stages" / "run", "train"],
        cwd=copy,
        env={"PATH": f"{other.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{other if active else own} src -P -m unveil.run.script stages/train.py\n"


def test_a_stage_runs_by_the_python_that_is_there(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(repository / "src")
    done = subprocess.run(
        ["/bin/sh", repository / "stages" / "run", "download"],
        cwd=tmp_path,  # where no stages/download.py is: Python itself says so
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert "stages/download.py" in done.stderr
