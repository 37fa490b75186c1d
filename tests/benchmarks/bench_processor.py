"""What ``auto`` decides on a CPU, measured against what it did not choose, on this processor and on an older one.

    python -m tests.benchmarks.bench_processor [--busy] [--compile] [--rounds 8]

Each row is a ratio of times within one run: above 1, what ``auto`` chose is quicker. ``--busy`` puts a program that
never rests on one of the cores, and compares with the quiet machine as well. The older processor is this one, with
PyTorch and oneDNN kept from its newer instructions. The network and the optimizer are those of params.yaml.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unveil.data.batches import Batch, Batches
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.design import build_denoiser
from unveil.diffusion.loss import build_loss
from unveil.evaluation.features import extraction
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.params import Params, load_params
from unveil.precision import autocast, optimizer_precision, resolve_precision
from unveil.training.compilation import compile_network
from unveil.training.config import Training
from unveil.training.loop import Trainer
from unveil.workers import Workers, workers

ROOT = Path(__file__).resolve().parents[2]
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
CPU = torch.device("cpu")
SAMPLES, FEATURES = 100, 64  # images of one timing
SECONDS_A_CELL = 20.0
Cell = Callable[[], object]


def trainer(params: Params, threads: Workers, **changes: Any) -> Trainer:
    """The demo's training on random images, with ``changes`` to its configuration."""
    settings = params.train
    config = settings.only(Training).replace(
        seed=0, images=10**9, lr=1e-4, precision=resolve_precision("auto", CPU), log_every_images=10**9, **changes
    )
    products = optimizer_precision(settings.optimizer, CPU)
    images = torch.randint(0, 256, (1000, 3, params.preprocess.image_size, params.preprocess.image_size))
    batches = Batches(Batch(images.to(torch.uint8)), settings.batch_size, 0, horizontal_flip=False)
    loss = build_loss(settings.diffusion)
    return Trainer(denoiser_of(params), loss, batches, config, workers=threads, optimizer_precision=products)


def denoiser_of(params: Params) -> Denoiser:
    """The demo's, with fresh weights."""
    torch.manual_seed(0)
    network = UNetConfig(image_size=params.preprocess.image_size, **params.train.network.model_dump())
    return build_denoiser(build_network(network), params.train.diffusion)


def steps(params: Params, compiled: bool) -> Iterator[tuple[str, Cell]]:
    """A training step, as ``auto`` has it and otherwise."""
    other = {"bf16": "fp32", "fp32": "bf16"}[resolve_precision("auto", CPU)]
    with workers(CPU, params.train.batch_size) as threads:
        yield "auto", trainer(params, threads)._step
        yield f"precision {other}", trainer(params, threads, precision=other)._step
        channels_last = trainer(params, threads)
        channels_last.denoiser.to(memory_format=torch.channels_last)
        yield "channels_last", channels_last._step
        yield "optimizer adam", trainer(params, threads, optimizer="adam")._step
    yield "threads share operations", trainer(params, Workers())._step
    if compiled:
        together = trainer(params, Workers())
        if reason := compile_network(together.denoiser.network, CPU):
            raise SystemExit(f"compile: {reason}")
        yield "compile", together._step
    with one_thread():
        yield "one thread", trainer(params, Workers())._step


def evaluations(params: Params) -> Iterator[tuple[str, Cell]]:
    """One evaluation of the denoiser in sampling."""
    denoiser = denoiser_of(params).eval()
    size = params.preprocess.image_size
    x, sigma = torch.randn(SAMPLES, 3, size, size), torch.full((SAMPLES,), 1.0)
    chosen = resolve_precision("auto", CPU)

    def cell(threads: Workers, precision: str = chosen, denoiser: Denoiser = denoiser) -> Cell:
        @torch.inference_mode()
        def of_part(part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            with autocast(precision, CPU):
                return denoiser(*part)

        return lambda: threads.map(of_part, list(zip(x.chunk(threads.count), sigma.chunk(threads.count), strict=True)))

    with workers(CPU, SAMPLES) as threads:
        yield "auto", cell(threads)
        other = {"bf16": "fp32", "fp32": "bf16"}[chosen]
        yield f"precision {other}", cell(threads, other)
        channels_last = denoiser_of(params).eval()
        channels_last.to(memory_format=torch.channels_last)
        yield "channels_last", cell(threads, denoiser=channels_last)
    yield "threads share operations", cell(Workers())
    with one_thread():
        yield "one thread", cell(Workers())


def extractions() -> Iterator[tuple[str, Cell]]:
    """Features of images, as evaluate extracts them."""
    extractor = extraction.load_extractor("efficientnet-lite0")
    images = torch.randint(0, 256, (FEATURES, 3, 64, 64), dtype=torch.uint8)

    def extract() -> object:
        return extraction.extract(images, extractor, FEATURES, CPU)

    yield "auto", extract
    shared, extraction.SHARED_IMAGES = extraction.SHARED_IMAGES, 0
    yield "threads share operations", extract
    with one_thread():
        yield "one thread", extract
    extraction.SHARED_IMAGES = shared


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measured(cells: Iterator[tuple[str, Cell]], rounds: int) -> dict[str, float]:
    """The median seconds of each; a cell is timed while what it was made in is open."""
    found = {}
    for name, cell in cells:
        started = time.perf_counter()
        cell()
        times: list[float] = []
        while len(times) < rounds and (not times or time.perf_counter() - started < SECONDS_A_CELL):
            begin = time.perf_counter()
            cell()
            times.append(time.perf_counter() - begin)
        found[name] = statistics.median(times)
    return found


def here(rounds: int, compiled: bool) -> dict[str, dict[str, float]]:
    """All of it in this process."""
    params = load_params(ROOT / "params.yaml")
    return {
        "train: a step": measured(steps(params, compiled), rounds),
        f"sample: {SAMPLES} images once": measured(evaluations(params), rounds),
        f"evaluate: {FEATURES} images": measured(extractions(), rounds),
    }


def elsewhere(older: bool, rounds: int, compiled: bool, busy: bool) -> dict[str, dict[str, float]]:
    """The same in a process of its own, beside a program that never rests if ``busy``."""
    options = [f"--rounds={rounds}", "--here", *(["--compile"] if compiled else [])]
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_processor", *options],
            cwd=ROOT,
            env=os.environ | (OLDER if older else {}),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--here", action="store_true", help="print this process's seconds as JSON")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(here(asked.rounds, asked.compile)))
        return
    for older in (False, True):
        kind = "kept to AVX2" if older else torch.backends.cpu.get_cpu_capability()
        quiet = elsewhere(older, asked.rounds, asked.compile, busy=False)
        beside = elsewhere(older, asked.rounds, False, busy=True) if asked.busy else {}
        print(f"\n| {kind} | choice | seconds | times auto |" + (" beside a busy program |" if beside else ""))
        print("| --- | --- | --- | --- |" + (" --- |" if beside else ""))
        for what, cells in quiet.items():
            for name, seconds in cells.items():
                row = f"| {what} | {name} | {seconds:.3f} | {seconds / cells['auto']:.2f} |"
                if beside:
                    row += f" {beside[what][name] / seconds:.2f} times |" if name in beside[what] else " |"
                print(row)


if __name__ == "__main__":
    main()
