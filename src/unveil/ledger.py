"""Points that are kept as soon as they are measured, beside the facts that they were measured with."""

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from unveil.errors import UnveilError
from unveil.files import read_json, write_json

Point = TypeVar("Point")


class _File(BaseModel, Generic[Point]):
    model_config = ConfigDict(extra="allow")  # the facts
    points: list[Point]


class Ledger(Generic[Point]):
    """Points in a JSON file that is written anew, and atomically, at each: a kill loses no point but the one at work.

    Args:
        path: of the file, which the first point makes.
        facts: all that decides what a point is, by name, as JSON can hold it.
        kind: dataclass of a point.

    Raises:
        UnveilError: if the file is damaged, or its points were measured with other facts.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], kind: type[Point]) -> None:
        self.path, self.points = path, list[Point]()
        self._kind = TypeAdapter(list[kind])  # type: ignore[valid-type]
        self.facts: dict[str, Any] = json.loads(json.dumps(facts))
        if not path.exists():
            return
        file = read_json(path, _File[kind], "remove it, and run again")  # type: ignore[valid-type]
        self.points, found = file.points, file.model_extra or {}
        pairs = {key: (found.get(key), self.facts.get(key)) for key in sorted(found.keys() | self.facts)}
        if other := [f"{key} ({short(old)}, now {short(new)})" for key, (old, new) in pairs.items() if old != new]:
            raise UnveilError(f"{path}: measured with another {', '.join(other)}; choose another --out, or remove it")

    def save(self) -> None:
        """Write the file: before the first point, where other things of these facts are kept beside it."""
        write_json(self.path, {**self.facts, "points": self._kind.dump_python(self.points, mode="json")})

    def add(self, point: Point) -> None:
        """Keep one more."""
        self.points.append(point)
        self.save()
