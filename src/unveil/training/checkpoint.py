"""Models and scratch checkpoints on disk: safetensors and JSON, never pickle."""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict
from torch import Tensor, nn

from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.design import Diffusion, build_denoiser
from unveil.errors import UnveilError
from unveil.files import atomic_directory, file_digest, read_json, write_json
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network, misfit
from unveil.ranges import NO_OTHERS, Amount, FileName, Sha256
from unveil.tensors import load_shapes, load_tensors, save_tensors
from unveil.training.averages import FOLDER, Averages, save_snapshot
from unveil.training.choices import WeightsChoice

FORMAT: Literal[1] = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
STATE_FILE = "state.safetensors"
FACTS_FILE = "state.json"
RUN_FILE = "run.json"
SNAPSHOTS = "snapshots"
MEND = "run the train stage again"


def _of_shards(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what a sample's facts could not say."""
    if not all(type(value) in (str, int) for value in facts.values()):
        raise ValueError("expected texts and whole numbers")
    return facts


def _of_a_training(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a half-life that is no number of images."""
    half_life = facts.get("ema_half_life_images", 0)
    if type(half_life) not in (int, float) or half_life < 0:
        raise ValueError("expected a number of at least 0 as ema_half_life_images")
    return facts


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to rebuild a denoiser, and what it was trained on.

    Attributes:
        network: of the U-Net.
        diffusion: path, parameterization and objective.
        data: source, protocol, image_size and the digest of the shards.
        training: how the weights came about: images, batch_size, lr, the averages' half-life, precision, ...
        format: of config.json.
    """

    __pydantic_config__ = NO_OTHERS
    network: UNetConfig
    diffusion: Diffusion
    data: Annotated[Mapping[str, Any], AfterValidator(_of_shards)]
    training: Annotated[Mapping[str, Any], AfterValidator(_of_a_training)]
    format: Literal[1] = field(default=FORMAT, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": self.format,
            "network": self.network.to_dict(),
            "diffusion": self.diffusion.to_dict(),
            "data": dict(self.data),
            "training": dict(self.training),
        }

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read ``config.json``.

        Raises:
            UnveilError: if it is missing, damaged or of another format.
        """
        return read_json(folder / CONFIG_FILE, cls, MEND)

    def build(self) -> Denoiser:
        """The denoiser with fresh weights."""
        return build_denoiser(build_network(self.network), self.diffusion)


def save_model(folder: Path, network: nn.Module, config: ModelConfig) -> None:
    """Write ``model.safetensors`` (the network's weights) and ``config.json``."""
    save_tensors(folder / WEIGHTS_FILE, network.state_dict())
    write_json(folder / CONFIG_FILE, config.to_dict())


def load_denoiser(
    folder: Path, device: torch.device | str = "cpu", weights: WeightsChoice = WeightsChoice()
) -> Denoiser:
    """Rebuild a trained denoiser, in evaluation mode, with the weights in ``folder``.

    Args:
        folder: of the model.
        device: where to put it.
        weights: which average of them; another than the model's own is in ``averages``, or made from what is there.

    Raises:
        UnveilError: if a file is missing or damaged, the weights do not fit the configuration, or there is no such
            average.
    """
    config = ModelConfig.load(folder)
    path = folder / WEIGHTS_FILE
    try:
        wrong = misfit(config.network, load_shapes(path, MEND))  # before there is memory for the network
        if wrong is not None:
            raise UnveilError(f"{path}: does not fit {CONFIG_FILE}: {wrong}; {MEND}")
        denoiser = config.build()
    except ValueError as error:
        raise UnveilError(f"{folder / CONFIG_FILE}: describes a model that cannot be built ({error}); {MEND}") from None
    denoiser.network.load_state_dict(load_tensors(path, MEND))
    own = WeightsChoice("half-life", config.training.get("ema_half_life_images", 0))
    if weights not in (WeightsChoice(), own):
        _load_average(denoiser.network, folder, weights)
    return denoiser.to(device).eval().requires_grad_(False)


def _load_average(network: nn.Module, folder: Path, weights: WeightsChoice) -> None:
    average = Averages.beside(folder / WEIGHTS_FILE).read(weights)
    wanted = {name: parameter.shape for name, parameter in network.named_parameters()}
    if any(name not in average or average[name].shape != shape for name, shape in wanted.items()):
        raise UnveilError(f"{folder / FOLDER}: averages of another network than {CONFIG_FILE} says; train again")
    network.load_state_dict(average, strict=False)  # buffers are not averaged


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name a training run's configuration and data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def claimed_folder(root: Path, name: str) -> Iterator[Path]:
    """Yield a folder in ``root`` that no other process has within its own such block: ``name``, ``name-2``, ...

    One with checkpoints that nobody has, such as those of a run that was killed, comes first. The claim is a lock on
    an empty file beside the folder, which the system releases when a process ends, however it ends. The file stays:
    it could not be removed without another process taking a lock on a file that is gone.
    """
    root.mkdir(parents=True, exist_ok=True)
    numbered = chain([name], (f"{name}-{number}" for number in count(2)))
    left = sorted(path.parent for pattern in (name, f"{name}-*") for path in root.glob(f"{pattern}/step-*"))
    with ExitStack() as held:
        for folder in chain(dict.fromkeys(left), (root / part for part in numbered)):
            try:
                held.enter_context(FileLock(f"{folder}.lock", timeout=0))
            except Timeout:
                continue
            yield folder
            return


class _Facts(BaseModel):
    """The part of ``state.json`` by which a checkpoint is known to be whole."""

    model_config = ConfigDict(extra="allow")
    step: Amount
    sha256: Sha256
    snapshots: dict[FileName, Sha256] = {}


class Checkpoints:
    """Scratch checkpoints of one run: ``<root>/<fingerprint>/step-00000500/``; the newest few are kept.

    Beside them lie the snapshots of its power-function averages, all of them: ``snapshots/``.

    Args:
        folder: of this run.
        keep: how many to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps, whole or not at all, and remove the oldest."""
        path = self.folder / f"step-{step:08d}"
        with atomic_directory(path) as temporary:
            save_tensors(temporary / STATE_FILE, tensors)
            write_json(temporary / FACTS_FILE, {**facts, "step": step, "sha256": file_digest(temporary / STATE_FILE)})
        for old in self._paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def save_snapshot(self, images: int, averages: Mapping[float, Mapping[str, Tensor]]) -> dict[str, str]:
        """Store averages, by relative standard deviation and parameter, after ``images`` images.

        Returns:
            the file's name and sha256, which a checkpoint states as ``snapshots``: without them it is not whole.
        """
        path = self.folder / SNAPSHOTS / f"snapshot-{images:012d}.safetensors"
        save_snapshot(path, images, averages)
        return {path.name: file_digest(path)}

    def snapshots(self) -> list[Path]:
        """The stored snapshots, the earliest first."""
        return sorted((self.folder / SNAPSHOTS).glob("*.safetensors"))

    def keep_snapshots(self, names: Collection[str]) -> None:
        """Remove the snapshots that a training which goes on from a checkpoint has not made yet."""
        for path in self.snapshots():
            if path.name not in names:
                path.unlink()

    def load(self, before: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint, or None; one with a wrong hash, its own or a snapshot's, is passed over.

        Args:
            before: leave out checkpoints of this step and of later ones.
        """
        for path, facts in self._whole():
            if before is None or facts["step"] < before:
                return load_tensors(path / STATE_FILE, "remove its folder and train again"), facts
        return None

    def newest(self) -> Path | None:
        """Path of the newest whole checkpoint, or None."""
        return next((path for path, _ in self._whole()), None)

    def note(self, run_id: str | None) -> None:
        """Keep the id of the tracked run that these checkpoints belong to, also before there is one of them."""
        write_json(self.folder / RUN_FILE, {"run_id": run_id})

    def noted(self) -> str | None:
        """What ``note`` kept, or None."""
        try:
            return read_json(self.folder / RUN_FILE, dict[str, str | None], "it is written anew").get("run_id")
        except (OSError, UnveilError):
            return None

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: of a longer training, if this one begins anew or further back."""
        for path in self._paths():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all checkpoints of this run."""
        (self.folder / RUN_FILE).unlink(missing_ok=True)  # first: no later run may go on with a finished one
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _whole(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Whole checkpoints with their facts, the newest first."""
        for path in reversed(self._paths()):
            try:
                facts = read_json(path / FACTS_FILE, _Facts, "remove it", finite=False)
                whole = file_digest(path / STATE_FILE) == facts.sha256
                for name, digest in facts.snapshots.items():
                    whole = whole and file_digest(self.folder / SNAPSHOTS / name) == digest
            except (OSError, UnveilError):
                continue
            if whole:
                yield path, facts.model_dump()
