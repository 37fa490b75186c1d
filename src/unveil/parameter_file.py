"""YAML 1.2 with a mapping at its top, as params.yaml: read with the line of every key, and written a value a line."""

import json
from collections import deque
from importlib.resources import files
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from unveil.errors import UnveilError, printable

# What is larger or deeper is none of ours, and would take minutes to read.
MOST_NODES, MOST_DEPTH = 10_000, 16
TOO_DEEP = f"found more than {MOST_DEPTH} levels of brackets; write the value plainly"
Key: TypeAlias = tuple[str, ...]


class _Constructor(SafeConstructor):
    """YAML 1.2's core types, that is, none for dates: ``2024-05-01`` is text, such as a folder's name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_mapping(text: str, name: str, expected: str = "a mapping") -> tuple[MappingNode, dict[Any, Any]]:
    """Read YAML 1.2 with a mapping at its top; return its nodes, which know their places, and its values.

    Args:
        text: of the file.
        name: what messages call it.
        expected: what it should hold.

    Raises:
        UnveilError: if the text is empty, is not YAML, is not a mapping or has a key twice.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        root = yaml.compose(text)
        if not isinstance(root, MappingNode):
            raise UnveilError(f"{name}: {'empty' if root is None else 'found no mapping'}, expected {expected}")
        _refuse_excess(root, name)
        return root, yaml.constructor.construct_document(root)
    except RecursionError:
        raise UnveilError(f"{name}: {TOO_DEEP}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UnveilError(printable(f"{place}: not valid YAML: {error.problem or error.context}")) from None
    except (YAMLError, ValueError) as error:  # such as !!int followed by a word
        raise UnveilError(printable(f"{name}: not valid YAML: {' '.join(str(error).split())}")) from None


def package_data(package: str, name: str) -> dict[Any, Any]:
    """What a YAML file of a package of ours holds. Raises UnveilError as ``parse_mapping`` does."""
    return parse_mapping(files(package).joinpath(name).read_text(encoding="utf-8"), name)[1]


def line_of(root: MappingNode, key: Key) -> int:
    """The line, from 1, of a key, or of the nearest section around it that the file has."""
    node: Node = root
    line = int(root.start_mark.line)
    for part in key:
        pairs = node.value if isinstance(node, MappingNode) else []
        match = next(((name, value) for name, value in pairs if name.value == part), None)
        if match is None:
            break
        line, node = int(match[0].start_mark.line), match[1]
    return line + 1


def written(value: object) -> str:
    """A plain value as a YAML file has it: ``[1, 2]``, ``1.0e-06``, ``null``; text in quotes where it needs them."""
    if isinstance(value, float) and "e" in (text := repr(value)):
        mantissa, exponent = text.split("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str) and YAML(typ="safe", pure=True).load(f"[{value}]") == [value]:
        return value
    return json.dumps(value, ensure_ascii=False)


def _refuse_excess(root: MappingNode, name: str) -> None:
    """Raise UnveilError for a key that stands twice, and for more values or levels than any parameters have."""
    found = 0
    nodes: deque[tuple[Key, Node]] = deque([((), root)])  # an alias comes as all that it stands for
    while nodes:
        key, node = nodes.popleft()
        if (found := found + 1) > MOST_NODES:
            raise UnveilError(
                f"{name}: found more than {MOST_NODES:,} values, each alias replaced by what it stands for; write fewer"
            )
        if isinstance(node, ScalarNode):
            continue
        if len(key) >= MOST_DEPTH:
            raise UnveilError(f"{name}:{node.start_mark.line + 1}: {TOO_DEEP}")
        if not isinstance(node, MappingNode):
            nodes.extend(((*key, ""), part) for part in node.value)
            continue
        lines: dict[str, int] = {}
        for name_node, value in node.value:
            inner, line = (*key, str(name_node.value)), int(name_node.start_mark.line) + 1
            if inner[-1] in lines:
                twice = f"{'.'.join(inner)}: stands here and in line {lines[inner[-1]]}; keep one"
                raise UnveilError(printable(f"{name}:{line}: {twice}"))
            lines[inner[-1]] = line
            nodes.extend([(inner, name_node), (inner, value)])
