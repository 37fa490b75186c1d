"""``unveil draw``: pictures of what is asked for."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.errors import UnveilError
from unveil.layout import MODELS
from unveil.progress import Passing, say


def draw(
    out: Annotated[Path, typer.Argument(help="The PNG to write.", metavar="OUT.png")],
    attributes: Annotated[str | None, typer.Option(help="What to show: Smiling,-Bald (a minus: not so).")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images to draw.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Image i depends on (seed, i) alone.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="Number of the first image.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Scale: 1 as trained, more exaggerates.")] = None,
    guide: Annotated[str | None, typer.Option(help="An average of the weights, or another model's folder.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Such as heun or dpmpp-2m.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Intervals of the sampler's grid.")] = None,
    weights: Annotated[str | None, typer.Option(help="ema, half-life:N, power:S or snapshot:N.")] = None,
    switch: Annotated[str | None, typer.Option(help="A row for each of these attributes: without it, with it.")] = None,
    scales: Annotated[str | None, typer.Option(help="A column for each of these scales of guidance: 0,1,2,4.")] = None,
    other: Annotated[
        list[str],
        typer.Option("--set", help="Another value of sample: grid=karras.", metavar="KEY=VALUE"),
    ] = [],  # noqa: B006 - typer takes no None for a list
    columns: Annotated[int | None, typer.Option(min=1, help="Images in a row.")] = None,
    models: Annotated[Path, typer.Option(help="Folder of the model.")] = MODELS,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Draw images of what is asked for, as one PNG that says how it was made.

    What no option names is as params.yaml beside the model has it.
    Image i is the one that the sample stage draws with the same settings.
    """
    if out.suffix.lower() != ".png":
        raise UnveilError(f"{out}: found the suffix {out.suffix or 'none'}, expected .png")
    from unveil.diffusion.sampling import NotDrawn
    from unveil.figures import save_picture
    from unveil.files import destination
    from unveil.serving.request import in_words
    from unveil.serving.studio import Studio

    destination(out)
    given = {
        "attributes": words(attributes),
        "count": count,
        "seed": seed,
        "first": first,
        "guidance": guidance,
        "guide": guide,
        "sampler": sampler,
        "steps": steps,
        "weights": weights,
        "switch": words(switch),
        "scales": None if scales is None else numbers("--scales", scales),
        **settings(other),
    }
    studio = Studio.load(models, device)
    request = studio.request({key: value for key, value in given.items() if value is not None})
    for group in request.groups():
        studio.denoiser(group[-1])  # before anything is said: weights or a guide may be missing
    started = time.perf_counter()
    say(Passing(f"{request.count} images of {models}"))
    try:
        images = studio.images(request)
    except NotDrawn as error:
        raise UnveilError(f"{models}: {error}; choose other settings, or train again") from None
    save_picture(images, columns or request.columns, out, studio.facts(request))
    rows = ""
    if request.switch:
        rows = f"; each row without and with {', '.join(request.switch)}"
    elif request.scales:
        rows = f"; guidance {', '.join(f'{scale:g}' for scale in request.scales)} from left to right"
    guided = f", guidance {request.guidance:g}" if request.guides and not request.scales else ""
    which = f"images {request.first} to {request.ids[-1]}" if request.count > 1 else f"image {request.first}"
    say(
        f"{out}: {which} of seed {request.seed}, {in_words(request.attributes)}{guided}{rows}; "
        f"{request.sampler}, {request.steps} steps, {time.perf_counter() - started:.1f} s"
    )


def words(text: str | None) -> list[str] | None:
    """What stands between commas."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str) -> list[float]:
    """Numbers between commas. Raises UnveilError if one is none."""
    try:
        return [float(word) for word in words(text) or []]
    except ValueError:
        raise UnveilError(f"{option}: found {text}, expected numbers such as 0,1,2,4") from None


def settings(given: list[str]) -> dict[str, Any]:
    """Values as params.yaml has them, from ``key=value``. Raises UnveilError for what is none."""
    from unveil.parameter_file import parse_mapping

    found: dict[str, Any] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals:
            raise UnveilError(f"--set: found {word}, expected key=value, such as grid=karras")
        found[key] = parse_mapping(f"value: {value}", f"--set {key}")[1]["value"]
    return found
