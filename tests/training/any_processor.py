"""Train the demo's network, sample from it and extract features, with ``auto``; print the types that were computed in.

All in one thread, which is all that :class:`Types` sees. Run by test_precision.py in a process of its own, since
PyTorch and oneDNN ask once what the processor has.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unveil.data.batches import Batch, Batches
from unveil.diffusion.config import Sampler
from unveil.diffusion.design import build_denoiser
from unveil.diffusion.loss import build_loss
from unveil.diffusion.sampling import draw
from unveil.evaluation.features.extraction import extract, load_extractor
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.params import load_params
from unveil.precision import autocast, optimizer_precision, resolve_precision
from unveil.training.config import Training
from unveil.training.loop import Trainer

CPU = torch.device("cpu")


class Types(TorchDispatchMode):
    """Notes the type of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


@contextmanager
def noted(what: str) -> Iterator[None]:
    with Types() as types:
        yield
    print(what, *sorted(str(dtype) for dtype in types.seen if dtype.is_floating_point))


params = load_params(Path("params.yaml"))
settings, precision = params.train, resolve_precision("auto", CPU)
network = UNetConfig(image_size=16, **settings.network.model_dump() | {"channels": 32, "attention_head_channels": 32})
diffusion = settings.diffusion
config = Training(
    seed=0,
    images=8,
    batch_size=4,
    lr=settings.lr,
    betas=(0.9, 0.99),
    warmup_images=0,
    gradient_clip=1.0,
    ema_half_life_images=8,
    ema_rampup=0.0,
    precision=precision,
    optimizer=settings.optimizer,
    log_every_images=4,
)
images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
denoiser = build_denoiser(build_network(network), diffusion)
with noted("train"):
    batches = Batches(Batch(images), 4, 0, horizontal_flip=False)
    products = optimizer_precision(settings.optimizer, CPU)
    list(Trainer(denoiser, build_loss(diffusion), batches, config, optimizer_precision=products).run())
with noted("sample"):
    sampler = params.sample.only(Sampler)
    list(draw(denoiser.eval(), sampler, 0, range(2), (3, 16, 16), context=lambda: autocast(precision, CPU)))
with noted("evaluate"):
    extract(images[:2], load_extractor("efficientnet-lite0"), 2, CPU)
