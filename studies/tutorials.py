"""Why tutorials fail: each classic mistake of a first diffusion model alone, against the same run without it.

The run without a mistake is what most tutorials teach: DDPM's linear schedule, a U-Net that predicts the noise,
L_simple, averaged weights and DDPM's sampler, small enough for minutes on two cores. A :class:`Setup` says
everything in which the runs differ, and a mistake replaces one field of it. What the library refuses to build is
built here, of the library's own parts put together wrongly. Every finished run is kept, and is not made again.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from unveil.data.batches import Batch, Batches
from unveil.data.pixels import to_uint8
from unveil.data.shards import ShardIndex, load_tensor, verify
from unveil.diffusion import grids
from unveil.diffusion.config import Sampler
from unveil.diffusion.denoiser import Denoiser, DenoiserFunction
from unveil.diffusion.levels import linear_betas
from unveil.diffusion.loss import Loss
from unveil.diffusion.objectives import Objective, Simple
from unveil.diffusion.parameterizations import X0, Eps, Parameterization
from unveil.diffusion.paths import VPLinear
from unveil.diffusion.sampling import SampleNoise, batches, draw
from unveil.errors import UnveilError
from unveil.evaluation.features.extraction import extract, load_extractor
from unveil.evaluation.images.sets import load_real, uniform_noise
from unveil.evaluation.metrics.distances import Statistics, frechet_distance, significant, statistics
from unveil.figures import image_grid
from unveil.files import atomic_directory, atomic_path, read_json, read_text, write_json, write_text
from unveil.ledger import Ledger
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.precision import autocast, resolve_device, resolve_precision, set_tf32
from unveil.progress import Say
from unveil.section import Precision
from unveil.tensors import load_tensors, save_tensors
from unveil.training.checkpoint import Checkpoints
from unveil.training.config import Training
from unveil.training.loop import Trainer

FEATURES = "efficientnet-lite0"
ADDITIVE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Noise levels of the autoencoder: a handful of equal steps, the last of which leaves every face in plain sight."""
SAMPLE_BATCH = 100
SHRUNK_AT_ONCE = 1000
AGAIN = "remove it, and run the command again"
SHOWN = 8  # images of a run in the figures
ZOOM = 2  # pixels of the figures a pixel
COLORS = 128  # of the figures' palettes
SEED_RANGES = 2.0
"""A distance this many times the seeds' own range away from their mean is called a difference."""


# ------------------------------------------------------------------------------------------ what the runs differ in


@dataclass(frozen=True)
class Setup:
    """Everything in which the runs of the study differ; the defaults are the run without a mistake.

    Attributes:
        seed: of the weights, of the batches, and of the noise of training and sampling.
        network: ``ddpm``, or ``plain``: the U-Net of 2015, padded, and told the noise level.
        attention: whether the U-Net attends, at the lowest resolution.
        noise_conditioning: which residual blocks are told the noise level.
        pixels: what the process takes for an image, a key of ``PIXELS``.
        process: ``diffusion``; or ``autoencoder``: a handful of additive noise levels, the image as the target, and a
            sampler that feeds the network's output to the network.
        timesteps: T; the betas rise from 1e-4 to 0.02 whatever it is.
        target: what the loss compares the network's output with.
        read_as: what the sampler takes the network's output for.
        sampler: ``ddpm`` draws fresh noise in every step (the posterior's variance), ``ddim`` none.
        spacing: the timesteps that the sampler visits: ``trailing`` and ``leading`` as in ``grids.ddim_timesteps``,
            or the ``first`` ones, 0 to ``steps`` - 1.
        told: whether the sampler tells the network the timestep, or its place among the timesteps visited.
        clip: whether every denoised image is clipped to the pixels' range, as in DDPM's code.
        weights: which weights sample.
    """

    seed: int = 0
    network: Literal["ddpm", "plain"] = "ddpm"
    attention: bool = True
    noise_conditioning: Literal["all", "bottleneck", "none"] = "all"
    pixels: Literal["signed", "unit", "unit-shown-as-signed", "bytes"] = "signed"
    process: Literal["diffusion", "autoencoder"] = "diffusion"
    timesteps: int = 1000
    target: Literal["noise", "image"] = "noise"
    read_as: Literal["noise", "image"] = "noise"
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    spacing: Literal["trailing", "leading", "first"] = "trailing"
    told: Literal["timestep", "place"] = "timestep"
    clip: bool = True
    weights: Literal["averaged", "raw"] = "averaged"

    @property
    def training(self) -> "Setup":
        """The setup of the training that this run needs: runs that differ only in sampling share one."""
        shared = {name: getattr(Setup, name) for name in ("read_as", "sampler", "spacing", "told", "clip", "weights")}
        pixels: Any = self.pixels.removesuffix("-shown-as-signed")
        return replace(self, pixels=pixels, **shared)

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that differ from the run without a mistake."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Setup, name)}


@dataclass(frozen=True)
class Case:
    """One row of the study.

    Attributes:
        name: of its files, and for ``--only``.
        title: of its row.
        setup: what it runs.
    """

    name: str
    title: str
    setup: Setup


BASELINES = (
    Case("baseline", "without a mistake", Setup()),
    Case("baseline-seed-1", "the same with another seed", Setup(seed=1)),
    Case("baseline-seed-2", "the same with a third seed", Setup(seed=2)),
)
MISTAKES = (
    Case("no-time", "no time conditioning", Setup(noise_conditioning="none")),
    Case("time-at-bottleneck", "time only at the bottleneck", Setup(noise_conditioning="bottleneck")),
    Case("autoencoder", "an autoencoder of five noise steps, iterated", Setup(process="autoencoder")),
    Case("short-schedule", "T = 500, betas unchanged", Setup(timesteps=500)),
    Case("unit-pixels", "pixels in [0, 1]", Setup(pixels="unit")),
    Case("unit-pixels-shown-as-signed", "pixels in [0, 1], shown as [-1, 1]", Setup(pixels="unit-shown-as-signed")),
    Case("byte-pixels", "pixels in 0..255", Setup(pixels="bytes")),
    Case("raw-weights", "raw weights, no average", Setup(weights="raw")),
    Case("no-clipping", "denoised images not clipped", Setup(clip=False)),
    Case("no-attention", "no attention", Setup(attention=False)),
    Case("plain-unet", "plain U-Net", Setup(network="plain")),
    Case("leading-timesteps", "timesteps 960, 920, ... 0", Setup(spacing="leading")),
    Case("first-timesteps", "timesteps 24, 23, ... 0", Setup(spacing="first")),
    Case("place-as-timestep", "the network is told 24, 23, ... 0", Setup(told="place")),
    Case("image-loss", "loss on the image, read as noise", Setup(target="image")),
    Case("noise-read-as-image", "loss on the noise, read as image", Setup(read_as="image")),
)
CONTROLS = (
    Case("image-prediction", "no mistake: loss on the image, read so", Setup(target="image", read_as="image")),
    Case("ddim", "no mistake: DDIM in place of DDPM", Setup(sampler="ddim")),
)
CASES = (*BASELINES, *MISTAKES, *CONTROLS)


@dataclass(frozen=True)
class Budget:
    """What all runs of a study share.

    Attributes:
        network: of the run without a mistake.
        images: length of each training.
        batch_size: images a step.
        lr: Adam's.
        samples: N, images that each run is judged by.
        reference_images: real images of the train split that they are compared with.
        steps: network evaluations of a sample.
        log_every_images, checkpoint_every_images: intervals of the training.
    """

    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            image_size=32,
            channels=32,
            channel_multipliers=(1, 1, 2),
            blocks=1,
            attention_resolutions=(8,),
            attention_head_channels=32,
        )
    )
    images: int = 20_000
    batch_size: int = 8
    lr: float = 1e-3
    samples: int = 500
    reference_images: int = 2000
    steps: int = 25
    log_every_images: int = 2000
    checkpoint_every_images: int = 4000

    def network_of(self, setup: Setup) -> UNetConfig:
        """The configuration of a setup's network."""
        config = self.network.replace(noise_conditioning=setup.noise_conditioning)
        if not setup.attention:
            config = config.replace(attention_resolutions=(), middle_attention=False)
        if setup.network == "plain":  # which doubles its channels at each halving
            doubling = tuple(2**level for level in range(len(config.channel_multipliers)))
            config = config.replace(architecture="plain", channel_multipliers=doubling)
        return config

    def training_of(self, setup: Setup, precision: Precision) -> Training:
        """How a setup is trained: the demo's settings, but for its length."""
        return Training(
            seed=setup.seed,
            images=self.images,
            batch_size=self.batch_size,
            lr=self.lr,
            betas=(0.9, 0.99),
            warmup_images=self.images // 20,
            gradient_clip=1.0,
            ema_half_life_images=5000,
            ema_rampup=0.09,
            precision=precision,
            log_every_images=self.log_every_images,
            checkpoint_every_images=self.checkpoint_every_images,
        )


# ----------------------------------------------------------------------- the parts that are put together wrongly

PIXELS: Mapping[str, tuple[float, float]] = {
    "signed": (1.0, 0.0),
    "unit": (0.5, 0.5),
    "unit-shown-as-signed": (0.5, 0.5),
    "bytes": (127.5, 127.5),
}
"""Scale a and shift b of each convention: what the process takes for the image x in [-1, 1] is ``a x + b``."""


class ScaledBatches(Batches):
    """Batches in another convention of pixels: images x in [-1, 1] come as ``scale x + shift``."""

    def __init__(self, images: Tensor, batch_size: int, seed: int, scale: float, shift: float) -> None:
        super().__init__(Batch(images), batch_size, seed, horizontal_flip=False)
        self.scale = scale
        self.shift = shift

    def batch(self, number: int) -> Batch:
        """Batch ``number``, of float32 images [batch_size, 3, H, W]."""
        return Batch(self.scale * super().batch(number).images + self.shift)


def pixel_range(pixels: str) -> tuple[float, float]:
    """What a process takes for black and for white."""
    scale, shift = PIXELS[pixels]
    return shift - scale, shift + scale


def shown(x: Tensor, pixels: str) -> Tensor:
    """Images of a process as the program shows them: uint8 of x [B, 3, H, W]."""
    scale, shift = PIXELS["signed"] if pixels.endswith("shown-as-signed") else PIXELS[pixels]
    return to_uint8(((x.float() - shift) / scale).nan_to_num())


@dataclass(frozen=True)
class ImageError(Objective):
    """Plain squared error of the denoised image at levels drawn evenly from a list.

    Attributes:
        levels: float [K], the list.
    """

    levels: Tensor

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Levels of the list, each as likely."""
        chosen = torch.randint(len(self.levels), (count,), generator=generator, device=generator.device)
        return self.levels.to(generator.device)[chosen].float()

    def weight(self, sigma: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class ToldPlace(VPLinear):
    """DDPM's path, of which a sampler of few steps tells the network the number of the step.

    Attributes:
        steps: timesteps visited; timestep t is number ``floor(t steps / T)`` among them, from 0.
    """

    steps: int = 25

    def betas(self) -> list[float]:
        return linear_betas(self.timesteps, self.beta_start, self.beta_end)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The number of the step; ``t`` is rounded first, since it comes from the logarithm of sigma."""
        return (self.t(sigma).round() * self.steps / self.timesteps).floor()


def iterate(denoiser: DenoiserFunction, sigmas: Tensor, x: Tensor) -> Tensor:
    """Feed the denoiser its own output, told ever smaller noise levels: a chain of means, not a sampler.

    Args:
        denoiser: maps x [B, ...] and levels [B] to images.
        sigmas: the levels, decreasing, the last of which is 0 and not visited.
        x: the start.
    """
    for sigma, _ in pairwise(sigmas.tolist()):
        x = denoiser(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
    return x


def visited(setup: Setup, path: VPLinear, steps: int) -> Tensor:
    """The noise levels that a setup's sampler visits: float64, decreasing to 0."""
    if setup.process == "autoencoder":
        return torch.tensor((*reversed(ADDITIVE_LEVELS), 0.0), dtype=torch.float64)
    if setup.spacing == "first":
        return torch.cat([path.sigmas[:steps].flip(0), path.sigmas.new_zeros(1)])
    return grids.ddim(steps, path, setup.spacing)


def parameterization(what: str) -> Parameterization:
    """The one whose network gives the ``noise`` or the ``image``."""
    return Eps() if what == "noise" else X0()


def training_parts(network: nn.Module, setup: Setup) -> tuple[Denoiser, Objective]:
    """The denoiser and the objective that train a setup's network."""
    path = VPLinear(setup.timesteps)
    if setup.process == "autoencoder":
        return Denoiser(network, path, X0()), ImageError(torch.tensor(ADDITIVE_LEVELS))
    objective = Simple(path) if setup.target == "noise" else ImageError(path.sigmas)
    return Denoiser(network, path, parameterization(setup.target)), objective


def sampling_denoiser(network: nn.Module, setup: Setup, steps: int) -> Denoiser:
    """The denoiser that a setup's sampler makes of the trained network."""
    path = VPLinear(setup.timesteps) if setup.told == "timestep" else ToldPlace(setup.timesteps, steps=steps)
    return Denoiser(network, path, X0() if setup.process == "autoencoder" else parameterization(setup.read_as))


def sample(network: nn.Module, setup: Setup, budget: Budget, precision: str, device: torch.device) -> Iterator[Tensor]:
    """Batches of a setup's samples, as its program shows them: uint8 [B, 3, H, W] on the CPU."""
    denoiser = sampling_denoiser(network, setup, budget.steps)
    path = VPLinear(setup.timesteps)
    sigmas = visited(setup, path, budget.steps)
    shape = (3, budget.network.image_size, budget.network.image_size)
    sampler = Sampler(sampler=setup.sampler, steps=budget.steps, grid="karras")  # whose sigmas are not taken

    def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
        with autocast(precision, device):
            denoised = denoiser(x, sigma)
        return denoised.clamp(*pixel_range(setup.pixels)) if setup.clip else denoised

    for ids in batches(budget.samples, SAMPLE_BATCH):
        if setup.process == "autoencoder":
            with torch.inference_mode():
                x = iterate(evaluate, sigmas, SampleNoise(setup.seed, ids, shape, device)())
        else:
            *_, last = draw(evaluate, sampler, setup.seed, ids, shape, path=path, device=device, sigmas=sigmas)
            x = last.x
        yield shown(x, setup.pixels).cpu()


# ------------------------------------------------------------------------------------------------------- the study


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        name: of its case.
        frechet: distance of its samples from the reference, ``fd_efficientnet_lite0``.
        loss: of its training, the mean since the last point of the curve; each objective has its own scale.
        parameters: of its network.
        nfe: network evaluations of a sample.
    """

    name: str
    frechet: float
    loss: float
    parameters: int
    nfe: int


class Judge:
    """Distances from real images, at one N; the features of the real ones are computed when first asked for.

    Args:
        shards: folder of the shards.
        features: file that keeps the features of the real images of the train split.
        budget: says how many images, and their size.
        device: of the feature network.
    """

    def __init__(self, shards: Path, features: Path, budget: Budget, device: torch.device) -> None:
        self.shards = shards
        self.features = features
        self.budget = budget
        self.device = device
        self.index = ShardIndex.load(shards)

    def real(self, split: str, count: int) -> Tensor:
        """Real images at the study's size, spread evenly over a split."""
        return shrunk(load_real(self.shards, self.index, split, count), self.budget.network.image_size)

    def frechet(self, images: Tensor) -> float:
        """Fréchet distance of uint8 images [N, 3, size, size] from the reference."""
        return significant(frechet_distance(self._statistics(images), self._reference))

    def controls(self) -> dict[str, float]:
        """The distances of held-out real images (``floor``) and of uniform noise (``noise``), at N."""
        count, size = self.budget.samples, self.budget.network.image_size
        return {
            "floor": self.frechet(self.real("test", count)),
            "noise": self.frechet(uniform_noise(count, size, seed=0)),
        }

    @cached_property
    def _reference(self) -> Statistics:
        if not self.features.is_file():
            found = self._extract(self.real("train", self.budget.reference_images))
            save_tensors(self.features, {"features": found})
        return statistics(load_tensors(self.features, AGAIN)["features"])

    def _statistics(self, images: Tensor) -> Statistics:
        return statistics(self._extract(images))

    def _extract(self, images: Tensor) -> Tensor:
        return extract(images, self._extractor, SAMPLE_BATCH, self.device)

    @cached_property
    def _extractor(self) -> Any:
        return load_extractor(FEATURES)


class TutorialStudy:
    """A folder of finished runs, and what is needed to make the others.

    Args:
        shards: folder of the shards of the data.
        out: the folder; one of another budget or of other data is refused.
        budget: what the runs share.
        say: told each line of progress.

    Raises:
        UnveilError: if the shards are missing, damaged or of a size that does not fit, or ``out`` is another study's.
    """

    def __init__(self, shards: Path, out: Path, budget: Budget, say: Say) -> None:
        self.out = out
        self.budget = budget
        self.say = say
        self.device = resolve_device("auto")
        set_tf32(False, self.device)
        self.precision = resolve_precision("auto", self.device)
        self.judge = Judge(shards, out / "reference.safetensors", budget, self.device)
        verify(shards, ["train", "test"])
        facts = {"shards": self.judge.index.digest(), "precision": self.precision, **asdict(budget)}
        self.ledger = Ledger(out / "study.json", facts | {"network": budget.network.read_values()}, Result)

    def run(self, cases: Sequence[Case], seconds: float, jobs: int = 1) -> list[Result]:
        """Make the runs that are not there yet, and return all of ``cases``.

        Args:
            cases: what to run.
            seconds: after which no training begins that would probably end later.
            jobs: how many trainings at a time, each in a process of its own with its share of the cores; 1 is here.

        Raises:
            UnveilError: if time ran out before all was made; what is finished stays.
        """
        self.ledger.save()
        todo = [case for case in cases if case.name not in self.results]
        shared: dict[Setup, list[Case]] = {}
        for case in todo:
            shared.setdefault(case.setup.training, []).append(case)
        groups = list(shared.values())
        if todo and not self.controls_file.is_file():
            self.say("features of the real images")
            write_json(self.controls_file, self.judge.controls())
        clock = Clock(seconds, len(groups), jobs)
        made = self._make_here(groups, clock) if jobs == 1 else self._make_in_processes(groups, clock, jobs)
        for results in made:
            for result in results:
                self.ledger.add(result)
            clock.end()
            self.say(clock.left())
        if missing := [case.name for case in todo if case.name not in self.results]:
            raise UnveilError(
                f"tutorials: --minutes are over before {', '.join(missing)}; "
                "what is finished is kept, and the same command goes on"
            )
        return [self.results[case.name] for case in cases]

    def make(self, cases: Sequence[Case]) -> Iterator[Result]:
        """Train the network that all these cases share, if it is not there, and evaluate each."""
        if not self.training_folder(cases[0].setup.training).is_dir():
            self.train(cases[0])
        for case in cases:
            result = self.evaluate(case)
            self.say(f"{case.name:28} {result.frechet:8.2f}  {case.title}")
            yield result

    def _make_here(self, groups: Sequence[Sequence[Case]], clock: "Clock") -> Iterator[Iterable[Result]]:
        """Make one group of cases after the other while there is time."""
        for group in groups:
            if not clock.begin():
                return
            yield self.make(group)

    def _make_in_processes(
        self, groups: Sequence[Sequence[Case]], clock: "Clock", jobs: int
    ) -> Iterator[Iterable[Result]]:
        """Make ``jobs`` groups of cases at a time while there is time."""
        threads = max(1, torch.get_num_threads() // jobs)
        context = get_context("spawn")  # a fork of a process whose threads have computed may hang
        waiting, running = list(reversed(groups)), set[Future[list[Result]]]()
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
            while True:
                while waiting and len(running) < jobs and clock.begin():
                    running.add(pool.submit(_make, self.judge.shards, self.out, self.budget, waiting.pop(), self.say))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()

    def train(self, case: Case) -> None:
        """Train the network of a case, going on from its last checkpoint, and keep both sets of weights."""
        setup, budget = case.setup.training, self.budget
        folder = self.training_folder(setup)
        torch.manual_seed(setup.seed)
        denoiser, objective = training_parts(build_network(budget.network_of(setup)).to(self.device), setup)
        batches = ScaledBatches(self._images, budget.batch_size, setup.seed, *PIXELS[setup.pixels])
        checkpoints = Checkpoints(self.out / "checkpoints" / folder.name)
        trainer = Trainer(denoiser, Loss(objective), batches, budget.training_of(setup, self.precision), checkpoints)
        trainer.resume()
        for point in trainer.run():
            self.say(
                f"{case.name:28} {point.images:>8,} images  loss {point.loss:.4g}  "
                f"{point.images_per_second:.0f} images/s  {round(point.seconds_left)} s left of it"
            )
        with atomic_directory(folder) as temporary:
            save_tensors(temporary / "raw.safetensors", trainer.network.state_dict())
            with trainer.averaged() as network:
                save_tensors(temporary / "averaged.safetensors", network.state_dict())
            write_json(
                temporary / "training.json",
                {
                    "changes": setup.changes,
                    "parameters": sum(parameter.numel() for parameter in trainer.parameters),
                    "curve": [{"images": point.images, "loss": point.loss} for point in trainer.points],
                    "images_per_second": [round(point.images_per_second, 1) for point in trainer.points],
                },
            )
        checkpoints.remove()

    def evaluate(self, case: Case) -> Result:
        """Sample with the trained network of a case, and measure."""
        setup = case.setup
        folder = self.training_folder(setup.training)
        network = build_network(self.budget.network_of(setup)).to(self.device)
        network.load_state_dict(load_tensors(folder / f"{setup.weights}.safetensors", AGAIN))
        network.eval()
        images = torch.cat(list(sample(network, setup, self.budget, self.precision, self.device)))
        training = read_json(folder / "training.json", dict[str, Any], AGAIN)
        save_tensors(self.pictures_file(case), {"images": images[:SHOWN]})
        return Result(
            name=case.name,
            frechet=self.judge.frechet(images),
            loss=significant(training["curve"][-1]["loss"], 3),
            parameters=training["parameters"],
            nfe=len(visited(setup, VPLinear(setup.timesteps), self.budget.steps)) - 1,
        )

    @property
    def results(self) -> dict[str, Result]:
        """What the finished runs gave, by the names of their cases."""
        return {result.name: result for result in self.ledger.points}

    def pictures(self, case: Case) -> Tensor:
        """The first samples of a run that is there: uint8 [SHOWN, 3, size, size]."""
        return load_tensors(self.pictures_file(case), AGAIN)["images"]

    @property
    def controls_file(self) -> Path:
        """Where the distances of the controls are."""
        return self.out / "controls.json"

    def training_folder(self, setup: Setup) -> Path:
        """Where a training's weights and curve are."""
        return self.out / "trainings" / ("_".join(f"{k}-{v}" for k, v in setup.changes.items()) or "baseline")

    def pictures_file(self, case: Case) -> Path:
        """Where a run's first samples are."""
        return self.out / "runs" / f"{case.name}.safetensors"

    @cached_property
    def _images(self) -> Tensor:
        images = load_tensor(self.judge.shards, "train")
        return shrunk(images, self.budget.network.image_size).to(self.device)


class Clock:
    """How long the trainings take, with their samples, and so how long is left.

    Args:
        seconds: from now, after which none should end.
        count: trainings ahead.
        jobs: trainings at a time.
    """

    def __init__(self, seconds: float, count: int, jobs: int) -> None:
        self.start = time.perf_counter()
        self.seconds = seconds
        self.ahead = count
        self.jobs = jobs
        self.done = 0

    def begin(self) -> bool:
        """Whether a training that began now would probably end in time."""
        now = time.perf_counter() - self.start
        return now + self._mean(now) <= self.seconds

    def end(self) -> None:
        """Note that a training has ended."""
        self.done += 1
        self.ahead -= 1

    def left(self) -> str:
        """How long the trainings ahead will take at the mean so far, in words."""
        now = time.perf_counter() - self.start
        minutes, seconds = divmod(round(now / self.done * self.ahead), 60)
        return f"{self.done} of {self.done + self.ahead} trainings done, about {minutes}:{seconds:02d} left"

    def _mean(self, now: float) -> float:
        return now * self.jobs / self.done if self.done else 0.0


def _make(shards: Path, out: Path, budget: Budget, cases: Sequence[Case], say: Say) -> list[Result]:
    """Make some cases of a study in another process."""
    return list(TutorialStudy(shards, out, budget, say).make(cases))


def shrunk(images: Tensor, size: int) -> Tensor:
    """uint8 images [N, 3, k size, k size] at [N, 3, size, size]: the mean of each k x k pixels.

    Raises:
        UnveilError: if their side is no multiple of ``size``.
    """
    side = images.shape[-1]
    if side % size:
        raise UnveilError(f"shards: images of {side} pixels, expected a multiple of {size}; set preprocess.image_size")
    if side == size:
        return images
    means = [avg_pool2d(part.float(), side // size).round().to(torch.uint8) for part in images.split(SHRUNK_AT_ONCE)]
    return torch.cat(means)


# ---------------------------------------------------------------------------------------- what the study shows


def seeds_of(results: Sequence[Result]) -> tuple[float, float]:
    """Mean and range of the distances of the runs without a mistake that are among the results.

    Raises:
        ValueError: if there is none.
    """
    names = {case.name for case in BASELINES}
    distances = [result.frechet for result in results if result.name in names]
    if not distances:
        raise ValueError("no run without a mistake among the results")
    return sum(distances) / len(distances), max(distances) - min(distances)


def verdict(result: Result, results: Sequence[Result]) -> str:
    """``worse``, ``better``, or ``no difference`` that the seeds do not also make; empty with fewer than two seeds."""
    mean, spread = seeds_of(results)
    if not spread:
        return ""
    if abs(result.frechet - mean) <= SEED_RANGES * spread:
        return "no difference"
    return "worse" if result.frechet > mean else "better"


def table(results: Sequence[Result], controls: Mapping[str, float], budget: Budget) -> str:
    """The Markdown table of REPORT.md."""
    mean, spread = seeds_of(results)
    titles = {case.name: case.title for case in CASES}
    names = {case.name for case in BASELINES}
    lines = [
        "| run | `fd_efficientnet_lite0` | times the mean without a mistake | against the seeds | last loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        found = "" if result.name in names else verdict(result, results)
        lines.append(
            f"| {titles[result.name]} | {result.frechet:.4g} | {result.frechet / mean:.2f} | {found} "
            f"| {result.loss:.3g} |"
        )
    lines.append(
        f"\nN = {budget.samples:,} samples against {budget.reference_images:,} real images of "
        f"{budget.network.image_size} x {budget.network.image_size} pixels. The floor, held-out real images, is "
        f"{controls['floor']:.4g}. The scale, uniform noise, is {controls['noise']:.4g}. Without a mistake the mean is "
        f"{mean:.4g} and the range over the seeds {spread:.2g}. A training sees {budget.images:,} images, and a sample "
        f"takes {budget.steps} steps."
    )
    return "\n".join(lines) + "\n"


def write_report(study: TutorialStudy, results: Sequence[Result], figures: Path) -> str:
    """Write ``results.json`` and ``table.md`` into the study's folder and the pictures into ``figures``.

    Returns:
        The table.
    """
    controls = read_json(study.controls_file, dict[str, Any], AGAIN)
    mean, spread = seeds_of(results)
    text = table(results, controls, study.budget)
    cases = {case.name: case for case in CASES}
    rows = [
        {
            **asdict(result),
            "title": cases[result.name].title,
            "changes": cases[result.name].setup.changes,
            "times_baseline": significant(result.frechet / mean),
            "verdict": verdict(result, results),
        }
        for result in results
    ]
    facts = {"baseline_mean": significant(mean), "baseline_range": significant(spread), **controls}
    write_json(study.out / "results.json", {"samples": study.budget.samples, **facts, "runs": rows})
    write_text(study.out / "table.md", text)
    write_pictures(study, results, controls, figures)
    return text


def fill_report(path: Path, text: str) -> None:
    """Put the table between the two comments ``<!-- tutorials -->`` and ``<!-- /tutorials -->`` of a Markdown file.

    Raises:
        UnveilError: if they are not there, each once and in this order.
    """
    before, after = "<!-- tutorials -->", "<!-- /tutorials -->"
    try:
        old = read_text(path)
    except OSError as error:
        raise UnveilError(f"--report: {path} cannot be read ({error})") from None
    head, found, rest = old.partition(before)
    _, found_after, tail = rest.partition(after)
    if not found or not found_after or before in rest or after in head + tail:
        raise UnveilError(f"--report: {path} has no place for the table, expected one {before} and one {after}")
    write_text(path, f"{head}{before}\n\n{text}\n{after}{tail}")


def write_pictures(
    study: TutorialStudy, results: Sequence[Result], controls: Mapping[str, float], figures: Path
) -> None:
    """Write ``overview.png``, a row a run, and ``<name>.png``: the run without the mistake above the run with it."""
    cases = {case.name: case for case in CASES}
    pictures = {result.name: study.pictures(cases[result.name]) for result in results}
    without = pictures.get(BASELINES[0].name)
    for name, images in pictures.items():
        if without is not None:
            both = images if name == BASELINES[0].name else torch.cat([without, images])
            save_palette(zoomed(both), figures / f"{name}.png")
    real = study.judge.real("test", SHOWN)
    rows = [("real, held out", controls["floor"], real)]
    rows += [(cases[result.name].title, result.frechet, pictures[result.name]) for result in results]
    save_palette(overview(rows), figures / "overview.png")


def zoomed(images: Tensor) -> Image.Image:
    """uint8 images [N, 3, H, W] in rows of ``SHOWN``, each pixel a square."""
    large = images.repeat_interleave(ZOOM, dim=2).repeat_interleave(ZOOM, dim=3)
    return Image.fromarray(image_grid(large, SHOWN).contiguous().numpy())


def overview(rows: Sequence[tuple[str, float, Tensor]]) -> Image.Image:
    """A row for each title, distance and images; the text stands at the left."""
    dpi, text_width = 100, 300
    strips = [zoomed(images) for _, _, images in rows]
    width, height = text_width + max(strip.width for strip in strips), strips[0].height
    figure = Figure(figsize=(width / dpi, height * len(rows) / dpi), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    for row, (title, distance, _) in enumerate(rows):
        middle = 1 - (row + 0.5) / len(rows)
        figure.text(4 / width, middle, fill(title, 28), fontsize=9, va="center")
        figure.text((text_width - 12) / width, middle, f"{distance:.4g}", fontsize=9, va="center", ha="right")
    pixels, _ = canvas.print_to_buffer()  # type: ignore[no-untyped-call]
    page = Image.frombytes("RGBA", canvas.get_width_height(), pixels).convert("RGB")
    for row, strip in enumerate(strips):
        page.paste(strip, (text_width, round(row * page.height / len(rows))))
    return page


def save_palette(image: Image.Image, path: Path) -> None:
    """Save a PNG of few colours, so that it is small."""
    with atomic_path(path) as temporary:
        image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            temporary, "PNG", optimize=True
        )


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names and the runs without a mistake, in the study's order; all for no names.

    Raises:
        UnveilError: if there is no case of a name.
    """
    known = [case.name for case in CASES]
    if unknown := [name for name in names if name not in known]:
        raise UnveilError(f"--only: found {unknown[0]!r}, expected one of {', '.join(known)}")
    wanted = {*names, *(case.name for case in BASELINES)} if names else set(known)
    return [case for case in CASES if case.name in wanted]
