"""Models and scratch checkpoints on disk: safetensors and JSON, never pickle."""

import hashlib
import json
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.design import DiffusionConfig, build_denoiser
from unveil.errors import UnveilError
from unveil.files import atomic_directory, atomic_path, file_digest, write_json
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.training.averages import FOLDER, Averages, save_snapshot
from unveil.training.choices import WeightsChoice

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
LONGEST_REASON = 200  # characters of a library's own message that ours repeats
STATE_FILE = "state.safetensors"
FACTS_FILE = "state.json"
RUN_FILE = "run.json"
SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to rebuild a denoiser, and what it was trained on.

    Attributes:
        network: of the U-Net.
        diffusion: path, parameterization and objective.
        data: source, protocol, image_size and the digest of the shards.
        training: how the weights came about: images, batch_size, lr, the averages' half-life, precision, ...
    """

    network: UNetConfig
    diffusion: DiffusionConfig
    data: Mapping[str, Any]
    training: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": FORMAT,
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
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise UnveilError(f"{path}: format is {values['format']!r}, expected {FORMAT}; train again")
            return cls(
                UNetConfig(**values["network"]),
                DiffusionConfig(**values["diffusion"]),
                values["data"],
                values["training"],
            )
        except FileNotFoundError:
            raise UnveilError(f"{path}: not there, expected a trained model's; run the train stage") from None
        except (ValueError, TypeError, KeyError) as error:
            raise UnveilError(f"{path}: not a model's configuration ({error}); run the train stage again") from None

    def build(self) -> Denoiser:
        """The denoiser with fresh weights."""
        return build_denoiser(build_network(self.network), self.diffusion)


def save_model(folder: Path, network: nn.Module, config: ModelConfig) -> None:
    """Write ``model.safetensors`` (the network's weights) and ``config.json``."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(weights, temporary)
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
    try:
        denoiser = config.build()
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise UnveilError(
            f"{folder / CONFIG_FILE}: describes a model that cannot be built ({_reason(error)}); train again"
        ) from None
    path = folder / WEIGHTS_FILE
    try:
        denoiser.network.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UnveilError(f"{path}: not there, expected a trained model's weights; run the train stage") from None
    except SafetensorError as error:
        raise UnveilError(f"{path}: damaged ({error}); run the train stage again") from None
    except RuntimeError as error:
        raise UnveilError(f"{path}: does not fit {CONFIG_FILE}: {_reason(error)}; run the train stage again") from None
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
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / STATE_FILE)
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
                return load_file(path / STATE_FILE), facts
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
            run_id = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))["run_id"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return run_id if isinstance(run_id, str) else None

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
                facts = json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))
                whole = isinstance(facts["step"], int) and file_digest(path / STATE_FILE) == facts["sha256"]
                for name, digest in facts.get("snapshots", {}).items():
                    whole = whole and file_digest(self.folder / SNAPSHOTS / name) == digest
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if whole:
                yield path, facts


def _reason(error: Exception) -> str:
    """What a library's error says, in one line: PyTorch heads a list of several with a line that says nothing."""
    lines = str(error).splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[min(1, len(lines) - 1)].strip(), LONGEST_REASON, placeholder=" ...")
