"""Cartoon faces: the embedded data set, drawn here, with CelebA's layout and true attributes.

The faces are DiceBear's rendering of Pablo Stanley's *Avataaars*, placed on CelebA's 178 x 218 canvas so
that the eyes are where CelebA's alignment puts them. Each face is a function of (seed, index) alone, so
every machine draws the same bytes, in any order and with any number of processes.
"""

import io
import json
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from unveil.data.celeba import ATTRIBUTES, CANVAS, LEFT_EYE, RIGHT_EYE, SPLITS, ZIP_NAME, image_names, write_annotations
from unveil.data.sources.archive import write_stored_zip
from unveil.data.sources.facts import SourceRecord, in_processes, worker_count
from unveil.parameter_file import package_data

# Where the avatar's eyes are in its 280 x 280 drawing. One scale and one shift map them to CelebA's.
AVATAR_EYES = ((114, 112), (166, 112))
SCALE = (RIGHT_EYE[0] - LEFT_EYE[0]) / (AVATAR_EYES[1][0] - AVATAR_EYES[0][0])
SHIFT = (LEFT_EYE[0] - SCALE * AVATAR_EYES[0][0], LEFT_EYE[1] - SCALE * AVATAR_EYES[0][1])
JPEG_QUALITY = 95
FACES_PER_TASK = 250  # at most


@dataclass(frozen=True)
class Face:
    """What is drawn: names of DiceBear's variants and colours; ``none`` where nothing is."""

    male: bool
    skin: str
    top: str
    hair: str
    hat_color: str
    eyes: str
    eyebrows: str
    mouth: str
    beard: str
    glasses: str
    clothes: str
    clothes_color: str
    background: str


@cache
def _looks() -> dict[str, Any]:
    """The shares of all looks, and what makes an attribute true."""
    return package_data(__package__, "cartoon.yaml")


def choose_face(seed: int, index: int) -> Face:
    """The face of (seed, index): hair style and beard depend on the sex, hair colour on the skin."""
    random = Random(f"unveil cartoon {seed} {index}")

    def pick(part: str) -> str:
        shares: dict[str, int] = _looks()["shares"][part]
        return random.choices(list(shares), list(shares.values()))[0]

    male = random.random() < 0.45
    skin = pick("skin")
    wears_hat = random.random() < 0.06
    own_top, hat = pick("male_top" if male else "female_top"), pick("hat")
    beard = pick("beard")
    return Face(
        male=male,
        skin=skin,
        top=hat if wears_hat else own_top,
        hair=pick("hair_of_dark_skin" if skin in _looks()["dark_skin"] else "hair"),
        hat_color=pick("clothes_color"),
        beard=beard if male else "none",
        **{
            part: pick(part)
            for part in ("eyes", "eyebrows", "mouth", "glasses", "clothes", "clothes_color", "background")
        },
    )


def attributes_of(face: Face) -> np.ndarray:
    """CelebA's 40 attributes, bool [40], true by construction; what the drawing cannot show is False."""
    rules = _looks()["attributes"]
    parts = [rules.get(name, {"male": ()}) for name in ATTRIBUTES]
    return np.array([all(getattr(face, part) in looks for part, looks in rule.items()) for rule in parts], dtype=bool)


@cache
def _style() -> Style:
    return Style(json.loads(files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8")))


def _avatar_svg(face: Face) -> str:
    """DiceBear's drawing; every choice is made, so its own random numbers decide nothing."""
    chosen: dict[str, object] = {
        "seed": "unveil",
        "size": 280,
        "skinColor": [face.skin],
        "hairColor": [face.hair],
        "facialHairColor": [face.hair],
        "hatColor": [face.hat_color],
        "clothesColor": [face.clothes_color],
        "accessoriesColor": ["#262e33"],
        "eyesVariant": face.eyes,
        "eyebrowsVariant": face.eyebrows,
        "mouthVariant": face.mouth,
        "clothesVariant": face.clothes,
    }
    for component, variant in (("top", face.top), ("facialHair", face.beard), ("accessories", face.glasses)):
        chosen[f"{component}Probability"] = 0 if variant == "none" else 100
        if variant != "none":
            chosen[f"{component}Variant"] = variant
    return Avatar(_style(), chosen).to_string()


def draw_face(face: Face) -> Image.Image:
    """Draw a face on CelebA's canvas: RGB, 178 x 218, eyes at CelebA's mean eyes."""
    width, height = CANVAS
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<rect width="{width}" height="{height}" fill="{face.background}"/>'
        f'<g transform="translate({SHIFT[0]:.4f} {SHIFT[1]:.4f}) scale({SCALE:.6f})">{_avatar_svg(face)}</g></svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _jpegs(seed: int, indices: range) -> list[bytes]:
    """The faces of a seed and some indices."""
    found = []
    for index in indices:
        buffer = io.BytesIO()
        draw_face(choose_face(seed, index)).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        found.append(buffer.getvalue())
    return found


def split_counts(num_images: int, split: dict[str, float]) -> list[int]:
    """Images of train, valid and test: the shares rounded, what is left over goes to train."""
    held_out = [round(num_images * split[name]) for name in SPLITS[1:]]
    return [num_images - sum(held_out), *held_out]


def write(destination: Path, *, num_faces: int, seed: int, split: dict[str, float], workers: int) -> SourceRecord:
    """Draw ``num_faces`` faces into ``destination`` in CelebA's layout; ``workers`` = 0 takes every core.

    The faces are independent draws, so the splits are simply the first, the next and the last of them.
    """
    task = min(FACES_PER_TASK, -(-num_faces // worker_count(workers)))
    tasks = [range(start, min(start + task, num_faces)) for start in range(0, num_faces, task)]
    jpegs = chain.from_iterable(in_processes(partial(_jpegs, seed), tasks, workers))
    faces = zip(image_names(num_faces), jpegs, strict=True)
    write_stored_zip(destination / ZIP_NAME, faces, permissions=0o600)  # as all archives of this source so far
    # The head, from the ears' outer edges and the skull's top to the chin; it stands still in this style.
    left, top, right, bottom = _on_canvas((74, 36), (206, 181))
    landmarks = _on_canvas(*AVATAR_EYES, (140, 132), (121, 158), (159, 158))
    write_annotations(
        destination,
        attributes=np.stack([attributes_of(choose_face(seed, index)) for index in range(num_faces)]),
        partition=np.repeat(np.arange(3), split_counts(num_faces, split)),
        identities=np.arange(1, num_faces + 1),
        boxes=np.tile([left, top, right - left, bottom - top], (num_faces, 1)),
        landmarks=np.tile(landmarks, (num_faces, 1)),
    )
    return SourceRecord(
        source="cartoon",
        origin=f"drawn by dicebear-core in the style avataaars, seed {seed}",
        licence="Avataaars: free for personal and commercial use (https://avataaars.com/); DiceBear: MIT",
        credit="Remix of Avataaars by Pablo Stanley, drawn with DiceBear (https://www.dicebear.com/)",
        images=num_faces,
        files={},
        canvas=CANVAS,
        published=False,
    )


def _on_canvas(*points: tuple[float, float]) -> np.ndarray:
    """Points of the drawing on the canvas, x and y of each in turn."""
    return (np.array(SHIFT) + SCALE * np.array(points)).round().astype(int).flatten()
