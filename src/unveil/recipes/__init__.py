"""Named parameter sets, and writing one into params.yaml.

A recipe is a YAML file in this folder with a one-line ``description`` and ``params``: what differs from the defaults
of the sections, and nothing else. params.yaml ships ``demo``. A recipe with a line ``section: train.network`` is
partial: applied, it changes that section alone, whatever the file holds otherwise. By itself it is checked within the
recipe that it names as ``over``.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError
from unveil.messages import look_up, nearest
from unveil.parameter_file import Key, package_data, parse_mapping
from unveil.params import SECTIONS, Params, check_params, read_text, render, write_params
from unveil.section import flatten

BASE = "demo"


@dataclass(frozen=True)
class Recipe:
    """A parameter set; of a partial recipe, its own values over those of another, and the section that it is of."""

    name: str
    description: str
    params: Params
    section: Key = ()

    def to_yaml(self) -> str:
        """A params.yaml with these values; of a partial recipe, with its section alone."""
        return render(self.params, self.section)


def names() -> list[str]:
    """The names of all recipes: demo, the other whole ones, the partial ones."""
    found = [entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")]
    return sorted(found, key=lambda name: (name != BASE, "section" in _read(name), name))


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe. Raises UnveilError if there is none of that name, naming the nearest."""
    if name not in (known := names()):
        match = nearest(name, known)
        hint = f"did you mean {match}?" if match else f"expected {' | '.join(known)}"
        raise UnveilError(f"recipe {name!r}: there is none of this name, {hint}")
    recipe = _read(name)
    values, section = recipe["params"], tuple(recipe["section"].split(".")) if "section" in recipe else ()
    if section:
        values = _put(values, section, load_recipe(recipe["over"]).params.model_dump())
    return Recipe(name, recipe["description"], check_params(values, f"recipe {name}", fill=True), section)


def apply_recipe(name: str, path: Path) -> tuple[list[str], Path | None]:
    """Write a params.yaml anew with a recipe's values, or with those of its section in the place of the file's own.

    A file that is not YAML or lacks a section is left as it is.

    Returns:
        The dotted keys whose value changed, and where the file before is kept if it held more than its values.

    Raises:
        UnveilError: in one line, if there is no such recipe, its values do not go with the file's others, or the file
            cannot be written.
    """
    recipe = load_recipe(name)
    text = read_text(path)
    lines, values = parse_mapping(text, str(path), SECTIONS)
    if absent := [section for section in Params.model_fields if section not in values]:
        raise UnveilError(f"{path}: found no section {absent[0]}, expected a file of parameters with {SECTIONS}")
    params, old = recipe.params, {}
    try:
        old = flatten(check_params(values, str(path), lines))
    except UnveilError:
        if recipe.section:  # which keeps the file's other values
            raise
    if recipe.section:
        params = check_params(_put(params.model_dump(), recipe.section, values), str(path), lines)
    try:
        kept = write_params(path, text, rendered) if (rendered := render(params)) != text else None
    except OSError as error:
        raise UnveilError(f"{path}: cannot be written: {error.strerror or error}") from None
    return [key for key, value in flatten(params).items() if key not in old or old[key] != value], kept


@cache
def _read(name: str) -> dict[Any, Any]:
    """What a recipe's file holds."""
    return package_data(__name__, f"{name}.yaml")


def _put(own: dict[Any, Any], section: Key, values: dict[Any, Any]) -> dict[Any, Any]:
    """The values, with the section of others in the place of their own."""
    look_up(values, section[:-1])[section[-1]] = look_up(own, section)
    return values
