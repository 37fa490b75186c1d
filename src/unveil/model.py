"""A trained model on disk, ``config.json`` and ``model.safetensors``, and how it becomes a denoiser.

Beside it may lie other averages of its weights, see :mod:`unveil.averages`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import nn

from unveil.averages import FOLDER, Averages
from unveil.diffusion.config import Diffusion
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.design import build_denoiser, denoiser_values
from unveil.errors import UnveilError
from unveil.files import file_digest, read_json, write_json
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network, misfit
from unveil.section import NO_OTHERS
from unveil.tensors import load_shapes, load_tensors, save_tensors
from unveil.weights import WeightsChoice

FORMAT: Literal[1] = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
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
        diffusion: path, parameterization and objective.
        data: source, protocol, image_size and the digest of the shards.
        training: how the weights came about: images, batch_size, lr, the averages' half-life, precision, ...
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
            "network": self.network.read_values(),
            "diffusion": self.diffusion.read_values(),
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

    def check_diffusion(self, wanted: Diffusion, folder: Path) -> None:
        """Refuse a model whose denoiser is another than ``train.diffusion`` says, by which grids were checked.

        Only the values that the model's path and parameterization read count.

        Raises:
            UnveilError: that names those that differ.
        """
        is_so = denoiser_values(self.diffusion)
        if wrong := [name for name, value in is_so.items() if getattr(wanted, name) != value]:
            found = ", ".join(f"train.diffusion.{name} {getattr(wanted, name)}" for name in wrong)
            expected = ", ".join(f"{name} {is_so[name]}" for name in wrong)
            raise UnveilError(
                f"params.yaml: found {found}, expected {expected}, as {folder / CONFIG_FILE} says of the model; "
                "write that, or train again"
            )

    def facts(self, folder: Path, choice: WeightsChoice) -> dict[str, Any]:
        """What samples say of their model: its data, the digests of its weights, and all else of ``config.json``."""
        weights = folder / WEIGHTS_FILE
        averages = {} if choice.kind == "ema" else {"averages": Averages.beside(weights).digest()}
        config = {key: value for key, value in self.to_dict().items() if key not in ("format", "data")}
        return {**self.data, "model": file_digest(weights), "weights": str(choice), **averages, "config": config}


def save_model(folder: Path, network: nn.Module, config: ModelConfig) -> None:
    """Write ``model.safetensors`` (the network's weights) and ``config.json``."""
    save_tensors(folder / WEIGHTS_FILE, network.state_dict())
    write_json(folder / CONFIG_FILE, config.to_dict())


def load_denoiser(
    folder: Path, device: torch.device | str = "cpu", weights: WeightsChoice = WeightsChoice()
) -> Denoiser:
    """Rebuild a trained denoiser, in evaluation mode, with the weights in ``folder``.

    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> small = UNetConfig(image_size=8, channels=32, channel_multipliers=(1,), blocks=1, attention_resolutions=())
    >>> flow = Diffusion(path="flow", parameterization="x0", objective="flow")
    >>> config = ModelConfig(small, flow, {"source": "cartoon"}, {"images": 0})
    >>> save_model(folder, config.build().network, config)
    >>> denoiser = load_denoiser(folder)
    >>> denoiser(torch.randn(2, 3, 8, 8), sigma=torch.tensor([0.5, 3.0])).shape
    torch.Size([2, 3, 8, 8])

    Another average of the weights than the model's own is in ``averages``, or made from what is there.

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
        average = Averages.beside(path).read(weights)
        wanted = {name: parameter.shape for name, parameter in denoiser.network.named_parameters()}
        if any(name not in average or average[name].shape != shape for name, shape in wanted.items()):
            raise UnveilError(f"{folder / FOLDER}: averages of another network than {CONFIG_FILE} says; train again")
        denoiser.network.load_state_dict(average, strict=False)  # buffers are not averaged
    return denoiser.to(device).eval().requires_grad_(False)
