"""Images with all their attributes, for a classifier to learn from and to be asked about."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.data.batches import Batch, signed
from unveil.errors import UnveilError
from unveil.evaluation.images.chosen import RealImages
from unveil.evaluation.images.foreign import SampleFile
from unveil.evaluation.images.sets import load_ids, load_real, real_parts
from unveil.evaluation.oracle.config import OracleTraining
from unveil.progress import Say


@dataclass(frozen=True)
class Labelled:
    """Samples with what they were asked for, as many real training images, and held-out ones, with what they have."""

    samples: Batch
    real: Batch
    held_out: Batch
    settings: OracleTraining
    """Of the classifier."""
    device: torch.device
    say: Say


def load_labelled(
    samples: SampleFile, real: RealImages, settings: OracleTraining, device: torch.device, say: Say
) -> Labelled:
    """The images of a classification accuracy score. Raises UnveilError if a sample was not told every attribute."""
    told = samples.attributes
    if told is None or not told.numel() or not bool((told != 0).all()):
        raise UnveilError(
            "evaluate.metrics: found classification-accuracy, expected samples that were told every attribute; "
            "draw them with sample.attributes [data], or leave it out"
        )
    index = real.index
    columns = index.columns(samples.facts["attributes"])

    def labels(split: str, count: int) -> Tensor:
        return signed(torch.cat(list(real_parts(real.folder, index, split, count, "attributes"))))[:, columns]

    count, held = min(len(told), index.num_images("train")), len(real.held_out)
    ids, others = load_ids(real.folder, index, "train", count), load_ids(real.folder, index, real.splits[1], held)
    own = torch.isin(ids, others, invert=True)  # of adm-ip the train split holds all images
    training = Batch(load_real(real.folder, index, "train", count), labels("train", count))[own]
    held_out = Batch(real.held_out, labels(real.splits[1], held))
    return Labelled(Batch(samples.images, told), training, held_out, settings, device, say)
