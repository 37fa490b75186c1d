"""What is published of the feature networks, as networks.yaml beside this module has it."""

from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from unveil.parameter_file import package_data


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody published, and how to know it again."""

    name: str
    """Under which it is published, and cached."""
    url: str
    sha256: str
    """Hexadecimal; its first digits, where the publisher gives no more; "" where it gives none."""
    aliases: tuple[str, ...] = ()
    """Other names of the same bytes."""
    environment: str = ""
    """Variable that names this one file, "" for none."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the published one first."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class FeatureSet:
    """What a feature network gives, and what metrics on it are called."""

    extractor: str
    """In torch-fidelity's registry."""
    layer: str
    """torch-fidelity's name of the layer whose values are the features."""
    dimension: int
    suffix: str
    """Of the metrics' names, "" for Inception."""
    title: str
    preprocessing: str
    """Of the uint8 image, in words."""
    weights: PublishedFile | None = None
    """None if they come with a package."""
    logits: str | None = None
    """The layer that the Inception Score is made of, which Inception alone has."""
    name: str = ""
    """In params.yaml."""

    @property
    def layers(self) -> tuple[str, ...]:
        """What one pass gives."""
        return (self.layer,) if self.logits is None else (self.layer, self.logits)

    def metric(self, name: str) -> str:
        """What a metric, as ``precision``, is called on these features."""
        return name + self.suffix

    @property
    def frechet(self) -> str:
        """Name of the Fréchet distance, which is ``fid`` on Inception's features only."""
        return f"fd{self.suffix}" if self.suffix else "fid"


_table = TypeAdapter(dict[str, FeatureSet]).validate_python(package_data(__package__, "networks.yaml"))
FEATURE_SETS = {name: replace(features, name=name) for name, features in _table.items()}
"""The feature networks by name. Only ``inception`` gives a FID, a KID and an Inception Score."""
PUBLISHED = tuple(features.weights for features in FEATURE_SETS.values() if features.weights is not None)
