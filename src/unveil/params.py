"""The typed schema of params.yaml: one class a section, every key required, every value with its range.

``load_params`` reads the file as YAML 1.2 (so ``2e-4`` is a number and ``yes`` is text), checks each value
and then the combinations that cannot work, and says what is wrong in one line: file and line, dotted key,
what was found, what is allowed, and the nearest valid name.
"""

import difflib
import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from unveil import files, ranges
from unveil.data.celeba import PUBLISHED_SPLITS
from unveil.data.choices import Loader
from unveil.diffusion import betas
from unveil.diffusion.choices import (
    DISCRETE_PATHS,
    FULL_NOISE,
    PRESERVING_PATHS,
    UNBOUNDED_PATHS,
    FlowTimes,
    GridName,
    ObjectiveName,
    ParameterizationName,
    PathName,
    SamplerName,
    Threshold,
    Variance,
    refusal,
)
from unveil.errors import UnveilError, line_for_user, printable
from unveil.evaluation.choices import LEAST_IMAGES, ControlName, FeatureName, MetricName
from unveil.posthoc import STEEPEST_RAMP
from unveil.ranges import (
    GREATEST_DEVIATION,
    GREATEST_SIGMA,
    LEAST_DEVIATION,
    LEAST_SIGMA,
    Amount,
    Count,
    Deviation,
    HalfOpenShare,
    Mean,
    NonNegative,
    OpenShare,
    Positive,
    RelativeDeviation,
    Seed,
    Share,
    Sigma,
    SplitName,
)
from unveil.training.choices import OptimizerName, ScheduleName
from unveil.weights import WEIGHTS, WeightsChoice, parse_weights

LEAST_SPLITS = 10  # for an interval
# Of a YAML file: what is larger or deeper is none of ours, and would take minutes to read.
MOST_BYTES, MOST_NODES, MOST_DEPTH = 1 << 20, 10_000, 16
Scalar: TypeAlias = bool | int | float | str | None

NORM_GROUPS = 32  # of the network's group normalisation: every width must be a multiple
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
LEAST_HUBER_SCALE = 1e-4  # far below a level of 8 bits, and its square is a number in float32


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _no_number(value: object) -> object:
    """A literal true would take 1 too."""
    if type(value) in (int, float):
        raise ValueError(value)
    return value


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value.strip() else value


OptionalPath = Annotated[Path | None, BeforeValidator(_path)]

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Problem(NamedTuple):
    """A combination that cannot work: the key to change (dotted, within its section) and what it could be."""

    key: str
    expected: str


class Section(BaseModel):
    """A frozen, strict part of params.yaml: no unknown keys, no defaults, no bool or text as a number."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between values that are each within their own range."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        if problems := list(self.problems()):
            text = "; ".join(f"{problem.key}: expected {problem.expected}" for problem in problems)
            raise PydanticCustomError("combination", "{text}", {"text": text, "problems": problems})
        return self


class Split(Section):
    """Shares of the images."""

    train: OpenShare
    """Share that is trained on."""
    valid: OpenShare
    """Share for choosing between models."""
    test: OpenShare
    """Share that nothing is chosen by."""


class Cartoon(Section):
    """The embedded source: faces that are drawn."""

    num_faces: Annotated[int, Ge(100)]
    """Faces to draw."""
    seed: Seed
    """Another seed, other faces."""


class Celeba(Section):
    """CelebA as its authors published it."""

    path: OptionalPath
    """Folder or img_align_celeba.zip on disk; null = $CELEBA_ROOT, then the network."""
    mirror: bool
    """May fall back to a Hugging Face mirror."""


class Folder(Section):
    """Any photographs."""

    path: OptionalPath
    """Folder of images, searched recursively."""
    attributes: OptionalPath
    """CSV: first column the file name, then any of CelebA's 40 attributes."""


class Download(Section):
    """Where the images come from."""

    source: ranges.SourceName
    """Drawn here, CelebA, or any images."""
    workers: Amount
    """Processes; 0 = all cores."""
    split: Split
    """Shares of the images; CelebA brings its own split."""
    cartoon: Cartoon
    """Read if source is cartoon."""
    celeba: Celeba
    """Read if source is celeba."""
    folder: Folder
    """Read if source is folder."""

    def problems(self) -> Iterator[Problem]:
        """The shares must cover the images, and a folder must have a place."""
        total = self.split.train + self.split.valid + self.split.test
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            yield Problem("split", f"shares that sum to 1 (these sum to {total:.6g})")
        if self.source == "folder" and self.folder.path is None:
            yield Problem("folder.path", "the folder of images, because download.source is folder")


class Preprocess(Section):
    """From the archive to shards."""

    protocol: ranges.ProtocolName
    """Crop and resize."""
    image_size: Annotated[int, Ge(8), Le(1024)]
    """Height and width in pixels."""
    shard_size: Count
    """Images a shard."""
    on_corrupt: Literal["error", "skip"]
    """Stop at a corrupt image, or leave it out, counted and listed; download obeys it for own pictures."""
    workers: Amount
    """Processes that decode; 0 = all cores."""


class Network(Section):
    """The U-Net."""

    architecture: Literal["residual", "plain"]
    """The U-Net of diffusion, or Ronneberger's; plain takes stem, channels, multipliers and noise_*, the rest off."""
    stem: ranges.Stem
    """Side p of the p x p space-to-depth stem; 1 = none."""
    refinement_channels: ranges.RefinementChannels
    """Width of two last convolutions that see the pixels, behind a stem; 0 = none."""
    channels: Annotated[ranges.Width, MultipleOf(NORM_GROUPS)]
    """Width at the highest resolution, and the unit of the others."""
    channel_multipliers: Annotated[ranges.Multipliers, BeforeValidator(_listed)]
    """Width of each resolution in units of channels; one halving between neighbours."""
    blocks: ranges.Blocks
    """Residual blocks a resolution."""
    attention_resolutions: Annotated[tuple[Count, ...], BeforeValidator(_listed)]
    """Side lengths, in the network after the stem, at which attention acts."""
    attention_head_channels: Amount
    """Channels a head; 0 = one head."""
    attention_heads: Amount
    """Heads at every width; 0 = as attention_head_channels says."""
    middle_attention: bool
    """Whether the middle of the network, at the lowest resolution, attends."""
    noise_conditioning: Literal["all", "bottleneck", "none"]
    """Which blocks are told the noise level: all, those of the middle, or none."""
    decoder_attention: Literal["all", "last"]
    """On the way up: attention after all blocks of a resolution, or after its last."""
    dropout: HalfOpenShare
    """Dropout in the residual blocks."""
    noise_embedding: Literal["ddpm", "adm", "fourier"]
    """Sines and cosines of c_noise, as DDPM or as ADM orders them, or at random frequencies."""
    scale_shift_norm: bool
    """The noise embedding scales and shifts normalised features instead of being added before."""
    resampling: Literal["conv", "conv-symmetric", "residual", "residual-project"]
    """How resolutions change: a convolution, or a residual block."""
    resampling_filter: Literal["box", "binomial"]
    """[1, 1] or [1, 3, 3, 1], of residual resampling and progressive input."""
    progressive_input: bool
    """Add the halved image to the features of every lower resolution."""
    skip_rescale: bool
    """Divide every sum of two branches by sqrt 2."""
    norm_groups: Count
    """Groups of group normalisation, a divisor of channels."""
    norm_eps: ranges.NormEps
    """Added to the variance in group normalisation."""

    @property
    def downsampling(self) -> int:
        """Image pixels along one side of a pixel of the network's smallest feature map."""
        return int(self.stem * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, from the highest resolution to the lowest."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    def resolutions(self, image_size: int) -> tuple[int, ...]:
        """Side lengths of the feature maps inside the network, from the highest to the lowest."""
        return tuple(image_size // self.stem // 2**level for level in range(len(self.channel_multipliers)))


class Diffusion(Section):
    """Noise path, parameterization and objective (design: everything is a denoiser)."""

    path: PathName
    """Noise path: DDPM's, improved DDPM's, Jabri et al.'s, Score SDE's three, EDM's or rectified flow."""
    parameterization: ParameterizationName
    """What the network predicts."""
    objective: ObjectiveName
    """Sigmas and weights in training."""
    timesteps: ranges.Timesteps
    """vp-linear, vp-cosine, vp-sigmoid: T."""
    beta_start: OpenShare
    """vp-linear: first beta."""
    beta_end: OpenShare
    """vp-linear: last beta."""
    cosine_offset: ranges.CosineOffset
    """vp-cosine: offset s of the time."""
    sigmoid_start: ranges.LogisticEnd
    """vp-sigmoid: where the logistic function starts."""
    sigmoid_end: ranges.LogisticEnd
    """vp-sigmoid: where it ends."""
    sigmoid_tau: ranges.LogisticTau
    """vp-sigmoid: its temperature; a smaller one is steeper."""
    beta_min: ranges.BetaMin
    """vp-sde, sub-vp: beta(0)."""
    beta_max: ranges.BetaMax
    """vp-sde, sub-vp: beta(1)."""
    sigma_min: ranges.SigmaMin
    """ve: sigma(0), for pixels in [-1, 1]."""
    sigma_max: ranges.SigmaMax
    """ve: sigma(1), for pixels in [-1, 1]."""
    sigma_data: ranges.SigmaData
    """edm: standard deviation of the data in [-1, 1]."""
    p_mean: Mean
    """edm: mean of ln(sigma) in training."""
    p_std: Deviation
    """edm: standard deviation of ln(sigma)."""
    flow_times: FlowTimes
    """flow: density of t in training."""
    logit_mean: Mean
    """flow: t = sigmoid(logit_mean + logit_std n)."""
    logit_std: Deviation
    """flow: see logit_mean."""
    t_min: OpenShare
    """flow: the velocity weight 1/t^2 holds this value below it."""
    min_snr_gamma: Positive
    """min-snr: greatest weight."""
    p2_k: Positive
    """p2: weight SNR / (k + SNR)^gamma."""
    p2_gamma: ranges.P2Gamma
    """p2: see p2_k; 0 = simple."""
    huber_scale: ranges.UpTo100
    """Errors of the image beyond it, times 1 + sigma^2, count linearly, not squared; 0 = all squared."""
    difference_weight: ranges.UpTo100
    """Errors of the differences of neighbouring pixels count so often, beside those of the pixels; 0 = not at all."""
    noise_candidates: ranges.Candidates
    """An image takes the nearest of so many draws of noise; 1 = the only one."""
    input_perturbation: HalfOpenShare
    """Extra noise of the network's input, as a share of its noise; 0 = none."""

    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest sigma that training visits, as the path of this name has it."""
        match self.path:
            case "vp-linear":
                return _ends(betas.linear(self.timesteps, self.beta_start, self.beta_end))
            case "vp-cosine":
                return _ends(betas.cosine(self.timesteps, self.cosine_offset))
            case "vp-sigmoid":
                return _ends(betas.sigmoid(self.timesteps, self.sigmoid_start, self.sigmoid_end, self.sigmoid_tau))
            case "vp-sde" | "sub-vp":
                last = (self.beta_min + self.beta_max) / 2
                first = self.beta_min * 1e-5 + (last - self.beta_min) * 1e-10  # integrals of beta to t = 1e-5 and 1
                if self.path == "vp-sde":
                    return math.sqrt(math.expm1(first)), math.sqrt(math.expm1(last))
                return 2 * math.sinh(first / 2), 2 * math.sinh(last / 2)
            case "ve":
                return self.sigma_min, self.sigma_max
            case "edm":
                return 0.002, 80.0
            case "flow":
                return 0.001 / 0.999, 0.999 / 0.001

    def problems(self) -> Iterator[Problem]:
        """Ranges that are empty, and parts that do not go together."""
        empty: list[Problem] = []
        for low, high in (("beta_start", "beta_end"), ("sigmoid_start", "sigmoid_end"), ("beta_min", "beta_max")):
            if getattr(self, high) <= (bound := getattr(self, low)):
                empty.append(Problem(high, f"a number above {low}, {bound:g}"))
        if empty:  # of such a path there is no range of sigmas
            yield from empty
            return
        least, greatest = self.sigma_range()
        if (
            refused := refusal(self.path, self.objective, self.parameterization, least, (self.p2_k, self.p2_gamma))
        ) is not None:
            yield Problem(refused.part, refused.expected)
        if 0 < self.huber_scale < LEAST_HUBER_SCALE:
            yield Problem("huber_scale", f"0, or a number in [{LEAST_HUBER_SCALE:g}, 100]")
        if self.huber_scale and self.objective == "likelihood":
            yield Problem("huber_scale", "0 with train.diffusion.objective likelihood: squared errors alone bound it")
        if self.difference_weight and self.objective == "likelihood":
            yield Problem("difference_weight", "0 with train.diffusion.objective likelihood: errors of pixels bound it")
        if self.noise_candidates > 1 and self.objective == "likelihood":
            yield Problem("noise_candidates", "1 with train.diffusion.objective likelihood: noise must be independent")
        if not (least >= LEAST_SIGMA and greatest <= GREATEST_SIGMA):
            yield Problem(
                _deciding_key(self.path, least=not least >= LEAST_SIGMA),
                f"a number with which sigma stays in [{LEAST_SIGMA:g}, {GREATEST_SIGMA:g}] on path {self.path} "
                f"(now {least:.3g} to {greatest:.3g})",
            )


def _deciding_key(path: PathName, *, least: bool) -> str:
    """The parameter that decides a path's least sigma, or its greatest one."""
    match path:
        case "vp-linear":
            return "beta_start" if least else "beta_end"
        case "vp-sde" | "sub-vp":
            return "beta_min" if least else "beta_max"
        case "vp-cosine":
            return "cosine_offset"
        case "vp-sigmoid":
            return "sigmoid_tau"
        case "ve":
            return "sigma_min" if least else "sigma_max"
        case "edm" | "flow":
            return "path"


def _ends(variances: Sequence[float]) -> tuple[float, float]:
    """The first and the last sigma of a chain with these betas."""
    log_alpha_bar = math.fsum(math.log1p(-beta) for beta in variances)
    first = max(variances[0], 0.0)  # a difference that rounding may put below 0
    least = math.sqrt(first / (1 - first))
    return least, math.exp(min(0.5 * _log_expm1(-log_alpha_bar), 700))


def _log_expm1(x: float) -> float:
    """ln(e^x - 1) for x > 0, without overflow."""
    return x + math.log1p(-math.exp(-x)) if x > 1 else math.log(math.expm1(x))


class Train(Section):
    """Length, optimizer, averaging, network and diffusion of the training."""

    seed: Seed
    """Of weights, order of images and noise."""
    device: Device
    """auto = cuda if there is one."""
    loader: Loader
    """Where the images are; never changes the result."""
    compile: bool
    """Compile the network (torch.compile)."""
    channels_last: Annotated[Literal["auto", True, False], BeforeValidator(_no_number)]
    """Keep the network's features with channels last in memory; auto = on CUDA."""
    precision: Precision
    """Type of the network's arithmetic; weights stay fp32."""
    tf32: bool
    """On CUDA, let products of fp32 numbers round them to TF32."""
    images: Count
    """Length of training, in images seen."""
    max_minutes: NonNegative
    """Training ends after so many minutes at the latest; 0 = no limit."""
    batch_size: Count
    """Images a step."""
    optimizer: OptimizerName
    """Adam, or AdamW with weight decay."""
    lr: Annotated[float, Gt(0), Le(1)]
    """The greatest learning rate."""
    lr_schedule: ScheduleName
    """How the learning rate goes after the warm-up."""
    lr_reference_images: Amount
    """inverse-sqrt: the learning rate is constant up to so many images."""
    weight_decay: HalfOpenShare
    """AdamW: share of the weights that a step with learning rate 1 would take away."""
    betas: Annotated[tuple[HalfOpenShare, HalfOpenShare], BeforeValidator(_listed)]
    """Adam's running averages."""
    warmup_images: Amount
    """The learning rate rises linearly over so many images; 0 = none."""
    gradient_accumulation: Count
    """Parts in which a batch goes through the network, to save memory."""
    gradient_clip: NonNegative
    """Largest norm of the gradient; 0 = no clipping."""
    ema_half_life_images: Amount
    """Half-life of the averaged weights in images; 0 = no average, the raw weights."""
    ema_rampup: Share
    """Half-life at most this share of the images seen; 0 = none."""
    ema_more_half_lives: Annotated[tuple[Count, ...], BeforeValidator(_listed)]
    """Half-lives in images of further averages, made at the same time."""
    ema_profiles: Annotated[tuple[RelativeDeviation, ...], BeforeValidator(_listed)]
    """Relative standard deviations of power-function averages, from which others are made after training."""
    snapshot_every_images: Amount
    """Images between two stored states of ema_profiles; 0 = that of the end alone."""
    horizontal_flip: bool
    """Mirror every second image at random."""
    augment: Share
    """Probability of each of EDM's transformations of an image, of which the network is told; 0 = none."""
    log_every_images: Count
    """Images between two points of the curves."""
    preview_every_images: Amount
    """Images between two preview grids; 0 = none."""
    validate_every_images: Amount
    """Images between two validation losses; 0 = none."""
    validation_images: Count
    """Images of the valid split that the validation loss is measured on."""
    checkpoint_every_images: Amount
    """Images between two scratch checkpoints; 0 = none."""
    network: Network
    """The U-Net."""
    diffusion: Diffusion
    """The diffusion."""

    @property
    def ema_decay(self) -> float:
        """What is kept of the averaged weights in one step, before any ramp-up; 0 = the raw weights."""
        return 0.5 ** (self.batch_size / self.ema_half_life_images) if self.ema_half_life_images else 0.0

    def problems(self) -> Iterator[Problem]:
        """Lengths that do not fit into the training, and noise that does not fit through the network."""
        for key, value in (("batch_size", self.batch_size), ("warmup_images", self.warmup_images)):
            if value > self.images:
                yield Problem(key, f"at most train.images, {self.images}")
        if self.augment and self.network.noise_conditioning == "none":
            yield Problem(
                "augment",
                "0.0 with train.network.noise_conditioning none: the network is told what was done beside the noise "
                "level, and otherwise would draw turned faces",
            )
        if self.augment and self.horizontal_flip:
            yield Problem("horizontal_flip", "false with train.augment above 0, which mirrors and tells the network")
        if self.gradient_accumulation > self.batch_size:
            yield Problem("gradient_accumulation", f"at most train.batch_size, {self.batch_size}")
        if self.optimizer == "adam" and self.weight_decay:
            yield Problem("weight_decay", "0 with train.optimizer adam; adamw (1711.05101) and muon decay weights")
        if self.lr_schedule == "inverse-sqrt" and self.lr_reference_images < max(self.warmup_images, 1):
            yield Problem(
                "lr_reference_images",
                f"at least {max(self.warmup_images, 1)} with train.lr_schedule inverse-sqrt, as train.warmup_images",
            )
        if self.device == "cpu" and self.precision == "fp16":
            yield Problem("precision", "auto | fp32 | bf16 on train.device cpu (fp16 needs cuda)")
        yield from self._average_problems()
        if self.diffusion.parameterization in FULL_NOISE and self.network.stem > 1:
            yield Problem(
                "diffusion.parameterization",
                f"x0 | v | edm, because train.network.stem is {self.network.stem} and noise does not pass through a "
                f"narrow network (2511.13720); {self.diffusion.parameterization} needs stem 1",
            )

    def _average_problems(self) -> Iterator[Problem]:
        """Averages that are there twice, and an interval of snapshots that hold nothing."""
        if self.ema_half_life_images in self.ema_more_half_lives:
            yield Problem("ema_more_half_lives", f"others than train.ema_half_life_images, {self.ema_half_life_images}")
        for key, values in (("ema_more_half_lives", self.ema_more_half_lives), ("ema_profiles", self.ema_profiles)):
            if len(set(values)) < len(values):
                yield Problem(key, "a list whose values differ")
        if self.snapshot_every_images and not self.ema_profiles:
            yield Problem("snapshot_every_images", "0, because train.ema_profiles is empty")
        elif 0 < self.snapshot_every_images < self.batch_size:
            yield Problem("snapshot_every_images", f"0, or at least train.batch_size, {self.batch_size}")


class Sample(Section):
    """How many images, and by which sampler."""

    seed: Seed
    """Image i depends on (seed, i) alone."""
    num_samples: Count
    """Images to make."""
    batch_size: Count
    """Images at once; never changes their noise."""
    device: Device
    """auto = cuda if there is one."""
    precision: Precision
    """Type of the network's arithmetic."""
    weights: Annotated[str, WEIGHTS]
    """Average of the weights: the model's own, another half-life's, or one that is reconstructed."""
    sampler: SamplerName
    """From noise to images."""
    steps: Annotated[int, Ge(1), Le(100_000)]
    """Intervals of the grid."""
    grid: GridName
    """The sigmas that the sampler visits."""
    sigma_min: Sigma
    """karras, log-linear: smallest sigma."""
    sigma_max: Sigma
    """karras, log-linear, uniform-t: largest sigma."""
    rho: Annotated[float, Ge(0.5), Le(100)]
    """karras: how the steps gather at small sigma."""
    eta: Share
    """ddim: 0 deterministic ... 1 as much noise as ddpm."""
    variance: Variance
    """ddpm: of the posterior, or beta."""
    s_churn: NonNegative
    """euler, heun: noise added and removed again, over all steps; 0 = none."""
    s_tmin: NonNegative
    """euler, heun: least sigma at which s_churn adds noise."""
    s_tmax: Positive
    """euler, heun: greatest sigma at which s_churn adds noise."""
    s_noise: Annotated[float, Gt(0), Le(2)]
    """euler, heun: standard deviation of the noise that s_churn adds."""
    snr: Annotated[float, Gt(0), Lt(1)]
    """predictor-corrector: signal-to-noise ratio of a Langevin step."""
    corrector_steps: Annotated[int, Ge(0), Le(1000)]
    """predictor-corrector: Langevin steps at every noise level."""
    rtol: OpenShare
    """rk45: error a step, relative to x."""
    atol: OpenShare
    """rk45: error a step, in units of x."""
    threshold: Threshold
    """What keeps the denoised image in [-1, 1] in every step."""
    threshold_percentile: Annotated[float, Gt(0), Le(1)]
    """dynamic: share of an image's pixels that lie within its limit."""
    grid_rows: Count
    """Of samples/grid.png."""
    grid_columns: Count
    """Of samples/grid.png."""

    @property
    def average(self) -> WeightsChoice:
        """What ``weights`` means."""
        return parse_weights(self.weights) or WeightsChoice()

    def problems(self) -> Iterator[Problem]:
        """Ranges that are empty, and a picture with more cells than there are images."""
        if parse_weights(self.weights) is None:
            yield Problem(
                "weights",
                f"{WEIGHTS} (N a half-life in images; S a relative standard deviation in "
                f"[{LEAST_DEVIATION}, {GREATEST_DEVIATION}])",
            )
        if self.sigma_min >= self.sigma_max:
            yield Problem("sigma_min", f"a number below sample.sigma_max, {self.sigma_max:g}")
        if self.s_tmin > self.s_tmax:
            yield Problem("s_tmin", f"a number up to sample.s_tmax, {self.s_tmax:g}")
        if self.sampler == "rk45" and self.steps == 1:
            yield Problem("steps", "2 or more: sampler rk45 goes from the largest to the smallest sigma of the grid")
        if self.grid_rows * self.grid_columns > self.num_samples:
            yield Problem(
                "grid_rows",
                f"grid_rows x grid_columns of at most sample.num_samples, {self.num_samples} "
                f"({self.grid_rows} x {self.grid_columns} = {self.grid_rows * self.grid_columns})",
            )
        if self.device == "cpu" and self.precision == "fp16":
            yield Problem("precision", "auto | fp32 | bf16 on sample.device cpu (fp16 needs cuda)")


class Evaluate(Section):
    """Which sets are compared, on which features."""

    features: Annotated[tuple[FeatureName, ...], BeforeValidator(_listed), Len(1)]
    """The feature networks; each gives its own distances."""
    weights: OptionalPath
    """Folder of the networks' weights, or the file of the only one; null = $UNVEIL_WEIGHTS, then the network."""
    metrics: Annotated[tuple[MetricName, ...], BeforeValidator(_listed), Len(1)]
    """What is measured."""
    num_images: Annotated[int, Ge(2)]
    """N: samples, noise and held-out images (of these all, if their split has fewer)."""
    reference_images: Amount
    """Images of the reference split; 0 = all of them."""
    reference_split: SplitName
    """What the samples are compared with."""
    held_out_split: SplitName
    """Another split: the floor."""
    batch_size: Count
    """Images at once through the feature network, on CUDA only."""
    device: Device
    """auto = cuda if there is one."""
    seed: Seed
    """Of the noise control and of all subsets."""
    controls: Annotated[tuple[ControlName, ...], BeforeValidator(_listed)]
    """What is done to the held-out images to see what a mistake would cost."""
    control_images: Amount
    """Held-out images for each, at most as many as the floor has; 0 = as many."""
    interval_splits: Annotated[int, Ge(0), Le(1000)]
    """Random halvings of the samples, for intervals and the extrapolation; 0 = neither."""
    cache_gib: NonNegative
    """Greatest size of the folder of features; 0 = none are kept."""
    kid_subsets: Count
    """Random subsets."""
    kid_subset_size: Annotated[int, Ge(2)]
    """Images a subset."""
    likelihood_images: Amount
    """Held-out images whose likelihood is measured; 0 = none."""
    likelihood_probes: Annotated[int, Ge(1), Le(1000)]
    """Random vectors that estimate a trace in each evaluation."""

    def problems(self) -> Iterator[Problem]:
        """A floor needs two different splits, and a subset needs enough images."""
        if self.held_out_split == self.reference_split:
            others = " | ".join(name for name in get_args(SplitName) if name != self.reference_split)
            yield Problem("held_out_split", f"{others}, another one than evaluate.reference_split")
        for key in ("features", "metrics", "controls"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                yield Problem(key, "each name once")
        if "inception-score" in self.metrics and "inception" not in self.features:
            yield Problem("metrics", "no inception-score, which needs inception among evaluate.features")
        if "memorization" in self.metrics and self.reference_split != "train":
            yield Problem("metrics", "no memorization, which needs evaluate.reference_split train")
        asks = max(self.metrics, key=lambda name: LEAST_IMAGES[name])
        if self.controls and 0 < self.control_images < LEAST_IMAGES[asks]:
            yield Problem("control_images", f"0, or {LEAST_IMAGES[asks]} or more for {asks}")
        if 0 < self.interval_splits < LEAST_SPLITS:
            yield Problem("interval_splits", f"0, or {LEAST_SPLITS} to 1000")
        if self.likelihood_images == 1:
            yield Problem("likelihood_images", "0, or 2 or more: a single image has no standard error")
        for key, count in (("num_images", self.num_images), ("reference_images", self.reference_images)):
            if 0 < count < self.kid_subset_size:
                yield Problem("kid_subset_size", f"at most evaluate.{key}, {count}")


class Launch(Section):
    """Processes of train and sample; they change no more than rounding, and the masks of dropout."""

    processes: Amount
    """On this machine; 0 = one for each GPU, or one without a GPU."""


class Params(Section):
    """The whole of params.yaml, one section a stage, and how they are launched."""

    download: Download
    """Where the images come from."""
    preprocess: Preprocess
    """From the archive to shards."""
    train: Train
    """The training."""
    sample: Sample
    """The sampling."""
    evaluate: Evaluate
    """The evaluation."""
    launch: Launch
    """The processes."""

    def problems(self) -> Iterator[Problem]:
        """What is wrong between the sections."""
        if self.download.source == "folder" and self.preprocess.protocol not in ("adm-ip", "squash"):
            yield Problem(
                "preprocess.protocol",
                "adm-ip | squash, because download.source is folder (the others crop CelebA's 178 x 218 canvas)",
            )
        if self.launch.processes > self.train.batch_size:
            yield Problem("launch.processes", f"at most train.batch_size, {self.train.batch_size}")
        yield from self._weights_problems()
        yield from self._network_problems()
        yield from self._grid_problems()
        yield from self._evaluation_problems()

    def split_sizes(self) -> dict[str, int] | None:
        """Images of each split after preprocess, at most; None for a folder, whose images nobody has counted."""
        if self.download.source == "folder":
            return None
        sizes = dict(PUBLISHED_SPLITS)
        if self.download.source == "cartoon":
            total, split = self.download.cartoon.num_faces, self.download.split
            valid, test = round(total * split.valid), round(total * split.test)
            sizes = {"train": total - valid - test, "valid": valid, "test": test}
        if self.preprocess.protocol == "adm-ip":  # trains on all images
            sizes["train"] = sum(sizes.values())
        return sizes

    def _evaluation_problems(self) -> Iterator[Problem]:
        evaluate = self.evaluate
        if evaluate.num_images > self.sample.num_samples:
            yield Problem("evaluate.num_images", f"at most sample.num_samples, {self.sample.num_samples}")
        if (sizes := self.split_sizes()) is None:
            return
        reference, held_out = evaluate.reference_split, evaluate.held_out_split
        has = f"the images that download.source {self.download.source} has in split"
        if evaluate.reference_images > sizes[reference]:
            yield Problem("evaluate.reference_images", f"at most {sizes[reference]}, {has} {reference}; 0 = all")
        if evaluate.likelihood_images > sizes[held_out]:
            yield Problem("evaluate.likelihood_images", f"at most {sizes[held_out]}, {has} {held_out}")
        split = min(reference, held_out, key=lambda name: sizes[name])
        if evaluate.kid_subset_size > sizes[split]:
            yield Problem("evaluate.kid_subset_size", f"at most {sizes[split]}, {has} {split}")

    def _weights_problems(self) -> Iterator[Problem]:
        """Averages that training does not keep."""
        choice, train = self.sample.average, self.train
        if choice.kind == "ema" or choice.value in (train.ema_half_life_images, *train.ema_more_half_lives):
            return
        if train.ema_profiles:
            if choice.kind == "half-life" and not 0 < train.ema_rampup <= STEEPEST_RAMP:
                ramp = f"train.ema_rampup in (0, {STEEPEST_RAMP}]"
                yield Problem("sample.weights", f"{ramp} to make a half-life with, or one of train.ema_more_half_lives")
            return
        stored = [str(WeightsChoice("half-life", number)) for number in train.ema_more_half_lives]
        key = "train.ema_more_half_lives" if choice.kind == "half-life" else "train.ema_profiles"
        yield Problem("sample.weights", f"{' | '.join(['ema', *stored])}, or what it is made from in {key}")

    def _network_problems(self) -> Iterator[Problem]:
        network, image_size = self.train.network, self.preprocess.image_size
        levels = len(network.channel_multipliers)
        factor = network.downsampling
        if image_size % factor:
            below = image_size - image_size % factor
            sizes = [str(size) for size in (below, below + factor) if 8 <= size <= 1024]
            nearest_sizes = f"nearest: {' or '.join(sizes)}" if sizes else "take fewer multipliers"
            yield Problem(
                "preprocess.image_size",
                f"a multiple of {factor}, the network's downsampling (train.network.stem {network.stem} "
                f"x 2^{levels - 1} for {levels} channel_multipliers); {nearest_sizes}",
            )
            return
        told = network.noise_conditioning != "none"
        if told and network.noise_embedding == "fourier" and self.train.diffusion.path not in ("edm", "ve"):
            yield Problem(
                "train.network.noise_embedding",
                f"ddpm | adm for train.diffusion.path {self.train.diffusion.path}, whose c_noise runs to 1000 "
                "(random frequencies resolve a c_noise of about 1, as paths edm and ve have)",
            )
        if network.architecture == "plain":
            for key, (neutral, missing) in PLAIN_LACKS.items():
                if getattr(network, key) != neutral:
                    shown = _shown(neutral) if neutral != "conv" else "conv"
                    yield Problem(f"train.network.{key}", f"{shown}, because architecture plain has no {missing}")
            return
        if network.channels % network.norm_groups:
            yield Problem("train.network.norm_groups", f"a divisor of train.network.channels, {network.channels}")
        resolutions = network.resolutions(image_size)
        if resolutions[-1] == 1:  # nothing to convolve, and at 32 channels nothing to normalise
            yield Problem(
                "train.network.channel_multipliers",
                f"fewer of them: {levels} leave a single pixel of preprocess.image_size {image_size} "
                f"/ train.network.stem {network.stem}",
            )
        if not set(network.attention_resolutions) <= set(resolutions):
            yield Problem(
                "train.network.attention_resolutions",
                f"side lengths that occur in the network: {' | '.join(map(str, resolutions))} "
                f"(preprocess.image_size {image_size} / train.network.stem {network.stem}, and its halvings)",
            )
        divisors = {key: getattr(network, key) for key in ("attention_head_channels", "attention_heads")}
        if all(divisors.values()):
            yield Problem("train.network.attention_heads", "0, or train.network.attention_head_channels 0: one decides")
        attended = [
            width
            for width, side in zip(network.widths, resolutions, strict=True)
            if side in network.attention_resolutions or (network.middle_attention and side == resolutions[-1])
        ]
        for key, divisor in divisors.items():
            if divisor and (wrong := [width for width in attended if width % divisor]):
                yield Problem(
                    f"train.network.{key}",
                    f"0 or a divisor of {wrong[0]}, the width where attention acts "
                    f"(with middle_attention at the lowest resolution too); for example {math.gcd(*attended)}",
                )

    def _grid_problems(self) -> Iterator[Problem]:
        sample, diffusion = self.sample, self.train.diffusion
        path, discrete = diffusion.path, diffusion.path in DISCRETE_PATHS
        if not sample.grid.startswith("ddim"):
            if path not in UNBOUNDED_PATHS:
                yield from self._untrained_sigmas()
        elif not discrete:
            yield Problem(
                "sample.grid",
                f"karras | log-linear | uniform-t for train.diffusion.path {path}, whose time is continuous "
                f"({sample.grid} visits the timesteps of {', '.join(DISCRETE_PATHS)})",
            )
        elif sample.steps > diffusion.timesteps:
            yield Problem(
                "sample.steps",
                f"at most train.diffusion.timesteps, {diffusion.timesteps}, on sample.grid {sample.grid}",
            )
        elif sample.steps == 1 and sample.grid != "ddim-trailing":
            yield Problem(
                "sample.steps",
                f"2 or more on sample.grid {sample.grid}: one step would start at t = 0, where there is no noise",
            )
        if sample.sampler == "ddpm" and sample.variance == "large" and path not in PRESERVING_PATHS:
            yield Problem(
                "sample.variance",
                f"small for train.diffusion.path {path} (only {', '.join(PRESERVING_PATHS)} have betas)",
            )
        if sample.sampler in ("euler", "heun") and path not in UNBOUNDED_PATHS:
            yield from self._churn_problems()

    def _untrained_sigmas(self) -> Iterator[Problem]:
        """A network has learnt no sigma outside the range of its path."""
        sample, path = self.sample, self.train.diffusion.path
        least, greatest = self.train.diffusion.sigma_range()
        even = sample.grid == "uniform-t"
        span = f"in [{least:.3g}, {greatest:.3g}], the sigmas that {path} has with these parameters"
        if not even and sample.sigma_min < least * 0.99:
            yield Problem("sample.sigma_min", f"a number {span}")
        if sample.sigma_max > greatest * 1.01 or sample.sigma_max < least * 0.99:
            yield Problem("sample.sigma_max", f"a number {span}")
        elif even and sample.sigma_max <= least * 1.01:
            yield Problem("sample.sigma_max", f"a number {span}, above the least: there grid uniform-t ends")

    def _churn_problems(self) -> Iterator[Problem]:
        """Churn raises the noise above the grid's level, but must not leave the path's range."""
        sample = self.sample
        _, greatest = self.train.diffusion.sigma_range()
        raise_by = 1 + min(sample.s_churn / sample.steps, math.sqrt(2) - 1)
        first = greatest if sample.grid.startswith("ddim") else sample.sigma_max
        if raise_by > 1 and min(first, sample.s_tmax) * raise_by > greatest * 1.01:
            yield Problem(
                "sample.s_tmax",
                f"at most {greatest / raise_by:.3g}: s_churn raises sigma {raise_by:.3g} times, and "
                f"{self.train.diffusion.path} ends at {greatest:.3g}",
            )


def load_params(path: Path) -> Params:
    """Read and check a params.yaml.

    Raises:
        UnveilError: with one line, if the file is missing or not YAML, or if a key or a value is wrong.
    """
    return parse_params(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a parameter file. Raises UnveilError if it cannot be read."""
    try:
        return files.read_text(path, MOST_BYTES)
    except FileNotFoundError:
        raise UnveilError(
            printable(f"{path}: no such file; run in the project's folder, or say where it is with --params")
        ) from None
    except (OSError, UnveilError) as error:
        raise UnveilError(printable(line_for_user(error) or str(error))) from None


def parse_params(text: str, name: str) -> Params:
    """Check the text of a params.yaml; ``name`` is what messages call the file. Raises UnveilError."""
    root, values = parse_mapping(text, name)
    try:
        params = Params.model_validate(values)
        if wrong := files.excessive_number(values):
            raise UnveilError(printable(f"{name}: {wrong}"))
        return params
    except ValidationError as error:
        findings = _findings(error.errors(include_url=False), values)
    lines = {finding: _line(root, finding.key) for finding in findings}
    first = min(findings, key=lambda finding: lines[finding])
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    raise UnveilError(printable(f"{name}:{lines[first]}: {'.'.join(first.key)}: {first.text}{more}"))


def parse_mapping(text: str, name: str) -> tuple[MappingNode, dict[Any, Any]]:
    """Read YAML 1.2 with a mapping at its top; return its nodes, which know their places, and its values.

    Raises:
        UnveilError: if the text is empty, is not YAML, is not a mapping or has a key twice.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        _refuse_depth(text, name)
        root = yaml.compose(text)
        if root is None:
            raise UnveilError(f"{name}: empty, expected the sections {', '.join(Params.model_fields)}")
        if not isinstance(root, MappingNode):
            raise UnveilError(f"{name}: expected the sections {', '.join(Params.model_fields)}, found no mapping")
        if _count(root, {}) > MOST_NODES:
            raise UnveilError(
                f"{name}: found more than {MOST_NODES:,} values, each alias replaced by what it stands for; write fewer"
            )
        _refuse_duplicates(root, name)
        return root, yaml.constructor.construct_document(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UnveilError(printable(f"{place}: not valid YAML: {error.problem or error.context}")) from None
    except (YAMLError, ValueError, RecursionError) as error:  # such as !!int followed by a word
        raise UnveilError(printable(f"{name}: not valid YAML: {' '.join(str(error).split())}")) from None


def flatten(section: BaseModel) -> dict[str, Scalar]:
    """Dotted names and plain values of a section or of all parameters; a list becomes text: ``[1,2]``."""
    flat: dict[str, Scalar] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            flat.update({f"{name}.{key}": item for key, item in flatten(value).items()})
        elif isinstance(value, tuple):
            flat[name] = json.dumps(value, separators=(",", ":"))
        else:
            flat[name] = str(value) if isinstance(value, Path) else value
    return flat


def nearest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that ``word`` is most likely a misspelling of, or None if none is close."""
    matches = difflib.get_close_matches(word.lower(), candidates, n=1)
    return matches[0] if matches else None


class _Constructor(SafeConstructor):
    """YAML 1.2's core types, that is, none for dates: ``2024-05-01`` is text, such as a folder's name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Finding(NamedTuple):
    key: tuple[str, ...]
    text: str


def _findings(errors: list[ErrorDetails], values: Mapping[Any, Any]) -> list[_Finding]:
    """Pydantic's errors as text, at most one a key, without a missing key that an unknown one explains."""
    found: dict[tuple[str, ...], _Finding] = {}
    explained: set[tuple[str, ...]] = set()
    missing = {key for error in errors if error["type"] == "missing" and (key := _key(error["loc"])) == error["loc"]}
    for error in errors:
        key = _key(error["loc"])
        if error["type"] == "combination":
            for problem in error["ctx"]["problems"]:
                at = (*key, *problem.key.split("."))
                found.setdefault(at, _Finding(at, f"found {_shown(_look_up(values, at))}, expected {problem.expected}"))
        elif error["type"] in ("extra_forbidden", "invalid_key"):
            suggestion, text = _unknown(key, missing - explained)
            explained |= {suggestion} & missing
            found[key] = _Finding(key, text)
        elif key in missing:
            found[key] = _Finding(key, _absence(key))
        else:
            found.setdefault(key, _Finding(key, _mismatch(key, _look_up(values, key))))
    return [finding for key, finding in found.items() if key not in explained]


def _key(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The key that a pydantic location lies in: without the index into a list."""
    fields, known = Params.model_fields, []
    for part in loc:
        known.append(str(part))
        field = fields.get(str(part))
        if field is None or not _is_section(field):
            break
        fields = _section(field).model_fields
    return tuple(known)


def _unknown(key: tuple[str, ...], missing: set[tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    """The valid key that an unknown one most likely stands for (itself if none), and the message."""
    section: type[BaseModel] = Params
    for part in key[:-1]:
        section = _section(section.model_fields[part])
    here = {name: (*key[:-1], name) for name in section.model_fields}
    everywhere = {dotted[-1]: dotted for dotted in reversed(list(_leaf_keys(Params)))} | here
    absent = [name for name, dotted in here.items() if dotted in missing]
    match = absent[0] if len(absent) == 1 else nearest(key[-1], absent) or nearest(key[-1], list(everywhere))
    if match is None:
        return key, f"unknown key, expected {', '.join(here)}"
    return everywhere[match], f"unknown key, did you mean {'.'.join(everywhere[match])}?"


def _leaf_keys(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a section that holds a value, with its path."""
    for name, field in section.model_fields.items():
        if _is_section(field):
            yield from _leaf_keys(_section(field), (*prefix, name))
        else:
            yield (*prefix, name)


def _absence(key: tuple[str, ...]) -> str:
    """What should stand at a key that the file lacks."""
    field = _field(key)
    purpose = "" if _is_section(field) else f" ({field.description})"
    return f"missing, expected {_allowed(field.annotation, field.metadata)}{purpose}"


def _mismatch(key: tuple[str, ...], value: object) -> str:
    """What was found at a valid key, what is allowed there, and how to mend it where that is plain."""
    field = _field(key)
    hint = ""
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        match = nearest(value, [name for name in get_args(field.annotation) if isinstance(name, str)])
        hint = f"; did you mean {match}?" if match else ""
    elif field.annotation in (int, float) and isinstance(value, str) and _is_number(value):
        hint = "; remove the quotes"
    elif field.annotation is int and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    return f"found {_shown(value)}, expected {_allowed(field.annotation, field.metadata)}{hint}"


def _allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type and its bounds in words, such as ``a number in [0, 1)``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allowed(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(str(name).lower() if isinstance(name, bool) else name for name in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is types.NoneType else _allowed(kind) for kind in arguments)
    if origin is tuple:
        item = _allowed(arguments[0]).removeprefix("a ").replace("number", "numbers", 1)
        if arguments[-1] is not ...:
            return f"a list of {len(arguments)} {item}"
        length = next((part for part in metadata if isinstance(part, Len)), Len())
        most = f", at most {length.max_length}" if length.max_length else ""
        return f"a list of {item}" + (", not empty" if length.min_length else "") + most
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"the keys {', '.join(annotation.model_fields)}"
    if annotation is bool:
        return "true | false"
    if annotation is Path:
        return "a path"
    if annotation is str:
        return next((part for part in metadata if isinstance(part, str)), "text")
    return f"a {'whole ' if annotation is int else ''}number{_bounds(metadata)}"


def _bounds(metadata: Sequence[Any]) -> str:
    """Bounds as an interval, or as a comparison if there is only one."""
    low = next((part for part in metadata if isinstance(part, Ge | Gt)), None)
    high = next((part for part in metadata if isinstance(part, Le | Lt)), None)
    if low is not None and high is not None:
        opening, least = ("[", low.ge) if isinstance(low, Ge) else ("(", low.gt)
        greatest, closing = (high.le, "]") if isinstance(high, Le) else (high.lt, ")")
        factor = next((part.multiple_of for part in metadata if isinstance(part, MultipleOf)), None)
        return f" in {opening}{least}, {greatest}{closing}" + (f", a multiple of {factor}" if factor else "")
    if low is not None:
        return f" >= {low.ge}" if isinstance(low, Ge) else f" > {low.gt}"
    return ""


def _field(key: tuple[str, ...]) -> FieldInfo:
    field = Params.model_fields[key[0]]
    for part in key[1:]:
        field = _section(field).model_fields[part]
    return field


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _section(field: FieldInfo) -> type[BaseModel]:
    assert isinstance(field.annotation, type)
    assert issubclass(field.annotation, BaseModel)
    return field.annotation


def _look_up(values: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        values = values[part]
    return values


def _line(root: MappingNode, key: tuple[str, ...]) -> int:
    """The line, from 1, of a key, or of the nearest section around it that the file has."""
    node: Node = root
    line = int(root.start_mark.line)
    for part in key:
        pairs = node.value if isinstance(node, MappingNode) else []
        match = next(((name, value) for name, value in pairs if name.value == part), None)
        if match is None:
            break
        line, node = int(match[0].start_mark.line), match[1]
    return line + 1


def _refuse_depth(text: str, name: str) -> None:
    """Raise UnveilError if lists or mappings lie deeper in each other than any parameter does."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MOST_DEPTH:
            line = event.start_mark.line + 1
            raise UnveilError(
                f"{name}:{line}: found more than {MOST_DEPTH} levels of brackets; write the value plainly"
            )


def _count(node: Node, counted: dict[int, int]) -> int:
    """Values in a node, each alias counted as all that it stands for; many for one that holds itself."""
    if id(node) not in counted:
        counted[id(node)] = MOST_NODES + 1
        parts = chain.from_iterable(node.value) if isinstance(node, MappingNode) else node.value
        nodes = () if isinstance(node, ScalarNode) else parts
        counted[id(node)] = 1 + sum(_count(part, counted) for part in nodes)
    return counted[id(node)]


def _refuse_duplicates(node: Node, name: str, prefix: tuple[str, ...] = ()) -> None:
    """Raise UnveilError if a mapping has a key twice."""
    if not isinstance(node, MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value in node.value:
        key, line = str(key_node.value), int(key_node.start_mark.line) + 1
        if key in seen:
            dotted = ".".join((*prefix, key))
            raise UnveilError(printable(f"{name}:{line}: {dotted}: stands here and in line {seen[key]}; keep one"))
        seen[key] = line
        _refuse_duplicates(value, name, (*prefix, key))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    """A value as YAML would have it on one line, shortened."""
    if isinstance(value, tuple):
        value = list(value)
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= files.LONGEST_SHOWN else text[: files.LONGEST_SHOWN - 3] + "..."
