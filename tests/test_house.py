"""The house: arrows between the rooms point one way, names are used once, and functions and stages stay short."""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

# From the ground up. A room may use its own floor's files only within itself, and any lower floor; the ground's may
# use each other.
GROUND = {
    "__init__",
    "averages",
    "distributed",
    "errors",
    "files",
    "layout",
    "messages",
    "ledger",
    "parameter_file",
    "posthoc",
    "precision",
    "printing",
    "progress",
    "rank",
    "section",
    "seeds",
    "tensors",
    "weights",
    "workers",
}
FLOORS: tuple[set[str], ...] = (
    GROUND,
    {"data", "networks", "diffusion"},
    {"figures", "model"},
    {"generation"},
    {"training", "evaluation"},
    {"params", "interchange"},
    {"serving"},
    {"recipes", "run"},
    {"cli", "stages", "studies"},
    {"__main__"},
)
LONGEST_FUNCTION = 60  # lines of code: without docstring, comments and blank lines
LONGEST_STAGE = 120
MOST_LINES = 25_600  # of src and stages; what is added is to be paid for


def room(module: str) -> str:
    """The room of a module: the folder below the package, or the file that stands there alone."""
    parts = module.split(".")
    return parts[0] if parts[0] != "unveil" else parts[1] if len(parts) > 1 else "__init__"


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the project that is no test, by its dotted name."""
    for folder, prefix in ((root / "src" / "unveil", ("unveil",)), (root / "stages", ()), (root / "studies", ())):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder if prefix else root).with_suffix("").parts
            yield ".".join((*prefix, *parts)), file


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "unveil":
                yield from (f"unveil.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def test_arrows_point_down(repository: Path) -> None:
    wrong = []
    for name, file in sources(repository):
        for module in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if module.split(".")[0] not in ("unveil", "stages", "studies"):
                continue
            here, there = room(name), room(module)
            if here != there and not {here, there} <= GROUND and floor(here) <= floor(there):
                wrong.append(f"{name} uses {module}")
    assert not wrong


def test_no_two_classes_have_one_name(repository: Path) -> None:
    names = Counter(
        node.name
        for _, file in sources(repository)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    twice = [name for name, count in names.items() if count > 1]
    assert not twice


def code_lines(text: str) -> set[int]:
    """The lines that hold more than a comment."""
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return set(chain.from_iterable(range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in nothing))


def test_functions_are_short(repository: Path) -> None:
    long = []
    for name, file in sources(repository):
        text = file.read_text(encoding="utf-8")
        lines = code_lines(text)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            words = node.body[0].end_lineno if ast.get_docstring(node) is not None else node.lineno - 1
            found = len([line for line in lines if (words or 0) < line <= (node.end_lineno or 0)])
            if found > LONGEST_FUNCTION:
                long.append(f"{name}.{node.name}: {found}")
    assert not long


@pytest.mark.parametrize("name", ["download", "preprocess", "train", "sample", "oracle", "evaluate", "card"])
def test_stages_are_thin(repository: Path, name: str) -> None:
    assert len((repository / "stages" / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= LONGEST_STAGE


def test_the_package_stays_small(repository: Path) -> None:
    files = (file for name, file in sources(repository) if not name.startswith("studies"))
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= MOST_LINES
