"""What the check of a GPU measures: the recipes' trainings and peers', one resumed, sampling, features, the tests.

Every step is made in a process of its own, which nothing that another does to its device can disturb.
"""

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import torch._dynamo  # every optimizer does, and it takes seconds: so it is done once, before the processes start
from safetensors.torch import load_file, save_file
from tests.benchmarks.bench_training import GIB, clock, random_images, ratios, seconds_a_step, stepping, write_set
from tests.benchmarks.peers import (
    DTYPES,
    PEER_BATCH,
    SIZE,
    DiffusersTraining,
    PeerSetting,
    PeerUNet,
    Run,
    ddp_training,
    encoded_images,
    missing,
)
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from unveil.data.augmentation import LABELS
from unveil.data.batches import open_batches
from unveil.data.shards import verify
from unveil.diffusion.config import Diffusion, Sampler
from unveil.diffusion.design import build_denoiser
from unveil.diffusion.loss import build_loss
from unveil.diffusion.sampling import draw
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.precision import (
    autocast,
    optimizer_precision,
    resolve_channels_last,
    resolve_precision,
    set_tf32,
)
from unveil.training.checkpoint import Checkpoints
from unveil.training.compilation import compile_network
from unveil.training.config import OptimizerName, Training
from unveil.training.loop import Trainer

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 5  # steps before anything is timed
BLOCK = 5  # steps between two looks at the clock, for which a GPU is waited for
PEER_IMAGES = 200  # batches of an epoch of the peers
PEER_WORKERS = 8
MATRIX_SECONDS = 0.5
RESUME_STEPS = {"cuda": 40, "cpu": 4}  # with a checkpoint at a half, and the kill at three quarters
APART = 0.05  # of the way that the weights have gone: farther from each other, two trainings are not the same
INCEPTION_SIZE = 299


@dataclass(frozen=True)
class Shape:
    """What of a recipe decides how fast its stages are."""

    name: str
    network: UNetConfig
    diffusion: Diffusion
    training: Training
    batch: int
    horizontal_flip: bool
    sampler: Sampler
    sample_batch: int
    feature_batch: int

    def small(self) -> "Shape":
        """The same with a network and batches that a CPU computes in no time."""
        network = self.network.replace(
            channels=32,
            channel_multipliers=(1, 2),
            blocks=1,
            stem=4,
            attention_resolutions=(8,),
            attention_head_channels=0,
            norm_groups=16,
        )
        return replace(self, network=network, batch=PEER_BATCH, sample_batch=4, feature_batch=4)


DDPM = Shape(
    "celeba64-ddpm",
    UNetConfig(
        image_size=SIZE,
        channels=128,
        channel_multipliers=(1, 2, 2, 2, 4),
        blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
    ),
    Diffusion(path="vp-linear", parameterization="eps", objective="simple"),
    Training(
        seed=0,
        lr=2e-4,
        betas=(0.9, 0.999),
        precision="auto",
        images=64_000_000,
        batch_size=128,
        warmup_images=0,
        gradient_clip=1.0,
        ema_half_life_images=887_184,
        ema_rampup=0.0,
        log_every_images=12_800,
    ),
    batch=128,
    horizontal_flip=True,
    sampler=Sampler(sampler="ddim", steps=100, grid="ddim-leading"),
    sample_batch=500,
    feature_batch=256,
)
EDM = Shape(
    "celeba64-edm",
    UNetConfig(
        image_size=SIZE,
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        blocks=4,
        attention_resolutions=(16,),
        dropout=0.05,
        decoder_attention="last",
        resampling="residual-project",
        skip_rescale=True,
        augment_labels=LABELS,
    ),
    Diffusion(path="edm", parameterization="edm", objective="edm"),
    Training(
        seed=0,
        lr=2e-4,
        betas=(0.9, 0.999),
        precision="auto",
        images=200_000_000,
        batch_size=256,
        warmup_images=10_000_000,
        gradient_clip=0.0,
        ema_half_life_images=500_000,
        ema_rampup=0.05,
        log_every_images=25_600,
        augment=0.15,
    ),
    batch=256,
    horizontal_flip=False,
    sampler=Sampler(sampler="heun", steps=40, grid="karras"),
    sample_batch=500,
    feature_batch=256,
)
DEMO = Shape(
    "demo",
    UNetConfig(
        image_size=SIZE,
        channels=64,
        channel_multipliers=(1, 2, 2),
        blocks=2,
        attention_resolutions=(8,),
        attention_head_channels=64,
        stem=4,
        refinement_channels=8,
        scale_shift_norm=True,
    ),
    Diffusion(
        path="flow",
        parameterization="x0",
        objective="flow",
        logit_mean=0.7,
        logit_std=0.9,
        huber_scale=0.1,
        difference_weight=4.0,
        noise_candidates=4,
    ),
    Training(
        seed=0,
        images=52_000,
        batch_size=32,
        max_minutes=9,
        lr=3e-3,
        betas=(0.9, 0.99),
        warmup_images=3200,
        gradient_clip=1.0,
        ema_half_life_images=5000,
        ema_rampup=0.09,
        precision="auto",
        log_every_images=640,
        optimizer="muon",
        ema_profiles=(0.05, 0.1),
        snapshot_every_images=10_000,
    ),
    batch=32,
    horizontal_flip=False,
    sampler=Sampler(sampler="dpmpp-2m", steps=10, grid="karras", sigma_min=0.1),
    sample_batch=100,
    feature_batch=64,
)


@dataclass(frozen=True)
class Setting:
    """Of the whole check.

    Attributes:
        device: cpu, where all is small, or cuda.
        folder: for the shards and what else is written and read.
        seconds: that a figure is measured for.
        images: of the shards.
        method: how processes start, see :func:`start_method`.
    """

    device: Literal["cpu", "cuda"]
    folder: Path
    seconds: float
    images: int
    method: Literal["fork", "spawn"] = "fork"

    @property
    def precisions(self) -> tuple[str, str]:
        """Those of the trainings; fp16 is for a GPU."""
        return ("bf16", "fp16") if self.device == "cuda" else ("bf16", "fp32")

    def of(self, shape: Shape) -> Shape:
        """The shape, or on a CPU the small one."""
        return shape if self.device == "cuda" else shape.small()


@dataclass(frozen=True)
class Figure:
    """A measured value."""

    what: str
    value: float
    unit: str

    def __str__(self) -> str:
        value = f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.3g}"
        return f"{self.what} {value}{' ' * bool(self.unit)}{self.unit}"


class LeftOut(Exception):
    """A step cannot be made here, and this is no failure."""


Measurement = Callable[[Setting], Iterator[Figure]]


State = Literal["done", "failed", "left out", "no time"]


@dataclass(frozen=True)
class Step:
    """One line of the report. What is not done in ``share`` of the whole time is ended, and is ``late``."""

    name: str
    measure: Measurement
    share: float = 0.15
    late: State = "failed"


def steps(setting: Setting) -> list[Step]:
    """All steps, those that can be missed most easily at the end."""
    first, second = setting.precisions
    both = (DDPM, EDM)

    def trainings(precision: str) -> list[Step]:
        return [Step(f"train {shape.name}, {precision}", partial(train, shape, precision, False)) for shape in both]

    def compiled(precision: str) -> list[Step]:  # nobody knows how long that takes
        return [
            Step(f"train {shape.name}, {precision}, compiled", partial(train, shape, precision, True), 0.35, "no time")
            for shape in both
        ]

    return [
        Step("shards", write_shards),
        Step("tests marked gpu", run_tests, 0.25),
        *trainings(first),
        *trainings(second),
        Step("resume a killed training, demo", resume, 0.2),
        Step("muon and adam, demo", muon_by_adam),
        *(
            Step(f"sample {shape.name}, {precision}", partial(sample, shape, precision))
            for shape in both
            for precision in ("fp32", "bf16")
        ),
        Step("features, fp32", features),
        *compiled(first),
        *(
            Step(f"train {DDPM.name}, {precision}, {peer}", partial(train_peer, peer, precision))
            for precision in setting.precisions
            for peer in PEERS
        ),
        *compiled(second),
    ]


# Processes


def start_method() -> Literal["fork", "spawn"]:
    """``fork``, which saves a process the imports, unless something has made PyTorch refuse a GPU to forked ones."""
    return "spawn" if exit_code(_refuse_if_unfit, "fork") else "fork"


def _refuse_if_unfit() -> None:
    sys.exit(int(torch.cuda._is_in_bad_fork()))


def exit_code(work: Callable[[], None], method: Literal["fork", "spawn"]) -> int:
    """Do it in a process of its own: the exit status, negative for a signal."""
    context: Any = get_context(method)
    process = context.Process(target=work)
    process.start()
    process.join()
    return int(process.exitcode)


# What is measured with


def about_machine(device: str) -> Iterator[dict[str, str]]:
    """The card and the versions.

    Raises:
        LeftOut: if cuda is asked for, and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise LeftOut("PyTorch sees no CUDA GPU here; --device cpu tries out everything, small, on the CPU")
    found = {"device": "CPU", "Python": platform.python_version(), "PyTorch": torch.__version__}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory": f"{properties.total_memory / GIB:.0f} GiB",
            "driver": _driver(),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    yield found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def steps_a_second(run: Run, setting: Setting) -> float:
    """After a warm-up, for as long as a figure is measured; then the peak of memory is that of these steps."""
    run(WARM_UP if setting.device == "cuda" else 1)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    done, start = 0, clock(setting.device)
    while (taken := clock(setting.device) - start) < setting.seconds or not done:
        block = BLOCK if setting.device == "cuda" else 1
        run(block)
        done += block
    return done / taken


def peak_memory(setting: Setting) -> Iterator[Figure]:
    """What PyTorch allocated at most on a GPU since its peak was last reset."""
    if setting.device == "cuda":
        yield Figure("peak memory", torch.cuda.max_memory_allocated() / GIB, "GiB")


def training_work(network: nn.Module, device: str) -> int:
    """Floating-point operations of forward and backward, for one image."""
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, SIZE, SIZE, device=device), torch.ones(1, device=device)).mean().backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def matrix_rate(precision: str, setting: Setting) -> float:
    """Floating-point operations a second of a large product of matrices."""
    side = 8192 if setting.device == "cuda" else 512
    a, b = torch.randn(2, side, side, device=setting.device, dtype=DTYPES[precision])

    def run(count: int) -> None:
        for _ in range(count):
            a @ b

    return 2 * side**3 * steps_a_second(run, replace(setting, seconds=min(setting.seconds, MATRIX_SECONDS)))


def training_figures(run: Run, batch: int, work: int, precision: str, setting: Setting) -> Iterator[Figure]:
    """Speed, memory, and how much of the device's arithmetic is in use."""
    images = batch * steps_a_second(run, setting)
    yield Figure("speed", images, "images/s")
    yield from peak_memory(setting)
    possible = matrix_rate(precision, setting)
    yield Figure("arithmetic", images * work / 1e12, "TFLOP/s")
    yield Figure("of a matrix product's", possible / 1e12, "TFLOP/s")
    yield Figure("share", 100 * images * work / possible, "%")


def build_trainer(shape: Shape, setting: Setting, config: Training, checkpoints: Path | None = None) -> Trainer:
    """A training of the shards as the train stage would have it."""
    device = torch.device(setting.device)
    set_tf32(True, device)
    torch.manual_seed(0)
    denoiser = build_denoiser(build_network(shape.network), shape.diffusion).to(device)
    if resolve_channels_last("auto", device):
        denoiser.to(memory_format=torch.channels_last)
    flip = shape.horizontal_flip
    batches = open_batches(setting.folder / "set", "train", "device", shape.batch, 0, flip, device)
    config = config.replace(precision=resolve_precision(config.precision, device))
    products = optimizer_precision(config.optimizer, device)
    kept = Checkpoints(checkpoints) if checkpoints is not None else None
    return Trainer(denoiser, build_loss(shape.diffusion), batches, config, kept, optimizer_precision=products)


# The steps


def write_shards(setting: Setting) -> Iterator[Figure]:
    """Shards of random images, in the project's format, for what follows."""
    torch.manual_seed(0)
    start = clock("cpu")
    write_set(setting.folder / "set", setting.images)
    verify(setting.folder / "set", ["train"])
    yield Figure("images", setting.images, "")
    yield Figure("written and verified in", clock("cpu") - start, "s")


def run_tests(setting: Setting) -> Iterator[Figure]:
    """pytest on the files that have tests marked gpu."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    report = setting.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run([*command, *files], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if not report.exists():
        raise RuntimeError(f"pytest ended with status {done.returncode}: {done.stdout.strip().splitlines()[-1:]}")
    cases = ET.parse(report).getroot().findall(".//testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    reasons = [found.get("message", "") for case in cases if (found := case.find("skipped")) is not None]
    passed = len(cases) - len(reasons) - len(failed)
    if failed or (setting.device == "cuda" and not passed):
        print(done.stdout)
        raise RuntimeError(f"{passed} passed, {len(failed)} failed: {', '.join(map(str, failed))}")
    yield Figure("passed", passed, "")
    if reasons:
        yield Figure("skipped", len(reasons), f"({', '.join(sorted(set(reasons)))})")


def train(shape: Shape, precision: str, compiled: bool, setting: Setting) -> Iterator[Figure]:
    """Our training."""
    shape = setting.of(shape)
    trainer = build_trainer(shape, setting, shape.training.replace(precision=precision))
    work = training_work(trainer.network, setting.device)
    if compiled and (reason := compile_network(trainer.network, trainer.device)):
        raise LeftOut(reason)
    yield from training_figures(stepping(trainer, setting.folder / "log"), shape.batch, work, precision, setting)


PEERS = {"diffusers": ("diffusers", "accelerate"), "denoising-diffusion-pytorch": ("denoising_diffusion_pytorch",)}
"""The packages that each peer's training needs."""


def train_peer(peer: str, precision: str, setting: Setting) -> Iterator[Figure]:
    """A peer's training of the network of DDPM's shape, its own or diffusers' of the same weights."""
    for package in (*PEERS[peer], "diffusers"):
        if find_spec(package) is None:
            raise LeftOut(f"{package} is not installed")
    if lacking := missing(*PEERS[peer]):
        raise RuntimeError(f"cannot import {lacking}")
    shape = setting.of(DDPM)
    workers = min(PEER_WORKERS, len(os.sched_getaffinity(0))) if setting.device == "cuda" else 0
    how = PeerSetting(shape.batch, PEER_IMAGES * shape.batch, setting.device, precision, workers)
    torch.manual_seed(0)
    network = PeerUNet(shape.network, build_network(shape.network).state_dict()).to(setting.device)
    work = training_work(network, setting.device)
    encoded = encoded_images()
    folder = setting.folder / f"{peer}-{precision}"
    folder.mkdir()
    if peer == "diffusers":
        run: Run = DiffusersTraining(network, how, encoded)
    else:
        run = ddp_training(network, how, encoded, folder)
    yield from training_figures(run, shape.batch, work, precision, setting)


def muon_by_adam(setting: Setting) -> Iterator[Figure]:
    """Time of the demo's step with either optimizer, in turns."""
    shape = setting.of(DEMO)
    names: tuple[OptimizerName, ...] = ("muon", "adam")
    endless = shape.training.replace(images=1 << 40, snapshot_every_images=0)
    runs: dict[str, Run] = {
        name: stepping(build_trainer(shape, setting, endless.replace(optimizer=name)), setting.folder / name)
        for name in names
    }
    rounds, count = (5, 40) if setting.device == "cuda" else (2, 1)
    seconds = seconds_a_step(runs, argparse.Namespace(device=setting.device, rounds=rounds, steps=count))
    for name in names:
        yield Figure(name, 1000 * statistics.median(seconds[name]), "ms a step")
    found = ratios(seconds["muon"], seconds["adam"])
    yield Figure("muon / adam", statistics.median(found), f"(of {rounds} rounds {min(found):.2f} to {max(found):.2f})")


def resume(setting: Setting) -> Iterator[Figure]:
    """A training that is killed and goes on from its checkpoint, beside two that are left alone."""
    folder = setting.folder
    for name in ("alone", "again", "killed", "resumed"):
        where = folder / ("killed" if name == "resumed" else name)
        code = exit_code(partial(_train_to_end, setting, where, name), setting.method)
        if code != (-signal.SIGKILL if name == "killed" else 0):
            raise RuntimeError(f"the training {name!r} ended with status {code}")
    start = load_file(folder / "alone" / "start.safetensors")
    alone, again, resumed = (load_file(folder / name / "end.safetensors") for name in ("alone", "again", "killed"))
    moved = _distance(start, alone)
    yield Figure("greatest difference of the weights", _greatest(alone, resumed), "")
    yield Figure("without a kill", _greatest(alone, again), "")
    share = _distance(alone, resumed) / moved
    yield Figure("difference by the way that the weights went", share, "")
    if share > (APART if setting.device == "cuda" else 0):
        raise RuntimeError(f"the weights are {share:.2g} of their way from those of a training that was left alone")


def _train_to_end(setting: Setting, folder: Path, name: str) -> None:
    """Train for a few steps; ``killed`` dies on its way, ``resumed`` takes up what it left."""
    shape = setting.of(DEMO)
    count = RESUME_STEPS[setting.device]
    length = count * shape.batch
    config = shape.training.replace(
        images=length,
        batch_size=shape.batch,
        warmup_images=min(shape.training.warmup_images, length),
        checkpoint_every_images=length // 2,
        ema_profiles=(),
        snapshot_every_images=0,
    )
    trainer = build_trainer(shape, setting, config, folder / "checkpoints")
    if name == "resumed":
        assert trainer.resume() and trainer.step == count // 2
    else:
        folder.mkdir()
        _save(trainer, folder / "start.safetensors")

    def stop() -> bool:
        if name == "killed" and trainer.step == count * 3 // 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    for _ in trainer.run(stop):
        pass
    _save(trainer, folder / "end.safetensors")


def _save(trainer: Trainer, path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in trainer.network.named_parameters()}, path)


def _greatest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum((one[name] - other[name]).double().square().sum().item() for name in one) ** 0.5


def sample(shape: Shape, precision: str, setting: Setting) -> Iterator[Figure]:
    """The recipe's sampler with its batch, as far as the time goes; the speed is that of all its steps."""
    shape = setting.of(shape)
    device = torch.device(setting.device)
    set_tf32(False, device)
    denoiser = build_denoiser(build_network(shape.network), shape.diffusion).to(device).eval()
    ids, context = range(shape.sample_batch), lambda: autocast(precision, device)
    states = draw(denoiser, shape.sampler, 0, ids, (3, SIZE, SIZE), context=context)
    next(states)  # the noise
    first = next(states)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = clock(setting.device)
    for state in states:
        evaluations = state.nfe - first.nfe
        if (taken := clock(setting.device) - start) >= setting.seconds:
            break
    needed = shape.sampler.nfe
    assert needed is not None
    rate = shape.sample_batch * evaluations / taken
    yield Figure("speed", rate / needed, f"images/s with {needed} evaluations of the network each")
    yield Figure("evaluations", rate, "images/s")
    yield Figure("batch", shape.sample_batch, "images")
    yield from peak_memory(setting)


def features(setting: Setting) -> Iterator[Figure]:
    """Inception's features, of random weights."""
    shape = setting.of(DDPM)
    images = random_images(shape.feature_batch, "cpu")
    whose, extract = _inception(setting, shape.feature_batch)

    def run(count: int) -> None:
        for _ in range(count):
            extract(images)

    speed = shape.feature_batch * steps_a_second(run, setting)
    yield Figure("speed", speed, f"images/s of Inception's architecture, {whose}, with random weights")
    yield Figure("batch", shape.feature_batch, "images")
    yield from peak_memory(setting)


def _inception(setting: Setting, batch: int) -> tuple[str, Callable[[Tensor], Any]]:
    """Whose it is, and what it makes of uint8 [N, 3, H, W]: the project's if its packages are there."""
    try:
        from tests.benchmarks.bench_features import make_weights

        from unveil.evaluation.features.extraction import extract_layers, load_extractor
    except ImportError:
        from torchvision.models import inception_v3

        set_tf32(False, torch.device(setting.device))
        network = inception_v3(weights=None, init_weights=False, transform_input=False).eval().to(setting.device)
        network.to(memory_format=torch.channels_last)
        network.fc = nn.Identity()

        @torch.inference_mode()
        def extract(images: Tensor) -> Tensor:
            resized = interpolate(images.to(setting.device).float(), size=INCEPTION_SIZE, mode="bilinear")
            found: Tensor = network(((resized - 128) / 128).contiguous(memory_format=torch.channels_last))
            return found.cpu()

        return "torchvision's", extract
    weights = setting.folder / "inception.pth"
    make_weights(weights)
    extractor = load_extractor("inception", weights)
    return "the project's", lambda images: extract_layers(images, extractor, batch, setting.device)
