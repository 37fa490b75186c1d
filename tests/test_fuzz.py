"""JSON that the program wrote and somebody changed: it is read as it stands, or refused in one line."""

import copy
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.evaluation.card.cards import card
from unveil.averages import FOLDER, Averages, save_snapshot, write_averages
from unveil.cli.averages import list_averages
from unveil.data.shards import Shard, ShardIndex, load_tensor, verify, write_shard
from unveil.data.sources.facts import FileFacts, SourceRecord
from unveil.diffusion.config import Diffusion
from unveil.errors import UnveilError, line_for_user
from unveil.evaluation.card.card import Card, read_card
from unveil.evaluation.card.comparison import compare_cards, describe_difference
from unveil.evaluation.card.markdown import render
from unveil.evaluation.card.sentences import unknown_of
from unveil.evaluation.card.statement import model_choices, sampling_choices
from unveil.evaluation.images.sets import check_same_data, load_samples
from unveil.evaluation.metrics.metric import Metric
from unveil.files import file_digest, write_json
from unveil.interchange.pipeline import export_pipeline, read_pipeline
from unveil.model import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, load_denoiser, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network
from unveil.run.lineage import STAGES
from unveil.run.stage import stage
from unveil.training.comparison import read_curve
from unveil.weights import WeightsChoice

MOST = int(os.environ.get("FUZZ", "60"))  # changes of each file
MOST_MEMORY = 100 << 20  # bytes that Python may take for one reading
OTHERS: list[Any] = [
    None, True, -1, 0, 1, 3, 12, 12.0, 0.5, -0.0, 1e-300, 1e99, 10_000, 2**31, 2**62, 10**30, -(10**30),
    "", "12", "x", "../../etc/passwd", "a/b", "\0", "\ud800", "é" * 3, "x" * 10_000,
    [], [1], ["x"], {}, {"x": 1}, [[[[]]]],
]  # fmt: skip
NAN = ["@NaN", "@Infinity", "@-Infinity", "@1e999", "@" + "9" * 500, "@" + "[" * 3000 + "]" * 3000]
"""Values that only a text can have."""


class Written(NamedTuple):
    """A file of JSON: its values, what puts others in their place, and what reads and uses them."""

    values: Any
    put: Callable[[str], None]
    use: Callable[[], object]


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands, all the way down."""
    yield path
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, values: Any) -> str:
    """The values as JSON, with one of them changed, taken away or added."""
    place = draw(st.sampled_from(list(_places(values))))
    kind = draw(st.sampled_from(["value"] * 6 + ["delete", "add", "nudge"]))
    root = {"root": copy.deepcopy(values)}
    at: Any = root
    for key in ("root", *place)[:-1]:
        at = at[key]
    last = ("root", *place)[-1]
    if kind == "delete" and place:
        del at[last]
    elif kind == "add" and isinstance(at[last], dict):
        at[last][draw(st.sampled_from(["surprise", "", "a/b", "\0", "x" * 10_000]))] = draw(st.sampled_from(OTHERS))
    elif kind == "nudge" and type(at[last]) in (int, float):
        at[last] = draw(st.sampled_from([at[last] + 1, -at[last], at[last] * 1000, at[last] / 3]))
    else:
        at[last] = draw(st.sampled_from(OTHERS + NAN))
    text = json.dumps(root["root"])
    for word in NAN:
        text = text.replace(json.dumps(word), word[1:])
    return text


def _folder(path: Path) -> Path:
    """Raw folder, shards, model, averages, samples and card as the stages write them, but small."""
    generator = torch.Generator().manual_seed(0)
    splits: dict[str, tuple[Shard, ...]] = {}
    for split, sizes in (("train", (3, 2)), ("valid", (1,)), ("test", (2,))):
        shards = []
        for number, size in enumerate(sizes):
            images = torch.randint(256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
            shards.append(_write_shard(path / "shards", split, number, images))
        splits[split] = tuple(shards)
    index = ShardIndex.of(
        splits,
        (0.0, 0.1, 0.2),
        (1.0, 1.0, 1.0),
        source="cartoon",
        protocol="ddim",
        image_size=8,
        attributes=("Smiling",),
        corrupt=("000003.jpg",),
    )
    index.save(path / "shards")
    config = ModelConfig(
        UNetConfig(
            image_size=8,
            channels=32,
            channel_multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            attention_head_channels=16,
            norm_groups=16,
        ),
        Diffusion(path="vp-linear", parameterization="eps", objective="simple"),
        {"source": "cartoon", "protocol": "ddim", "image_size": 8, "shards": index.digest()},
        {"images": 800, "batch_size": 4, "lr": 1e-4, "ema_half_life_images": 50, "betas": [0.9, 0.99]},
    )
    network = build_network(config.network)
    save_model(path / "models", network, config)
    named = {name: parameter.detach() for name, parameter in network.named_parameters()}
    snapshots = []
    for images_seen in range(100, 801, 100):
        snapshots.append(path / "scratch" / f"snapshot-{images_seen:012d}.safetensors")
        save_snapshot(snapshots[-1], images_seen, {0.05: named, 0.1: named})
    digest = file_digest(path / "models" / WEIGHTS_FILE)
    write_averages(path / "models" / FOLDER, 800, 0.09, [(300, network.state_dict())], (0.05, 0.1), snapshots, digest)
    facts = {
        **config.data,
        "model": digest,
        "weights": "ema",
        "config": {key: value for key, value in config.to_dict().items() if key not in ("format", "data")},
        "seed": 0,
        "precision": "fp32",
        "nfe": 10,
        "sampler": "heun",
        "steps": 5,
        "rho": 7.0,
    }
    tensors = {"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "ids": torch.arange(4)}
    save_file(tensors, path / "samples.safetensors", {"facts": json.dumps(facts)})
    record = SourceRecord("cartoon", "drawn", "CC", "us", 8, {"a.zip": FileFacts(3, "0" * 64)}, (178, 218), False)
    write_json(path / "source.json", asdict(record))
    card().save(path / "card.json")
    return path


def _write_shard(folder: Path, split: str, number: int, images: torch.Tensor) -> Shard:
    folder.mkdir(parents=True, exist_ok=True)
    flags = torch.zeros(len(images), 40, dtype=torch.bool)
    return write_shard(folder, split, number, images, flags, torch.arange(len(images)) + 100 * number)


def _use_shards(folder: Path) -> None:
    index = ShardIndex.load(folder)
    index.digest()
    verify(folder, ["train", "valid", "test"])
    for split in ("train", "test"):
        load_tensor(folder, split)


def _use_model(folder: Path) -> None:
    config = ModelConfig.load(folder)
    config.to_dict()
    list_averages(folder)
    denoiser = load_denoiser(folder)
    denoiser.path.sigma_range()
    with torch.no_grad():
        size = config.network.image_size
        if size <= 64:
            denoiser(torch.zeros(1, config.network.image_channels, size, size), torch.ones(1))


def _use_averages(folder: Path) -> None:
    averages = Averages.beside(folder / WEIGHTS_FILE)
    list_averages(folder)
    for choice in (*averages.choices(), WeightsChoice("power", 0.08), WeightsChoice("half-life", 60)):
        load_denoiser(folder, weights=choice)


def _use_samples(folder: Path) -> None:
    path = folder / "samples.safetensors"
    samples = load_samples(path, 3)
    index = ShardIndex.load(folder / "shards")
    unknown_of(samples, check_same_data(path, samples, folder / "shards", index))
    choices = card().choices.model_dump() | {"model": model_choices(samples), "sampling": sampling_choices(samples, 3)}
    made = Card.of([Metric.model_validate(metric) for metric in card().model_dump()["metrics"]], choices)
    render(made)


def _use_card(path: Path) -> None:
    found = read_card(path)
    render(found)
    found.to_json()
    describe_difference(compare_cards(found, card()), "a", "b")
    describe_difference(compare_cards(card(), found), "a", "b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = _folder(tmp_path_factory.mktemp("fuzz"))
    export_pipeline(made / "models", made / "theirs")
    return made


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Written]:
    def plain(name: str, use: Callable[[], object]) -> Written:
        return Written(json.loads((folder / name).read_text()), (folder / name).write_text, use)  # type: ignore[arg-type]

    samples = folder / "samples.safetensors"
    with safe_open(samples, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("images", "ids")}
        facts = json.loads(file.metadata()["facts"])

    def theirs() -> object:
        return read_pipeline(folder / "theirs")

    return {
        "shards": plain("shards/index.json", lambda: _use_shards(folder / "shards")),
        "model": plain(f"models/{CONFIG_FILE}", lambda: _use_model(folder / "models")),
        "averages": plain(f"models/{FOLDER}/index.json", lambda: _use_averages(folder / "models")),
        "source": plain("source.json", lambda: asdict(SourceRecord.load(folder))),
        "card": plain("card.json", lambda: _use_card(folder / "card.json")),
        "their index": plain("theirs/model_index.json", theirs),
        "their network": plain("theirs/unet/config.json", theirs),
        "their scheduler": plain("theirs/scheduler/scheduler_config.json", theirs),
        "samples": Written(
            facts, lambda text: save_file(tensors, samples, {"facts": text}), lambda: _use_samples(folder)
        ),
    }


NAMES = (
    *("shards", "model", "averages", "source", "card", "samples"),
    *("their index", "their network", "their scheduler"),
)


@pytest.mark.parametrize("name", NAMES)
def test_as_it_was_written_it_is_used(files: dict[str, Written], name: str) -> None:
    files[name].put(json.dumps(files[name].values))
    files[name].use()


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_somebody_changed_is_used_or_refused_in_one_line(files: dict[str, Written], name: str) -> None:
    written = files[name]

    @given(changed(written.values))
    @settings(max_examples=MOST, deadline=None, derandomize=True)
    def check(text: str) -> None:
        written.put(text)
        _one_line_at_most(written.use)

    try:
        check()
    finally:
        written.put(json.dumps(written.values))


def test_a_run_record_that_somebody_changed_is_followed_or_tagged(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    record = Path("record.json")
    with stage("train", Path("params.yaml")) as run:
        run.log_metrics({"loss": 0.5, "minutes": 3})
        run.write_record(record)
    with stage("sample", Path("params.yaml")) as run:
        run.follow(record)
        run.log_metrics({"nfe": 10})
        run.write_record(record)
    values = json.loads(record.read_text())
    with stage("evaluate", Path("params.yaml")) as run:

        @given(changed(values))
        @settings(max_examples=MOST, deadline=None, derandomize=True)
        def check(text: str) -> None:
            run.record["upstream"] = {}
            record.write_text(text)
            run.follow(record)
            assert run.record["upstream"].keys() <= {*STAGES}
            run.write_record(Path("written.json"))

        check()


def _one_line_at_most(use: Callable[[], object]) -> None:
    tracemalloc.start()
    try:
        use()
    except (UnveilError, OSError) as error:
        line = line_for_user(error)
        assert line is not None and line.isprintable() and len(line) < 700
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < MOST_MEMORY


# ------------------------------------------------------------------------------ what is no regular file

USES: dict[str, Callable[[Path], object]] = {
    "shards/index.json": lambda folder: ShardIndex.load(folder / "shards"),
    "shards/train-00001.safetensors": lambda folder: load_tensor(folder / "shards", "train"),
    "shards/test-00000.safetensors": lambda folder: verify(folder / "shards", ["test"]),
    "source.json": SourceRecord.load,
    "models/config.json": lambda folder: load_denoiser(folder / "models"),
    "models/model.safetensors": lambda folder: load_denoiser(folder / "models"),
    "models/averages/index.json": lambda folder: Averages.load(folder / "models" / FOLDER),
    "models/averages/half-life-300.safetensors": lambda folder: Averages.load(folder / "models" / FOLDER).read(
        WeightsChoice("half-life", 300)
    ),
    "scratch/snapshot-000000000100.safetensors": lambda folder: write_averages(
        folder / "again", 800, 0.09, [], (0.05, 0.1), [folder / "scratch" / "snapshot-000000000100.safetensors"]
    ),
    "samples.safetensors": lambda folder: load_samples(folder / "samples.safetensors", 3),
    "card.json": lambda folder: read_card(folder / "card.json"),
    "curves.csv": lambda folder: read_curve(folder / "curves.csv"),
    "theirs/unet/config.json": lambda folder: read_pipeline(folder / "theirs"),
    "theirs/unet/diffusion_pytorch_model.safetensors": lambda folder: read_pipeline(folder / "theirs"),
}


@pytest.mark.parametrize("name", USES)
def test_what_is_no_regular_file_is_refused_at_once(folder: Path, name: str) -> None:
    path = folder / name
    aside = path.rename(path.with_name("aside")) if path.exists() else None
    try:
        for make, found in (
            (os.mkfifo, "pipe"),
            (lambda place: place.symlink_to("/dev/zero"), "device"),
            (Path.mkdir, "folder"),
        ):
            make(path)
            with pytest.raises(UnveilError) as caught:
                USES[name](folder)
            said = str(caught.value)
            assert said.startswith(f"{path}: ") and "\n" not in said
            assert f"found a {found}, expected a regular file" in said or (name, found) == (
                "samples.safetensors",
                "folder",
            )
            path.rmdir() if found == "folder" else path.unlink()
    finally:
        if aside is not None:
            aside.rename(path)
