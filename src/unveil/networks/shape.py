"""Numbers that follow from a network's settings: for the rules of the parameters and for those who build it."""

from typing import Any


class Shape:
    """What follows from ``stem``, ``channels`` and ``channel_multipliers`` of the settings that inherit from this."""

    @property
    def downsampling(self: Any) -> int:
        """Image pixels along one side of a pixel of the network's smallest feature map."""
        return int(self.stem * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def widths(self: Any) -> tuple[int, ...]:
        """Channels of each resolution, from the highest resolution to the lowest."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    def resolutions(self: Any, image_size: int) -> tuple[int, ...]:
        """Side lengths of the feature maps inside the network, from the highest to the lowest."""
        return tuple(image_size // self.stem // 2**level for level in range(len(self.channel_multipliers)))

    @property
    def patch_channels(self: Any) -> int:
        """Channels of what enters the first convolution: those of the image times the pixels of a stem's patch."""
        return int(self.image_channels * self.stem**2)
