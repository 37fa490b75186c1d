"""Batches: what is drawn depends on (seed, number) alone, and an epoch is an epoch."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unveil.data import batches as batches_module
from unveil.data.batches import Batch, Batches, StreamedSplit, load_split, open_batches
from unveil.data.config import Loader
from unveil.data.pixels import to_float, to_uint8
from unveil.data.shards import ShardIndex, write_shard
from unveil.errors import UnveilError


def _numbered(count: int) -> Tensor:
    """Images whose left half is their own number and whose right half is 255 minus it."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 2, 4)
    images[..., 2:] = 255 - images[..., 2:]
    return images


def _numbers(batch: Tensor) -> list[int]:
    """Which images of fewer than 128 a batch holds, mirrored or not."""
    return torch.minimum(to_uint8(batch)[:, 0, 0, 0], to_uint8(batch)[:, 0, 0, 3]).tolist()


@settings(deadline=None)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
    epochs=st.integers(1, 3),
)
def test_every_epoch_holds_every_image_once(count: int, batch_size: int, seed: int, epochs: int) -> None:
    """Also where a batch ends one epoch and begins the next, and where it holds several."""
    batches = Batches(Batch(_numbered(count)), batch_size, seed, horizontal_flip=True)
    drawn: list[int] = []
    while len(drawn) < epochs * count:
        batch = batches.batch(len(drawn) // batch_size).images
        assert batch.shape == (batch_size, 3, 2, 4) and batch.dtype == torch.float32
        drawn += _numbers(batch)
    for epoch in range(epochs):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(batch_size=st.integers(1, 30), seed=st.integers(0, 2**32 - 1), order=st.permutations(range(6)))
def test_a_batch_depends_on_the_seed_and_its_number_alone(batch_size: int, seed: int, order: list[int]) -> None:
    one, other = (Batches(Batch(_numbered(10)), batch_size, seed, horizontal_flip=True) for _ in range(2))
    in_turn = [one.batch(number).images for number in range(6)]
    for number in order:
        assert torch.equal(other.batch(number).images, in_turn[number])


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = []
    for seed in (0, 1):
        batches = Batches(Batch(_numbered(100)), 100, seed, horizontal_flip=False)
        orders += [tuple(_numbers(batches.batch(epoch).images)) for epoch in range(3)]
    assert len(set(orders)) == 6
    assert tuple(range(100)) not in orders


def test_each_image_is_mirrored_half_of_the_time() -> None:
    batches = Batches(Batch(_numbered(50)), 100, 0, horizontal_flip=True)
    seen: Counter[tuple[int, bool]] = Counter()
    for number in range(200):  # every image 400 times
        batch = to_uint8(batches.batch(number).images)[:, 0, 0]
        assert ((batch[:, 0] == 255 - batch[:, 3]) & (batch[:, 0] == batch[:, 1])).all()
        seen.update((min(left, right), left > right) for left, right in zip(*batch[:, [0, 3]].T.tolist(), strict=True))
    rates = [seen[number, True] / 400 for number in range(50)]
    assert sum(rates) / 50 == pytest.approx(0.5, abs=4 * (0.25 / 20_000) ** 0.5)
    assert all(abs(rate - 0.5) < 5 * (0.25 / 400) ** 0.5 for rate in rates)


def test_every_batch_has_its_own_coins() -> None:
    patterns = []
    for seed in (0, 1):
        batches = Batches(Batch(_numbered(50)), 50, seed, horizontal_flip=True)
        first_columns = (to_uint8(batches.batch(number).images)[:, 0, 0] for number in range(20))
        patterns += [tuple((batch[:, 0] > batch[:, 3]).tolist()) for batch in first_columns]
    assert len(set(patterns)) == 40


def test_without_flips_images_stay_as_they_are() -> None:
    images = _numbered(30)
    batch = Batches(Batch(images), 30, 0, horizontal_flip=False).batch(0).images
    assert torch.equal(to_uint8(batch), images[_numbers(batch)])


def test_the_images_themselves_are_not_touched() -> None:
    images = _numbered(8)
    batches = Batches(Batch(images), 8, 0, horizontal_flip=True)
    batches.batch(0).images.zero_()
    assert torch.equal(images, _numbered(8))


def test_pixels_fill_minus_one_to_one_and_come_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    values = to_float(pixels)
    assert values.dtype == torch.float32
    assert values.min() == -1 and values.max() == 1
    torch.testing.assert_close(values.diff(), torch.full((255,), 2 / 255))
    assert torch.equal(to_uint8(values), pixels)


def test_floats_are_rounded_to_the_nearest_pixel_and_clipped() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    for shift in (-0.49, 0.49):
        assert torch.equal(to_uint8(to_float(pixels) + shift / 127.5), pixels)
    assert to_uint8(torch.tensor([-100.0, -1.001, 1.001, 100.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.tensor([-1.0, 0.5, 1.0], dtype=torch.bfloat16)).tolist() == [0, 191, 255]


# ------------------------------------------------------------------------------------ from disk


def _shards(folder: Path, counts: list[int]) -> tuple[Tensor, ShardIndex]:
    """Their attributes are the bits of the image's first pixel."""
    images = torch.randint(0, 256, (sum(counts), 3, 4, 4), dtype=torch.uint8)
    shards = tuple(
        write_shard(folder, "train", number, part, _bits(part), torch.arange(len(part)))
        for number, part in enumerate(images.split(counts))
    )
    index = ShardIndex.of(
        {"train": shards},
        (0.0,) * 3,
        (1.0,) * 3,
        source="cartoon",
        protocol="squash",
        image_size=4,
        attributes=NAMES,
    )
    index.save(folder)
    return images, index


NAMES = tuple(f"bit_{number}" for number in range(40))
SOME = ("bit_7", "bit_0", "bit_3")  # in an order of their own


def _bits(images: Tensor) -> Tensor:
    """Bool [n, 40]: those of the first pixel, and zeros."""
    return (images[:, 0, 0, :1].int() >> torch.arange(40).clamp_max(30)) % 2 > 0


@pytest.mark.parametrize("numbers", [range(12), [7, 3, 3, 11, 0, 1, 2], [40, 41, 2]])
def test_streamed_batches_are_those_of_the_device(tmp_path: Path, numbers: Iterable[int]) -> None:
    images, index = _shards(tmp_path, [5, 11, 7])
    streamed = Batches(StreamedSplit(tmp_path, index.shards("train")), 4, 3, horizontal_flip=True)
    resident = Batches(Batch(images), 4, 3, horizontal_flip=True)
    for number in numbers:
        one, other = streamed.batch(number), resident.batch(number)
        assert torch.equal(one.images, other.images) and one.attributes is other.attributes is None


@pytest.mark.parametrize("loader", ["device", "stream"])
def test_attributes_come_with_their_images_if_asked_for(tmp_path: Path, loader: Loader) -> None:
    _shards(tmp_path, [5, 11, 7])
    batches = open_batches(tmp_path, "train", loader, 6, 0, False, torch.device("cpu"), slice(1, 5), attributes=SOME)
    for number in (0, 3, 4):
        batch = batches.batch(number)
        assert len(batch) == 4 and batch.attributes is not None and batch.attributes.dtype == torch.int8
        assert torch.equal(batch.attributes, 2 * _bits(to_uint8(batch.images))[:, [7, 0, 3]].to(torch.int8) - 1)
        some = batch[2:]
        assert some.attributes is not None and torch.equal(some.attributes, batch.attributes[2:])
    split = load_split(tmp_path, "train", 13, attributes=NAMES)
    assert split.attributes is not None and torch.equal(split.attributes > 0, _bits(split.images)) and len(split) == 13
    assert load_split(tmp_path, "train").attributes is None


@pytest.mark.parametrize(
    ("names", "words"), [(("bit_7", "bitt_3"), "did you mean bit_3"), (("bit_7", "bit_7"), "twice")]
)
def test_an_attribute_that_the_data_do_not_have_is_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    _shards(tmp_path, [5])
    with pytest.raises(UnveilError, match=words):
        load_split(tmp_path, "train", attributes=names)


def test_the_loader_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _shards(tmp_path, [6])

    def kind(loader: Loader) -> type:
        return type(open_batches(tmp_path, "train", loader, 2, 0, False, torch.device("cpu")).split)

    assert [kind("device"), kind("stream"), kind("auto")] == [Batch, StreamedSplit, Batch]
    monkeypatch.setattr(batches_module, "_free_memory", lambda device: 6 * 3 * 4 * 4)
    assert kind("auto") is StreamedSplit


@pytest.mark.parametrize("damage", ["missing", "cut", "no header", "shorter later"])
def test_a_shard_that_cannot_be_streamed_is_named(tmp_path: Path, damage: str) -> None:
    _, index = _shards(tmp_path, [6])
    path = tmp_path / "train-00000.safetensors"

    def stream() -> Batches:
        return Batches(StreamedSplit(tmp_path, index.shards("train")), 6, 0, horizontal_flip=False)

    before = stream()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\xff" * 100 if damage == "no header" else path.read_bytes()[:-300])
    with pytest.raises(UnveilError, match=r"train-00000\.safetensors: .*run the preprocess stage again"):
        (before if damage == "shorter later" else stream()).batch(0)


FEW_FILES = """
import sys
from pathlib import Path
from unveil.data.batches import StreamedSplit
from unveil.data.shards import Shard
from unveil.errors import line_for_user

shards = [Shard(path.name, 1, "") for path in sorted(Path(sys.argv[1]).iterdir())]
try:
    StreamedSplit(Path(sys.argv[1]), shards)
except OSError as error:
    print(line_for_user(error))
"""


def test_more_shards_than_files_that_may_be_open(tmp_path: Path) -> None:
    for number in range(80):
        images, attributes = _numbered(1), torch.zeros(1, 40, dtype=torch.bool)
        write_shard(tmp_path, "train", number, images, attributes, torch.tensor([number]))
    script = f"ulimit -n 64; exec '{sys.executable}' -c '{FEW_FILES}' '{tmp_path}'"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith(f"{tmp_path}/train-000"), done.stderr
    assert "Too many open files; raise the number of files" in done.stdout and "`ulimit -n 4096`" in done.stdout
    assert "preprocess" not in done.stdout
