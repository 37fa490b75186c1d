"""A drawing as events for the page: how it emerges, and what it became."""

import time
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from unveil.data.pixels import to_uint8
from unveil.figures import image_grid, picture
from unveil.serving.request import Request, in_words
from unveil.serving.retouch import Retouch, retouched
from unveil.serving.studio import Studio, arranged

BETWEEN = 0.1  # seconds between two looks at a drawing


MADE = {"edit": "Edit", "inpaint": "Inpainting", "vary": "Variation", "interpolate": "Between"}


class Event(NamedTuple):
    """What the page is told: ``step`` or ``done``, ``wait`` or ``error``, and the facts of it."""

    name: str
    facts: dict[str, Any]


def show(studio: Studio, request: Request) -> Iterator[Event]:
    """Draw a request.

    ``step`` has what the denoiser takes the images for, as a small WebP of all of them; ``done`` has the picture and
    each image as PNGs that say how they were made.

    Raises:
        NotDrawn: as :meth:`Studio.steps` does.
    """
    started = shown = time.perf_counter()
    groups = request.groups()
    parts, part, drawn = sum(map(len, groups)), 0, list[list[Tensor]]()
    for group in groups:
        drawn.append([])
        for way in group:
            steps = retouched(studio, way) if isinstance(way, Retouch) else studio.steps(way)
            for number, step in enumerate(steps):
                now = time.perf_counter()
                if number in (0, 1) or now - shown > BETWEEN:
                    shown = now
                    place = {"part": part, "parts": parts, "step": number, "nfe": step.nfe, "of": way.evaluations}
                    place |= {"columns": way.columns, "count": way.count}
                    yield Event("step", {**place, "image": glimpse(step.denoised, way.columns)})
            drawn[-1].append(to_uint8(step.x))
            part += 1
    facts = studio.facts(request) | {"nfe": step.nfe}
    images, singles = arranged(drawn), list(request.singles())
    alone = [
        picture(image[None], 1, studio.facts(single) | place_between(request, single))
        for image, single in zip(images, singles, strict=True)
    ]
    result = {
        "picture": encoded(picture(images, request.columns, facts)),
        "images": [encoded(content) for content in alone],
        "labels": [label(single) for single in singles],
        "columns": request.columns,
        "facts": facts,
        "seconds": round(time.perf_counter() - started, 2),
    }
    yield Event("done", result)


def place_between(request: Request, single: Request) -> dict[str, Any]:
    """What an image between two says beside its request: it is made with the others alone, whose first stays."""
    if isinstance(request, Retouch) and request.kind == "interpolate":
        return {"first": request.first, "place": single.first - request.first}
    return {}


def label(request: Request) -> str:
    """One image in words."""
    guided = f", guidance {request.guidance:g}" if request.guides else ""
    made = MADE.get(request.kind if isinstance(request, Retouch) else "", "Image")
    return f"{made} {request.first} of seed {request.seed}: {in_words(request.attributes)}{guided}"


def glimpse(images: Tensor, columns: int) -> str:
    """Float images as a small picture of all of them."""
    stream = BytesIO()
    Image.fromarray(image_grid(to_uint8(images), columns).contiguous().numpy()).save(stream, "WEBP", quality=75)
    return encoded(stream.getvalue())


def encoded(content: bytes) -> str:
    """Bytes as text."""
    return b64encode(content).decode()
