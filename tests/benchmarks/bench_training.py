"""How fast training is, as ratios to two other training loops and to its own parts, and how much memory it streams in.

    python -m tests.benchmarks.bench_training [--device cuda] [--network NAME] [--precision bf16] [--only PART]

- loop: images a second of the whole loop (loader, step, averaged weights, logging), as ratios to the loop of diffusers'
  example ``train_unconditional`` and to ``Trainer`` of the package denoising-diffusion-pytorch. Theirs train
  UNet2DModel of the same configuration and the same first weights, ours our own network, at the same batch.
- overhead: time of our loop over that of forward, backward and Adam alone, on a batch that lies there. Beside it, not
  required, the same bare step of UNet2DModel by ours: what of the loop's ratios is the network's.
- loader: images a second of both loaders by those of our training.
- memory: of the loader ``stream``, what a training's resident memory grows by from 200 images to ``--images``.

With ``--precision bf16 --peers fp32`` the loops are compared as each comes on a CPU that has bf16: ours with
``precision: auto``, theirs without mixed precision, which both have off unless it is asked for.

The peers are optional: ``pip install diffusers accelerate denoising-diffusion-pytorch``. One that is not there is left
out, with a line that says so. They get JPEGs of 64 x 64, which they decode, where their users often have larger ones
to resize too: from memory for diffusers, which has ``--workers`` loading processes (as published, none), from files for
the other, whose processes are as many as the cores and begin a round with a few batches that they have ready. The
example of diffusers logs every step, to no tracker here. Our images lie as uint8 on the device, as train puts them
there; a point of the curves is written to a file, which stands for MLflow, every 20 steps.

Each round times one after the other, after steps that are not timed, and yields one ratio; the table shows the median
and the range. Time is the clock's, but of the overhead on a CPU: there it is the processor's, which other work on the
machine disturbs less. ``!`` marks a median that misses what is required, and then the exit status is 1.
"""

import argparse
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tests.benchmarks.peers import (
    DISTINCT,
    LR,
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

from unveil.data.batches import Batch, Batches, open_batches
from unveil.data.shards import ShardIndex, verify, write_shard
from unveil.diffusion.config import Diffusion
from unveil.diffusion.design import build_denoiser
from unveil.diffusion.loss import build_loss
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.precision import autocast
from unveil.training.config import Training
from unveil.training.loop import Trainer

TINY = UNetConfig(
    image_size=SIZE,
    channels=32,
    channel_multipliers=(1, 2, 2),
    blocks=1,
    attention_resolutions=(8,),
    stem=4,
    norm_groups=16,
)
BATCHES = {"tiny": 16, "demo": 32, "celeba64-ddpm": 128}  # as their recipes have it
PARTS = ("loop", "overhead", "loader", "memory")
DIFFUSION = Diffusion(path="vp-linear", parameterization="eps", objective="simple")  # what both peers train
LOG_STEPS = 20
WARM_UP = 3  # steps before anything is timed
SETTLE = 1  # steps before each time
TURNS = 4  # of each in a round, where the processor's time of little more or less is asked for
LOADER_IMAGES = 20_000
LOADER_STEPS = 20  # batches that are loaded for each that is trained on
MEMORY_STEPS = 10
FEW_IMAGES = 200
SHARD_IMAGES = 10_000
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """A line of the table: its values of every round, and the limit that their median keeps to, if any."""

    name: str
    values: list[float]
    limit: float | None = None
    sense: Literal["at least", "at most"] = "at least"
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the median keeps to the limit."""
        if self.limit is None:
            return True
        median = statistics.median(self.values)
        return median >= self.limit if self.sense == "at least" else median <= self.limit

    def __str__(self) -> str:
        median, low, high = statistics.median(self.values), min(self.values), max(self.values)
        required = f"   required: {self.sense} {self.limit:g}{self.unit}" if self.limit is not None else ""
        spread = f"[{low:9.2f} .. {high:9.2f}]" if len(self.values) > 1 else " " * 24
        return f"{self.name:52s} {median:9.2f}{self.unit:9s}{' ' if self.met else '!'}{spread}{required}"


# What all train


def network_config(name: str) -> UNetConfig:
    """The network's configuration; all but tiny are recipes' (demo is params.yaml's)."""
    if name == "tiny":
        return TINY
    from unveil.recipes import load_recipe  # its packages are not needed for tiny

    return UNetConfig(image_size=SIZE, **load_recipe(name).params.train.network.model_dump())


def our_network(options: argparse.Namespace) -> nn.Module:
    """Our network, with the same weights every time."""
    torch.manual_seed(0)
    return build_network(network_config(options.network)).to(options.device)


def peer_network(options: argparse.Namespace) -> PeerUNet:
    """The peers' network, with our network's weights."""
    config = network_config(options.network)
    return PeerUNet(config, our_network(options).cpu().state_dict()).to(options.device)


def peer_setting(options: argparse.Namespace) -> PeerSetting:
    """How the peers train."""
    return PeerSetting(options.batch, images_of_a_loop(options), options.device, options.peers, options.workers)


def images_of_a_loop(options: argparse.Namespace) -> int:
    """Enough that no epoch ends while a loop is timed."""
    return int(options.batch * (WARM_UP + (options.rounds + 1) * (SETTLE * TURNS + options.steps + TURNS)))


# The loops


def training(network: nn.Module, batches: Batches, options: argparse.Namespace, log: Path) -> Run:
    """Our loop, with the settings of train that matter to its speed."""
    config = Training(
        seed=0,
        images=1 << 40,
        lr=LR,
        betas=(0.9, 0.999),
        warmup_images=10_000,
        gradient_clip=1.0,
        ema_half_life_images=5000,
        ema_rampup=0.09,
        precision=options.precision,
        log_every_images=LOG_STEPS * options.batch,
    )
    denoiser = build_denoiser(network, DIFFUSION).to(options.device)
    return stepping(Trainer(denoiser, build_loss(DIFFUSION), batches, config), log)


def stepping(trainer: Trainer, log: Path) -> Run:
    """Steps of a training; its points of the curves go into a file, which stands for MLflow."""

    def run(steps: int) -> None:
        end = trainer.step + steps
        for point in trainer.run(stop=lambda: trainer.step >= end):
            with log.open("a") as file:
                print(point, file=file)

    return run


def random_images(count: int, device: str) -> Tensor:
    """Uint8 [count, 3, 64, 64], made with the memory of a few more."""
    block = torch.randint(256, (min(count, DISTINCT), 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    return block[torch.arange(count, device=device) % len(block)]


def our_training(options: argparse.Namespace, folder: Path) -> Run:
    """Our loop over images that lie on the device."""
    images = random_images(images_of_a_loop(options), options.device)
    batches = Batches(Batch(images), options.batch, seed=0, horizontal_flip=True)
    return training(our_network(options), batches, options, folder / "points.txt")


# The parts of the table


def clock(device: str, of_processor: bool = False) -> float:
    """Seconds, when the device has done all that it was told; of the clock, or of this process on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if of_processor and device == "cpu" else time.perf_counter()


def seconds_a_step(
    runs: Mapping[str, Run],
    options: argparse.Namespace,
    *,
    of_processor: bool = False,
    turns: int = 1,
    times: Mapping[str, int] = {},
) -> dict[str, list[float]]:
    """Seconds a step of every round.

    Args:
        runs: what is timed.
        options: steps, rounds and device.
        of_processor: see :func:`clock`.
        turns: a round's steps are made in so many turns, between which the others have theirs.
        times: what is named here makes so many steps for each of the others'.
    """
    for run in runs.values():
        run(WARM_UP)
    length = -(-options.steps // turns)
    seconds: dict[str, list[float]] = {who: [0.0] * options.rounds for who in runs}
    for number, _, (who, run) in itertools.product(range(options.rounds), range(turns), runs.items()):
        run(SETTLE)
        steps = length * times.get(who, 1)
        start = clock(options.device, of_processor)
        run(steps)
        seconds[who][number] += (clock(options.device, of_processor) - start) / (steps * turns)
    return seconds


def ratios(above: list[float], below: list[float]) -> list[float]:
    """One ratio a round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def measure_loop(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Our loop against the peers'."""
    encoded = encoded_images()
    runs: dict[str, Run] = {"ours": our_training(options, folder)}
    required = {}
    if lacking := missing("diffusers", "accelerate", "torchvision"):
        print(f"diffusers' loop is left out: no {lacking}")
    else:
        runs["diffusers' example"] = DiffusersTraining(peer_network(options), peer_setting(options), encoded)
        required["diffusers' example"] = 1.5
    if lacking := missing("diffusers", "denoising_diffusion_pytorch"):
        print(f"denoising-diffusion-pytorch is left out: no {lacking}")
    elif options.batch < PEER_BATCH:
        print(f"denoising-diffusion-pytorch is left out: it takes no batch below {PEER_BATCH}")
    else:
        runs["denoising-diffusion-pytorch"] = ddp_training(
            peer_network(options), peer_setting(options), encoded, folder
        )
        required["denoising-diffusion-pytorch"] = 2.0
    seconds = seconds_a_step(runs, options)
    for who, values in seconds.items():
        yield Row(f"loop      {who}", [options.batch / value for value in values], unit=" images/s")
    for who, limit in required.items():
        yield Row(f"loop      ours / {who}", ratios(seconds[who], seconds["ours"]), limit)


def bare(network: nn.Module, options: argparse.Namespace) -> Run:
    """Forward, backward and Adam on images and noise that stay the same."""
    device = torch.device(options.device)
    x, noise = torch.randn(2, options.batch, 3, SIZE, SIZE, device=device)
    t = torch.linspace(0, 999, options.batch, device=device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)

    def run(steps: int) -> None:
        network.train()
        for _ in range(steps):
            with autocast(options.precision, device):
                loss = (network(x, t).float() - noise).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def measure_overhead(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Our loop against its bare step."""
    runs = {"loop": our_training(options, folder), "bare": bare(our_network(options), options)}
    if not missing("diffusers"):
        runs["peer"] = bare(peer_network(options), options)
    turns = TURNS if options.device == "cpu" else 1  # a GPU would have to be waited for too often
    seconds = seconds_a_step(runs, options, of_processor=True, turns=turns)
    more = [100 * (ratio - 1) for ratio in ratios(seconds["loop"], seconds["bare"])]
    yield Row("overhead  of the loop over its bare step", more, 3.0, "at most", " %")
    if "peer" in seconds:
        yield Row("overhead  bare step: ours / UNet2DModel's", ratios(seconds["peer"], seconds["bare"]))


def write_set(folder: Path, count: int) -> None:
    """Shards of so many images, written one after another: memory holds one."""
    folder.mkdir()
    shards = []
    for number, start in enumerate(range(0, count, SHARD_IMAGES)):
        ids = torch.arange(start, min(start + SHARD_IMAGES, count))
        attributes = torch.zeros(len(ids), 40, dtype=torch.bool)
        shards.append(write_shard(folder, "train", number, random_images(len(ids), "cpu"), attributes, ids))
    index = ShardIndex.of(
        source="folder",
        protocol="squash",
        image_size=SIZE,
        attributes=(),
        splits={"train": tuple(shards)},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    index.save(folder)


def open_set(folder: Path, loader: Literal["device", "stream"], options: argparse.Namespace) -> Batches:
    """Batches of such a set, as train opens them."""
    device = torch.device(options.device)
    return open_batches(folder, "train", loader, options.batch, seed=0, horizontal_flip=True, device=device)


def loading(batches: Batches) -> Run:
    """The loader alone."""
    numbers = itertools.count()

    def run(steps: int) -> None:
        for number in itertools.islice(numbers, steps):
            batches.batch(number)

    return run


def measure_loader(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Both loaders against our training."""
    write_set(folder / "set", LOADER_IMAGES)
    runs: dict[str, Run] = {"training": our_training(options, folder)}
    loaders: tuple[Literal["device", "stream"], ...] = ("device", "stream")
    for loader in loaders:
        runs[loader] = loading(open_set(folder / "set", loader, options))
    seconds = seconds_a_step(runs, options, times=dict.fromkeys(loaders, LOADER_STEPS))
    for loader in loaders:
        rates = [options.batch / value for value in seconds[loader]]
        yield Row(f"loader    {loader}", rates, unit=" images/s")
        yield Row(f"loader    {loader} / training", ratios(seconds["training"], seconds[loader]), 50.0)


def resident(field: str) -> int:
    """Memory of this process in bytes: RssAnon and VmRSS now, VmHWM as VmRSS at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def train_streamed(folder: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Anonymous and total resident memory in bytes, at most, of a training in this process."""
    verify(folder, ["train"])  # as train does
    run = training(our_network(options), open_set(folder, "stream", options), options, folder / "points.txt")
    anonymous = 0
    for _ in range(MEMORY_STEPS):
        run(1)
        anonymous = max(anonymous, resident("RssAnon"))
    return anonymous, resident("VmHWM")


def measure_memory(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """What many images take more than few, each training in a process of its own."""
    found = []
    for count in (FEW_IMAGES, options.images):
        path = folder / str(count)
        write_set(path, count)
        arguments = [f"--device={options.device}", f"--precision={options.precision}", f"--streamed={path}"]
        command = [sys.executable, "-m", "tests.benchmarks.bench_training", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append([int(value) for value in done.stdout.split()])
    for name, few, many in zip(("anonymous", "resident"), *found, strict=True):
        what = f"memory    stream, {name}, {options.images:,} images"
        yield Row(what, [(many - few) / GIB], 1.0, "at most", " GiB")


MEASURES = {"loop": measure_loop, "overhead": measure_overhead, "loader": measure_loader, "memory": measure_memory}


def parse() -> argparse.Namespace:
    """The options; the batch is the network's, if none is given."""
    parser = argparse.ArgumentParser(description="Ratios of the training loop to others and to its parts.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--network", default="tiny", choices=list(BATCHES), help="demo is that of params.yaml")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--peers", choices=["fp32", "bf16"], help="precision of the peers' loops; ours, if not given")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--steps", type=int, default=20, help="of each in a round")
    parser.add_argument("--batch", type=int, help="images a step; the network's, if not given")
    parser.add_argument("--images", type=int, default=200_000, help="that memory is measured with; 12 kB of disk each")
    parser.add_argument("--workers", type=int, default=0, help="loading processes of diffusers' loop")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--streamed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.batch = options.batch or BATCHES[options.network]
    options.peers = options.peers or options.precision
    return options


def main() -> int:
    """Measure and print the table; 1 if a required ratio is missed."""
    options = parse()
    if options.streamed:
        print(*train_streamed(options.streamed, options))
        return 0
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}; {options.network}, {options.precision}, batch {options.batch}; PyTorch {torch.__version__}")
    if options.peers != options.precision:
        print(f"the peers' loops in {options.peers}")
    print(f"{options.rounds} rounds of {options.steps} steps: median [lowest .. highest]")
    met = True
    for part in options.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for row in MEASURES[part](options, Path(folder)):
                print(row, flush=True)
                met &= row.met
        gc.collect()  # a peer's loading processes end with it
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
