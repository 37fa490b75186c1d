"""unveil.run.checkout: which checkout a stage belongs to, and what is recorded of its commit."""

from pathlib import Path

import pytest
from tests.conftest import git
from tests.run.conftest import committed

from unveil.errors import UnveilError
from unveil.run.checkout import code_commit, git_tags, main_checkout, refuse_lost_experiment


def test_every_copy_leads_to_the_main_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main_checkout(tmp_path) == tmp_path  # no repository
    main, other = committed(tmp_path / "main"), committed(tmp_path / "other")
    (main / "faces").mkdir()
    (main / "faces" / "dvc.yaml").write_text("stages: {}")
    git(main, "add", "--all")
    git(main, "commit", "--quiet", "--message=project")
    git(main, "worktree", "add", "--quiet", "../tree")
    git(tmp_path, "clone", "--quiet", "--bare", str(main), "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "--quiet", "../bare-tree")
    exps = Path(".dvc/tmp/exps")
    expected = {
        main: main,
        committed(main / exps / "tmpabc"): main,  # a repository of its own, as DVC makes it
        committed(main / exps / "standalone" / "tmpabc"): main,
        tmp_path / "tree": main,
        committed(tmp_path / "tree" / exps / "tmpabc"): main,
        main / "faces": main / "faces",  # a project in a subfolder stays in it
        tmp_path / "tree" / "faces": main / "faces",
        tmp_path / "bare-tree": tmp_path / "bare-tree",
    }
    assert {start: main_checkout(start) for start in expected} == expected
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert main_checkout(tmp_path / "tree") == main


def test_git_tags_tell_commit_and_changes(tmp_path: Path) -> None:
    main = committed(tmp_path / "main")
    commit = git(main, "rev-parse", "HEAD")
    clean = git_tags(main)
    assert (clean["git.commit"], clean["git.dirty"]) == (commit, "false")
    assert "git.changed" not in clean

    (main / "dvc.lock").write_text("written by the pipeline")
    (main / "metrics").mkdir()
    (main / "metrics" / "evaluate.json").write_text("{}")
    assert git_tags(main) == clean

    (main / "file").write_text("edited")
    (main / "new").write_text("")
    dirty = git_tags(main)
    assert (dirty["git.dirty"], dirty["git.changed"]) == ("true", "file, new")


def test_git_tags_without_git_or_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_tags(tmp_path) == {}
    git(tmp_path, "init", "--quiet")
    assert git_tags(tmp_path) == {"git.dirty": "false"}
    monkeypatch.setenv("PATH", "")
    assert git_tags(tmp_path) == {}


def test_git_s_refusal_is_said_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = committed(tmp_path / "main")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git behaves as if the folder were another user's
    assert git_tags(main) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: the run is without its commit, as git fails in {main}: fatal: detected dubious")
    assert f"git config --global --add safe.directory {main}" in line
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    (main / ".git" / "index").write_text("damaged")
    assert git_tags(main) == {}
    assert "as git fails in" in capsys.readouterr().err
    assert git_tags(tmp_path) == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("inner", ["tmpabc", "standalone/tmpabc"])
def test_an_experiment_that_dvc_would_lose_is_refused(tmp_path: Path, inner: str) -> None:
    main = committed(tmp_path / "main")
    git(main, "commit", "--quiet", "--allow-empty", "--message=second")
    git(tmp_path, "clone", "--quiet", "--depth=1", main.as_uri(), "shallow")
    for clone, is_shallow in ((main, False), (tmp_path / "shallow", True)):
        copy = committed(clone / ".dvc" / "tmp" / "exps" / inner)
        refuse_lost_experiment(clone)  # in the workspace all is well
        if is_shallow:
            with pytest.raises(UnveilError, match=r"shallow is a shallow clone.*git fetch --unshallow"):
                refuse_lost_experiment(copy)
        else:
            refuse_lost_experiment(copy)


def test_the_commit_of_the_code_is_the_last_that_changed_it(tmp_path: Path) -> None:
    assert code_commit(tmp_path) is None
    main = committed(tmp_path / "main")
    assert code_commit(main) is None  # none of its commits has code
    for folder in ("src", "docs"):
        (main / folder).mkdir()
        (main / folder / "file").write_text("text")
        git(main, "add", "--all")
        git(main, "commit", "--quiet", f"--message={folder}")
    commit = git(main, "rev-parse", "HEAD~1")
    assert code_commit(main) == commit
    (main / "src" / "file").write_text("edited")
    assert code_commit(main) == f"{commit} with uncommitted changes"
