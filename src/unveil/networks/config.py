"""What determines a network."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from unveil import ranges


@dataclass(frozen=True)
class UNetConfig:
    """All that determines a U-Net. The ranges hold for what is read from a file.

    Attributes:
        image_size: height and width of the images in pixels.
        channels: width at the highest resolution.
        channel_multipliers: width of each resolution in units of ``channels``; one halving between neighbours.
        blocks: residual blocks a resolution on the way down (one more on the way up).
        attention_resolutions: side lengths, inside the network, that get attention after every block.
        attention_head_channels: channels a head; 0 = one head.
        attention_heads: heads at every width; 0 = as ``attention_head_channels`` says.
        dropout: inside the residual blocks.
        stem: side p of the p x p space-to-depth stem, which trades resolution for channels; 1 = none.
        refinement_channels: width of the :class:`unveil.networks.blocks.Refinement` at full resolution;
            0 = none.
        image_channels: 3 for RGB.
        middle_attention: whether the middle, at the lowest resolution, attends.
        noise_conditioning: which blocks are told the noise level: all, those of the middle, or none.
        architecture: ``residual`` is the U-Net of diffusion; ``plain`` is Ronneberger's (1505.04597), which of all
            other values takes only ``channels``, ``channel_multipliers``, ``stem``, ``noise_conditioning`` and
            ``noise_embedding``.
        decoder_attention: on the way up, attention after ``all`` blocks of a resolution or after its ``last``.
        noise_embedding: see :class:`unveil.networks.embedding.NoiseEmbedding`.
        scale_shift_norm: the embedding scales and shifts a norm's output instead of being added before it.
        resampling: ``conv`` is DDPM's, padded at the right and bottom, ``conv-symmetric`` padded on all sides;
            ``residual`` is a residual block that resamples, ``residual-project`` has a convolution around it too.
        resampling_filter: of residual resampling and progressive input: ``box`` [1, 1] or ``binomial`` [1, 3, 3, 1].
        progressive_input: at every lower resolution the image, convolved and halved, is added to the features.
        skip_rescale: every sum of two branches is divided by sqrt 2.
        norm_groups: of group normalisation, where two channels a group do not make fewer.
        norm_eps: added to the variance.
        augment_labels: numbers that tell how an image was augmented, beside the noise level; 0 = it is not told.
    """

    __pydantic_config__ = ranges.NO_OTHERS
    image_size: ranges.Side
    channels: ranges.Width
    channel_multipliers: ranges.Multipliers
    blocks: ranges.Blocks
    attention_resolutions: tuple[ranges.Count, ...]
    attention_head_channels: ranges.Amount = 0
    dropout: ranges.HalfOpenShare = 0.0
    stem: ranges.Stem = 1
    image_channels: Annotated[int, Ge(1), Le(16)] = 3
    middle_attention: bool = True
    noise_conditioning: Literal["all", "bottleneck", "none"] = "all"
    architecture: Literal["residual", "plain"] = "residual"
    decoder_attention: Literal["all", "last"] = "all"
    noise_embedding: Literal["ddpm", "adm", "fourier"] = "ddpm"
    scale_shift_norm: bool = False
    resampling: Literal["conv", "conv-symmetric", "residual", "residual-project"] = "conv"
    resampling_filter: Literal["box", "binomial"] = "box"
    progressive_input: bool = False
    skip_rescale: bool = False
    norm_groups: ranges.Count = 32
    norm_eps: ranges.NormEps = 1e-6
    refinement_channels: ranges.RefinementChannels = 0
    augment_labels: Annotated[int, Ge(0), Le(256)] = 0
    attention_heads: ranges.Amount = 0

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "attention_resolutions"):  # lists come in from JSON and YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def downsampling(self) -> int:
        """Image pixels along one side of the network's smallest feature map's pixel."""
        return int(self.stem * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, from the highest resolution to the lowest."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def patch_channels(self) -> int:
        """Channels of what enters the first convolution: those of the image times the pixels of a stem's patch."""
        return self.image_channels * self.stem**2

    def check(self) -> None:
        """Raise ValueError if sizes do not divide, or labels have no noise embedding to be added to."""
        if self.augment_labels and self.noise_conditioning == "none":
            raise ValueError(f"augment_labels is {self.augment_labels} with noise_conditioning none, expected 0")
        if self.image_size % self.downsampling:
            raise ValueError(f"image_size {self.image_size} is not divisible by the downsampling {self.downsampling}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
