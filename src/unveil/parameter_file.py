"""YAML 1.2 with a mapping at its top, as params.yaml: read with the line of every key, and written a value a line."""

import json
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
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
Lines: TypeAlias = dict[Key, int]
"""Of each key, the line that it stands in, from 1."""


class _Constructor(SafeConstructor):
    """YAML 1.2's core types, that is, none for dates: ``2024-05-01`` is text, such as a folder's name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_mapping(text: str, name: str, expected: str = "a mapping") -> tuple[Lines, dict[Any, Any]]:
    """Read YAML 1.2 with a mapping at its top; return the lines of its keys, and its values.

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
        return _lines(root, name), yaml.constructor.construct_document(root)
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


def written(value: object) -> str:
    """A plain value as a YAML file has it: ``[1, 2]``, ``1.0e-06``, ``null``; text in quotes where it needs them."""
    if isinstance(value, float) and "e" in (text := repr(value)):
        mantissa, exponent = text.split("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Path):
        value = str(value)
    with suppress(YAMLError):  # of text that is no plain value: it needs quotes
        if isinstance(value, str) and YAML(typ="safe", pure=True).load(f"[{value}]") == [value]:
            return value
    return json.dumps(value, ensure_ascii=False)


def _lines(root: MappingNode, name: str) -> Lines:
    """The line of every key. Raises UnveilError if one stands twice, or for more or deeper values than ours."""
    lines: Lines = {}
    nodes: list[tuple[Key, Node]] = [((), root)]
    for key, node in nodes:  # which grows; an alias comes as all that it stands for
        if len(nodes) > MOST_NODES:
            raise UnveilError(
                f"{name}: found more than {MOST_NODES:,} values, each alias replaced by what it stands for; write fewer"
            )
        if isinstance(node, ScalarNode):
            continue
        if len(key) >= MOST_DEPTH:
            raise UnveilError(f"{name}:{node.start_mark.line + 1}: {TOO_DEEP}")
        if not isinstance(node, MappingNode):
            nodes += [((*key, str(place)), part) for place, part in enumerate(node.value)]
            continue
        for name_node, value in node.value:
            inner, line = (*key, str(name_node.value)), int(name_node.start_mark.line) + 1
            if inner in lines:
                twice = f"{'.'.join(inner)}: stands here and in line {lines[inner]}; keep one"
                raise UnveilError(printable(f"{name}:{line}: {twice}"))
            lines[inner] = line
            nodes += [(inner, name_node), (inner, value)]
    return lines
