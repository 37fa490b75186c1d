"""The parameters: one section a stage, the rules between the sections, and params.yaml, which holds all of them.

``load_params`` reads the file as YAML 1.2 (so ``2e-4`` is a number and ``yes`` is text), checks each value
and then the combinations that cannot work, and says what is wrong in one line: file and line, dotted key,
what was found, what is allowed, and the nearest valid name. ``render`` writes the file, with what each section says
of its values as comments.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from unveil import files
from unveil.data.celeba import ATTRIBUTES, PUBLISHED_SPLITS
from unveil.data.config import Download, Preprocess
from unveil.diffusion.config import AS_DATA, Diffusion, Guidance, Sampler
from unveil.diffusion.levels import FULL_NOISE
from unveil.errors import UnveilError, line_for_user, printable
from unveil.evaluation.config import Evaluation
from unveil.evaluation.oracle.config import OracleTraining
from unveil.messages import RETIRED, chosen, comment_of, findings, look_up, schema_of, section_at
from unveil.networks.config import Network
from unveil.parameter_file import Key, Lines, parse_mapping, written
from unveil.posthoc import STEEPEST_RAMP
from unveil.section import (
    GREATEST_DEVIATION,
    LEAST_DEVIATION,
    LISTED,
    Amount,
    Count,
    Device,
    Precision,
    Problem,
    Section,
    Seed,
)
from unveil.training.config import Training
from unveil.weights import WEIGHTS, WeightsChoice, parse_weights

MOST_BYTES = 1 << 20  # of a params.yaml
COMMENT_COLUMN = 31  # of the comments behind the values
HEADER = (
    "# Every choice of the pipeline. `dvc repro` runs what a change affects; `dvc exp run -S train.lr=2e-4`",
    "# tries one. Other complete sets: `unveil recipes list`.",
)


class Train(Training):
    """The training, with the network and the diffusion that it trains."""

    network: Network = Network()
    """families by name: `unveil recipes apply unet-adm`, unet-ddpm, ..."""
    diffusion: Diffusion = Diffusion()
    """path, parameterization and objective"""

    def problems(self) -> Iterator[Problem]:
        """What is wrong within the training, and noise that does not fit through the network."""
        yield from super().problems()
        if self.augment and self.network.noise_conditioning == "none":
            yield Problem(
                "augment",
                "0.0 with train.network.noise_conditioning none: the network is told what was done beside the noise "
                "level, and otherwise would draw turned faces",
            )
        if self.diffusion.parameterization in FULL_NOISE and self.network.stem > 1:
            yield Problem(
                "diffusion.parameterization",
                f"x0 | v | edm, because train.network.stem is {self.network.stem} and noise does not pass through a "
                f"narrow network (2511.13720); {self.diffusion.parameterization} needs stem 1",
            )
        if self.attributes and self.network.noise_conditioning == "none":
            yield Problem(
                "attributes", "[] with train.network.noise_conditioning none: they are told beside the noise level"
            )
        told, path = self.network.noise_conditioning != "none", self.diffusion.path
        if told and self.network.noise_embedding == "fourier" and path not in ("edm", "ve"):
            yield Problem(
                "network.noise_embedding",
                f"ddpm | adm for train.diffusion.path {path}, whose c_noise runs to 1000 "
                "(random frequencies resolve a c_noise of about 1, as paths edm and ve have)",
            )


class Drawing(Section):
    """Which images to draw, with which weights and arithmetic."""

    seed: Seed = 0
    """image i depends on (seed, i) alone"""
    attributes: Annotated[tuple[str, ...], LISTED] = ()
    """what is asked for: names of train.attributes, with a minus for the absence, as [Smiling, -Bald] | [data] = each
    image those of a training image | [] = nothing"""
    num_samples: Count = 50_000
    """images to make"""
    batch_size: Count = 500
    """images at once; never changes their noise"""
    device: Device = "auto"
    """auto (cuda if there is one) | cpu | cuda"""
    precision: Precision = "auto"
    """type of the network's arithmetic: auto | fp32 | bf16 | fp16"""
    weights: Annotated[str, WEIGHTS] = "ema"
    """ema (the model's own) | half-life:N (images) | power:S (relative standard deviation) | snapshot:N (in the middle
    of training, after so many images); `unveil averages search` finds the best"""

    @property
    def average(self) -> WeightsChoice:
        """What ``weights`` means."""
        return parse_weights(self.weights) or WeightsChoice()


class Sample(Sampler, Guidance, Drawing):
    """How many images, of what, and by which sampler."""

    guidance_scales: Annotated[tuple[Annotated[float, Ge(0), Le(100)], ...], LISTED] = ()
    """scales of guidance that evaluate compares, as [0, 1, 2, 4]: 0 = the model told nothing; [] = none. Read if
    attributes are asked for, or there is a guide"""
    guidance_images: Annotated[int, Ge(4)] = 500
    """guidance_scales: images to make at each, of the same seeds and attributes"""
    grid_rows: Count = 8
    """of samples/grid.png; rows x columns are at most num_samples"""
    grid_columns: Count = 12
    """of samples/grid.png"""

    @property
    def guides(self) -> bool:
        """Whether a guide has a say, at one of the scales too."""
        return super().guides or bool(self.scales)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales that are compared: none where nothing is asked for and nobody guides, since all would be alike."""
        return self.guidance_scales if self.attributes or self.guide is not None else ()

    def unread(self) -> set[str]:
        """What neither the sampler nor the guidance reads."""
        alone = set() if self.scales else {"guidance_scales", "guidance_images"}
        return Sampler.unread(self) | Guidance.unread(self) | alone

    def problems(self) -> Iterator[Problem]:
        """What is wrong with sampler and guidance, weights without a meaning, a picture of more cells than images."""
        yield from Sampler.problems(self)
        yield from Guidance.problems(self)
        if parse_weights(self.weights) is None:
            yield Problem(
                "weights",
                f"{WEIGHTS} (N in images; S a relative standard deviation in "
                f"[{LEAST_DEVIATION}, {GREATEST_DEVIATION}])",
            )
        if len(set(self.guidance_scales)) < len(self.guidance_scales):
            yield Problem("guidance_scales", "each scale once")
        if (cells := self.grid_rows * self.grid_columns) > self.num_samples:
            product = f"{self.grid_rows} x {self.grid_columns} = {cells}"
            most = f"at most sample.num_samples, {self.num_samples}"
            yield Problem("grid_rows", f"grid_rows x grid_columns of {most} ({product})")
        if self.device == "cpu" and self.precision == "fp16":
            yield Problem("precision", "auto | fp32 | bf16 on sample.device cpu (fp16 needs cuda)")


class Launch(Section):
    """Processes of train, sample and evaluate; they change no more than rounding, and the masks of dropout."""

    processes: Amount = 0
    """of train, sample and evaluate, on this machine; 0 = one for each GPU. Changes no more than rounding"""


class Params(Section):
    """The whole of params.yaml, one section a stage, and how they are launched."""

    download: Download = Download()
    """where the images come from"""
    preprocess: Preprocess = Preprocess()
    """from the archive to shards"""
    train: Train = Train()
    """the training"""
    sample: Sample = Sample()
    """the sampling"""
    oracle: OracleTraining = OracleTraining()
    """the classifier of train.attributes, which evaluate asks about samples; read if there are any"""
    evaluate: Evaluation = Evaluation()
    """the evaluation"""
    launch: Launch = Launch()
    """the processes"""

    def unread(self) -> set[str]:
        """The oracle, where there is nothing to ask it."""
        return set() if self.train.attributes else {"oracle"}

    def problems(self) -> Iterator[Problem]:
        """What is wrong between the sections."""
        if self.download.source == "folder" and self.preprocess.protocol not in ("adm-ip", "squash"):
            yield Problem(
                "preprocess.protocol",
                "adm-ip | squash, because download.source is folder (the others crop CelebA's 178 x 218 canvas)",
            )
        if self.launch.processes > self.train.batch_size:
            yield Problem("launch.processes", f"at most train.batch_size, {self.train.batch_size}")
        yield from self._attributes_problems()
        yield from self._weights_problems()
        yield from self._network_problems()
        for key, expected in self.sample.misfits(self.train.diffusion):
            yield Problem(f"sample.{key}", expected)
        yield from self._evaluation_problems()

    def split_sizes(self) -> dict[str, int] | None:
        """Images of each split after preprocess, at most; None for a folder, whose images nobody has counted."""
        if self.download.source == "folder":
            return None
        sizes = dict(PUBLISHED_SPLITS)
        if self.download.source == "cartoon":
            total, split = self.download.cartoon.num_faces, self.download.split
            valid, test = round(total * split.valid), round(total * split.test)
            sizes = {"train": total - valid - test, "valid": valid, "test": test}
        if self.preprocess.protocol == "adm-ip":  # trains on all images
            sizes["train"] = sum(sizes.values())
        return sizes

    def _evaluation_problems(self) -> Iterator[Problem]:
        evaluate = self.evaluate
        if evaluate.num_images > self.sample.num_samples:
            yield Problem("evaluate.num_images", f"at most sample.num_samples, {self.sample.num_samples}")
        if (sizes := self.split_sizes()) is None:
            return
        reference, held_out = evaluate.reference_split, evaluate.held_out_split
        has = f"the images that download.source {self.download.source} has in split"
        if evaluate.reference_images > sizes[reference]:
            yield Problem("evaluate.reference_images", f"at most {sizes[reference]}, {has} {reference}; 0 = all")
        split = min(reference, held_out, key=lambda name: sizes[name])
        if evaluate.kid_subset_size > sizes[split]:
            yield Problem("evaluate.kid_subset_size", f"at most {sizes[split]}, {has} {split}")

    def _attributes_problems(self) -> Iterator[Problem]:
        """Names that no data set has, a folder's table neither, or that the network is not told."""
        names, asked = self.train.attributes, self.sample.attributes
        try:
            chosen(names, ATTRIBUTES)
        except ValueError as error:
            yield Problem("train.attributes", f"names of CelebA's header ({error})")
        if names and self.download.source == "folder" and self.download.folder.attributes is None:
            yield Problem(
                "train.attributes", "[], or a table in download.folder.attributes that says what the images show"
            )
        if asked != (AS_DATA,):
            try:
                chosen([word.removeprefix("-") for word in asked], names)
            except ValueError as error:
                yield Problem("sample.attributes", f"names of train.attributes ({error})")
        if self.sample.guidance != 1 and self.sample.guide is None and not (names and asked):
            key = "sample" if names else "train"
            yield Problem(
                "sample.guidance", f"1.0 with {key}.attributes [], or a sample.guide: there is nothing to guide"
            )
        if "classification-accuracy" in self.evaluate.metrics and asked != (AS_DATA,):
            yield Problem(
                "evaluate.metrics", "no classification-accuracy, which learns from samples of sample.attributes [data]"
            )

    def _weights_problems(self) -> Iterator[Problem]:
        yield from self._average_problems("sample.weights", self.sample.average)
        guide = parse_weights(self.sample.guide or "")
        if guide is not None and self.sample.guides:
            yield from self._average_problems("sample.guide", guide)

    def _average_problems(self, key: str, choice: WeightsChoice) -> Iterator[Problem]:
        """An average that the training does not keep, and that cannot be made of what it keeps."""
        train = self.train
        if choice.kind == "snapshot" and train.ema_profiles:
            return
        if choice.kind == "ema" or choice.value in (train.ema_half_life_images, *train.ema_more_half_lives):
            return
        if not train.ema_profiles:
            stored = [f"half-life:{number:.12g}" for number in train.ema_more_half_lives]
            source = "train.ema_more_half_lives" if choice.kind == "half-life" else "train.ema_profiles"
            yield Problem(key, f"{' | '.join(['ema', *stored])}, or what it is made from in {source}")
        elif choice.kind == "half-life" and not 0 < train.ema_rampup <= STEEPEST_RAMP:
            ramp = f"train.ema_rampup in (0, {STEEPEST_RAMP}]"
            yield Problem(key, f"{ramp} to make a half-life with, or one of train.ema_more_half_lives")

    def _network_problems(self) -> Iterator[Problem]:
        """Images that the network cannot halve so often, and attention where there is none."""
        network, image_size = self.train.network, self.preprocess.image_size
        levels, factor = len(network.channel_multipliers), network.downsampling
        if image_size % factor:
            below = image_size - image_size % factor
            sizes = [str(size) for size in (below, below + factor) if 8 <= size <= 1024]
            nearest_sizes = f"nearest: {' or '.join(sizes)}" if sizes else "take fewer multipliers"
            yield Problem(
                "preprocess.image_size",
                f"a multiple of {factor}, the network's downsampling (train.network.stem {network.stem} "
                f"x 2^{levels - 1} for {levels} channel_multipliers); {nearest_sizes}",
            )
            return
        if network.architecture == "plain":
            return
        resolutions = network.resolutions(image_size)
        if resolutions[-1] == 1:  # nothing to convolve, and at 32 channels nothing to normalise
            yield Problem(
                "train.network.channel_multipliers",
                f"fewer of them: {levels} leave a single pixel of preprocess.image_size {image_size} "
                f"/ train.network.stem {network.stem}",
            )
        if not set(network.attention_resolutions) <= set(resolutions):
            yield Problem(
                "train.network.attention_resolutions",
                f"side lengths that occur in the network: {' | '.join(map(str, resolutions))} "
                f"(preprocess.image_size {image_size} / train.network.stem {network.stem}, and its halvings)",
            )
        attended = [
            width
            for width, side in zip(network.widths, resolutions, strict=True)
            if side in network.attention_resolutions or (network.middle_attention and side == resolutions[-1])
        ]
        for key in ("attention_head_channels", "attention_heads"):
            divisor = getattr(network, key)
            if divisor and (wrong := [width for width in attended if width % divisor]):
                yield Problem(
                    f"train.network.{key}",
                    f"0 or a divisor of {wrong[0]}, the width where attention acts "
                    f"(with middle_attention at the lowest resolution too); for example {math.gcd(*attended)}",
                )


SCHEMA = schema_of(Params)
SECTIONS = f"the sections {', '.join(Params.model_fields)}"


def load_params(path: Path, *, fill: bool = False) -> Params:
    """Read and check a params.yaml; with ``fill``, a key that it lacks has its default, and a retired one goes.

    Raises:
        UnveilError: with one line, if the file is missing or not YAML, or if a key or a value is wrong.
    """
    return parse_params(read_text(path), str(path), fill=fill)


def read_text(path: Path) -> str:
    """The text of a parameter file. Raises UnveilError if it cannot be read."""
    try:
        return files.read_text(path, MOST_BYTES)
    except FileNotFoundError:
        raise UnveilError(
            printable(f"{path}: no such file; run in the project's folder, or say where it is with --params")
        ) from None
    except (OSError, UnveilError) as error:
        raise UnveilError(printable(line_for_user(error) or str(error))) from None


def parse_params(text: str, name: str, *, fill: bool = False) -> Params:
    """Check the text of a params.yaml; ``name`` is what messages call the file. Raises UnveilError."""
    lines, values = parse_mapping(text, name, SECTIONS)
    if fill:
        drop_retired(values)
    return check_params(values, name, lines, fill=fill)


def drop_retired(values: dict[Any, Any]) -> None:
    """Take the keys of earlier versions out of the values of a file."""
    for section, name in (key.split(".") for key in RETIRED):
        if isinstance(values.get(section), dict):
            values[section].pop(name, None)


def write_params(path: Path, text: str, rendered: str) -> Path | None:
    """Write a parameter file anew.

    Args:
        path: of the file.
        text: what it holds.
        rendered: what it is to hold.

    Returns:
        Where the file before is kept, if it held more than its values: own comments, other keys, another layout.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        own = render(parse_params(text, str(path))) != text
    except UnveilError:
        own = True
    kept = path.with_name(f"{path.name}.before") if own else None
    if kept is not None:
        files.write_text(kept, text)
    files.write_text(path, rendered)
    return kept


def check_params(values: dict[Any, Any], name: str, lines: Lines | None = None, *, fill: bool = False) -> Params:
    """Check the values of a params.yaml, which must have every key. Raises UnveilError.

    Args:
        values: of every section.
        name: what messages call the file.
        lines: of the file's keys, for messages; a key that is not there has that of the section around it.
        fill: give the keys that are not there their defaults.
    """
    errors: list[ErrorDetails] = []
    try:
        params = Params.model_validate(values)
        if wrong := files.excessive_number(values):
            raise UnveilError(printable(f"{name}: {wrong}"))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if not (found := findings(SCHEMA, errors, values, fill)):
        return params
    known = lines or {}
    at = {key: next((known[key[:end]] for end in range(len(key), 0, -1) if key[:end] in known), 1) for key in found}
    first = min(found, key=at.__getitem__)
    place = f"{name}:{at[first]}" if lines is not None else name
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise UnveilError(printable(f"{place}: {files.shortened('.'.join(first))}: {found[first]}{more}"))


def render(params: Params, under: Key = ()) -> str:
    """A params.yaml with these values, and behind each what its section says of it.

    Args:
        params: all of them.
        under: the section to write alone, below its own keys; () = the whole file.
    """
    lines: list[str] = []
    for key, field in SCHEMA.items():
        if key[: len(under)] != under[: len(key)]:
            continue
        value = "" if section_at(field) is not None else f" {written(look_up(params, key))}"
        start = f"{'  ' * (len(key) - 1)}{key[-1]}:{value}"
        lines += [""] if len(key) == 1 and not under else []
        lines.append(f"{start:<{COMMENT_COLUMN - 2}}  # {comment_of(field)}")
    return "\n".join([*([] if under else HEADER), *lines]) + "\n"
