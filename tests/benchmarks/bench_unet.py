"""How fast the U-Net is and how much memory it takes, as ratios to diffusers' UNet2DModel of the same configuration.

    python tests/benchmarks/bench_unet.py [--device cuda] [--network NAME] [--precision bf16] [--rounds R] [--batch B]

For the networks of DDPM's CIFAR-10 and of DDIM's CelebA 64 x 64, in fp32 and in bf16 (autocast), with the same
weights: the forward pass as sampling makes it, and a training step (forward, backward, Adam) as train makes it. Each
round times one after the other; on a CPU it is the processor's time of one thread, which other work on the machine
disturbs less than the clock. The table shows the median and the range of the rounds' ratios, above 1 where ours is
better. ``--compile`` adds our network under torch.compile. With ``--precision bf16 --peers fp32`` both are compared as
each comes on a CPU that has bf16: ours with ``precision: auto``, diffusers' example with its default.

Peak memory, of weights, activations, gradients and Adam: on CUDA what PyTorch allocated at most; on a CPU (Linux) what
a process of its own grew by, at most, since before its network was built. Exit status 1 if a median or a memory
misses what is required.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from unveil.interchange.unet2d import from_config, from_weights
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.precision import autocast

REQUIRED = {"forward": 1.2, "training step": 1.3, "memory": 1.0}
NETWORKS = {
    "ddpm-cifar10": UNetConfig(
        image_size=32,
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
    ),
    "celeba64-ddpm": UNetConfig(
        image_size=64,
        channels=128,
        channel_multipliers=(1, 2, 2, 2, 4),
        blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
    ),
}
Call = Callable[[Tensor, Tensor], Tensor]


def build(name: str, who: str, device: torch.device) -> tuple[nn.Module, Call]:
    """Our network or the peer's, with the same weights, and how it is called."""
    torch.manual_seed(0)
    ours = build_network(NETWORKS[name])  # then the peer's, so that it has the same weights
    if who != "peer":
        ours.to(device)
        return ours, torch.compile(ours) if who == "compiled" else ours
    values = {key: value for key, value in from_config(NETWORKS[name]).items() if not key.startswith("_")}
    peer = UNet2DModel(**values).to(device)
    peer.load_state_dict(from_weights(ours.state_dict()))
    return peer, lambda x, t: peer(x, t).sample


def forward_pass(network: nn.Module, call: Call, precision: str, x: Tensor, t: Tensor) -> Callable[[], None]:
    """One evaluation of the network, as in sampling."""

    def run() -> None:
        network.eval()
        with torch.inference_mode(), autocast(precision, x.device):
            call(x, t)

    return run


def training_step(network: nn.Module, call: Call, precision: str, x: Tensor, t: Tensor) -> Callable[[], None]:
    """Forward, backward and Adam, the same for both."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, fused=True)

    def run() -> None:
        network.train()
        with autocast(precision, x.device):
            loss = call(x, t).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


WORK = {"forward": forward_pass, "training step": training_step}


def inputs(name: str, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and timesteps."""
    size = NETWORKS[name].image_size
    return torch.randn(batch, 3, size, size, device=device), torch.linspace(0, 999, batch, device=device)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Time of one run: of the device, or of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def speed(name: str, work: str, precision: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Ratios of every round: the peer's time by ours."""
    device = torch.device(options.device)
    x, t = inputs(name, options.batch, device)
    contestants = ("peer", "ours", "compiled") if options.compile else ("peer", "ours")
    runs = {}
    for who in contestants:
        network, call = build(name, who, device)
        runs[who] = WORK[work](network, call, options.peers or precision if who == "peer" else precision, x, t)
        runs[who]()
    ratios: dict[str, list[float]] = {who: [] for who in contestants[1:]}
    for _ in range(options.rounds):
        times = {who: seconds(run, device) for who, run in runs.items()}
        for who in ratios:
            ratios[who].append(times["peer"] / times[who])
    return ratios


def peak_bytes(name: str, work: str, precision: str, who: str, options: argparse.Namespace) -> int:
    """Peak of memory of two steps, with the weights."""
    device = torch.device(options.device)
    before = resident("VmRSS")
    x, t = inputs(name, options.batch, device)
    network, call = build(name, who, device)
    run = WORK[work](network, call, precision, x, t)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what went before
    run()
    run()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - before


def resident(field: str) -> int:
    """Memory of this process in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def memory(name: str, work: str, precision: str, options: argparse.Namespace) -> float:
    """The peer's peak by ours, each in a process of its own."""
    peaks = []
    for who in ("peer", "ours"):
        own = options.peers or precision if who == "peer" else precision
        arguments = [f"--network={name}", f"--precision={own}", f"--device={options.device}"]
        arguments += [f"--batch={options.batch}", f"--peak={who}/{work}"]
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    return peaks[0] / peaks[1]


def main() -> int:
    """Measure and print the table; 1 if a required ratio is missed."""
    parser = argparse.ArgumentParser(description="Ratios of diffusers' time and memory to the U-Net's.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="only this one; may be repeated")
    parser.add_argument("--precision", action="append", choices=["fp32", "bf16"], help="only this one; may be repeated")
    parser.add_argument("--peers", choices=["fp32", "bf16"], help="precision of diffusers' network; ours, if not given")
    parser.add_argument("--work", action="append", choices=list(WORK), help="only this; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--compile", action="store_true", help="time torch.compile of our network too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    names, precisions = options.network or list(NETWORKS), options.precision or ["fp32", "bf16"]
    if options.peak:
        who, work = options.peak.split("/")
        print(peak_bytes(names[0], work, precisions[0], who, options))
        return 0
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread"
    print(f"{device}, batch {options.batch}, {options.rounds} rounds, PyTorch {torch.__version__}")
    print("diffusers / ours: median [lowest .. highest]; required:", REQUIRED)
    if options.peers:
        print(f"diffusers' in {options.peers}")
    met = True
    for name in names:
        for precision in precisions:
            for work in options.work or list(WORK):
                cells = []
                for who, values in speed(name, work, precision, options).items():
                    median = statistics.median(values)
                    met &= who != "ours" or median >= REQUIRED[work]
                    mark = " " if median >= REQUIRED[work] else "!"
                    cells.append(f"{who} {median:5.2f}{mark}[{min(values):5.2f} .. {max(values):5.2f}]")
                ratio = memory(name, work, precision, options)
                met &= ratio >= REQUIRED["memory"]
                cells.append(f"memory {ratio:5.2f}{' ' if ratio >= REQUIRED['memory'] else '!'}")
                print(f"{name:14s} {precision} {work:14s}", "   ".join(cells), flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
