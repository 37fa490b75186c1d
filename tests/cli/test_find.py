"""unveil.cli.find: what a name means."""

import threading
from pathlib import Path

import dvc.api
import pytest

from unveil.cli import find
from unveil.errors import UnveilError


def test_a_remote_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "REMOTE_SECONDS", 0.1)
    answer = threading.Event()
    monkeypatch.setattr(dvc.api, "read", lambda *_, **__: answer.wait(60))
    with pytest.raises(UnveilError, match=r"main: metrics/run\.json is not in DVC's cache, and DVC's remote does not"):
        find.revision_file(Path("metrics/run.json"), "main", "expected a revision")
    answer.set()
