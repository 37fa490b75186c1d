"""Averages of the weights beside the model's own, on disk: ``models/averages/``.

| file | what it holds |
| --- | --- |
| ``index.json`` | what there is, with a sha256 a file |
| ``half-life-10000.safetensors`` | the weights averaged with that half-life, as ``model.safetensors`` names them |
| ``snapshot-000000070000.safetensors`` | the power-function averages after so many images, fp16 as EDM2 has them |

From the snapshots the average of any other profile is made: see :mod:`unveil.posthoc`.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unveil.errors import UnveilError
from unveil.files import atomic_directory, file_digest, parse_json, read_json, regular, write_json
from unveil.posthoc import (
    STEEPEST_RAMP,
    ExponentialProfile,
    PowerProfile,
    Reconstruction,
    exponent,
    reconstruct,
)
from unveil.section import (
    GREATEST_DEVIATION,
    LEAST_DEVIATION,
    NO_OTHERS,
    FileName,
    Images,
    NonNegative,
    RelativeDeviation,
    Sha256,
    Share,
)
from unveil.tensors import load_tensors, open_tensors, save_tensors
from unveil.weights import WeightsChoice

FORMAT: Literal[1] = 1
FOLDER = "averages"  # within the model's
INDEX_FILE = "index.json"
LARGEST_ERROR = 0.1  # of a reconstruction
# In the same unit: rounding to fp16 errs by 2e-4 of the weights, an error of the profile by as much of what they moved
# while they were averaged, taken as a tenth of them.
ROUNDING = 2e-3
SCAN = 40  # deviations, evenly spaced in the logarithm, among which the range that can be reconstructed ends
BISECTIONS = 4  # of the step in which it ends
MEND = "run `dvc checkout --force`, or train again"


@dataclass(frozen=True)
class Snapshot:
    """A file of power-function averages: which weights they averaged, and the bytes that it should have."""

    __pydantic_config__ = NO_OTHERS
    images: Images
    file: FileName
    sha256: Sha256


@dataclass(frozen=True)
class HalfLife:
    """A file of exponentially averaged weights."""

    __pydantic_config__ = NO_OTHERS
    half_life_images: Images
    file: FileName
    sha256: Sha256

    @property
    def choice(self) -> WeightsChoice:
        """What it is called."""
        return WeightsChoice("half-life", self.half_life_images)


@dataclass(frozen=True)
class _Profile:
    __pydantic_config__ = NO_OTHERS
    sigma_rel: RelativeDeviation
    gamma: NonNegative


@dataclass(frozen=True)
class _Index:
    """The layout of ``index.json``. Raises ValueError for snapshots that cannot be of one training."""

    __pydantic_config__ = NO_OTHERS
    format: Literal[1]
    images: Images
    ema_rampup: Share
    half_lives: tuple[HalfLife, ...]
    profiles: tuple[_Profile, ...]
    snapshots: tuple[Snapshot, ...]
    model: Sha256 | None = None

    def __post_init__(self) -> None:
        times = [0, *(snapshot.images for snapshot in self.snapshots)]
        if times != sorted(set(times)) or times[-1] > self.images:
            raise ValueError(f"expected snapshots at rising numbers of images, from 1 to {self.images}")
        profiles = {profile.sigma_rel for profile in self.profiles}
        if len(profiles) != len(self.profiles) or (self.snapshots and not profiles):
            raise ValueError("expected different profiles, and some where there are snapshots")


@dataclass(frozen=True)
class _SnapshotFacts:
    """The metadata of a snapshot."""

    images: Images
    profiles: tuple[_Profile, ...]


@dataclass(frozen=True)
class Averages(_Index):
    """What ``index.json`` in ``folder`` says.

    Attributes:
        images: that training saw.
        ema_rampup: largest share of the images seen that a half-life had.
        half_lives: stored exponential averages.
        profiles: in every snapshot.
        snapshots: the earliest first; the last is of the end of training.
        model: sha256 of the ``model.safetensors`` that they were kept beside; None if that is not known.
        folder: where it lies.
    """

    folder: Path = field(kw_only=True)

    @classmethod
    def load(cls, folder: Path) -> "Averages":
        """Read ``index.json``.

        Raises:
            UnveilError: if it is missing, damaged or of another format.
        """
        return cls(**vars(read_json(folder / INDEX_FILE, _Index, MEND)), folder=folder)

    @classmethod
    def beside(cls, weights: Path) -> "Averages":
        """Those of the model whose ``model.safetensors`` is at ``weights``; none if it has no folder of them.

        Raises:
            UnveilError: if the index is damaged, or says that they are of another model.
        """
        folder = weights.parent / FOLDER
        if not folder.exists():
            return cls(FORMAT, 0, 0.0, (), (), (), folder=folder)
        found = cls.load(folder)
        if found.model is not None and found.model != (digest := file_digest(weights)):
            raise UnveilError(
                f"{folder / INDEX_FILE}: averages of a model with sha256 {found.model[:12]}, but {weights} has "
                f"{digest[:12]}; run `dvc checkout` for those of one training, or train again"
            )
        return found

    def digest(self) -> str:
        """sha256 of the index, and so of everything; empty if there is none."""
        path = self.folder / INDEX_FILE
        return file_digest(path) if path.exists() else ""

    def choices(self) -> list[WeightsChoice]:
        """What was stored: the half-lives, and the profiles, which each is its own reconstruction."""
        powers = (WeightsChoice("power", profile.sigma_rel) for profile in self.profiles)
        return [*(entry.choice for entry in self.half_lives), *powers]

    def read(self, choice: WeightsChoice) -> dict[str, Tensor]:
        """The averaged weights by name, float32: those stored of a half-life, or reconstructed ones (parameters only).

        Raises:
            UnveilError: if there are none, they cannot be reconstructed, or a file is missing or damaged.
            ValueError: for ``ema``, which lies in ``model.safetensors``.
        """
        if choice.kind == "ema":
            raise ValueError("found ema, expected half-life:N, power:S or snapshot:N")
        if stored := next((entry for entry in self.half_lives if choice == entry.choice), None):
            return load_tensors(self._whole(stored), MEND)
        if choice.kind == "snapshot":
            return self._snapshot(choice)
        return self._combine(self.reconstruction(choice).coefficients)

    def _snapshot(self, choice: WeightsChoice) -> dict[str, Tensor]:
        if (stored := next((each for each in self.snapshots if each.images == choice.value), None)) is None:
            there = ", ".join(str(snapshot.images) for snapshot in self.snapshots) or "none"
            raise UnveilError(f"{self.folder}: found snapshots {there}, expected {choice}; choose one of them")
        prefix = _prefix(min(profile.sigma_rel for profile in self.profiles))
        tensors = load_tensors(self._whole(stored), MEND)
        return {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}

    def reconstruction(self, choice: WeightsChoice) -> Reconstruction:
        """How the snapshots make an average at the end of training.

        Raises:
            UnveilError: if there are no snapshots, or none of the sums of their profiles comes close enough.
        """
        if not self.snapshots:
            raise UnveilError(
                f"{self.folder}: found {self._stored()}, expected {choice} or snapshots to make it from; train with "
                f"train.ema_{'more_half_lives' if choice.kind == 'half-life' else 'profiles'}, or choose another"
            )
        found = self._reconstruction(choice)
        if not found.error <= LARGEST_ERROR:  # nor is it where it is not a number
            least, greatest = self.deviations()
            raise UnveilError(
                f"{self.folder}: {choice} can be reconstructed from these {len(self.snapshots)} snapshots only with an "
                f"error of {found.error:.0%}, expected {LARGEST_ERROR:.0%} at most, as power:{least:.3g} to "
                f"power:{greatest:.3g} have; choose one of these, or train with more snapshots or other ema_profiles"
            )
        return found

    def deviations(self) -> tuple[float, float]:
        """The least and the greatest relative standard deviation that can be reconstructed without a gap between.

        Of ranges with gaps between them, the one that holds the smallest stored profile.
        """
        ratio = (GREATEST_DEVIATION / LEAST_DEVIATION) ** (1 / SCAN)
        return self._last_reached(1 / ratio, LEAST_DEVIATION), self._last_reached(ratio, GREATEST_DEVIATION)

    def _last_reached(self, ratio: float, bound: float) -> float:
        """The last deviation before the first that cannot be reconstructed, in steps of ``ratio`` up to ``bound``."""
        value, nearer = min(profile.sigma_rel for profile in self.profiles), max if ratio < 1 else min
        while value != bound and self._reaches(beyond := nearer(value * ratio, bound)):
            value = beyond
        if value == bound:
            return value
        for _ in range(BISECTIONS):
            if self._reaches(middle := (value * beyond) ** 0.5):
                value = middle
            else:
                beyond = middle
        return value

    def _reaches(self, sigma_rel: float) -> bool:
        return self._reconstruction(WeightsChoice("power", sigma_rel)).error <= LARGEST_ERROR

    def _reconstruction(self, choice: WeightsChoice) -> Reconstruction:
        target: PowerProfile | ExponentialProfile
        if choice.kind == "power":
            target = PowerProfile.of(choice.value, self.images)
        elif 0 < self.ema_rampup <= STEEPEST_RAMP:
            target = ExponentialProfile(self.images, choice.value, self.ema_rampup)
        else:
            raise UnveilError(
                f"{self.folder}: found {self._stored()} and train.ema_rampup {self.ema_rampup:g}, expected {choice}, "
                f"or a ramp in (0, {STEEPEST_RAMP}] to reconstruct it with; choose another"
            )
        deviations = [profile.sigma_rel for profile in self.profiles]
        stored = [PowerProfile.of(value, snapshot.images) for snapshot in self.snapshots for value in deviations]
        return reconstruct(target, stored, ROUNDING)

    def _stored(self) -> str:
        return ", ".join(map(str, self.choices())) or "no averages"

    def _combine(self, coefficients: Sequence[float]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        remaining = iter(coefficients)
        for snapshot in self.snapshots:
            with open_tensors(self._whole(snapshot), MEND) as file:
                for profile in self.profiles:
                    coefficient, prefix = next(remaining), _prefix(profile.sigma_rel)
                    for name in (key for key in file.keys() if key.startswith(prefix)):  # noqa: SIM118, no mapping
                        tensor, parameter = file.get_tensor(name).float(), name.removeprefix(prefix)
                        before = total.get(parameter, torch.zeros_like(tensor))
                        total[parameter] = before.add_(tensor, alpha=coefficient)
        return total

    def _whole(self, entry: Snapshot | HalfLife) -> Path:
        """The path of a file whose bytes are those that the index has."""
        path = self.folder / entry.file
        try:
            whole = file_digest(path) == entry.sha256
        except FileNotFoundError:
            raise UnveilError(f"{path}: not there, expected what {INDEX_FILE} names; {MEND}") from None
        if not whole:
            raise UnveilError(f"{path}: damaged, its sha256 is not that of {INDEX_FILE}; {MEND}")
        return path


def save_snapshot(path: Path, images: int, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Write averages of one moment of training, by relative standard deviation and parameter, as fp16."""
    tensors = {
        f"{_prefix(sigma_rel)}{name}": tensor.to("cpu", torch.float16)
        for sigma_rel, named in averages.items()
        for name, tensor in named.items()
    }
    # One key: safetensors writes several in random order, and equal averages must be equal bytes.
    facts = json.dumps(asdict(_SnapshotFacts(images, _profiles(averages))))
    save_tensors(path, tensors, {"facts": facts})


def write_averages(
    folder: Path,
    images: int,
    ema_rampup: float,
    half_lives: Iterable[tuple[int, Mapping[str, Tensor]]],
    profiles: Sequence[float],
    snapshots: Sequence[Path],
    model: str | None = None,
) -> Averages:
    """Write the whole folder, or leave what was there.

    Args:
        folder: ``models/averages``.
        images: images that training saw.
        ema_rampup: of the half-lives, see :class:`unveil.training.ema.EMA`.
        half_lives: with the network's state of each; may be made one at a time.
        profiles: relative standard deviations in the snapshots.
        snapshots: files that ``save_snapshot`` wrote, the earliest first; copied.
        model: sha256 of the ``model.safetensors`` beside the folder.

    Raises:
        UnveilError: if a snapshot is damaged or of other profiles.
    """
    with atomic_directory(folder) as temporary:
        entries = []
        for half_life, state in half_lives:
            path = temporary / f"half-life-{half_life}.safetensors"
            save_tensors(path, state)
            entries.append(HalfLife(half_life, path.name, file_digest(path)))
        copies = []
        for snapshot in snapshots:
            path = Path(shutil.copyfile(regular(snapshot), temporary / snapshot.name))
            copies.append(Snapshot(_images(snapshot, profiles), path.name, file_digest(path)))
        index = _Index(FORMAT, images, ema_rampup, tuple(entries), _profiles(profiles), tuple(copies), model)
        write_json(temporary / INDEX_FILE, asdict(index))
    return Averages.load(folder)


def _images(snapshot: Path, profiles: Sequence[float]) -> int:
    """Images of a snapshot, which must hold these profiles."""
    mend = "remove its folder and train again"
    with open_tensors(snapshot, mend) as file:
        text = (file.metadata() or {}).get("facts", "")
    facts = parse_json(text, _SnapshotFacts, f"{snapshot}: metadata", mend)
    if (found := [profile.sigma_rel for profile in facts.profiles]) != list(profiles):
        raise UnveilError(f"{snapshot}: found profiles {found}, expected {list(profiles)}; remove it and train again")
    return facts.images


def _profiles(deviations: Iterable[float]) -> tuple[_Profile, ...]:
    return tuple(_Profile(sigma_rel, exponent(sigma_rel)) for sigma_rel in deviations)


def _prefix(sigma_rel: float) -> str:
    return f"{WeightsChoice('power', sigma_rel)}/"
