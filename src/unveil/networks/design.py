"""From a configuration to its network."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unveil.networks.config import UNetConfig
from unveil.networks.plain import PlainUNet
from unveil.networks.unet import UNet


def build_network(config: UNetConfig) -> UNet | PlainUNet:
    """The network that ``config`` describes, with fresh weights. Raises ValueError if heads do not divide a width."""
    return PlainUNet(config) if config.architecture == "plain" else UNet(config)


def misfit(config: UNetConfig, weights: Mapping[str, Tensor]) -> str | None:
    """What of some weights has another shape than ``config`` says, in one line; None if nothing has.

    The network is built without its values, so this takes no memory; ``weights`` may be without theirs, too.

    Raises:
        ValueError: if ``config`` describes no network.
    """
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in build_network(config).state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
    if not wrong:
        return None
    name, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{name}: found {found.get(name, 'none')}, expected {expected.get(name, 'none')}{more}"
