"""How long preprocess takes for all of CelebA: images a second, and minutes for 202,599 of them.

    python tests/benchmarks/bench_preprocess.py [--images N] [--workers N] [--protocol NAME]

It makes an archive in CelebA's published format, with photograph-like JPEGs of 178 x 218 pixels, quality 92, 4:2:0,
of about the published size. Timed is preprocess as a whole: annotations, decoding, resizing, writing and hashing the
shards. The processor's minutes stand beside those of the clock, which other work on the machine prolongs. Memory is
the most that was taken so far beyond what the imports take, the shard of 5,000 images (59 MiB) included.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from unveil.data import celeba
from unveil.data.preprocess import preprocess
from unveil.data.protocols import PROTOCOLS
from unveil.data.sources.facts import worker_count
from unveil.files import write_json

DISTINCT = 200
SIZE = 64
SHARD = 5000


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


def used() -> tuple[float, float, float]:
    """Seconds of the clock, seconds of the processor, and the most memory of this process so far in MiB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="How long preprocess takes for all of CelebA.")
    parser.add_argument("--images", type=int, default=10_000, help="images in the archive")
    parser.add_argument("--workers", type=int, default=0, help="threads, 0 = one for each core")
    parser.add_argument("--protocol", action="append", choices=list(PROTOCOLS), help="only this one; may be repeated")
    options = parser.parse_args()
    print(f"{options.images} images, {worker_count(options.workers)} threads, {SIZE} x {SIZE}")
    print("protocol      images/s   CelebA, minutes   of the processor   memory, MiB")
    whole = celeba.PUBLISHED_IMAGES / options.images / 60
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        make_raw(raw, options.images)
        _, _, taken = used()
        for name in options.protocol or PROTOCOLS:
            start, busy_before, _ = used()
            preprocess(
                raw,
                Path(folder) / "shards",
                protocol=name,
                image_size=SIZE,
                shard_size=SHARD,
                on_corrupt="error",
                workers=options.workers,
            )
            end, busy, memory = used()
            seconds, busy = end - start, busy - busy_before
            minutes = f"{whole * seconds:18.1f}{whole * busy:19.1f}"
            print(f"{name:12s}{options.images / seconds:10.0f}{minutes}{memory - taken:14.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
