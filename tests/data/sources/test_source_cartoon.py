"""Cartoon faces: the same everywhere, aligned as CelebA's, with attributes that are true."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unveil.data import celeba
from unveil.data.celeba import ATTRIBUTES, CANVAS, LEFT_EYE, RIGHT_EYE
from unveil.data.sources import cartoon
from unveil.data.sources.cartoon import Face, attributes_of, choose_face, draw_face

SPLIT = {"train": 0.6, "valid": 0.2, "test": 0.2}
FACES = [choose_face(0, index) for index in range(1000)]
PLAIN = Face(
    male=True, skin="#ffdbb4", top="shortFlat", hair="#2c1b18", hat_color="#25557c", eyes="default",
    eyebrows="default", mouth="serious", beard="none", glasses="none", clothes="hoodie", clothes_color="#5199e4",
    background="#7fb2dd",
)  # fmt: skip


def changed(**values: Any) -> np.ndarray:
    """Where the drawing changes with the face: bool [218, 178]."""
    one, other = (np.asarray(draw_face(face)).astype(int) for face in (PLAIN, dataclasses.replace(PLAIN, **values)))
    return np.abs(one - other).max(2) > 40


def has(face: Face, name: str) -> bool:
    return bool(attributes_of(face)[ATTRIBUTES.index(name)])


def test_the_number_of_workers_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one worker two tasks, of eight faces and of two; of two workers two of five."""
    monkeypatch.setattr(cartoon, "FACES_PER_TASK", 8)
    digests = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        cartoon.write(folder, num_faces=10, seed=3, split=SPLIT, workers=workers)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.iterdir())})
    assert digests[0] == digests[1]
    names, (signs,) = celeba.read_annotations(tmp_path / "1" / celeba.ATTRIBUTES_FILE)
    assert len(names) == 10
    assert ((signs == 1) == np.stack([attributes_of(choose_face(3, index)) for index in range(10)])).all()
    _, partition = celeba.read_partition(tmp_path / "1")
    assert np.bincount(partition).tolist() == [6, 2, 2]
    with zipfile.ZipFile(tmp_path / "1" / celeba.ZIP_NAME) as archive:
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_STORED] * 10
        with archive.open("img_align_celeba/000001.jpg") as stream, Image.open(stream) as image:
            assert (image.size, image.mode, image.format) == (CANVAS, "RGB", "JPEG")


def test_a_face_is_a_function_of_seed_and_index() -> None:
    assert choose_face(0, 7) == choose_face(0, 7)
    assert len(set(FACES)) > 950
    assert choose_face(1, 7) != choose_face(0, 7)


def test_the_eyes_are_where_celebas_are() -> None:
    ys, xs = np.nonzero(changed(eyes="happy") | changed(eyes="squint"))
    for side, (x, y) in ((xs < 89, LEFT_EYE), (xs >= 89, RIGHT_EYE)):
        assert abs((xs[side].min() + xs[side].max()) / 2 - x) < 3
        assert abs((ys[side].min() + ys[side].max()) / 2 - y) < 6


def test_what_is_worn_is_drawn_in_its_place() -> None:
    glasses, beard, hat = changed(glasses="round"), changed(beard="beardMedium"), changed(top="hat")
    rows = [np.nonzero(mask)[0].mean() for mask in (hat, glasses, beard)]
    assert rows == sorted(rows)  # hat above glasses above beard
    assert abs(rows[1] - LEFT_EYE[1]) < 12
    assert all(mask.sum() > 150 for mask in (glasses, beard, hat))


@pytest.mark.parametrize("attribute", ["Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"])
def test_the_hair_has_its_colour(attribute: str) -> None:
    colours = {face.hair for face in FACES if has(face, attribute)}
    assert colours
    mask = changed(top="none")  # hair, where a bald head has skin
    for colour in colours:
        face = dataclasses.replace(PLAIN, hair=colour)
        found = np.median(np.asarray(draw_face(face))[mask], axis=0)
        expected = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(found - expected).max() <= 12


def test_attributes_agree_with_one_another() -> None:
    colours = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
    for face in FACES:
        shown = sum(has(face, colour) for colour in colours)
        assert shown == (not has(face, "Bald") and not has(face, "Wearing_Hat"))
        if not has(face, "Male"):
            assert has(face, "No_Beard")
            assert not has(face, "Mustache")
        assert has(face, "Eyeglasses") == (face.glasses != "none")


def test_attributes_that_can_hold_vary_and_the_others_never_hold() -> None:
    rates = dict(zip(ATTRIBUTES, np.mean([attributes_of(face) for face in FACES], axis=0), strict=True))
    assert sum(0 < rate < 1 for rate in rates.values()) == 23
    assert sum(rate == 0 for rate in rates.values()) == 17
    assert 0.4 < rates["Male"] < 0.5
    assert 0.03 < rates["Wearing_Hat"] < 0.09
    assert 0.08 < rates["Eyeglasses"] < 0.16


def test_no_face_is_a_grimace() -> None:
    assert {face.eyes for face in FACES} <= {"default", "happy", "squint"}
    assert {face.mouth for face in FACES} <= {"smile", "twinkle", "default", "serious"}
