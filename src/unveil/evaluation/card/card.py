"""The evaluation card: one document that holds a number and everything that made it.

It is written as JSON, which programs compare, and as Markdown, which people read; the second is made of the first.
Equal inputs give equal bytes, except for the sections ``environment`` and ``cost``. This module needs no PyTorch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, model_validator

from unveil.evaluation.card.published import FID, PublishedValue, comparable, why_not_comparable
from unveil.evaluation.metrics.guidance import AtScale
from unveil.evaluation.metrics.metric import Metric
from unveil.files import parse_json, read_json, write_text
from unveil.section import Count

FORMAT: Literal[2] = 2
MEND = "give the card.json of an evaluation, or make it anew by `dvc repro evaluate`"


class _Part(BaseModel):
    """A part of the card: nothing unknown stands in it, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AtSize(_Part):
    """A distance at a number of samples."""

    images: Count
    distance: FiniteFloat


class BySize(_Part):
    """How a distance falls with the number of samples, and where it would end (1911.07023)."""

    metric: str
    points: tuple[AtSize, ...]
    extrapolation: FiniteFloat | None = None


class Memorization(_Part):
    """Whether the model repeats its training images, or itself: in words, and the numbers behind them."""

    sentences: tuple[str, ...]
    numbers: dict[str, int | FiniteFloat] = {}


class Split(_Part):
    """A split that images were taken from, how many it has, and how many were taken."""

    name: str
    images: Count
    taken: Count

    @property
    def share(self) -> str:
        """How many were taken, in words: ``all 40`` or ``24 of 40``."""
        return f"all {self.images:,}" if self.taken == self.images else f"{self.taken:,} of {self.images:,}"


class DataChoices(_Part):
    """The real images. What is stated beyond these names is kept and compared as well."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    source: str  # where they are from: celeba, cartoon, folder
    protocol: str  # crop and resize, a key of PROTOCOLS
    image_size: Count  # side in pixels
    reference: Split  # what the samples are compared with
    held_out: Split  # what the floor is measured on
    shards: str  # sha256 of all shards together
    shard_hashes: dict[str, str] = {}  # sha256 of each, by its file name


class FeatureChoices(_Part):
    """The feature network of the distances. What is stated beyond these names is kept and compared as well."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    extractor: str  # its name in params.yaml
    layer: str
    dimension: Count
    preprocessing: str  # from uint8 pixels to its input, in words
    weights_file: str
    weights_sha256: str
    device: str  # that computed the features
    dtype: str  # of the arithmetic


class Choices(_Part):
    """Everything that made the numbers, so that two cards that differ can say in what.

    What names a run and is none of its inputs (a DVC experiment) belongs to ``environment``.
    """

    data: DataChoices
    features: dict[str, FeatureChoices]  # by the network's name
    model: dict[str, JsonValue] = {}  # weights_sha256, parameters, ema, network, diffusion, training ...
    sampling: dict[str, JsonValue] = {}  # sampler, grid, steps, nfe, guidance, seed, precision, threshold ...
    evaluation: dict[str, JsonValue] = {}  # seed, kid_subsets, neighbours, controls (name to words) ...
    code: dict[str, JsonValue] = {}  # commit


class Published(_Part):
    """The published values of the same measurement, or why there are none."""

    values: tuple[PublishedValue, ...] = ()
    why_not: str | None = None


class Card(_Part):
    """An evaluation, whole. ``environment`` and ``cost`` are not compared."""

    format: Literal[2] = FORMAT  # of this document
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]  # the first is the one that the card is about
    by_size: tuple[BySize, ...] = ()  # distances at several N
    by_guidance: tuple[AtScale, ...] = ()  # what each scale of guidance gives and takes
    memorization: Memorization | None = None  # None if it was not looked for
    lossy: tuple[str, ...] = ()  # what was lost before the samples came here (JPEG), one sentence each
    notes: tuple[str, ...] = ()  # warnings, one sentence each
    published: Published
    choices: Choices
    environment: dict[str, JsonValue] = {}  # versions and hardware
    cost: dict[str, JsonValue] = {}  # seconds of training, sampling and evaluation, images per second ..., where known

    @model_validator(mode="after")
    def _each_metric_once(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"a metric stands twice among {', '.join(names)}")
        for metric in self.metrics:
            if metric.features is not None and metric.features not in self.choices.features:
                raise ValueError(f"{metric.name} is on features {metric.features!r}, of which the choices say nothing")
        return self

    @classmethod
    def of(cls, metrics: Sequence[Metric], choices: Mapping[str, Any], **others: Any) -> Self:
        """The card of these facts, with the published values that they may stand beside.

        Args:
            metrics: the one that the card is about first.
            choices: nested mapping, as ``Choices`` has it; tuples become lists.
            others: more attributes of the card, as plain values or parts.

        Raises:
            ValueError: for facts that are not whole, of another type, or not finite.
        """
        document = {"metrics": metrics, "choices": choices, "published": {}, **others}
        text = json.dumps(document, allow_nan=False, default=lambda part: part.model_dump())
        found = cls.model_validate_json(text, strict=True)
        published = Published(values=comparable(found), why_not=why_not_comparable(found))
        return found.model_copy(update={"published": published})

    @property
    def headline(self) -> Metric:
        """The metric that the card is about."""
        return self.metrics[0]

    def metric(self, name: str) -> Metric | None:
        """The metric of this name, if the card has it."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    @property
    def comparable(self) -> Metric:
        """The metric that published values may stand beside: the FID, or the headline of a card without one."""
        return self.metric(FID) or self.headline

    def to_json(self) -> str:
        """The document: JSON of a fixed layout, so that equal cards have equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the document atomically."""
        write_text(path, self.to_json())


def read_card(path: Path) -> Card:
    """The card in a file. Raises UnveilError for one that is missing, damaged, of another format, or no card."""
    return read_json(path, Card, MEND)


def parse_card(text: str | bytes, name: str) -> Card:
    """The card in a text; ``name`` is what an error calls it. Raises UnveilError as ``read_card`` does."""
    return parse_json(text, Card, name, MEND)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping has none."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def aligned(rows: Iterable[Sequence[str]], right: bool = False) -> list[str]:
    """A line of each row, with its cells below those of the others; ``right``: all but the first flush right."""
    columns = list(zip(*rows, strict=True))
    for place, cells in enumerate(columns):
        width = max(map(len, cells))
        columns[place] = tuple(cell.rjust(width) if right and place else cell.ljust(width) for cell in cells)
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
