"""From a configuration to its network."""

from unveil.networks.config import UNetConfig
from unveil.networks.plain import PlainUNet
from unveil.networks.unet import UNet


def build_network(config: UNetConfig) -> UNet | PlainUNet:
    """The network that ``config`` describes, with fresh weights.

    Raises:
        ValueError: if it describes none: a name that there is not, or sizes that do not divide.
    """
    if config.architecture not in ("residual", "plain"):
        raise ValueError(f"architecture is {config.architecture!r}, expected residual or plain")
    return PlainUNet(config) if config.architecture == "plain" else UNet(config)
