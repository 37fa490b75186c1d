"""Cartoon faces: the embedded data set, drawn here, with CelebA's layout and true attributes.

The faces are DiceBear's rendering of Pablo Stanley's *Avataaars*, placed on CelebA's 178 x 218 canvas so
that the eyes are where CelebA's alignment puts them. Each face is a function of (seed, index) alone, so
every machine draws the same bytes, in any order and with any number of processes.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from unveil.data.celeba import (
    ATTRIBUTES,
    CANVAS,
    LEFT_EYE,
    RIGHT_EYE,
    SPLITS,
    ZIP_NAME,
    image_names,
    write_annotations,
)
from unveil.data.sources.archive import write_stored_zip
from unveil.data.sources.facts import SourceFacts, in_processes, worker_count

# Where the avatar's eyes are in its 280 x 280 drawing. One scale and one shift map them to CelebA's.
AVATAR_EYES = ((114, 112), (166, 112))
SCALE = (RIGHT_EYE[0] - LEFT_EYE[0]) / (AVATAR_EYES[1][0] - AVATAR_EYES[0][0])
SHIFT = (LEFT_EYE[0] - SCALE * AVATAR_EYES[0][0], LEFT_EYE[1] - SCALE * AVATAR_EYES[0][1])
JPEG_QUALITY = 95
FACES_PER_TASK = 250  # at most

Weights = dict[str, float]

# Shares in percent. Only front-facing, calm, natural looks: no tears, hearts, crosses or vomit.
FEMALE_TOPS: Weights = {
    "bob": 15, "bun": 11, "curly": 12, "longButNotTooLong": 12,
    "miaWallace": 12, "straight01": 13, "straight02": 12, "straightAndStrand": 13,
}  # fmt: skip
MALE_TOPS: Weights = {
    "shortFlat": 18, "shortRound": 16, "shortWaved": 18, "shortCurly": 16,
    "theCaesar": 12, "theCaesarAndSidePart": 10, "sides": 5, "none": 5,
}  # fmt: skip
HATS: Weights = {"hat": 50, "winterHat03": 50}
EYES: Weights = {"default": 82, "happy": 12, "squint": 6}
EYEBROWS: Weights = {
    "defaultNatural": 40, "default": 20, "raisedExcitedNatural": 15, "raisedExcited": 10, "flatNatural": 15,
}  # fmt: skip
MOUTHS: Weights = {"smile": 40, "twinkle": 25, "default": 15, "serious": 20}
BEARDS: Weights = {"none": 62, "beardLight": 12, "beardMedium": 14, "moustacheFancy": 6, "moustacheMagnum": 6}
GLASSES: Weights = {"none": 88, "prescription02": 7, "round": 5}
CLOTHES: Weights = {
    "shirtCrewNeck": 35, "shirtScoopNeck": 20, "shirtVNeck": 15, "hoodie": 15, "collarAndSweater": 15,
}  # fmt: skip
CLOTHES_COLORS: Weights = {
    "#262e33": 14, "#65c9ff": 13, "#5199e4": 13, "#25557c": 14, "#e6e6e6": 12,
    "#929598": 12, "#ff5c5c": 22,
}  # fmt: skip
# Far apart, and darker than the lightest skin and hair, so that every outline shows.
BACKGROUNDS: Weights = {"#7fb2dd": 24, "#86c29c": 20, "#e59ab0": 20, "#efc26f": 18, "#a596d3": 18}
PALE, LIGHT, TAN, BROWN, DARK = "#fae7d6", "#ffdbb4", "#edb98a", "#ae5d29", "#614335"
SKINS: Weights = {PALE: 8, LIGHT: 32, TAN: 30, "#d08b5b": 15, BROWN: 9, DARK: 6}
BLACK_HAIR, BLOND_HAIR, GRAY_HAIR = "#2c1b18", "#d6b370", "#9c9696"
BROWN_HAIR = ("#4a312c", "#724133", "#a55728")
HAIRS: Weights = {BLACK_HAIR: 26, "#4a312c": 17, "#724133": 19, "#a55728": 13, BLOND_HAIR: 17, GRAY_HAIR: 8}
DARK_HAIRS: Weights = {BLACK_HAIR: 62, "#4a312c": 30, GRAY_HAIR: 8}

OPEN_MOUTHS = {"smile", "default"}
SMILES = {"smile", "twinkle", "default"}
STRAIGHT = {"bob", "longButNotTooLong", "miaWallace", "straight01", "straight02", "straightAndStrand"}
WAVY = {"curly", "shortWaved", "shortCurly"}
BANGS = {"longButNotTooLong", "miaWallace", "straightAndStrand"}


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


def choose_face(seed: int, index: int) -> Face:
    """The face of (seed, index): hair style and beard depend on the sex, hair colour on the skin."""
    random = Random(f"unveil cartoon {seed} {index}")

    def pick(weights: Weights) -> str:
        return random.choices(list(weights), list(weights.values()))[0]

    male = random.random() < 0.45
    skin = pick(SKINS)
    wears_hat = random.random() < 0.06
    own_top, hat = pick(MALE_TOPS if male else FEMALE_TOPS), pick(HATS)
    beard = pick(BEARDS)
    return Face(
        male=male,
        skin=skin,
        top=hat if wears_hat else own_top,
        hair=pick(DARK_HAIRS if skin in (BROWN, DARK) else HAIRS),
        hat_color=pick(CLOTHES_COLORS),
        eyes=pick(EYES),
        eyebrows=pick(EYEBROWS),
        mouth=pick(MOUTHS),
        beard=beard if male else "none",
        glasses=pick(GLASSES),
        clothes=pick(CLOTHES),
        clothes_color=pick(CLOTHES_COLORS),
        background=pick(BACKGROUNDS),
    )


def attributes_of(face: Face) -> np.ndarray:
    """CelebA's 40 attributes, bool [40], true by construction; what the drawing cannot show is False."""
    hat = face.top in HATS
    bald = face.top == "none"
    hair_shows = not hat and not bald
    full_beard = face.beard in ("beardLight", "beardMedium")
    true = {
        "Arched_Eyebrows": face.eyebrows.startswith("raised"),
        "Bald": bald,
        "Bangs": face.top in BANGS,
        "Black_Hair": hair_shows and face.hair == BLACK_HAIR,
        "Blond_Hair": hair_shows and face.hair == BLOND_HAIR,
        "Brown_Hair": hair_shows and face.hair in BROWN_HAIR,
        "Bushy_Eyebrows": face.eyebrows == "flatNatural",
        "Eyeglasses": face.glasses != "none",
        "Goatee": full_beard,
        "Gray_Hair": hair_shows and face.hair == GRAY_HAIR,
        "Male": face.male,
        "Mouth_Slightly_Open": face.mouth in OPEN_MOUTHS,
        "Mustache": face.beard != "none",
        "Narrow_Eyes": face.eyes in ("happy", "squint"),
        "No_Beard": not full_beard,
        "Pale_Skin": face.skin == PALE,
        "Receding_Hairline": face.top == "sides",
        "Sideburns": full_beard,
        "Smiling": face.mouth in SMILES,
        "Straight_Hair": face.top in STRAIGHT,
        "Wavy_Hair": face.top in WAVY,
        "Wearing_Hat": hat,
        "Young": face.hair != GRAY_HAIR,
    }
    return np.array([true.get(name, False) for name in ATTRIBUTES], dtype=bool)


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


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _draw(numbers: tuple[int, range]) -> tuple[list[bytes], np.ndarray]:
    """JPEGs and attributes of the faces of a seed and some indices."""
    seed, indices = numbers
    faces = [choose_face(seed, index) for index in indices]
    return [_jpeg(draw_face(face)) for face in faces], np.stack([attributes_of(face) for face in faces])


def split_counts(num_images: int, split: dict[str, float]) -> list[int]:
    """Images of train, valid and test: the shares rounded, what is left over goes to train."""
    held_out = [round(num_images * split[name]) for name in SPLITS[1:]]
    return [num_images - sum(held_out), *held_out]


def write(destination: Path, *, num_faces: int, seed: int, split: dict[str, float], workers: int) -> SourceFacts:
    """Draw ``num_faces`` faces into ``destination`` in CelebA's layout; ``workers`` = 0 takes every core.

    The faces are independent draws, so the splits are simply the first, the next and the last of them.
    """
    attributes = []
    task = min(FACES_PER_TASK, -(-num_faces // worker_count(workers)))
    tasks = [(seed, range(start, min(start + task, num_faces))) for start in range(0, num_faces, task)]

    def jpegs() -> Iterator[bytes]:
        for contents, rows in in_processes(_draw, tasks, workers):
            attributes.append(rows)
            yield from contents

    faces = zip(image_names(num_faces), jpegs(), strict=True)
    write_stored_zip(destination / ZIP_NAME, faces, permissions=0o600)  # as all archives of this source so far
    # The head, from the ears' outer edges and the skull's top to the chin; it stands still in this style.
    left, top, right, bottom = _on_canvas((74, 36), (206, 181))
    landmarks = _on_canvas(*AVATAR_EYES, (140, 132), (121, 158), (159, 158))
    write_annotations(
        destination,
        attributes=np.concatenate(attributes),
        partition=np.repeat(np.arange(3), split_counts(num_faces, split)),
        identities=np.arange(1, num_faces + 1),
        boxes=np.tile([left, top, right - left, bottom - top], (num_faces, 1)),
        landmarks=np.tile(landmarks, (num_faces, 1)),
    )
    return SourceFacts(
        origin=f"drawn by dicebear-core in the style avataaars, seed {seed}",
        licence="Avataaars: free for personal and commercial use (https://avataaars.com/); DiceBear: MIT",
        credit="Remix of Avataaars by Pablo Stanley, drawn with DiceBear (https://www.dicebear.com/)",
        images=num_faces,
    )


def _on_canvas(*points: tuple[float, float]) -> np.ndarray:
    """Points of the drawing on the canvas, x and y of each in turn."""
    return (np.array(SHIFT) + SCALE * np.array(points)).round().astype(int).flatten()
