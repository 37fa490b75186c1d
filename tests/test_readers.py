"""Everything that is read goes through unveil.files or unveil.tensors, so that no pipe or device is waited for."""

import ast
from collections.abc import Iterator
from pathlib import Path

RULES = {"files.py", "tensors.py"}  # the two modules that open what is read
READERS = {"ZipFile", "load_file", "open", "read_bytes", "read_text", "safe_open"}
# Of the package itself, of memory or of an archive that is open, and what another process of the stage just wrote.
TAKEN = {
    "data/sources/cartoon.py: files('dicebear_styles').joinpath('avataaars.json').read_text('utf-8')",
    "parameter_file.py: files(package).joinpath(name).read_text(encoding='utf-8')",
    "rank.py: path.read_text(encoding='utf-8')",
    "run/checkout.py: Path('/proc/cpuinfo').read_text(encoding='utf-8')",
}
RECEIVERS = {"Image", "archive", "store", "files", "os", "self._archive"}  # whose `open` opens no path


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in READERS:
                yield name, node


def goes_through_the_rules(name: str, call: ast.Call) -> bool:
    """Whether a call reads what ``regular`` let pass, writes, or is one of the rules itself."""
    text = ast.unparse(call)
    if "regular(" in text or "BytesIO(" in text:
        return True
    if name in ("read_bytes", "read_text") and isinstance(call.func, ast.Name):
        return True
    receiver = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    modes = [part.value for word in call.args for part in ast.walk(word) if isinstance(part, ast.Constant)]
    writes = any(isinstance(mode, str) and set(mode) & set("wax") for mode in modes)
    return writes or ("open" == name and receiver in RECEIVERS) or receiver == "files"


def test_no_reader_goes_past_the_one_rule(repository: Path) -> None:
    package = repository / "src" / "unveil"
    past = set()
    for file in [*package.rglob("*.py"), *(repository / "stages").glob("*.py")]:
        if file.name in RULES:
            continue
        name = file.relative_to(package if package in file.parents else repository).as_posix()
        for reader, call in calls(ast.parse(file.read_text(encoding="utf-8"))):
            if not goes_through_the_rules(reader, call):
                past.add(f"{name}: {ast.unparse(call)}")
    assert past <= TAKEN, past - TAKEN
    assert past >= TAKEN, "no longer there"
