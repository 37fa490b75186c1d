"""The oracle: a small classifier that says which attributes an image shows, and is measured on held-out images.

It learns no more than the data's own labels, so where these are wrong or cannot be seen it is wrong too: its answers
on real images stand beside those on samples.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from unveil.data.batches import Batch, Batches, load_attributes, load_split, open_batches
from unveil.data.pixels import to_float
from unveil.data.shards import ShardIndex, load_tensor
from unveil.errors import UnveilError
from unveil.evaluation.oracle.config import OracleTraining
from unveil.evaluation.oracle.facts import MEND, Answers, OracleFacts
from unveil.files import file_digest
from unveil.progress import ProgressLine, Say
from unveil.progress import images as in_words
from unveil.tensors import load_tensors, save_tensors

HELD_OUT = "test"  # the split that the oracle's accuracy is measured on
WEIGHT_DECAY = 0.05
LEAST_STEPS = 10  # of a training, whose learning rate has to rise and fall
AT_ONCE = 256  # images that are classified at once


class Classifier(nn.Module):
    """Convolutions that each halve the image, down to about 4 x 4 places, whose mean a linear layer reads.

    Args:
        attributes: number of answers.
        image_size: height and width in pixels.
        channels: of the first convolution; those of the second and of the later ones are twice and four times as many.
    """

    def __init__(self, attributes: int, image_size: int, channels: int) -> None:
        super().__init__()
        levels = max(2, round(math.log2(image_size)) - 2)
        widths = [3, *(channels * min(2**level, 4) for level in range(levels))]
        self.body = nn.Sequential(*(_halving(*pair) for pair in pairwise(widths)))
        self.head = nn.Linear(widths[-1], attributes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of yes: float32 [B, 3, H, W] in [-1, 1] -> [B, attributes]."""
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


def _halving(channels: int, out_channels: int) -> nn.Module:
    convolution = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU one thread computes: the same weights on any number of cores, and no waiting for one that is busy."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def labels_of(batch: Batch) -> Tensor:
    """Which attributes the images have: bool [N, k]. Raises ValueError if they were not read."""
    if batch.attributes is None:
        raise ValueError("images: found none of their attributes, expected some")
    return batch.attributes > 0


def train_classifier(
    batches: Batches, shares: Tensor, image_size: int, settings: OracleTraining, device: torch.device, say: Say
) -> Classifier:
    """A classifier of the batches' attributes, in evaluation mode: the same weights for the same images and seed.

    AdamW with a learning rate that rises and falls (1cycle, 1708.07120). An attribute that ``shares`` [k] of the images
    have counts sqrt((1 - share) / share) times as much where it is there, so that a rare one is learnt, and not cried.
    """
    torch.manual_seed(settings.seed)
    classifier = Classifier(len(shares), image_size, settings.channels).to(device).to(memory_format=torch.channels_last)
    steps = max(LEAST_STEPS, settings.images // settings.batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), settings.lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps)
    rare = shares.clamp(1e-3, 1 - 1e-3)
    weight = ((1 - rare) / rare).sqrt().to(device)
    progress = ProgressLine("oracle", steps * settings.batch_size, say, describe=in_words)
    with _one_thread(device), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for number in range(steps):
            batch = batches.batch(number)
            images, wanted = batch.images.contiguous(memory_format=torch.channels_last), labels_of(batch).float()
            loss = binary_cross_entropy_with_logits(classifier(images), wanted, pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.add(settings.batch_size)
    return classifier.eval()


def trained_on(images: Batch, settings: OracleTraining, device: torch.device, say: Say) -> Classifier:
    """A classifier of these images, uint8 [N, 3, H, W], and of their attributes; see ``train_classifier``."""
    batches = Batches(images.to(device), settings.batch_size, settings.seed, horizontal_flip=True)
    shares = labels_of(images).float().mean(dim=0)
    return train_classifier(batches, shares, images.images.shape[-1], settings, device, say)


@torch.inference_mode()
def says_yes(classifier: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """Which attributes images show: uint8 [N, 3, H, W] -> bool [N, k], on the CPU."""
    return torch.cat([classifier(to_float(part.to(device))).cpu() > 0 for part in images.split(AT_ONCE)])


def answers_of(said: Tensor, has: Tensor, shares: Sequence[float]) -> list[Answers]:
    """How often answers are right, by attribute: bool [N, k] of the classifier and of the labels.

    ``shares`` [k] are of the images that it was trained on.
    """
    found = []
    for share, answer, label in zip(shares, said.T, has.T, strict=True):
        yes, no = int(label.sum()), int((~label).sum())
        right_yes, right_no = int((answer & label).sum()), int((~answer & ~label).sum())
        found.append(Answers(share, yes, no, right_yes / yes if yes else None, right_no / no if no else None))
    return found


@dataclass(frozen=True)
class Oracle:
    """A trained classifier, and what is known of it."""

    facts: OracleFacts
    classifier: Classifier
    device: torch.device

    def says(self, images: Tensor) -> Tensor:
        """Which attributes images show: uint8 [N, 3, H, W] -> bool [N, k], in the order of ``facts.names``."""
        return says_yes(self.classifier, images, self.device)

    @classmethod
    def load(cls, facts: Path, weights: Path, device: torch.device) -> "Oracle | None":
        """The oracle in two files; None if it knows no attributes.

        Raises UnveilError if a file is missing or damaged, or they do not belong together.
        """
        found = OracleFacts.load(facts)
        if not found.names:
            return None
        if file_digest(weights) != found.weights_sha256:
            raise UnveilError(f"{weights}: found other weights than {facts} describes; {MEND}")
        channels = int(str((found.settings or {})["channels"]))
        classifier = Classifier(len(found.names), found.image_size, channels)
        classifier.load_state_dict(load_tensors(weights, MEND))
        return cls(found, classifier.eval().to(device).to(memory_format=torch.channels_last), device)


def learn(
    shards: Path, names: Sequence[str], settings: OracleTraining, device: torch.device, weights: Path, say: Say
) -> Oracle:
    """Train an oracle of these attributes on the train split, write its weights, and ask it about held-out images.

    These it does not see before, also where the train split holds all images, as in the protocol adm-ip.

    Raises UnveilError for a name that is none of the data set's, and for shards that are missing or damaged.
    """
    index = ShardIndex.load(shards)
    ids, others = (load_tensor(shards, split, "ids") for split in ("train", HELD_OUT))
    own = torch.isin(ids, others, invert=True).nonzero().flatten()
    shares = (load_attributes(shards, "train", names)[own] > 0).float().mean(dim=0)
    batches = open_batches(
        shards, "train", "auto", settings.batch_size, settings.seed, True, device, attributes=names, among=own.numpy()
    )
    classifier = train_classifier(batches, shares, index.image_size, settings, device, say)
    save_tensors(weights, classifier.state_dict())
    held_out = load_split(shards, HELD_OUT, attributes=names)
    answers = answers_of(says_yes(classifier, held_out.images, device), labels_of(held_out), shares.tolist())
    facts = OracleFacts(
        attributes=dict(zip(names, answers, strict=True)),
        accuracy=fmean(one.accuracy for one in answers),
        balanced_accuracy=fmean(one.balanced_accuracy for one in answers),
        held_out=HELD_OUT,
        image_size=index.image_size,
        shards=index.digest(),
        weights_sha256=file_digest(weights),
        settings=settings.read_values(),
    )
    return Oracle(facts, classifier, device)
