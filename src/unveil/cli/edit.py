"""``unveil edit``: a given face painted anew in part, changed, mixed with another, or varied."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unveil.cli.draw import words
from unveil.errors import UnveilError
from unveil.layout import MODELS
from unveil.progress import Passing, renews, say
from unveil.run.commands import examples

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.data.given import Framing
    from unveil.diffusion.samplers import Step
    from unveil.serving.request import Request
    from unveil.serving.studio import Studio

app = typer.Typer(no_args_is_help=True, help="Edit a picture of a face with a model.")

Picture = Annotated[Path, typer.Argument(help="A picture of any size; the model takes its middle.", readable=False)]
Out = Annotated[Path, typer.Argument(help="The PNG to write.", metavar="OUT.png")]
Models = Annotated[Path, typer.Option(help="Folder of the model.")]
Weights = Annotated[str | None, typer.Option(help="ema, half-life:N, power:S or snapshot:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is random.")]
Count = Annotated[int, typer.Option(min=1, help="Results, each with other noise.")]
Attributes = Annotated[str | None, typer.Option(help="What to show: Smiling,-Bald (a minus: not so).")]
Scale = Annotated[float | None, typer.Option("--guidance", help="Scale: 1 as trained, more exaggerates.")]
Solver = Annotated[str | None, typer.Option("--sampler", help="Such as heun or ddpm.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Intervals of the sampler's grid.")]
Beside = Annotated[bool, typer.Option("--beside", help="Show what was given before the results.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]

PAINTING = {"sampler": "ddpm", "steps": 25}  # RePaint has 250 steps of it
INVERTING = {"sampler": "ddim", "steps": 100, "eta": 0.0, "s_churn": 0.0}  # with fewer, some faces come back as others


@app.command(
    epilog=examples(
        "unveil edit inpaint face.png mask.png painted.png",
        "unveil edit inpaint face.jpg mask.png painted.png --count 4 --seed 7 --attributes Eyeglasses --guidance 2",
    )
)
def inpaint(
    picture: Picture,
    mask: Annotated[Path, typer.Argument(help="White = paint; of the picture's or the model's size.", readable=False)],
    out: Out,
    attributes: Attributes = None,
    guidance: Scale = None,
    count: Count = 1,
    seed: Seed = 0,
    resamplings: Annotated[int, typer.Option(min=1, max=100, help="How often each step is done.")] = 10,
    jump: Annotated[int, typer.Option(min=1, max=1000, help="Steps that are done again together.")] = 1,
    sampler: Solver = None,
    steps: Steps = None,
    weights: Weights = None,
    beside: Beside = False,
    models: Models = MODELS,
    device: Device = "auto",
) -> None:
    """Paint a part of a face anew, so that it goes with the rest, which is kept bit for bit (RePaint, 2201.09865).

    More resamplings agree better with the rest, and take as much longer.
    """
    import torch

    from unveil.data.given import frame_mask
    from unveil.files import file_digest
    from unveil.serving import edits

    asked = {"attributes": words(attributes), "guidance": guidance, "count": count, "seed": seed, "weights": weights}
    easel = Easel.of(out, models, device, asked | _own(PAINTING, sampler, steps))
    given = easel.take(picture)
    try:
        painted = torch.from_numpy(frame_mask(_read(mask), given.frame))
    except ValueError as error:
        raise UnveilError(f"{mask}: {error}") from None
    share = painted.float().mean().item()
    say(f"{mask}: {share:.0%} of the {easel.size} x {easel.size} pixels are painted")
    made = edits.inpaint(easel.studio, easel.request, given.pixels, painted, resamplings, jump)
    facts = {"mask": file_digest(mask), "resamplings": resamplings, "jump": jump}
    easel.save("inpaint", made, [given], beside, facts)


@app.command(
    epilog=examples(
        'unveil edit attributes face.png smiling.png --attributes "Smiling,-Wearing_Hat"',
        'unveil edit attributes face.jpg other.png --attributes Eyeglasses --known "-Eyeglasses" --guidance 3 --beside',
    )
)
def attributes(
    picture: Picture,
    out: Out,
    attributes: Annotated[str, typer.Option(help="What the face shall show: Smiling,-Bald (a minus: not so).")],
    known: Annotated[str | None, typer.Option(help="What it shows now, if the model is to be told: -Smiling.")] = None,
    strength: Annotated[float, typer.Option(min=0, max=1, help="Less keeps more of the face.")] = 0.8,
    guidance: Scale = 2.0,
    count: Count = 1,
    seed: Seed = 0,
    sampler: Solver = None,
    steps: Steps = None,
    weights: Weights = None,
    beside: Beside = False,
    models: Models = MODELS,
    device: Device = "auto",
) -> None:
    """Give a face other attributes: find the noise that becomes it, and draw that again, told them (2010.02502)."""
    from unveil.networks.condition import told
    from unveil.serving import edits

    asked = {"attributes": words(attributes), "guidance": guidance, "count": count, "seed": seed, "weights": weights}
    easel = Easel.of(out, models, device, asked | _own(INVERTING, sampler, steps))
    if not easel.request.attributes:
        raise UnveilError(
            f"--attributes: found none, expected some of {', '.join(easel.studio.model.network.attributes)}"
        )
    now = words(known) or []
    try:
        told(now, easel.studio.model.network.attributes)
    except ValueError as error:
        raise UnveilError(f"--known: {error}") from None
    given = easel.take(picture)
    made = edits.change(easel.studio, easel.request, given.pixels, now, strength)
    easel.save("edit", made, [given], beside, {"known": now, "strength": strength})


@app.command(epilog=examples("unveil edit interpolate one.png other.png between.png --count 9"))
def interpolate(
    first: Picture,
    second: Annotated[Path, typer.Argument(help="Another picture.", readable=False)],
    out: Out,
    count: Annotated[int, typer.Option(min=2, help="Faces in a row, both ends included.")] = 7,
    seed: Seed = 0,
    sampler: Solver = None,
    steps: Steps = None,
    weights: Weights = None,
    beside: Beside = False,
    models: Models = MODELS,
    device: Device = "auto",
) -> None:
    """Draw the faces between two: those of the noise between the noise that becomes the one and the other."""
    from unveil.serving import edits

    asked = {"count": count, "seed": seed, "weights": weights, "guidance": 1.0}
    easel = Easel.of(out, models, device, asked | _own(INVERTING, sampler, steps))
    ends = [easel.take(first), easel.take(second)]
    made = edits.interpolate(easel.studio, easel.request, ends[0].pixels, ends[1].pixels)
    images = easel.save("interpolate", made, ends, beside, {}, in_a_row=True)
    for end, image in zip(ends, (images[0], images[-1]), strict=True):
        say(f"{end.path}: comes back from its noise at {_psnr(image, end.pixels):.1f} dB")


@app.command(
    epilog=examples(
        "unveil edit vary face.png like-it.png --count 9 --strength 0.6",
        "unveil edit vary face.jpg like-it.png --attributes Smiling --guidance 2",
    )
)
def vary(
    picture: Picture,
    out: Out,
    strength: Annotated[float, typer.Option(min=0, max=1, help="0 = the face itself, 1 = any face.")] = 0.5,
    attributes: Attributes = None,
    guidance: Scale = None,
    count: Count = 4,
    seed: Seed = 0,
    sampler: Solver = None,
    steps: Steps = None,
    weights: Weights = None,
    beside: Beside = False,
    models: Models = MODELS,
    device: Device = "auto",
) -> None:
    """Draw faces like a given one: as much noise as the strength says, and down again (SDEdit, 2108.01073)."""
    from unveil.serving import edits

    asked = {"attributes": words(attributes), "guidance": guidance, "count": count, "seed": seed, "weights": weights}
    easel = Easel.of(out, models, device, asked | _own({}, sampler, steps))
    given = easel.take(picture)
    made = edits.vary(easel.studio, easel.request, given.pixels, strength)
    easel.save("vary", made, [given], beside, {"strength": strength})


@dataclass(frozen=True)
class Given:
    """A picture as the model takes it: uint8 [3, size, size], where it is from, and how it was framed."""

    path: Path
    pixels: "Tensor"
    frame: "Framing"


@dataclass(frozen=True)
class Easel:
    """Where a picture is edited: a model at work, what is asked of it, and where the result goes."""

    studio: "Studio"
    request: "Request"
    out: Path

    @classmethod
    def of(cls, out: Path, models: Path, device: str, asked: dict[str, Any]) -> "Easel":
        """Check what is asked for; None in ``asked`` is as it is usual.

        Raises:
            UnveilError: in one line.
        """
        if out.suffix.lower() != ".png":
            raise UnveilError(f"{out}: found the suffix {out.suffix or 'none'}, expected .png")
        from unveil.files import destination
        from unveil.serving.studio import Studio

        destination(out)
        studio = Studio.load(models, device)
        return cls(studio, studio.request({key: value for key, value in asked.items() if value is not None}), out)

    @property
    def size(self) -> int:
        """Height and width of the model's images."""
        return self.studio.shape[-1]

    def take(self, path: Path) -> Given:
        """Read a picture and say how it was framed. Raises UnveilError for what is none."""
        import torch

        from unveil.data.given import frame_image

        try:
            pixels, frame, done = frame_image(_read(path), self.studio.model.data.get("protocol"), self.size)
        except ValueError as error:
            raise UnveilError(f"{path}: {error}; give a picture such as a PNG or a JPEG") from None
        say(f"{path}: {done}")
        return Given(path, torch.from_numpy(pixels), frame)

    def save(
        self,
        edit: str,
        steps: "Iterator[Step]",
        given: Sequence[Given],
        beside: bool,
        facts: dict[str, Any],
        in_a_row: bool = False,
    ) -> "Tensor":
        """Make the results, save them as a PNG with all that made them, and say so: uint8 [n, 3, H, W]."""
        import torch

        from unveil.data.pixels import to_uint8
        from unveil.diffusion.sampling import NotDrawn
        from unveil.figures import save_picture
        from unveil.files import file_digest
        from unveil.generation import STEP_SECONDS
        from unveil.serving.request import in_words

        started = said = time.perf_counter()
        try:
            for step in steps:
                if (now := time.perf_counter()) - said >= (0.2 if renews() else STEP_SECONDS):
                    say(Passing(f"{edit}: {step.nfe:,} network evaluations an image, now at sigma {step.sigma:.3g}"))
                    said = now
        except NotDrawn as error:
            raise UnveilError(f"{self.studio.folder}: {error}; choose other settings, or train again") from None
        images = to_uint8(step.x)
        made = {"kind": edit, "given": [file_digest(one.path) for one in given], **facts}
        sides = [one.pixels[None] for one in given] if beside else []
        shown = torch.cat([*sides[:1], images, *sides[1:]])
        columns = len(shown) if in_a_row else math.ceil(math.sqrt(len(shown)))
        save_picture(shown, columns, self.out, self.studio.facts(self.request) | made)
        say(
            f"{self.out}: {edit}, {in_words(self.request.attributes)}, seed {self.request.seed}; "
            f"{self.request.sampler}, {step.nfe} network evaluations an image, {time.perf_counter() - started:.1f} s"
        )
        return images


def _own(usual: dict[str, Any], sampler: str | None, steps: int | None) -> dict[str, Any]:
    """The sampler of an edit, and what was asked for in its place."""
    return usual | {key: value for key, value in (("sampler", sampler), ("steps", steps)) if value is not None}


def _read(path: Path) -> bytes:
    from unveil.data.images import MOST_BYTES
    from unveil.files import read_bytes

    return read_bytes(path, MOST_BYTES)


def _psnr(image: "Tensor", other: "Tensor") -> float:
    """Peak signal-to-noise ratio of 8-bit images in dB."""
    error = (image.double() - other.double()).square().mean().item()
    return 20 * math.log10(255) - 10 * math.log10(error) if error else math.inf
