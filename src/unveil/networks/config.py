"""What the user says of the network, and what the data add to it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len

from unveil.networks.shape import Shape
from unveil.section import LISTED, Amount, Count, HalfOpenShare, Key, Problem, Section, Side

NORM_GROUPS = 32  # every width must be a multiple
# What architecture plain is without, by the key that asks for it: the value that does not ask, and the part's name.
# The numbers of parts that are not there (groups of a norm, channels of a head) ask for nothing.
PLAIN_LACKS: dict[str, tuple[object, str]] = {
    "blocks": (1, "residual blocks: two convolutions a resolution are all"),
    "attention_resolutions": ((), "attention"),
    "middle_attention": (False, "attention"),
    "dropout": (0.0, "dropout"),
    "scale_shift_norm": (False, "normalisation"),
    "resampling": ("conv", "residual blocks"),
    "progressive_input": (False, "progressive input"),
    "skip_rescale": (False, "sums of two branches"),
    "refinement_channels": (0, "refinement"),
}


class Network(Section, Shape):
    """The U-Net. No network that fits into a machine is beyond the ranges."""

    architecture: Literal["residual", "plain"] = "residual"
    """residual (diffusion's) | plain (1505.04597; stem, channels, multipliers, noise_*; the rest off)"""
    stem: Annotated[int, Ge(1), Le(32)] = 1
    """side p of the p x p space-to-depth stem, which trades resolution for channels; 1 = none, the usual U-Net"""
    refinement_channels: Annotated[int, Ge(0), Le(256)] = 0
    """width of two last convolutions that see the pixels, behind a stem; 0 = none"""
    channels: Annotated[int, Ge(1), Le(16_384)] = 128
    """width at the highest resolution, a multiple of 32"""
    channel_multipliers: Annotated[tuple[Annotated[int, Ge(1), Le(64)], ...], LISTED, Len(1, 12)] = (1, 2, 2, 2)
    """width of each resolution, in units of channels; one halving between neighbours"""
    blocks: Annotated[int, Ge(1), Le(64)] = 2
    """residual blocks a resolution on the way down (one more on the way up)"""
    attention_resolutions: Annotated[tuple[Count, ...], LISTED] = (16,)
    """side lengths, in the network after the stem, at which attention acts"""
    attention_head_channels: Amount = 0
    """channels a head, a divisor of the width; 0 = one head"""
    attention_heads: Amount = 0
    """heads at every width where attention acts, a divisor of it, with attention_head_channels 0
    (improved DDPM, 2102.09672: 4); 0 = as that says"""
    middle_attention: bool = True
    """whether the middle of the network, at the lowest resolution, attends"""
    noise_conditioning: Literal["all", "bottleneck", "none"] = "all"
    """blocks that are told the noise level: all | bottleneck (those of the middle) | none"""
    decoder_attention: Literal["all", "last"] = "all"
    """on the way up, attention after: all blocks of a resolution | last (2011.13456)"""
    dropout: HalfOpenShare = 0.0
    """in the residual blocks"""
    noise_embedding: Literal["ddpm", "adm", "fourier"] = "ddpm"
    """waves of c_noise: ddpm | adm (their orders) | fourier (random, 2006.10739; paths edm and ve)"""
    scale_shift_norm: bool = False
    """whether the embedding scales and shifts normalised features (2105.05233) instead of being added"""
    resampling: Literal["conv", "conv-symmetric", "residual", "residual-project"] = "conv"
    """conv (DDPM, padded right and below) | conv-symmetric (2102.09672) | residual (a block that resamples, ADM)
    | residual-project (with a convolution around it, DDPM++)"""
    resampling_filter: Literal["box", "binomial"] = "box"
    """of residual resampling and progressive input: box [1, 1] | binomial [1, 3, 3, 1]"""
    progressive_input: bool = False
    """whether the halved image is added to the features of lower resolutions (2011.13456)"""
    skip_rescale: bool = False
    """whether every sum of two branches is divided by sqrt 2 (2011.13456)"""
    norm_groups: Count = 32
    """of group normalisation, a divisor of channels (two channels a group at least)"""
    norm_eps: Annotated[float, Gt(0), Le(1e-2)] = 1e-6
    """added to the variance there (DDPM 1e-6, ADM 1e-5)"""

    def problems(self) -> Iterator[Problem]:
        """Widths that the norm cannot divide, and what architecture plain is without."""
        if self.channels % NORM_GROUPS:
            yield Problem("channels", f"a multiple of {NORM_GROUPS}")
        if self.architecture == "plain":
            for key, (neutral, missing) in PLAIN_LACKS.items():
                shown = "[]" if neutral == () else str(neutral).lower()
                if getattr(self, key) != neutral:
                    yield Problem(key, f"{shown}, because architecture plain has no {missing}")
            return
        if self.channels % self.norm_groups:
            yield Problem("norm_groups", f"a divisor of train.network.channels, {self.channels}")
        if self.attention_head_channels and self.attention_heads:
            yield Problem("attention_heads", "0, or train.network.attention_head_channels 0: one decides")


class UNetConfig(Network):
    """All that determines a U-Net: what the user says, and what the data do."""

    image_size: Side
    """height and width of the images in pixels"""
    image_channels: Annotated[int, Ge(1), Le(64)] = 3
    """3 for RGB"""
    augment_labels: Annotated[int, Ge(0), Le(256)] = 0
    """numbers that tell how an image was augmented, beside the noise level; 0 = it is not told"""
    attributes: Annotated[tuple[Key, ...], LISTED] = ()
    """names of those that it is told, in the order of a condition's columns"""

    @property
    def told(self) -> tuple[int, int]:
        """How many numbers it is told of an image's augmentation, and of how many attributes."""
        return self.augment_labels, len(self.attributes)

    def unread(self) -> set[str]:
        """The attributes of a network that is told none."""
        return set() if self.attributes else {"attributes"}

    def problems(self) -> Iterator[Problem]:
        """Sizes that do not divide, and labels without a noise embedding to be added to."""
        for key, nothing in (("augment_labels", "0"), ("attributes", "[]")):
            if getattr(self, key) and self.noise_conditioning == "none":
                yield Problem(key, f"{nothing} with noise_conditioning none, not {getattr(self, key)}")
        if self.image_size % self.downsampling:
            yield Problem("image_size", f"a multiple of the downsampling {self.downsampling}, not {self.image_size}")
