"""The seed of every random stream, so that each is a function of a seed in params.yaml and of one number.

No draw depends on another one, so an interrupted run goes on with the numbers that the uninterrupted one draws. What
is drawn for an image depends on no batch. What is drawn for a step is of its whole batch, so it depends on the size of
that, but not on how processes and threads divide it; the masks of dropout alone differ by process.

=============  ===========================  ==================  ===================================================
purpose        seed                         number              what is drawn
=============  ===========================  ==================  ===================================================
sample         sample.seed, --seed of edit  the image           the noise it starts from, its sampler's, an edit's
attributes     sample.seed                  the image           the training image whose attributes it is asked for
likelihood     --seed of the command        its place           its dequantization, then the probes of the trace
control        of the control               the image           the noise added to it
order          train.seed                   the epoch           the order of its images
flips          train.seed                   the batch           which of its images are mirrored
noise          train.seed                   the step            noise levels, noise (all candidates), perturbation
augment        train.seed                   the step            the transformations of its images
attributes     train.seed                   the step            which attributes the network is not told
dropout        train.seed                   the step            masks; of rank r > 0 the purpose is ``dropout r``
validation     train.seed                   0                   noise levels and noise of the held-out images
=============  ===========================  ==================  ===================================================

The initial weights come from PyTorch's global generator, seeded with ``train.seed``. Bootstrap intervals, and the
choice of images in evaluation, come from ``np.random.default_rng(evaluate.seed)``.
"""

import hashlib
from typing import Literal


def image_seed(purpose: str, seed: int, number: int) -> int:
    """Seed of what is random about one image, in 256 bits: another for another purpose, seed or number."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {number}".encode()).digest(), "little")


def step_seed(purpose: str, seed: int, step: int) -> int:
    """Seed, for PyTorch, of what is random about one step: the low 64 bits of :func:`image_seed`.

    The seeds of two steps differ in their low 32 bits too: PyTorch's CPU generator takes no more.

    >>> step_seed("noise", 0, 1) == image_seed("noise", 0, 1) % 2**64
    True
    """
    return image_seed(purpose, seed, step) % 2**64


def batch_seed(purpose: Literal["order", "flips"], seed: int, number: int) -> list[int]:
    """Seed, for NumPy, of the order of an epoch or of the flips of a batch."""
    return [seed, ("order", "flips").index(purpose), number]
