"""Named parameter sets, and writing one into params.yaml without touching its comments.

A recipe is a YAML file in this folder with a one-line ``description`` and ``params``: what differs from
``demo``, or is to stay as it is when demo changes. ``demo`` is complete and is what params.yaml ships.
A recipe with a line ``over: NAME`` is partial: applied, it changes its own values alone, whatever the file holds
otherwise; by itself it is checked over the recipe NAME.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from unveil.errors import UnveilError
from unveil.files import write_text
from unveil.params import Params, flatten, nearest, parse_mapping, parse_params, read_text

Key: TypeAlias = tuple[str, ...]

BASE = "demo"
COMMENT_COLUMN = 31  # of comments behind values, in a file that has none yet
COMMENT = re.compile(r"[ \t]*(#[^\n]*)?(?=\n|\Z)")


@dataclass(frozen=True)
class Recipe:
    """A parameter set.

    Attributes:
        name: of its file.
        description: one line.
        values: as YAML writes them; all, or if partial its own.
        params: all, as checked.
        over: of a partial recipe, the recipe whose values stand where it has none.
    """

    name: str
    description: str
    values: Mapping[Key, str]
    params: Params
    over: str | None = None

    def to_yaml(self) -> str:
        """A params.yaml with these values, complete unless the recipe is partial, without comments."""
        return _to_yaml(self.values)


def names() -> list[str]:
    """The names of all recipes: demo, the other complete ones, the partial ones."""
    found = [entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")]
    return sorted(found, key=lambda name: (name != BASE, _read(name).over is not None, name))


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe. Raises UnveilError if there is none of that name, naming the nearest."""
    if name not in (known := names()):
        match = nearest(name, known)
        hint = f"did you mean {match}?" if match else f"expected {' | '.join(known)}"
        raise UnveilError(f"recipe {name!r}: there is none of this name, {hint}")
    file = _read(name)
    values = file.values if name == BASE else _read(BASE).values | file.values
    together = values if file.over is None else {**load_recipe(file.over).values, **file.values}
    params = parse_params(_to_yaml(together), f"recipe {name}")
    return Recipe(name, file.description, values if file.over is None else file.values, params, file.over)


def apply_recipe(name: str, path: Path) -> list[str]:
    """Write a recipe's values into a params.yaml, in place, keeping its comments and layout.

    Only what stands between a key's colon and its comment changes. A file that is not YAML, or whose keys are
    not those of the parameters, is left as it is.

    Returns:
        The dotted keys whose text changed.

    Raises:
        UnveilError: in one line, if there is no such recipe, or if the file lacks a key or cannot be written.
    """
    recipe = load_recipe(name)
    text = read_text(path)
    edits = _edits(text, recipe.values, str(path))
    rewritten = text
    for edit in sorted(edits, reverse=True):
        rewritten = rewritten[: edit.start] + edit.text + rewritten[edit.stop :]
    written = flatten(parse_params(rewritten, str(path)))
    wanted = flatten(recipe.params)
    if any(written[key] != wanted[key] for key in map(".".join, recipe.values)):
        raise UnveilError(f"{path}: its layout does not let the values be replaced; write one `key: value` a line")
    try:
        if edits:
            write_text(path, rewritten)
    except OSError as error:
        raise UnveilError(f"{path}: cannot be written: {error.strerror or error}") from None
    return [edit.key for edit in edits]


class _Edit(NamedTuple):
    """Characters start ... stop of the file give way to ``text``."""

    start: int
    stop: int
    text: str
    key: str


class _Leaf(NamedTuple):
    """A value: ``start`` is behind its key's colon, ``end`` behind it, ``stop`` behind its comments."""

    key: Key
    start: int
    end: int
    stop: int
    comments: tuple[str, ...]
    column: int | None


class _File(NamedTuple):
    """What a recipe's file holds."""

    description: str
    over: str | None
    values: dict[Key, str]


@cache
def _read(name: str) -> _File:
    """A recipe's file, with the text of each value that it holds."""
    text = (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    root, content = parse_mapping(text, f"{name}.yaml")
    leaves = [leaf for leaf in _leaves(root, text, f"{name}.yaml") if leaf.key[0] == "params"]
    values = {leaf.key[1:]: text[leaf.start : leaf.end].strip() for leaf in leaves}
    return _File(str(content["description"]), content.get("over"), values)


def _to_yaml(values: Mapping[Key, str]) -> str:
    """Block mappings of values; the keys of a section must follow one another."""
    lines: list[str] = []
    before: Key = ()
    for key, value in values.items():
        for depth, part in enumerate(key[:-1]):
            if key[: depth + 1] != before[: depth + 1]:
                lines.append(f"{'  ' * depth}{part}:")
        lines.append(f"{'  ' * (len(key) - 1)}{key[-1]}: {value}")
        before = key
    return "\n".join(lines) + "\n"


def _edits(text: str, values: Mapping[Key, str], name: str) -> list[_Edit]:
    """What to replace so that each value in ``text`` is written as in ``values``, comments aligned."""
    root, _ = parse_mapping(text, name)
    leaves = list(_leaves(root, text, name))
    columns = Counter(leaf.column for leaf in leaves if leaf.column is not None)
    column = columns.most_common(1)[0][0] if columns else COMMENT_COLUMN
    edits = []
    for leaf in leaves:
        value = values.get(leaf.key)
        if value is None or text[leaf.start : leaf.end].strip() == value:
            continue
        replacement = f" {value}"
        if leaf.comments:
            line = text[text.rfind("\n", 0, leaf.start) + 1 : leaf.start] + replacement
            padding = max(column - len(line), 2)
            replacement += " " * padding + "  ".join(leaf.comments)
        edits.append(_Edit(leaf.start, leaf.stop, replacement, ".".join(leaf.key)))
    return edits


def _leaves(node: Node, text: str, name: str, prefix: Key = ()) -> Iterator[_Leaf]:
    """The values below a mapping that are not mappings themselves."""
    for key_node, value in node.value:
        key = (*prefix, str(key_node.value))
        if isinstance(value, MappingNode):
            yield from _leaves(value, text, name, key)
        else:
            yield _leaf(key, key_node, value, text, name)


def _leaf(key: Key, key_node: Node, value: Node, text: str, name: str) -> _Leaf:
    start = text.index(":", key_node.end_mark.index) + 1
    if value.start_mark.index < start:
        line = key_node.start_mark.line + 1
        raise UnveilError(f"{name}:{line}: {'.'.join(key)}: a YAML alias, expected the value itself")
    last = value
    while isinstance(last, SequenceNode) and not last.flow_style and last.value:
        last = last.value[-1]
    # An empty value's mark lies behind the comment that follows it.
    end = last.end_mark.index if last.end_mark.index > last.start_mark.index else start
    end = start + len(text[start:end].rstrip())
    comments = []
    if isinstance(value, SequenceNode) and not value.flow_style:
        first_line = text[start:end].partition("\n")[0].strip()
        comments += [first_line] if first_line else []
    match = COMMENT.match(text, end)
    if match is None:  # something else follows, such as the next key of a flow mapping
        return _Leaf(key, start, end, end, tuple(comments), None)
    column = match.start(1) - text.rfind("\n", 0, end) - 1 if match[1] else None
    comments += [match[1].rstrip()] if match[1] else []
    return _Leaf(key, start, end, match.end(), tuple(comments), column)
