"""How fast features are extracted, as ratios to torch-fidelity's own path in the same run, and in how much memory.

    python -m tests.benchmarks.bench_features [--images N] [--rounds R] [--batch-size B]
    python -m tests.benchmarks.bench_features --memory [--images 50000]

Each round times, one after the other, for Inception (with random weights of the right shape, as speed does not ask
which) and for EfficientNet-Lite0:

- unveil's features of a uint8 tensor;
- torch-fidelity's, over a folder with the same images as PNG: with the same network as torch-fidelity has it
  registered, the same batch size, and its defaults for the rest (processes that decode, one copy of a batch each).

The features are compared too. A machine that does other work too changes from second to second: so each round yields
one ratio, and the table shows the median and the range of the rounds' ratios. Exit status 1 if a median misses.

``--memory`` measures instead the peak memory of a process of its own that holds N samples of 64 x 64 and extracts
2048 features of each, the whole network included. To be done with 50,000 in minutes and not in hours, it runs the
network on one image of each batch and repeats its rows; every tensor that grows with N has its full size. Then, in that
process, it measures ``--metrics`` with as many features of a reference and of noise, and 20,000 of held-out images.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from safetensors.torch import save_file
from tests.evaluation.features import torch_fidelity_lite
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from unveil.evaluation.features import extraction
from unveil.evaluation.features.extraction import extract_layers, load_extractor
from unveil.evaluation.features.published import FEATURE_SETS
from unveil.evaluation.images.sets import load_samples
from unveil.evaluation.metrics.measurement import Asked, measure
from unveil.evaluation.metrics.registry import MetricName
from unveil.files import file_digest

REQUIRED = 1.2
MEMORY_LIMIT = 3.0  # GiB
SIZE = 64
HELD_OUT = 20_000  # about as many as in CelebA's test split
NETWORKS = ("inception", "efficientnet-lite0")
MEASURED = [name for name in get_args(MetricName) if name != "inception-score"]


def make_weights(path: Path) -> None:
    """Random weights of Inception's shape, with which values neither fade nor grow; taken for the published ones."""
    kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    load = kind.load_state_dict
    feature_extractor_inceptionv3.load_state_dict_from_url = lambda *_, **__: None
    kind.load_state_dict = lambda *_: None
    network = kind("inception-v3-compat", ["2048"])
    kind.load_state_dict = load
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    known = FEATURE_SETS["inception"]
    assert known.weights is not None
    weights = replace(known.weights, sha256=file_digest(path))
    FEATURE_SETS["inception"] = replace(known, weights=weights)


def make_images(count: int) -> Tensor:
    """Smooth colour fields with grain: uint8 [count, 3, 64, 64]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=generator).float()
    fields = nn.functional.interpolate(coarse, size=SIZE, mode="bicubic")
    grain = 8 * torch.randn(fields.shape, generator=generator)
    return (fields + grain).clamp(0, 255).to(torch.uint8)


def save_folder(images: Tensor, folder: Path) -> list[str]:
    """One PNG an image."""
    paths = [folder / f"{number:05d}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return [str(path) for path in paths]


def seconds(function: Callable[[], dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """Time of one call, and what it gave."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def compare(name: str, weights: Path, images: Tensor, paths: list[str], batch: int, rounds: int) -> list[float]:
    """Ratio of speeds in each round, unveil's to torch-fidelity's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    torch_fidelity_lite.register()
    named = weights if name == "inception" else None
    ours = load_extractor(name, named)
    layers = list(ours.features.layers)
    theirs = create_feature_extractor(
        ours.features.extractor,
        layers,
        cuda=cuda,
        verbose=False,
        feature_extractor_weights_path=None if named is None else str(named),
    )

    def run_ours() -> dict[str, Tensor]:
        return extract_layers(images, ours, batch, device)

    def run_theirs() -> dict[str, Tensor]:
        found: dict[str, Tensor] = get_featuresdict_from_dataset(
            ImagesPathDataset(paths), theirs, batch, cuda, save_cpu_ram=False, verbose=False
        )
        return found

    ratios = []
    for number in range(-1, rounds):  # the first warms up
        turns = [run_ours, run_theirs] if number % 2 else [run_theirs, run_ours]
        taken = {turn.__name__: seconds(turn) for turn in turns}
        (mine, found), (other, expected) = taken["run_ours"], taken["run_theirs"]
        for layer in layers:
            difference = (found[layer] - expected[layer]).abs().max() / expected[layer].abs().max()
            assert difference < 1e-4, f"{name}, layer {layer}: features differ by {difference:.1g} of the largest"
        if number >= 0:
            ratios.append(other / mine)
            print(f"{name:20} {len(images) / mine:8.1f} {len(images) / other:8.1f} images/s {other / mine:6.2f}")
    return ratios


def speed(images: int, rounds: int, batch: int) -> int:
    """Print the table; 1 if a median is below what is required."""
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "inception.pth"
        make_weights(weights)
        pictures = make_images(images)
        (folder / "png").mkdir()
        paths = save_folder(pictures, folder / "png")
        threads = torch.get_num_threads()
        print(f"{images} images of {SIZE} x {SIZE}, batch {batch}, {threads} threads, torch {torch.__version__}")
        print(f"{'network':20} {'unveil':>8} {'torch-fidelity':>15} {'ratio':>10}")
        rows = {network: compare(network, weights, pictures, paths, batch, rounds) for network in NETWORKS}
    for network, ratios in rows.items():
        median = statistics.median(ratios)
        missed += median < REQUIRED
        verdict = "ok" if median >= REQUIRED else "MISSED"
        print(
            f"{network}: {median:.2f} times as fast (rounds {min(ratios):.2f} to {max(ratios):.2f}), "
            f"required {REQUIRED}: {verdict}"
        )
    return int(missed > 0)


def in_memory(folder: Path, count: int, batch: int, metrics: Sequence[MetricName]) -> None:
    """What an evaluation holds of its samples: their file's images, and all layers of their features."""
    make_weights(folder / "inception.pth")
    extractor = load_extractor("inception", folder / "inception.pth")
    forward: Any = extractor.network.forward

    def one_of(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(rows.expand(len(images), -1).clone() for rows in forward(images[:1]))

    extractor.network(make_images(extraction.CPU_BATCH))  # a whole batch, for its peak
    extraction.CPU_BATCH = max(batch, extraction.CPU_BATCH)
    extractor.network.forward = one_of
    samples = load_samples(folder / "samples.safetensors", count)
    found = extract_layers(samples.images, extractor, batch, "cpu")
    assert found["2048"].shape == (count, 2048)
    if metrics:  # random features in the place of those of random weights, most of which repeat each other
        sizes = {"samples": count, "reference": count, "held_out": min(count, HELD_OUT), "noise": count}
        sets = {
            name: {"2048": found["2048"].normal_() if name == "samples" else torch.randn(n, 2048)}
            for name, n in sizes.items()
        }
        del found
        measure(sets, FEATURE_SETS["inception"], Asked(metrics, 100, min(count, 1000), 10, seed=0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.3f}")


def memory(count: int, batch: int, metrics: Sequence[MetricName]) -> int:
    """Print the peak of a process of its own; 1 if it is above the limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8)
        save_file({"images": images}, folder / "samples.safetensors")
        del images
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_features",
            "--in-memory",
            name,
            "--images",
            str(count),
            "--batch-size",
            str(batch),
        ]
        command += ["--metrics", *metrics]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return done.returncode
    peak = float(done.stdout.split()[-1])
    verdict = "ok" if peak <= MEMORY_LIMIT else "MISSED"
    also = f", {', '.join(metrics)}" if metrics else ""
    print(f"{count:,} samples of {SIZE} x {SIZE}, 2048 features, the logits{also}: ", end="")
    print(f"{peak:.2f} GiB at the peak, at most {MEMORY_LIMIT:.0f} required: {verdict}")
    return int(peak > MEMORY_LIMIT)


def main() -> int:
    """Speed, or memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="128, and 50,000 for memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--metrics", nargs="*", choices=MEASURED, default=["frechet", "kernel"])
    parser.add_argument("--in-memory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_memory:
        in_memory(arguments.in_memory, arguments.images, arguments.batch_size, arguments.metrics)
        return 0
    if arguments.memory:
        return memory(arguments.images or 50_000, arguments.batch_size, arguments.metrics)
    return speed(arguments.images or 128, arguments.rounds, arguments.batch_size)


if __name__ == "__main__":
    sys.exit(main())
