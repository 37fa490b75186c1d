"""What the user says of the training."""

from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import BeforeValidator

from unveil.data.config import Loader
from unveil.section import (
    LISTED,
    Amount,
    Count,
    Device,
    HalfOpenShare,
    Key,
    NonNegative,
    Precision,
    Problem,
    RelativeDeviation,
    Section,
    Seed,
    Share,
)

OptimizerName = Literal["adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "inverse-sqrt"]


def _no_number(value: object) -> object:
    """A literal true would take 1 too."""
    if type(value) in (int, float):
        raise ValueError(value)
    return value


class Training(Section):
    """How to train; lengths and intervals are in images, so that they do not depend on the batch size."""

    seed: Seed = 0
    """of weights, order of images and noise"""
    device: Device = "auto"
    """auto (cuda if there is one) | cpu | cuda"""
    loader: Loader = "auto"
    """auto | device (the split lies there) | stream (from disk); never changes the result"""
    compile: bool = False
    """whether to torch.compile the network: minutes of waiting for faster steps on a GPU"""
    channels_last: Annotated[Literal["auto", True, False], BeforeValidator(_no_number)] = "auto"
    """channels last in memory, faster on a GPU: auto (on CUDA) | true | false; changes rounding and dropout's masks"""
    precision: Precision = "auto"
    """type of the network's arithmetic: auto | fp32 | bf16 | fp16; weights stay fp32"""
    tf32: bool = True
    """whether, on CUDA, products of fp32 numbers keep 10 bits of their fractions (TF32)"""
    images: Count = 64_000_000
    """length of training, in images seen"""
    max_minutes: NonNegative = 0.0
    """training ends after so many minutes at the latest; 0 = no limit"""
    batch_size: Count = 128
    """images a step, at most images"""
    gradient_accumulation: Count = 1
    """parts in which a batch goes through the network, to save memory; 1 = whole"""
    optimizer: OptimizerName = "adam"
    """adam (1412.6980) | adamw (1711.05101) | muon (orthogonal steps of matrices and convolutions, adamw's of the
    rest; 2502.16982)"""
    lr: Annotated[float, Gt(0), Le(1)] = 2e-4
    """greatest learning rate"""
    lr_schedule: ScheduleName = "constant"
    """after the warm-up: constant | cosine (to 0 at the end; 1608.03983) | inverse-sqrt (EDM2, 2312.02696, eq. 67)"""
    lr_reference_images: Amount = 0
    """inverse-sqrt: constant up to so many images, then lr sqrt(reference / images)"""
    weight_decay: HalfOpenShare = 0.0
    """adamw, muon: share of the weights that a step of learning rate 1 takes away"""
    betas: Annotated[tuple[HalfOpenShare, HalfOpenShare], LISTED] = (0.9, 0.999)
    """running averages of adam and adamw"""
    warmup_images: Amount = 0
    """the learning rate rises linearly over so many images; 0 = none"""
    gradient_clip: NonNegative = 1.0
    """largest norm of the gradient; 0 = no clipping"""
    ema_half_life_images: Amount = 887_184
    """half-life of the averaged weights; decay = 0.5 ** (batch_size / half_life); 0 = raw weights"""
    ema_rampup: Share = 0.0
    """half-life at most this share of the images seen (0.05 in EDM's code, 0.09 in EDM2's); 0 = none"""
    ema_more_half_lives: Annotated[tuple[Count, ...], LISTED] = ()
    """half-lives, in images, of further averages, each a file in models/averages; beyond ema_rampup x images all are
    alike"""
    ema_profiles: Annotated[tuple[RelativeDeviation, ...], LISTED] = ()
    """power-function averages, to make others from after training: relative standard deviations (EDM2, 2312.02696,
    appendix C); [] = none"""
    snapshot_every_images: Amount = 0
    """images between two stored states of ema_profiles, each of fp16; 0 = that of the end alone"""
    horizontal_flip: bool = False
    """whether every second image is mirrored, at random"""
    augment: Share = 0.0
    """probability of each of EDM's transformations, of which the network is told (2206.00364, app. F.2: 0.12 for
    CIFAR-10, 0.15 for FFHQ); 0 = none"""
    attributes: Annotated[tuple[Key, ...], LISTED] = ()
    """what the network is told of an image, names of the data set's header (CelebA: Smiling, Eyeglasses, ...); [] =
    nothing: an unconditional model"""
    attribute_dropout: HalfOpenShare = 0.5
    """attributes: share that is not told, on average over images, some of which so tell nearly all and others a single
    one, as requests do; 0 = all are told"""
    condition_dropout: HalfOpenShare = 0.1
    """attributes: probability that none is told, as classifier-free guidance needs (2207.12598, sec. 4: 0.1 to 0.2)"""
    log_every_images: Count = 12_800
    """images between two points of the curves"""
    preview_every_images: Amount = 3_200_000
    """images between two preview grids; 0 = none"""
    validate_every_images: Amount = 3_200_000
    """images between two losses on held-out images (the valid split); 0 = none"""
    validation_images: Count = 5000
    """images of the valid split for it, at noise that is always the same"""
    checkpoint_every_images: Amount = 640_000
    """images between two scratch checkpoints; 0 = none"""

    def unread(self) -> set[str]:
        """How often attributes are dropped, of a training without."""
        return set() if self.attributes else {"attribute_dropout", "condition_dropout"}

    def problems(self) -> Iterator[Problem]:
        """Lengths that do not fit into the training, choices that exclude each other, averages that are there twice."""
        for key, most in (
            ("batch_size", "images"),
            ("warmup_images", "images"),
            ("gradient_accumulation", "batch_size"),
        ):
            if getattr(self, key) > (limit := getattr(self, most)):
                yield Problem(key, f"at most train.{most}, {limit}")
        if self.augment and self.horizontal_flip:
            yield Problem("horizontal_flip", "false with train.augment above 0, which mirrors and tells the network")
        if self.optimizer == "adam" and self.weight_decay:
            yield Problem("weight_decay", "0 with train.optimizer adam; adamw (1711.05101) and muon decay weights")
        if self.lr_schedule == "inverse-sqrt" and self.lr_reference_images < (least := max(self.warmup_images, 1)):
            expected = f"at least {least} with train.lr_schedule inverse-sqrt, as train.warmup_images"
            yield Problem("lr_reference_images", expected)
        if self.device == "cpu" and self.precision == "fp16":
            yield Problem("precision", "auto | fp32 | bf16 on train.device cpu (fp16 needs cuda)")
        if self.ema_half_life_images in self.ema_more_half_lives:
            yield Problem("ema_more_half_lives", f"others than train.ema_half_life_images, {self.ema_half_life_images}")
        for key, values in (("ema_more_half_lives", self.ema_more_half_lives), ("ema_profiles", self.ema_profiles)):
            if len(set(values)) < len(values):
                yield Problem(key, "a list whose values differ")
        if len(set(self.attributes)) < len(self.attributes):
            yield Problem("attributes", "each name once")
        if self.snapshot_every_images and not self.ema_profiles:
            yield Problem("snapshot_every_images", "0, because train.ema_profiles is empty")
        elif 0 < self.snapshot_every_images < self.batch_size:
            yield Problem("snapshot_every_images", f"0, or at least train.batch_size, {self.batch_size}")
