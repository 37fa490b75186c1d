"""Numbers that follow from a network's settings: for the rules of the parameters and for those who build it."""

from typing import Protocol


class Sized(Protocol):
    """The settings that decide the sizes; see :class:`unveil.networks.config.Network`."""

    @property
    def stem(self) -> int:
        """Side of the space-to-depth stem."""

    @property
    def channels(self) -> int:
        """Width at the highest resolution."""

    @property
    def channel_multipliers(self) -> tuple[int, ...]:
        """Width of each resolution, in units of channels."""


class Shape:
    """What follows from the settings of a network, which inherits from this."""

    @property
    def downsampling(self: Sized) -> int:
        """Image pixels along one side of a pixel of the network's smallest feature map."""
        return int(self.stem * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def widths(self: Sized) -> tuple[int, ...]:
        """Channels of each resolution, from the highest resolution to the lowest."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    def resolutions(self: Sized, image_size: int) -> tuple[int, ...]:
        """Side lengths of the feature maps inside the network, from the highest to the lowest."""
        return tuple(image_size // self.stem // 2**level for level in range(len(self.channel_multipliers)))
