"""A sweep: one ``dvc exp run`` after the other, in a clone of the project that the sweep has for itself.

The clone holds the project as the sweep found it, with what was changed and not committed. So the workspace is neither
needed nor touched, and may change meanwhile; nor do other experiments meet, whose references DVC keeps in Git. DVC's
cache is the project's. What has finished is an experiment of the project, and nothing else says so: a sweep goes on
after whatever ended it.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError, one_line, printable
from unveil.files import parse_json, read_text
from unveil.layout import METRICS, PARAMS
from unveil.parameter_file import parse_mapping
from unveil.params import parse_params
from unveil.run.checkout import OF_HOOKS
from unveil.run.dvc import SWEEP_VARIABLE, declared_paths
from unveil.run.lineage import STAGES
from unveil.run.signals import Terminated, signals_noted

CLONES = Path(".dvc/tmp/exps/sweeps")  # below the folder whose copies `main_checkout` knows
NAME = re.compile(r"\w[\w.+=-]*")  # of a sweep
LONGEST_NAME = 100  # in bytes, as file systems count, of a sweep and of an experiment; both are files

EXPECTED = "dotted keys, such as train.lr: [1e-3, 2e-3]"  # of a file


@dataclass(frozen=True)
class SweepPoint:
    """One experiment of a sweep: its name, and what it sets, as ``dvc exp run --set-param`` takes it."""

    name: str
    overrides: tuple[str, ...]

    @property
    def values(self) -> dict[str, str]:
        """Dotted key to the value's text."""
        return dict(override.split("=", 1) for override in self.overrides)

    @property
    def settings(self) -> list[str]:
        """The overrides, with a key that is not there set all the same: what to say of it is not Hydra's."""
        return [override if override.startswith("+") else f"++{override}" for override in self.overrides]


def file_overrides(path: Path) -> list[str]:
    """The overrides of a YAML file of dotted keys, each with a value, a list of values, or DVC's ``range(...)``.

    Raises:
        UnveilError: if it is none; the line names file and key.
    """
    overrides = []
    for key, value in parse_mapping(read_text(path), str(path), "dotted keys with lists of values")[1].items():
        try:
            text = f"{_text(value)[1:-1] if isinstance(value, list) else _text(value)}"
            if not isinstance(key, str):
                raise TypeError(f"a key that is {type(key).__name__}")
            if not text:
                raise TypeError("no values")
        except TypeError as found:
            raise UnveilError(printable(f"{path}: {key}: found {found}, expected {EXPECTED}")) from None
        overrides.append(f"{key}={text}")
    return overrides


def _text(value: object) -> str:
    """A value in the grammar of overrides. Raises TypeError, saying what it is, if it can have none."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if not isinstance(value, str | int | float | None):
        raise TypeError("a mapping" if isinstance(value, dict) else f"a {type(value).__name__}")
    return value if isinstance(value, str) else json.dumps(value)


def grid(overrides: Sequence[str], prefix: str = "") -> list[SweepPoint]:
    """Every combination of the values, in DVC's own reading: ``train.lr=1e-3,2e-3``, ``sample.steps=range(5,21,5)``.

    A point's name has the keys that differ, and the sweep's ``prefix`` if there is one.

    Raises:
        UnveilError: if DVC cannot read an override, or one has no values or deletes its key.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps
    from hydra.errors import HydraException

    try:
        found = [tuple(point[PARAMS.name]) for point in get_hydra_sweeps({PARAMS.name: list(overrides)})]
    except (DvcException, HydraException, ValueError) as error:
        raise UnveilError(
            f"-S: DVC cannot read it: {one_line(error)}; write -S train.lr=1e-3,2e-3 or -S 'sample.steps=range(5,21,5)'"
        ) from None
    points = [SweepPoint("", overrides) for overrides in dict.fromkeys(found)]
    for key, value in points[0].values.items():
        if key.startswith("~"):
            raise UnveilError(f"-S: found {key}, which deletes a key, expected values, such as -S train.lr=1e-3,2e-3")
        if not value:
            raise UnveilError(f"-S: {key}: found no values, expected some, such as -S train.lr=1e-3,2e-3")
    named = short_names(varied(points))
    return [
        SweepPoint(plain_name(prefix + ",".join(f"{named[key]}={point.values[key]}" for key in named)), point.overrides)
        for point in points
    ]


def plain_name(text: str) -> str:
    """The text, if it can be a file's name and a reference of Git's; else what can, and a hash."""
    plain = re.sub(r"[^\w.+,=-]+|\.(?=\.)", "", text).encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(".")
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def varied(points: Sequence[SweepPoint]) -> list[str]:
    """The keys that have more than one value in them; all if none has."""
    keys = list(points[0].values)
    return [key for key in keys if len({point.values[key] for point in points}) > 1] or keys


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """What dotted keys are called: by their last word, if no other ends with it."""
    last = {key: key.rpartition(".")[2] for key in keys}
    times = Counter(last.values())
    return {key: word if times[word] == 1 else key for key, word in last.items()}


def _git(folder: Path, *arguments: str) -> str:
    """Git's answer. Raises UnveilError with what it says if it fails."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UnveilError(f"git {arguments[0]} in {folder} fails: {' '.join(done.stderr.split())}; mend it")
    return done.stdout.rstrip("\n")


def _checked(point: SweepPoint, before: str) -> dict[Any, Any]:
    """All parameters of a point: those before it with its own. Raises UnveilError if the stages would refuse them."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS.name
        path.write_text(before, encoding="utf-8")
        try:
            apply_overrides(path, point.settings)
        except DvcException as error:
            raise UnveilError(f"{point.name}: DVC refuses it: {one_line(error.__cause__ or error)}; mend it") from None
        text = read_text(path)
    parse_params(text, f"{point.name}: {PARAMS.name}")
    return parse_mapping(text, PARAMS.name)[1]


@dataclass
class Sweep:
    """The points of a sweep, and the clone that they run in.

    Args:
        root: folder of the project, with its dvc.yaml.
        name: of the sweep; the tag ``unveil.sweep`` of its MLflow runs.
        points: in the order in which they run.
    """

    root: Path
    name: str
    points: list[SweepPoint]
    _params: dict[str, dict[Any, Any]] = field(default_factory=dict)  # of each point, all of params.yaml
    _code: list[str] = field(default_factory=list)  # paths
    _lock: int = -1
    _is_ready: bool = False  # the clone

    def __post_init__(self) -> None:
        for name in OF_HOOKS:
            os.environ.pop(name, None)
        self._prefix = _git(self.root, "rev-parse", "--show-prefix")
        self._baseline = _git(self.root, "rev-parse", "HEAD")
        if _git(self.root, "rev-parse", "--is-shallow-repository") == "true":
            raise UnveilError(f"{self.root}: found a shallow clone, expected a whole one; run `git fetch --unshallow`")
        self._clone = self.root / CLONES / self.name
        self._project = self._clone / self._prefix

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Check the points, and hold the clone for the block; it stays if the sweep is not at its end.

        Raises:
            UnveilError: if another process has it, or a point has wrong parameters or an experiment of other code.
        """
        self._clone.parent.mkdir(parents=True, exist_ok=True)
        holder = self._clone.with_name(f"{self.name}.lock")
        self._lock = os.open(holder, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UnveilError(
                    f"{self._clone}: in use by process {read_text(holder).strip() or 'unknown'}, which may outlive "
                    "the sweep that started it; wait for its end, or end it"
                ) from None
            self._snapshot = _git(self.root, "stash", "create") or self._baseline  # touches no file
            before = _git(self.root, "show", f"{self._snapshot}:{self._prefix}{PARAMS.name}")
            self._params = {point.name: _checked(point, before) for point in self.points}
            stages = [declared_paths(self.root / "dvc.yaml", stage)[1] for stage in (*STAGES, "card")]
            self._code = sorted({path for paths in stages for path in paths})
            if self._is_there():
                self._deliver()  # what a killed sweep had finished
            yield
            if len(self.finished()) == len(self.points):
                shutil.rmtree(self._clone, ignore_errors=True)
        finally:
            os.close(self._lock)

    def _is_there(self) -> bool:
        return (self._clone / ".git").exists() and (self._project / ".dvc" / "config.local").exists()

    def _prepare(self) -> None:
        """Make the clone, if it is not there, and bring it to the workspace's state, with what DVC's cache has."""
        from dvc.config import Config, merge

        is_new = not self._is_there()
        if is_new:
            shutil.rmtree(self._clone, ignore_errors=True)
            top = _git(self.root, "rev-parse", "--show-toplevel")
            _git(self.root, "clone", "--quiet", "--shared", "--no-checkout", top, str(self._clone))
        self._reset()
        if is_new:
            # Relative paths in the project's settings are read from there, and written as they are from here.
            (self._project / ".dvc" / "config.local").touch(0o600)  # it may hold a password
            theirs = Config(str(self.root / ".dvc"), validate=False)
            with Config(str(self._project / ".dvc"), validate=False).edit("local", validate=False) as ours:
                ours["cache"] = {"dir": str(self.root / ".dvc" / "cache")}
                for level in ("repo", "local"):
                    merge(ours, theirs.load_one(level))
        command = [sys.executable, "-m", "dvc", "checkout", "--quiet", "--force"]
        subprocess.run(command, cwd=self._project, capture_output=True)  # what is not in the cache is made anew
        self._is_ready = True

    def _reset(self) -> None:
        """Bring the clone's tracked files to the workspace's state, on its commit."""
        _git(self._clone, "checkout", "--quiet", "--force", "--detach", self._baseline)
        _git(self._clone, "read-tree", "--reset", "-u", self._snapshot)
        _git(self._clone, "clean", "--quiet", "-d", "--force")

    def _deliver(self) -> None:
        """Move the clone's experiments to the project."""
        refs = [ref for _, ref in self._experiments(self._clone)]
        if refs:
            _git(self._clone, "push", "--quiet", "origin", *(f"{ref}:{ref}" for ref in refs))
        for ref in refs:
            _git(self._clone, "update-ref", "-d", ref)

    @staticmethod
    def _experiments(folder: Path) -> list[list[str]]:
        """Commit and reference of each experiment there."""
        found = _git(folder, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/??/*/*")
        return [line.split() for line in found.splitlines()]

    def finished(self) -> dict[str, str]:
        """The commit of each point that is an experiment already, of these parameters and this code.

        Raises:
            UnveilError: if one of its name stands in its way that is of others.
        """
        found: dict[str, str] = {}
        here = f"refs/exps/{self._baseline[:2]}/{self._baseline[2:]}/"
        experiments = self._experiments(self.root)
        for point in self.points:
            for commit, ref in experiments:
                if ref.split("/", 4)[4] != point.name or point.name in found:
                    continue
                if (other := self._other(commit, point)) is None:
                    found[point.name] = commit
                elif ref.startswith(here):
                    raise UnveilError(
                        f"{point.name}: found an experiment of this name with other {other}; give the sweep another "
                        f"--name, or run `dvc exp remove {point.name}`"
                    )
        return found

    def _other(self, commit: str, point: SweepPoint) -> str | None:
        """What an experiment has that the point has not; None if nothing."""
        theirs = parse_mapping(_git(self.root, "show", f"{commit}:{self._prefix}{PARAMS.name}"), PARAMS.name)[1]
        if theirs != self._params[point.name]:
            return "parameters"
        changed = _git(self.root, "diff", "--name-only", commit, self._snapshot, "--", *self._code).splitlines()
        return f"code ({changed[0]})" if changed else None

    def run(self, point: SweepPoint) -> bool:
        """Run one experiment; whether it succeeded. What it prints is printed.

        Raises:
            Terminated: after a signal, when the stage has ended too.
        """
        if self._is_ready:
            self._reset()
        else:
            self._prepare()
        settings = [word for setting in point.settings for word in ("--set-param", setting)]
        command = [sys.executable, "-m", "dvc", "exp", "run", "--name", point.name, *settings]
        with signals_noted() as noted:
            # The lock is the experiment's too. In a group of its own, every signal reaches its stage once.
            with subprocess.Popen(
                command,
                cwd=self._project,
                env=os.environ | {SWEEP_VARIABLE: self.name},
                pass_fds=[self._lock],
                process_group=0,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
            ) as process:
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(process.pid).encode(), 0)
                told = 0
                while process.poll() is None:
                    try:
                        process.wait(0.2)
                    except subprocess.TimeoutExpired:
                        pass
                    except Terminated:  # asked again
                        told = 0
                    if len(noted) > told:
                        told = len(noted)
                        with suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGINT)
            self._deliver()
        if noted:
            raise Terminated(noted[0])
        return process.returncode == 0

    def metrics(self, commit: str) -> Mapping[str, float]:
        """What evaluate measured in an experiment. Raises UnveilError if it is not there."""
        text = _git(self.root, "show", f"{commit}:{self._prefix}{METRICS}")
        return parse_json(text, dict[str, float], METRICS.as_posix(), "run the experiment again")
