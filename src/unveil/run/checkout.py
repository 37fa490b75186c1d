"""What is recorded of the code and the machine: the commit, the main checkout, versions, processor and user."""

import getpass
import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import unveil
from unveil.errors import UnveilError
from unveil.printing import warn

CODE = ("src", "stages")
MADE = ("dvc.lock", "metrics", "reports")  # by the pipeline, and in Git: their change is none of the source
PACKAGES = ("torch", "torchvision", "mlflow", "dvc")
# Git sets these in hooks; they would point every question at another repository.
OF_HOOKS = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}


def git_answer(folder: Path, *arguments: str, warned: bool = False) -> str | None:
    """Git's answer without its last newline, or None where there is no Git or no repository.

    Another reason for None is said on stderr if ``warned`` is true.
    """
    environment = {key: value for key, value in os.environ.items() if key not in OF_HOOKS}
    # Looking must not take Git's lock: another experiment may be committing.
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",  # names that are not UTF-8
            check=True,
            env=environment,
        )
    except OSError:
        return None
    except subprocess.CalledProcessError as error:
        if warned and "not a git repository" not in error.stderr:
            # For a folder of another user, Git itself says which command mends that.
            warn(f"the run is without its commit, as git fails in {folder}: {' '.join(error.stderr.split())}")
        return None
    return done.stdout.rstrip("\n")


def main_checkout(start: Path) -> Path:
    """The folder of the main checkout of the project that ``start`` is a copy of.

    ``dvc exp run --temp`` and DVC's queue run a stage in ``<main>/.dvc/tmp/exps/...``, a repository of its
    own that is deleted afterwards; a Git worktree shares the repository of its main checkout. Anything
    else is its own main checkout. ``start`` is the folder of dvc.yaml as the stage sees it.
    """
    start = _copied_from(start) or start.resolve()
    common = git_answer(start, "rev-parse", "--path-format=absolute", "--git-common-dir")
    if common is None or Path(common).name != ".git":  # no Git, a bare one, a submodule
        return start
    candidate = Path(common).parent / (git_answer(start, "rev-parse", "--show-prefix") or "")
    return candidate if candidate.is_dir() else start


def _copied_from(start: Path) -> Path | None:
    """The project of which ``start`` is DVC's temporary copy."""
    places = (place.parents[2] for place in start.resolve().parents if place.parts[-3:] == (".dvc", "tmp", "exps"))
    return next(places, None)


def refuse_lost_experiment(start: Path) -> None:
    """Refuse DVC's temporary copy of a shallow clone: DVC would report success, and keep nothing of the experiment."""
    main = _copied_from(start)
    if main is not None and git_answer(main, "rev-parse", "--is-shallow-repository") == "true":
        raise UnveilError(
            f"{main} is a shallow clone, from which DVC keeps no experiment of --temp or --queue; "
            "run `git fetch --unshallow`, or `dvc exp run` without them"
        )


def git_tags(root: Path) -> dict[str, str]:
    """Commit and uncommitted changes of the checkout at ``root``; empty without Git.

    What the pipeline itself writes (dvc.lock, metrics, reports) is no change of its source. MLflow's own Git tags are
    not taken: they include the address of the remote, which may hold a password.
    """
    excluded = [f":(exclude){name}" for name in MADE]
    status = git_answer(root, "status", "--porcelain", "--", ".", *excluded, warned=True)
    if status is None:
        return {}
    changed = ", ".join(line[3:] for line in status.splitlines())
    commit = git_answer(root, "rev-parse", "HEAD")
    tags = {
        "git.dirty": str(bool(changed)).lower(),
        "git.changed": changed,
        "git.commit": commit,
        "mlflow.source.git.commit": commit,
    }
    return {key: value for key, value in tags.items() if value}


def code_commit(root: Path) -> str | None:
    """The last commit that changed the code at ``root``: unlike HEAD, no function of commits that change nothing.

    None without Git or commit; with uncommitted changes of the code it says so.
    """
    commit = git_answer(root, "log", "-1", "--format=%H", "--", *CODE)
    changed = git_answer(root, "status", "--porcelain", "--", *CODE)
    return f"{commit} with uncommitted changes" if commit and changed else commit or None


def has_commit(root: Path, commit: str) -> bool:
    """Whether the repository at ``root`` has the commit, which a shallow clone may lack."""
    return git_answer(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def machine_tags() -> dict[str, str]:
    """Versions, processor, and the host and process by which a run that never ended can be told."""
    tags = {
        "unveil.version.python": platform.python_version(),
        "unveil.version.unveil": unveil.__version__,
        "unveil.platform": platform.platform(),
        "unveil.cpu": _cpu_name(),
        "unveil.cpu_cores": str(os.cpu_count()),
        "unveil.host": socket.gethostname(),
        "unveil.pid": str(os.getpid()),
    }
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            tags[f"unveil.version.{package}"] = version(package)
    # A stage that computes has imported torch already; for the others it would cost seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        tags |= {"unveil.gpu": ", ".join(names), "unveil.version.cuda": str(torch.version.cuda)}
    return tags


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source_tags(stage: str, experiment: str | None) -> dict[str, str]:
    """The tags from which MLflow fills its own columns: run name, user, source.

    MLflow's own source would be an absolute path where a stage has several processes.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return {
        "mlflow.runName": f"{stage} {experiment}" if experiment else stage,
        "mlflow.user": user,
        "mlflow.source.name": f"stages/{stage}.py",
        "mlflow.source.type": "LOCAL",
    }
