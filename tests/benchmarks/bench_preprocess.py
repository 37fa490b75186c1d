"""How fast preprocess is, as ratios to peers that are timed in the same run.

    python tests/benchmarks/bench_preprocess.py [--images N] [--rounds R] [--protocol NAME]

It makes an archive in CelebA's published format, with photograph-like JPEGs of 178 x 218 pixels, quality 92, 4:2:0,
of about the published size. Each round times, one after the other, for every protocol:

- preprocess as a whole: annotations, decoding, resizing, writing and hashing the shards;
- Pillow, which only decodes the same JPEGs, from memory, in processes, as many as there are cores;
- an ordinary loop over torchvision's ``ImageFolder`` with the protocol's crop and resize, in one process on one core;
- on that core too: preprocess with one worker, and Pillow.

Required are preprocess on all cores against Pillow on all cores, and against the loop. The ratios on one core are
shown beside them.

A machine that does other work too changes from second to second. So each round yields one ratio to what was timed
beside it, and the table shows the median and the range of the rounds' ratios. Exit status 1 if a median misses.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from unveil.data import celeba
from unveil.data.preprocess import preprocess
from unveil.data.protocols import PROTOCOLS
from unveil.data.sources.facts import worker_count
from unveil.files import write_json

REQUIRED = {"pillow": 0.8, "torchvision": 3.0}
DISTINCT = 200
SIZE = 64
TASK = 64


def photograph(random: np.random.Generator) -> Image.Image:
    """Noise with a photograph's spectrum (amplitude 1/f^2, correlated colours) and a little grain."""
    width, height = celeba.CANVAS
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf

    def field() -> np.ndarray:
        phases = np.exp(2j * np.pi * random.random(frequency.shape))
        values = np.fft.irfft2(phases / frequency**2, s=(height, width))
        return values / values.std()

    light = field()
    pixels = np.stack([130 + 45 * (light + 0.25 * field()) for _ in range(3)], axis=2)
    pixels += random.normal(0, 1, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_raw(folder: Path, count: int) -> None:
    """The published layout, with ``count`` images of which ``DISTINCT`` differ, in CelebA's shares."""
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(min(count, DISTINCT)):
        buffer = io.BytesIO()
        photograph(random).save(buffer, "JPEG", quality=92, subsampling="4:2:0")
        encoded.append(buffer.getvalue())
    names = celeba.image_names(count)
    folder.mkdir()
    with zipfile.ZipFile(folder / celeba.ZIP_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names):
            archive.writestr(celeba.image_member(name), encoded[number % len(encoded)])
    celeba.write_annotations(
        folder,
        attributes=random.random((count, 40)) < 0.5,
        partition=(np.arange(count) >= 0.8 * count) * 1 + (np.arange(count) >= 0.9 * count) * 1,
        identities=np.arange(1, count + 1),
        boxes=np.zeros((count, 4), dtype=np.int64),
        landmarks=np.zeros((count, 10), dtype=np.int64),
    )
    write_json(
        folder / "source.json",
        {
            "source": "celeba",
            "origin": "a benchmark's archive",
            "licence": "none",
            "credit": "nobody",
            "images": count,
            "files": {},
            "canvas": list(celeba.CANVAS),
            "published": False,
        },
    )


def unpack(raw: Path, folder: Path, count: int) -> None:
    """``ImageFolder``'s layout: one file an image, in a folder of its class."""
    with zipfile.ZipFile(raw / celeba.ZIP_NAME) as archive:
        archive.extractall(folder, archive.namelist()[:count])


def run_preprocess(raw: Path, shards: Path, protocol: str, workers: int) -> float:
    """Images a second of the whole of preprocess; those that adm-ip meets twice count twice."""
    start = time.perf_counter()
    index = preprocess(
        raw,
        shards,
        protocol=protocol,
        image_size=SIZE,
        shard_size=20_000,
        on_corrupt="error",
        workers=workers,
    )
    return sum(index.num_images(split) for split in index.splits) / (time.perf_counter() - start)


_encoded: list[bytes] = []


def load_encoded(archive: Path) -> None:
    """Once in each process: take all JPEGs into memory, so that nothing but decoding is timed."""
    with zipfile.ZipFile(archive) as file:
        _encoded.extend(file.read(name) for name in file.namelist())


def decode_with_pillow(start: int) -> int:
    part = _encoded[start : start + TASK]
    for data in part:
        Image.open(io.BytesIO(data)).load()
    return len(part)


def run_pillow(pool: ProcessPoolExecutor, count: int) -> float:
    start = time.perf_counter()
    done = sum(pool.map(decode_with_pillow, range(0, count, TASK)))
    return done / (time.perf_counter() - start)


def pillow_here(count: int) -> float:
    """Pillow in this process alone."""
    start = time.perf_counter()
    done = sum(map(decode_with_pillow, range(0, count, TASK)))
    return done / (time.perf_counter() - start)


def usual_transforms(protocol: str) -> Callable[[Image.Image], torch.Tensor]:
    """What one writes with torchvision for a protocol."""
    box = PROTOCOLS[protocol].crop
    steps: list[Callable[..., object]] = []
    if protocol in ("score-sde", "gan") and box is not None:
        steps.append(transforms.CenterCrop(box[2]))
    elif box is not None:
        left, top, width, height = box
        steps.append(lambda image: image.crop((left, top, left + width, top + height)))
    steps += [transforms.Resize((SIZE, SIZE)), transforms.ToTensor()]
    return transforms.Compose(steps)


def run_torchvision(folder: Path, protocol: str) -> float:
    """Images a second of a loop that reads batches and does nothing with them."""
    images = datasets.ImageFolder(str(folder), usual_transforms(protocol))
    start = time.perf_counter()
    done = sum(len(batch) for batch, _ in DataLoader(images, batch_size=64))
    return done / (time.perf_counter() - start)


def on_one_core(raw: Path, unpacked: Path, shards: Path, protocol: str, count: int) -> tuple[float, float, float]:
    """Rates on one core: preprocess, Pillow, torchvision."""
    torch.set_num_threads(1)
    if not _encoded:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        load_encoded(raw / celeba.ZIP_NAME)
    return run_preprocess(raw, shards, protocol, 1), pillow_here(count), run_torchvision(unpacked, protocol)


def measure(folder: Path, count: int, rounds: int, protocols: list[str]) -> dict[str, dict[str, list[float]]]:
    """Ratios of every round, by protocol and kind."""
    raw, small, unpacked = folder / "raw", folder / "small", folder / "unpacked"
    one_core_count = max(500, count // 4)
    make_raw(raw, count)
    make_raw(small, one_core_count)
    unpack(small, unpacked, one_core_count)
    cores = worker_count(0)
    kinds = (*REQUIRED, "pillow, one core", "torchvision, one core")
    ratios: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in protocols}
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(cores, spawn, load_encoded, (raw / celeba.ZIP_NAME,)) as pillow,
        ProcessPoolExecutor(1, spawn) as alone,
    ):
        run_pillow(pillow, count)
        for round_number in range(-1, rounds):
            for name in protocols:
                before = run_pillow(pillow, count)
                ours = run_preprocess(raw, folder / "shards", name, 0)
                after = run_pillow(pillow, count)
                rates = alone.submit(on_one_core, small, unpacked, folder / "shards", name, one_core_count).result()
                if round_number < 0:  # files and code are not in the caches yet
                    continue
                ratios[name]["pillow"].append(2 * ours / (before + after))
                ratios[name]["torchvision"].append(ours / rates[2])
                ratios[name]["pillow, one core"].append(rates[0] / rates[1])
                ratios[name]["torchvision, one core"].append(rates[0] / rates[2])
    return ratios


def main() -> int:
    """Measure and print the table; 1 if a required ratio is missed."""
    parser = argparse.ArgumentParser(description="Ratios of preprocess's speed to Pillow's and torchvision's.")
    parser.add_argument("--images", type=int, default=6000, help="images in the archive")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--protocol", action="append", choices=list(PROTOCOLS), help="only this one; may be repeated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratios = measure(Path(folder), options.images, options.rounds, options.protocol or list(PROTOCOLS))
    print(
        f"{options.images} images, {options.rounds} rounds, {worker_count(0)} cores; "
        f"required: {REQUIRED['pillow']} of Pillow's decoding, {REQUIRED['torchvision']} times torchvision's loop"
    )
    print("preprocess / peer: median [lowest .. highest] of the rounds")
    met = True
    for name, kinds in ratios.items():
        cells = []
        for kind, values in kinds.items():
            median = statistics.median(values)
            missed = median < REQUIRED.get(kind, 0)
            met &= not missed
            mark = "!" if missed else " "
            cells.append(f"{kind} {median:5.2f}{mark}[{min(values):5.2f} .. {max(values):5.2f}]")
        print(f"{name:10s}", "   ".join(cells))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
