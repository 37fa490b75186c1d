"""``unveil doctor``: what this machine has, how to mend what it lacks, and what that means for each recipe."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import typer

from unveil.cli.find import project_root
from unveil.errors import UnveilError
from unveil.files import expanded
from unveil.params import Params, load_params
from unveil.recipes import Recipe, load_recipe, names

GIB = 2**30
LEAST_MEMORY = 2 * GIB  # of the demo; both chosen with room to spare
LEAST_FREE = 2 * GIB
PACKAGES = ("torch", "dvc", "mlflow")
CELEBA_IMAGES, CELEBA_BYTES = 202_599, 3 * 10**9  # the published archive, once fetched and once in data/raw
# The whole pipeline with nothing beside it, by whether there is bf16 (README).
MEASURED = {
    True: "10.6 minutes on two cores of an AMD EPYC with bf16",
    False: "13.4 minutes on two cores of an AMD EPYC kept to AVX2",
}
State = Literal["ok", "--", "!!"]  # !!: the demo cannot run without
Finding: TypeAlias = tuple[State, str, str]  # of what, and in words


@dataclass(frozen=True)
class Machine:
    """What recipes need of a machine.

    Attributes:
        instructions: those of AVX2, AVX-512 and bf16 that its processor has, and that PyTorch may use.
        gpus: name and memory of each.
        free: bytes, of the disk of the working folder.
        celeba: place of CelebA's images.
    """

    instructions: tuple[str, ...]
    gpus: tuple[str, ...]
    free: int
    celeba: Path | None


def doctor() -> None:
    """Say what this machine has, how to mend what it lacks, and what that means for each recipe.

    Exits with 0: the demo can run here; 1: it cannot.
    """
    settings, wrong = _params()
    machine = examine(settings)
    found = [*_software(), *_hardware(machine), *_project(wrong), *_files(settings)]
    ready = all(state != "!!" for state, _, _ in found)
    found += [recipe_line(load_recipe(name), machine, ready) for name in names()]
    width = max(len(title) for _, title, _ in found)
    for state, title, words in found:
        typer.echo(f"{state:<2}  {title:<{width}}  {words}")
    if not ready:
        typer.echo("The demo cannot run here: mend what is marked !!")
        raise typer.Exit(1)
    typer.echo("The demo can run here: `dvc repro`, or `make repro`. It needs nothing of what is marked --")


def examine(settings: Params | None) -> Machine:
    """Look at the machine; nothing is made, changed or fetched."""
    free = shutil.disk_usage(Path.cwd()).free
    celeba, _ = _celeba(settings)
    if find_spec("torch") is None:
        return Machine((), (), free, celeba)
    import torch

    from unveil.precision import has_bf16

    levels = {"AVX2": ("AVX2",), "AVX512": ("AVX2", "AVX-512")}
    instructions = levels.get(torch.backends.cpu.get_cpu_capability(), ())
    bf16 = ("bf16",) if has_bf16(torch.device("cpu")) else ()
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = tuple(f"{card.name}, {card.total_memory / GIB:.0f} GiB" for card in cards)
    return Machine(instructions + bf16, gpus, free, celeba)


def _finding(title: str, found: object, lacking: str, state: State = "--") -> Finding:
    return ("ok", title, str(found)) if found else (state, title, lacking)


def _software() -> Iterator[Finding]:
    yield "ok", "Python", f"{platform.python_version()}, {sys.executable}"
    for name in PACKAGES:
        found = version(name) if find_spec(name) else None
        yield _finding(name, found, "not installed; `make repro` installs it into .venv", "!!")


def _hardware(machine: Machine) -> Iterator[Finding]:
    import psutil

    from unveil.run.checkout import machine_tags

    capable = ", ".join(machine.instructions) or "neither AVX2 nor AVX-512 nor bf16"
    slow = "" if "bf16" in machine.instructions else "; without bf16 `precision: auto` computes in fp32"
    yield "ok", "processor", f"{machine_tags()['unveil.cpu']}: {capable}{slow}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "ok", "cores", f"{cores} that may be used{'' if cores > 1 else '; the demo was measured on two'}"
    for title, amount, least, mend in (
        ("memory", psutil.virtual_memory().total, LEAST_MEMORY, "take a machine with more"),
        ("free disk", machine.free, LEAST_FREE, "make room, or link data, models and .unveil to another disk"),
    ):
        words = f"{amount / GIB:.1f} GiB"
        yield _finding(title, amount >= least and words, f"{words}, expected {least / GIB:.0f}; {mend}", "!!")
    yield _finding("GPU", "; ".join(machine.gpus), "none that PyTorch sees; recipes marked `for a GPU` need one")


def _project(wrong: str | None) -> Iterator[Finding]:
    """Of the folder, its parameters, of which ``wrong`` says why they cannot be used, and its store."""
    project = project_root()
    yield _finding("DVC project", project, "none around this folder; go to the clone, or `dvc init` there", "!!")
    yield _finding("Git", _git(), "no checkout; `git init`, which experiments need")
    if project:
        yield _finding("params.yaml", not wrong and "right", wrong or "", "!!")
    state, store = _store()
    yield state, "MLflow store", store


def _files(settings: Params | None) -> Iterator[Finding]:
    yield "ok", "weights", "efficientnet-lite0, which the demo uses, is installed with the project"
    if find_spec("torch") is not None:
        yield from _weights(settings)
    celeba, place = _celeba(settings)
    yield _finding("CelebA", celeba, f"not in {place}; set CELEBA_ROOT to its folder, or download fetches it")


def recipe_line(recipe: Recipe, machine: Machine, ready: bool) -> Finding:
    """Whether a recipe can run on a machine that is ready or not, and for how long, if that was measured."""
    if not ready:
        return "--", recipe.name, "cannot run before what is marked !! is mended"
    params, lacks = recipe.params, []
    if recipe.section != ():
        return "ok", recipe.name, f"changes {'.'.join(recipe.section)} alone, in any recipe; not measured"
    if params.download.source == "celeba":
        shards = CELEBA_IMAGES * 3 * params.preprocess.image_size**2
        needed = 2 * shards + (0 if machine.celeba else CELEBA_BYTES)  # DVC's cache may hold a copy
        if machine.free < needed:
            lacks.append(f"{needed / GIB:.0f} GiB of free disk")
    if "for a" in recipe.description and "GPU" in recipe.description and not machine.gpus:
        lacks.append("a GPU, for which it is meant")
    if lacks:
        return "--", recipe.name, f"lacks {'; '.join(lacks)}"
    time = f"measured: {MEASURED['bf16' in machine.instructions]}" if recipe.name == "demo" else "not measured"
    return "ok", recipe.name, f"can run; {time}"


def _params() -> tuple[Params | None, str | None]:
    try:
        return load_params((project_root() or Path.cwd()) / "params.yaml"), None
    except (UnveilError, OSError) as error:
        return None, f"{error}; `unveil params fmt` adds keys that are missing, and takes out those of earlier versions"


def _git() -> str | None:
    """Branch, commit and changes of the checkout around the working folder."""
    try:
        said = subprocess.run(
            ("git", "status", "--porcelain", "--branch"), capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = len(said) - 1
    return f"{said[0].removeprefix('## ')}, {changed or 'no'} changed file{'s'[: changed != 1]}"


def _store() -> tuple[State, str]:
    """Where MLflow's store is, or why it does not open. One that is not there yet is not made."""
    if find_spec("mlflow") is None:
        return "--", "mlflow is not installed"
    from unveil.run.store import Store, tracking_is_off

    try:
        if tracking_is_off():
            return "--", "switched off by UNVEIL_TRACKING"
        store = Store.locate(project_root() or Path.cwd())
        if store.database is not None and not store.database.exists():
            return "ok", f"{store.shown}: none yet, the first run makes it"
        store.open()
    except (UnveilError, OSError) as error:
        return "!!", f"it does not open: {error}"
    return "ok", store.shown


def _weights(settings: Params | None) -> Iterator[Finding]:
    """The file of each feature network: named in params.yaml or the environment, or in torch.hub's cache."""
    import torch

    from unveil.evaluation.features.published import FEATURE_SETS, PUBLISHED
    from unveil.evaluation.features.weights import ENVIRONMENT

    own = expanded(settings.evaluate.weights) if settings and settings.evaluate.weights else None
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    names = (ENVIRONMENT, *(file.environment for file in PUBLISHED if file.environment))
    variables = {name: expanded(Path(value)) for name in names if (value := os.environ.get(name))}
    places = ", ".join(str(place) for place in (own, *variables.values(), cache) if place)
    for features in FEATURE_SETS.values():
        if (weights := features.weights) is None:
            continue
        named = [path for path in (own, variables.get(weights.environment), variables.get(ENVIRONMENT)) if path]
        files = [folder / name for folder in (*named, cache) for name in weights.names]
        path = next((path for path in (*named, *files) if path.is_file()), None)
        fetched = f"{features.name}: not in {places}; fetched at first use, or set UNVEIL_WEIGHTS"
        yield _finding("weights", path and f"{features.name}: {path}", fetched)


def _celeba(settings: Params | None) -> tuple[Path | None, str]:
    """Where CelebA's images lie, and the place that was asked."""
    from unveil.data.celeba import IMAGE_FOLDER, ZIP_NAME
    from unveil.data.sources.celeba import BASES, ROOT_VARIABLE

    place = (settings and settings.download.celeba.path) or os.environ.get(ROOT_VARIABLE)
    if not place:
        return None, f"params.yaml's download.celeba.path or {ROOT_VARIABLE}, which name no place"
    folder = expanded(Path(place))
    holders = [folder, *(folder / base / name for base in BASES for name in (ZIP_NAME, IMAGE_FOLDER))]
    found = (path for path in holders if path.is_file() or (path.name == IMAGE_FOLDER and path.is_dir()))
    return next(found, None), str(place)
