"""What is wrong with the values of a schema, in words: what was found, what is allowed, and how to mend it."""

import difflib
import json
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from unveil.files import shortened
from unveil.section import Section

Key: TypeAlias = tuple[str, ...]
LONGEST_COMPARED = 100  # characters of a word for which a suggestion is looked for: it takes time
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
RETIRED = dict.fromkeys(
    ("evaluate.likelihood_images", "evaluate.likelihood_probes"), "`unveil likelihood` measures bits per dimension"
)
"""Keys of earlier versions, with what there is in their place."""
Schema: TypeAlias = Mapping[Key, FieldInfo]
"""Every key of the sections, with its field; see :func:`schema_of`."""


def section_at(field: FieldInfo) -> type[Section] | None:
    """The section that stands at a key, None where a value does."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def schema_of(section: type[Section], prefix: Key = ()) -> dict[Key, FieldInfo]:
    """Every key of a section, also of the sections in it, with its field."""
    schema: dict[Key, FieldInfo] = {}
    for name, field in section.model_fields.items():
        schema[*prefix, name] = field
        if (inner := section_at(field)) is not None:
            schema |= schema_of(inner, (*prefix, name))
    return schema


def findings(
    schema: Schema, errors: Sequence[ErrorDetails], values: Mapping[Any, Any], fill: bool = False
) -> dict[Key, str]:
    """What is wrong, by key: pydantic's errors and missing keys, but for those that an unknown one explains.

    Args:
        schema: the keys that must be there; of a section that is missing, its own key alone is.
        errors: pydantic's.
        values: what was found.
        fill: whether a missing key is none: its default stands for it.
    """
    around = {} if fill else {key: look_up(values, key[:-1]) for key in schema}
    missing = {key for key, inner in around.items() if isinstance(inner, Mapping) and key[-1] not in inner}
    found: dict[Key, str] = {}
    for error in errors:
        key = _known(schema, error["loc"])
        if error["type"] == "combination":
            for problem in error["ctx"]["problems"] if not missing else ():  # else it may be of what stands in for them
                at = (*key, *problem.key.split("."))
                found.setdefault(at, f"found {shown(look_up(values, at))}, expected {problem.expected}")
        elif error["type"] in ("extra_forbidden", "invalid_key"):
            suggestion, found[key] = _unknown(schema, key, missing)
            missing.discard(suggestion)
        else:
            found.setdefault(key, _mismatch(schema[key], look_up(values, key)))
    for key in missing:
        field = schema[key]
        purpose = f" ({text_of(field)})" if section_at(field) is None else ""
        found[key] = f"missing, expected {allowed(field)}{purpose}"
    return found


def _known(schema: Schema, loc: tuple[int | str, ...]) -> Key:
    """The key that a pydantic location lies in: without the index into a list."""
    key = tuple(map(str, loc))
    starts = (key[:end] for end in range(1, len(key)))
    return next((start for start in starts if start not in schema or section_at(schema[start]) is None), key)


def _unknown(schema: Schema, key: Key, missing: set[Key]) -> tuple[Key, str]:
    """The valid key that an unknown one most likely stands for (itself if none), and the message."""
    here = {known[-1]: known for known in schema if known[:-1] == key[:-1]}
    everywhere = {known[-1]: known for known in reversed(list(schema)) if section_at(schema[known]) is None} | here
    absent = [name for name, known in here.items() if known in missing]
    if (sentence := RETIRED.get(".".join(key))) is not None:
        return key, f"no longer a parameter: {sentence}; `unveil params fmt` takes the line out"
    match = absent[0] if len(absent) == 1 else nearest(key[-1], absent) or nearest(key[-1], list(everywhere))
    if match is None:
        return key, f"unknown key, expected {', '.join(here)}"
    return everywhere[match], f"unknown key, did you mean {'.'.join(everywhere[match])}?"


def _mismatch(field: FieldInfo, value: object) -> str:
    """What was found at a valid key, what is allowed there, and how to mend it where that is plain."""
    kind, hint = field.annotation, ""
    if isinstance(value, str) and get_origin(kind) is Literal:
        match = nearest(value, [name for name in get_args(kind) if isinstance(name, str)])
        hint = f"; did you mean {match}?" if match else ""
    elif isinstance(value, str) and kind in (int, float) and re.fullmatch(NUMBER, value):
        hint = "; remove the quotes"
    elif kind is int and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    return f"found {shown(value)}, expected {allowed(field)}{hint}"


def nearest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that ``word`` is most likely a misspelling of, or None if none is close."""
    names = {candidate.lower(): candidate for candidate in candidates}
    if len(word) > LONGEST_COMPARED:
        return None
    matches = difflib.get_close_matches(word.lower(), names, n=1)
    return names[matches[0]] if matches else None


def chosen(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """The places of some names among those that are known.

    Raises:
        ValueError: for a name that is none of them, with the nearest, or that stands twice.
    """
    for number, word in enumerate(wanted):
        if word not in known:
            match = nearest(word, known)
            hint = f"did you mean {match}?" if match else f"expected some of {', '.join(known) or 'none'}"
            raise ValueError(f"found {shortened(word)}, {hint}")
        if word in wanted[:number]:
            raise ValueError(f"found {word} twice, expected each name once")
    return [known.index(word) for word in wanted]


def text_of(field: FieldInfo) -> str:
    """The text of a value, on one line."""
    return " ".join((field.description or "").split())


def comment_of(field: FieldInfo) -> str:
    """What params.yaml says of a value: its text, and its range; a text names the choices itself."""
    kind = field.annotation
    items = get_args(kind)[0] if get_origin(kind) is tuple else kind
    items = get_args(items)[0] if get_origin(items) is Annotated else items
    names = section_at(field) is not None or get_origin(items) in (Literal, Union, types.UnionType) or items is str
    return text_of(field) if names else f"{text_of(field)}; {allowed(field).removeprefix('a ')}"


def allowed(field: FieldInfo) -> str:
    """The type of a value and its bounds in words, such as ``a number in [0, 1)``."""
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allowed(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(str(name).lower() if isinstance(name, bool) else name for name in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is types.NoneType else _allowed(kind) for kind in arguments)
    if origin is tuple:
        item = _allowed(arguments[0]).removeprefix("a ").replace("number", "numbers", 1)
        if arguments[-1] is not ...:
            return f"a list of {len(arguments)} {item}"
        length = next((part for part in metadata if isinstance(part, Len)), Len())
        most = f", at most {length.max_length}" if length.max_length else ""
        return f"a list of {item}" + (", not empty" if length.min_length else "") + most
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"the keys {', '.join(annotation.model_fields)}"
    if annotation is bool:
        return "true | false"
    if annotation is Path:
        return "a path"
    if annotation is str:
        return next((part for part in metadata if isinstance(part, str)), "text")
    return f"a {'whole ' if annotation is int else ''}number{_bounds(metadata)}"


def _bounds(metadata: Sequence[Any]) -> str:
    """Bounds as an interval, or as a comparison if there is only one."""
    low = next((part for part in metadata if isinstance(part, Ge | Gt)), None)
    high = next((part for part in metadata if isinstance(part, Le | Lt)), None)
    if low is None:
        return ""
    closed, least = (True, low.ge) if isinstance(low, Ge) else (False, low.gt)
    if high is None:
        return f" {'>=' if closed else '>'} {least}"
    return f" in {'[' if closed else '('}{least}, " + (f"{high.le}]" if isinstance(high, Le) else f"{high.lt})")


def look_up(values: Any, key: Key) -> Any:
    """What stands at a key of nested mappings, or of nested sections; None if nothing does."""
    for part in key:
        values = values.get(part) if isinstance(values, Mapping) else getattr(values, part, None)
    return values


def shown(value: object) -> str:
    """A value as YAML would have it on one line, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return shortened(text)
