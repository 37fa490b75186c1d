"""Requests that start from a given image: another attribute, a part anew, one like it, a way to another."""

import hashlib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge, Le
from torch import Tensor

from unveil.data.given import Framing, frame_image, frame_mask
from unveil.data.pixels import to_float
from unveil.diffusion.config import Guidance
from unveil.diffusion.samplers import Step
from unveil.errors import UnveilError
from unveil.section import Share
from unveil.serving import edits
from unveil.serving.request import Request
from unveil.serving.studio import Studio

Kind = Literal["edit", "inpaint", "vary", "interpolate"]
PICTURES = ("image", "other", "mask")

READ = {
    "edit": {"strength"},
    "inpaint": {"mask", "resamplings"},
    "vary": {"strength"},
    "interpolate": {"other"},
}
SUITED: dict[Kind, dict[str, Any]] = {
    "edit": {"sampler": "ddim", "steps": 50, "eta": 0.0, "guidance": 2.0, "strength": 0.8},
    "inpaint": {"sampler": "ddpm", "steps": 25, "resamplings": 5},
    "vary": {},
    "interpolate": {"sampler": "ddim", "steps": 50, "eta": 0.0, "count": 8},
}
"""What a person who plays is offered: seconds on a small model, and enough steps to come back to the image."""


class Retouch(Request):
    """What becomes of an image."""

    kind: Kind = "edit"
    """edit (to noise, and back with other attributes) | inpaint | vary | interpolate (to another image)"""
    image: str = ""
    """the image, as base64 of a file"""
    other: str = ""
    """interpolate: the other image"""
    mask: str = ""
    """inpaint: an image that is white where to paint"""
    strength: Share = 0.5
    """edit, vary: how much of the way to noise; 0 = the image as it is"""
    resamplings: Annotated[int, Ge(1), Le(50)] = 10
    """inpaint: how often each step is done (RePaint, 2201.09865); more fit the rest better"""

    def unread(self) -> set[str]:
        """What this kind does not read."""
        untold = {"attributes", *Guidance.model_fields} if self.kind == "interpolate" else set()
        return super().unread() | set().union(*READ.values()) - READ[self.kind] | untold

    def read_values(self) -> dict[str, Any]:
        """As of any section; pictures by their SHA-256."""
        values = super().read_values()
        digests = {key: hashlib.sha256(content(self, key)).hexdigest() for key in PICTURES if values.get(key)}
        return values | digests

    def singles(self) -> Iterator[Self]:
        """As of any request, but images between two are made together."""
        together = {"count": self.count} if self.kind == "interpolate" else {}
        return (single.model_copy(update=together) for single in super().singles())

    @property
    def columns(self) -> int:
        """Images in a row of the picture."""
        return self.count if self.kind == "interpolate" else super().columns

    @property
    def evaluations(self) -> int:
        """Of networks, for an image, about."""
        ways = {"edit": 3 * self.strength, "inpaint": self.resamplings, "vary": self.strength, "interpolate": 3}
        return max(round(super().evaluations * ways[self.kind]), 1)


def retouched(studio: Studio, request: Retouch) -> Iterator[Step]:
    """The steps of what becomes of the image.

    Raises:
        UnveilError: in one line, if a picture is none, or there is no such edit with these settings.
        NotDrawn: as :meth:`Studio.steps` does.
    """
    image, framing = opened(studio, request, "image")
    if request.kind == "edit":
        return edits.change(studio, request, image, strength=request.strength)
    if request.kind == "vary":
        return edits.vary(studio, request, image, request.strength)
    if request.kind == "interpolate":
        request = request.model_copy(update={"attributes": ()})  # told what they do not show, the ends would be others
        return edits.interpolate(studio, request, image, opened(studio, request, "other")[0])
    try:
        mask = torch.from_numpy(frame_mask(content(request, "mask"), framing))
    except ValueError as error:
        raise UnveilError(f"mask: {error}") from None
    steps = edits.inpaint(studio, request, image, mask, request.resamplings, 1)
    # What the model thinks of the rest is no matter: that stays.
    return (replace(step, denoised=torch.where(mask, step.denoised, to_float(image))) for step in steps)


def opened(studio: Studio, request: Retouch, key: str) -> tuple[Tensor, Framing]:
    """A picture of the request, uint8 [3, H, W] of the model's size, and how it was framed. Raises UnveilError."""
    try:
        pixels, framing, _ = frame_image(content(request, key), studio.model.data.get("protocol"), studio.shape[-1])
    except ValueError as error:
        raise UnveilError(f"{key}: {error}") from None
    return torch.tensor(pixels), framing


def content(request: Retouch, key: str) -> bytes:
    """The bytes of a picture of the request. Raises UnveilError if there are none."""
    if not (text := getattr(request, key)):
        raise UnveilError(f"{key}: found none, expected a picture; give one")
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise UnveilError(f"{key}: found no base64, expected that of a picture") from None
