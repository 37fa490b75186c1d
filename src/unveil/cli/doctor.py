"""``unveil doctor``: what this machine has, how to mend what it lacks, and what that means for each recipe."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeAlias

import typer

from unveil.cli.find import project_root
from unveil.errors import UnveilError
from unveil.params import Params, load_params
from unveil.recipes import Recipe, load_recipe, names

GIB = 2**30
LEAST_MEMORY = 2 * GIB  # of the demo; both chosen with room to spare
LEAST_FREE = 2 * GIB
PACKAGES = ("torch", "dvc", "mlflow")
CELEBA_IMAGES, CELEBA_BYTES = 202_599, 3 * 10**9  # the published archive, once fetched and once in data/raw
# The whole pipeline with nothing beside it, by whether there is bf16 (README).
MEASURED = {
    True: "9.9 minutes on two cores of an AMD EPYC with bf16",
    False: "13.4 minutes on two cores of an AMD EPYC kept to AVX2",
}
State = Literal["ok", "--", "!!"]  # !!: the demo cannot run without
Finding: TypeAlias = tuple[State, str, str]  # of what, and in words


@dataclass(frozen=True)
class Machine:
    """Facts.

    Attributes:
        packages: their versions; None of those that are not installed.
        processor: its name, as the system gives it.
        instructions: those of AVX2, AVX-512 and bf16 that it has, and that PyTorch may use.
        cores: that this process may use.
        memory: bytes, of the machine.
        free: bytes, of the disk of the working folder.
        gpus: name and bytes of each.
        project: folder of the DVC project around the working folder.
        git: branch and state of its checkout; None without one.
        params_problem: why params.yaml cannot be used; None if it can.
        store: where MLflow's runs go.
        store_problem: why it does not open; None if it does, or the first run is to make it.
        weights: file of each feature network's weights; None of those that are not on disk.
        weights_places: where they were looked for.
        celeba: place of CelebA's images.
        celeba_places: where they were looked for, in words.
    """

    packages: dict[str, str | None]
    processor: str
    instructions: tuple[str, ...]
    cores: int
    memory: int
    free: int
    gpus: tuple[tuple[str, int], ...]
    project: Path | None
    git: str | None
    params_problem: str | None
    store: str
    store_problem: str | None
    weights: dict[str, Path | None]
    weights_places: str
    celeba: Path | None
    celeba_places: str


def doctor() -> None:
    """Say what this machine has, how to mend what it lacks, and what that means for each recipe.

    Exits with 0: the demo can run here; 1: it cannot.
    """
    machine = examine()
    found = list(findings(machine))
    ready = all(state != "!!" for state, _, _ in found)
    found += [recipe_line(load_recipe(name), machine, ready) for name in names()]
    width = max(len(title) for _, title, _ in found)
    for state, title, words in found:
        typer.echo(f"{state:<2}  {title:<{width}}  {words}")
    if not ready:
        typer.echo("The demo cannot run here: mend what is marked !!")
        raise typer.Exit(1)
    typer.echo("The demo can run here: `dvc repro`, or `make repro`")


def examine() -> Machine:
    """Look at everything; nothing is made, changed or fetched."""
    import psutil

    from unveil.run.checkout import machine_tags

    packages = {name: _version_of(name) for name in PACKAGES}
    instructions, gpus = _torch_facts() if packages["torch"] else ((), ())
    store, store_problem = _store() if packages["mlflow"] else ("", "mlflow is not installed")
    settings, params_problem = _params()
    weights, places = _weights(settings) if packages["torch"] else ({}, "")
    celeba, celeba_places = _celeba(settings)
    return Machine(
        packages=packages,
        processor=machine_tags()["unveil.cpu"],
        instructions=instructions,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        free=shutil.disk_usage(Path.cwd()).free,
        gpus=gpus,
        project=project_root(),
        git=_git(),
        store=store,
        store_problem=store_problem,
        params_problem=params_problem,
        weights=weights,
        weights_places=places,
        celeba=celeba,
        celeba_places=celeba_places,
    )


def findings(machine: Machine) -> Iterator[Finding]:
    """Each fact, with how to mend what is missing."""
    yield "ok", "Python", f"{platform.python_version()}, {sys.executable}"
    for name, found in machine.packages.items():
        yield _finding(name, found, "not installed; `make repro` installs it into .venv", "!!")
    capable = ", ".join(machine.instructions) or "neither AVX2 nor AVX-512 nor bf16"
    slow = "" if "bf16" in machine.instructions else "; without bf16 `precision: auto` computes in fp32"
    yield "ok", "processor", f"{machine.processor}: {capable}{slow}"
    yield (
        "ok",
        "cores",
        f"{machine.cores} that may be used{'' if machine.cores > 1 else '; the demo was measured on two'}",
    )
    for title, amount, least, mend in (
        ("memory", machine.memory, LEAST_MEMORY, "take a machine with more"),
        ("free disk", machine.free, LEAST_FREE, "make room, or link data, models and .unveil to another disk"),
    ):
        words = f"{amount / GIB:.1f} GiB"
        yield _finding(title, words if amount >= least else None, f"{words}, expected {least / GIB:.0f}; {mend}", "!!")
    gpus = "; ".join(f"{name}, {memory / GIB:.0f} GiB" for name, memory in machine.gpus)
    yield _finding("GPU", gpus, "none that PyTorch sees; recipes marked `for a GPU` need one")
    project = machine.project and str(machine.project)
    yield _finding("DVC project", project, "none around this folder; go to the clone, or `dvc init` there", "!!")
    yield _finding("Git", machine.git, "no checkout; `git init`, which experiments need")
    if machine.project:
        yield _finding("params.yaml", not machine.params_problem and "right", machine.params_problem or "", "!!")
    wrong = f"{machine.store}: {machine.store_problem}; or set UNVEIL_TRACKING=off"
    yield _finding("MLflow store", not machine.store_problem and machine.store, wrong)
    yield "ok", "weights", "efficientnet-lite0, which the demo uses, is installed with the project"
    for name, path in machine.weights.items():
        fetched = f"{name}: not in {machine.weights_places}; fetched at first use, or set UNVEIL_WEIGHTS"
        yield _finding("weights", path and f"{name}: {path}", fetched)
    celeba = f"not in {machine.celeba_places}; set CELEBA_ROOT to its folder, or download fetches it"
    yield _finding("CelebA", machine.celeba and str(machine.celeba), celeba)


def _finding(title: str, found: object, lacking: str, state: State = "--") -> Finding:
    return ("ok", title, str(found)) if found else (state, title, lacking)


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


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch_facts() -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Instructions of the processor, and name and memory of each GPU."""
    import torch

    from unveil.precision import has_bf16

    level = torch.backends.cpu.get_cpu_capability()
    levels = {"AVX2": ("AVX2",), "AVX512": ("AVX2", "AVX-512")}
    bf16 = ("bf16",) if has_bf16(torch.device("cpu")) else ()
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return levels.get(level, ()) + bf16, tuple((card.name, card.total_memory) for card in cards)


def _store() -> tuple[str, str | None]:
    """Where MLflow's store is, and why it does not open. One that is not there yet is not made."""
    from unveil.run.store import Store

    try:
        store = Store.locate(Path.cwd())
        if store.database is not None and not store.database.exists():
            return f"{store.shown}: none yet, the first run makes it", None
        store.open()
    except (UnveilError, OSError) as error:
        return "it does not open", str(error)
    return store.shown, None


def _params() -> tuple[Params | None, str | None]:
    try:
        return load_params(Path("params.yaml")), None
    except (UnveilError, OSError) as error:
        return None, f"{error}; `git checkout params.yaml` brings the shipped one back"


def _weights(settings: Params | None) -> tuple[dict[str, Path | None], str]:
    """The file of each feature network, and the places that were asked."""
    import torch

    from unveil.evaluation.features.extraction import FEATURE_SETS
    from unveil.evaluation.features.weights import ENVIRONMENT, INCEPTION_ENVIRONMENT

    own = settings.evaluate.weights if settings else None
    variables = {name: Path(value) for name in (ENVIRONMENT, INCEPTION_ENVIRONMENT) if (value := os.environ.get(name))}
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found: dict[str, Path | None] = {}
    for features in FEATURE_SETS.values():
        if features.weights is None:
            continue
        named = [
            path for path in (own, variables.get(features.weights.environment), variables.get(ENVIRONMENT)) if path
        ]
        files = [folder / name for folder in (*named, cache) for name in features.weights.names]
        found[features.name] = next((path for path in (*named, *files) if path.is_file()), None)
    return found, ", ".join(str(place) for place in (*([own] if own else []), *variables.values(), cache))


def _celeba(settings: Params | None) -> tuple[Path | None, str]:
    """Where CelebA's images lie, and the places that were asked."""
    from unveil.data.celeba import IMAGE_FOLDER, ZIP_NAME
    from unveil.data.sources.celeba import BASES, ROOT_VARIABLE

    named = settings.download.celeba.path if settings else None
    place = named or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)
    if place is None:
        return None, f"params.yaml's download.celeba.path or {ROOT_VARIABLE}, which name no place"
    holders = [place, *(place / base / name for base in BASES for name in (ZIP_NAME, IMAGE_FOLDER))]
    found = next((path for path in holders if path.is_file() or (path.name == IMAGE_FOLDER and path.is_dir())), None)
    return found, str(place)


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
