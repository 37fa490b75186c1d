"""Many images of a trained model: with a guide, each asked for what it should show, and lines on how far it is."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.data.batches import load_attributes
from unveil.data.pixels import to_uint8
from unveil.diffusion.config import AS_DATA, Guidance, Sampler
from unveil.diffusion.denoiser import Denoiser
from unveil.diffusion.guidance import guided
from unveil.diffusion.samplers import Counted, Step
from unveil.diffusion.sampling import draw_batches
from unveil.errors import UnveilError
from unveil.files import file_digest
from unveil.model import WEIGHTS_FILE, ModelConfig, load_denoiser
from unveil.networks.condition import Condition, told
from unveil.progress import Passing, Say, renews
from unveil.seeds import image_seed
from unveil.tensors import save_tensors
from unveil.weights import WeightsChoice, parse_weights

FACES = 4  # of the strip
STEP_SECONDS = 15  # between two lines about the steps of one batch

Tell = Callable[[Sequence[int]], Condition | None]
"""Gives the condition of the images of these numbers."""


def asking(attributes: Tensor | None, seed: int, device: torch.device | str = "cpu") -> Tell:
    """What images are asked for, by their numbers: image i for the row of ``attributes`` that (seed, i) chooses.

    >>> asking(torch.tensor([[1, -1]]), seed=0)([5, 9]).attributes
    tensor([[ 1, -1],
            [ 1, -1]])

    ``attributes`` is int8 [n, k]: a single row for all of them, or those of training images, so that samples have the
    data's joint distribution. None = nothing is told.
    """

    def tell(ids: Sequence[int]) -> Condition | None:
        if attributes is None:
            return None
        rows = [image_seed("attributes", seed, number) % len(attributes) for number in ids]
        return Condition(attributes=attributes[rows].to(device))

    return tell


def rows_for(request: Sequence[str], names: Sequence[str], folder: Path, shards: Path) -> Tensor | None:
    """The rows of attributes that ``asking`` chooses from: int8 [n, k]; None for an unconditional model.

    ``request`` is ``sample.attributes``, ``names`` are those of which the model in ``folder`` is told.

    Raises UnveilError for other names than these, and for shards that are missing or damaged.
    """
    if tuple(request) == (AS_DATA,):
        return load_attributes(shards, "train", names) if names else None
    try:
        return told(request, names)[None] if names or request else None
    except ValueError as error:
        raise UnveilError(f"sample.attributes: {error}; the model in {folder} knows no others") from None


class Watch:
    """Keeps a few faces of every step of the first batch, in ``strip``, and says now and then where a long grid is."""

    def __init__(self, steps: int, say: Say) -> None:
        self.strip: list[Step] = []
        self._steps, self._say, self._said = steps, say, time.perf_counter()

    def __call__(self, ids: Sequence[int], number: int, step: Step) -> None:
        """Take note of a step."""
        now = time.perf_counter()
        due = now - self._said >= (0.2 if renews() else STEP_SECONDS)
        if number and due:
            self._say(Passing(f"samples {ids[0]:,} to {ids[-1]:,}: step {number:,} of {self._steps:,}"))
        if due or not number:
            self._said = now
        if ids[0] == 0:  # a thousand steps of a whole batch would not fit into memory
            self.strip.append(replace(step, x=step.x[:FACES].cpu(), denoised=step.denoised[:FACES].cpu()))


def generate(
    denoiser: Callable[..., Tensor],
    sampler: Sampler,
    seed: int,
    shape: Sequence[int],
    parts: Sequence[Sequence[int]],
    say: Say,
    watch: Callable[[Sequence[int], int, Step], object] = lambda ids, number, step: None,
    **how: Any,
) -> tuple[Tensor, int]:
    """The images of all batches, uint8 [N, *shape] on the CPU, and the network evaluations of the one that needed most.

    The arguments are those of ``draw_batches``, and so are the errors.
    """
    images, nfe, started = [torch.empty(0, *shape, dtype=torch.uint8)], 0, time.perf_counter()
    for ids, last in draw_batches(denoiser, sampler, seed, shape, parts, watch, **how):
        images.append(to_uint8(last.x).cpu())
        nfe = max(nfe, last.nfe)
        done, total, seconds = ids[-1] + 1, parts[-1][-1] + 1, time.perf_counter() - started
        left = "{}:{:02d}".format(*divmod(round((total - done) * seconds / done), 60))
        say(Passing(f"{done:>7,} of {total:,} samples  {done / seconds:6.1f} images/s  {left} left"))
    return torch.cat(images), nfe


def load_guided(
    folder: Path,
    device: torch.device | str,
    weights: WeightsChoice,
    guidance: Guidance,
    load: Callable[[Path, torch.device | str, WeightsChoice], Denoiser] = load_denoiser,
    locate: Callable[[Path], Path] = Path,
) -> tuple[Counted, dict[str, Any]]:
    """A trained denoiser with its guide, if it has one, as ``draw`` takes it, and what samples say of the guide.

    Called ``(x, sigma, condition)``, the condition's columns being ``network.attributes`` of the model. Another model
    that guides is told those of them that it knows. ``load`` reads a model's weights, such as from a cache. ``locate``
    finds the folder of another model, of which the facts say what the user wrote.

    Raises:
        UnveilError: as ``load_denoiser`` does, of either model, or if they draw images of other sizes, or there is no
            guide for an unconditional model.
    """
    denoiser = load(folder, device, weights)
    if not guidance.guides:
        return Counted(denoiser), {}
    own, facts = ModelConfig.load(folder).network, guidance.read_values()
    if guidance.guide is None:
        if not own.attributes:
            raise UnveilError(
                f"guidance: found {guidance.guidance:g}, expected 1, since the model in {folder} is told no attributes "
                "and there is no guide; name one, or train with train.attributes"
            )
        return guided(denoiser, guidance), facts
    choice = parse_weights(guidance.guide)
    where = folder if choice is not None else locate(Path(guidance.guide))
    guide = load(where, device, choice or WeightsChoice())
    other = ModelConfig.load(where).network
    if other.image_size != own.image_size:
        raise UnveilError(
            f"guide {where}: draws images of {other.image_size} pixels, expected {own.image_size} as {folder}; "
            "name another"
        )
    if choice is None:
        facts |= {"guide_sha256": file_digest(where / WEIGHTS_FILE)}
    columns = [own.attributes.index(name) if name in own.attributes else None for name in other.attributes]

    def told_its_own(x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        estimate: Tensor = guide(x, sigma, None if condition is None else condition.taken(columns))
        return estimate

    tell = guidance.guide_attributes and bool(columns)
    return guided(denoiser, guidance, told_its_own, tell), facts


def at_scale(guidance: Guidance, scale: float, conditional: bool) -> Guidance:
    """The same guide at another scale; at 0 a conditional model is told nothing, whoever guides it elsewhere.

    So the samples of scale 0 are the unconditional ones.
    """
    return Guidance(guidance=0.0) if conditional and not scale else guidance.replace(guidance=scale)


def save_scales(
    path: Path,
    images: Sequence[Tensor | None],
    scales: Sequence[Guidance],
    asked: Condition | None,
    facts: Mapping[str, Any],
) -> None:
    """Write samples of every scale of guidance, and without any a file with nothing in it, as DVC wants one.

    Args:
        path: of the safetensors file.
        images: of each scale, uint8 [n, 3, H, W].
        scales: of the images, with one and the same guide.
        asked: what the images of each scale are asked for.
        facts: of other images of the same model and sampler.
    """
    tensors, said = {"images": torch.empty(0, dtype=torch.uint8)}, {"scales": [one.guidance for one in scales]}
    if scales:
        tensors = {"images": torch.stack([rows for rows in images if rows is not None])}
        if asked is not None and asked.attributes is not None:
            tensors |= {"attributes": asked.attributes.cpu()}
        one = next((one for one in scales if one.guidance), scales[0])  # a model told nothing has another guide
        guide = one.replace(guidance=0.0).read_values()
        said |= {key: value for key, value in (dict(facts) | guide).items() if key not in ("guidance", "nfe")}
    save_tensors(path, tensors, {"facts": json.dumps(said)})
