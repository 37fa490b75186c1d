"""The stage itself, on small shards and samples: its files, its bytes, its refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file
from stages.evaluate import app
from torch import Tensor
from torch.nn.functional import interpolate
from typer.testing import CliRunner, Result

from unveil.data.shards import ShardIndex, write_shard
from unveil.evaluation.card.card import read_card
from unveil.evaluation.card.markdown import render

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = (
    "metrics/evaluate.json",
    "reports/card.json",
    "plots/evaluate/by_nfe.csv",
    "plots/evaluate/by_size.csv",
    "plots/evaluate/distances.json",
    "plots/evaluate/neighbours.png",
    "plots/evaluate/precision_recall.csv",
    "plots/evaluate/real-and-samples.png",
)
SIZE = 16
CONTROLS = YAML().load(ROOT / "params.yaml")["evaluate"]["controls"]


def _images(count: int, seed: int) -> Tensor:
    coarse = torch.randint(0, 256, (count, 3, 3, 3), generator=torch.Generator().manual_seed(seed)).float()
    return interpolate(coarse, size=SIZE, mode="bilinear").to(torch.uint8)


def _samples(folder: Path, index: ShardIndex, images: Tensor, **changes: Any) -> None:
    facts = {
        "source": index.source,
        "protocol": index.protocol,
        "image_size": SIZE,
        "shards": index.digest(),
        "model": "aa" * 32,
        "sampler": "heun",
        "steps": 4,
        "nfe": 7,
    } | changes
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"images": images, "ids": torch.arange(len(images))}, folder / "samples.safetensors", metadata)


def _params(folder: Path, **changes: Any) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    small = {
        "num_images": 24,
        "reference_images": 24,
        "kid_subsets": 4,
        "kid_subset_size": 12,
        "controls": [],  # of whose features and distances most of the time would go
        "control_images": 12,
        "interval_splits": 0,
    }
    params["evaluate"] |= small | changes
    yaml.dump(params, folder / "params.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards, samples and parameters, in which a stage can run."""
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.chdir(tmp_path)
    shards = tmp_path / "data" / "shards"
    shards.mkdir(parents=True)
    splits, start = {}, 1
    for split, count in (("train", 40), ("valid", 4), ("test", 30)):
        ids = torch.arange(start, start + count)
        flags = torch.zeros(count, 40, dtype=torch.bool)
        splits[split] = (write_shard(shards, split, 0, _images(count, start), flags, ids),)
        start += count
    index = ShardIndex.of(
        splits, (0.0,) * 3, (1.0,) * 3, source="cartoon", protocol="score-sde", image_size=SIZE, attributes=("Smiling",)
    )
    index.save(shards)
    _samples(tmp_path / "samples", index, _images(30, 99))
    _params(tmp_path)
    return tmp_path


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def _kept(project: Path) -> dict[str, bytes]:
    """All outputs, the card without what differs at every run."""
    found = {name: (project / name).read_bytes() for name in OUTPUTS}
    document = json.loads(found["reports/card.json"])
    found["reports/card.json"] = json.dumps(
        {key: value for key, value in document.items() if key not in ("environment", "cost")}
    ).encode()
    return found


def test_writes_everything_and_the_same_bytes_again(project: Path) -> None:
    command = (sys.executable, str(ROOT / "stages" / "evaluate.py"))  # as DVC runs it
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    written = {name: (project / name).read_bytes() for name in OUTPUTS}
    kept = _kept(project)
    metrics = json.loads(written["metrics/evaluate.json"])
    assert (metrics["num_samples"], metrics["num_reference"], metrics["num_held_out"]) == (24, 24, 24)
    assert metrics["fd_efficientnet_lite0"] < metrics["fd_efficientnet_lite0_noise"]
    assert f"{metrics['fd_efficientnet_lite0']:.6g}" in first.stdout
    assert "note: N = 24 is not above" in first.stdout
    document = read_card(project / "reports" / "card.json")
    card = render(document)
    assert "| nfe | 7 |" in card and "N = 24 is not above" in card and "cartoon" in card
    assert str(project) not in card
    assert "| decoder | libjpeg-turbo, accurate DCT (as Pillow) |" in card
    assert "| rounding | to the nearest level |" in card
    assert not (project / "reports" / "card.md").exists()  # which is the next stage's
    assert document.headline.value == metrics["fd_efficientnet_lite0"] and document.headline.n == 24
    assert written["plots/evaluate/by_nfe.csv"].decode() == f"nfe,distance\n7,{document.headline.value}\n"
    record = json.loads((project / "metrics" / "run.json").read_text())
    assert record["metrics"] == metrics
    assert set(record["inputs"]) >= {"data/shards", "samples/samples.safetensors"}

    index = ShardIndex.load(project / "data" / "shards")
    _samples(project / "samples", index, _images(30, 99))  # the same samples in a file of other bytes
    assert _run().exit_code == 0
    assert _kept(project) == kept


def test_a_second_evaluation_computes_only_what_is_new(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _params(project, controls=CONTROLS)
    first = _run()
    assert first.exit_code == 0, first.output
    assert first.output.count("efficientnet-lite0: features of") == 7  # samples, three sets, three controls
    index = ShardIndex.load(project / "data" / "shards")
    _samples(project / "samples", index, _images(30, 77))  # as another sampler's
    second = _run()
    assert second.exit_code == 0, second.output
    assert [line for line in second.output.splitlines() if "features of" in line] == [
        "efficientnet-lite0: features of 24 images, samples"
    ]


def test_controls_stand_in_the_card_and_one_that_cannot_be_made_is_named(project: Path) -> None:
    _params(project, controls=CONTROLS, interval_splits=10)
    done = _run()
    assert done.exit_code == 0, done.output
    card = read_card(project / "reports" / "card.json")
    controls = card.headline.controls
    assert set(controls) == {"undamaged", "jpeg75", "blur", "noisy"}
    with Image.open(project / "plots" / "evaluate" / "controls.png") as picture:
        assert picture.width == 12 * 96 and picture.height == 4 * (96 + 36)  # a row for each, below its title
    assert all(controls["undamaged"] < controls[name] for name in ("blur", "noisy"))
    assert any("The control other_protocol was left out: data/raw" in note for note in card.notes)
    assert card.memorization is not None and card.memorization.sentences
    assert [part.metric for part in card.by_size] == ["fd_efficientnet_lite0"]
    headline = card.headline
    assert headline.low is not None and headline.high is not None and headline.stderr is not None
    assert headline.low < headline.value < headline.high
    assert {metric.name.partition("_")[0] for metric in card.metrics} == {
        "fd",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
    }


def test_measures_only_what_is_asked_for(project: Path) -> None:
    _params(project, metrics=["kernel"], interval_splits=0)
    done = _run()
    assert done.exit_code == 0, done.output
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    assert {name for name in metrics if not name.startswith("num_")} == {
        f"kid_efficientnet_lite0{end}" for end in ("", "_std", "_stderr", "_low", "_high", "_floor", "_noise")
    }
    assert not (project / "plots" / "evaluate" / "neighbours.png").exists()


def test_anybodys_samples_get_the_same_card_elsewhere(project: Path) -> None:
    assert _run().exit_code == 0
    before = _kept(project)
    np.savez(project / "peer.npz", _images(30, 99).permute(0, 2, 3, 1).numpy())
    done = _run("--samples", "peer.npz", "--out", "peer", "--protocol", "score-sde")
    assert done.exit_code == 0, done.output
    assert _kept(project) == before
    ours, theirs = (read_card(folder / "reports" / "card.json") for folder in (project, project / "peer"))
    assert ours.headline == theirs.headline  # the same images
    assert (project / "peer" / "reports" / "card.md").read_text() == render(theirs)
    assert any("do not say their source, shards" in note for note in theirs.notes), theirs.notes
    assert not {"nfe", "rounding"} & set(theirs.choices.sampling) and "npz" in str(
        theirs.choices.sampling["images_from"]
    )
    wrong = _run("--samples", "peer.npz", "--out", "other", "--protocol", "ddim")
    assert wrong.exit_code == 1 and "protocol" in wrong.stderr and not (project / "other").exists()


def test_samples_that_are_the_reference_lie_at_nothing(project: Path) -> None:
    index = ShardIndex.load(project / "data" / "shards")
    _params(project, num_images=30, reference_images=30)
    reference = _images(40, 1)[[i * 40 // 30 for i in range(30)]]
    _samples(project / "samples", index, reference)
    done = _run()
    assert done.exit_code == 0, done.output
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    assert abs(metrics["fd_efficientnet_lite0"]) < 1e-3 * metrics["fd_efficientnet_lite0_floor"]


def test_takes_all_of_the_reference_split_and_what_the_held_out_split_has(project: Path) -> None:
    index = ShardIndex.load(project / "data" / "shards")
    _params(project, num_images=36, reference_images=0)
    _samples(project / "samples", index, _images(40, 1)[:36])  # of the reference
    done = _run()
    assert done.exit_code == 0, done.output
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    assert (metrics["num_samples"], metrics["num_reference"], metrics["num_held_out"]) == (36, 40, 30)
    assert metrics["fd_efficientnet_lite0"] < metrics["fd_efficientnet_lite0_floor"]
    card = render(read_card(project / "reports" / "card.json"))
    assert "| reference | train split, all 40 images |" in card
    assert "| held out | test split, all 30 images |" in card
    assert "the floor is at N = 30, and is higher than it would be at N = 36" in card
    assert "note: The held-out split has only 30 images" in done.output


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("protocol", "protocol is 'ddim', but data/shards/index.json has 'score-sde'"),
        ("count", "evaluate.num_images: found 31, but samples/samples.safetensors holds 30"),
        ("split", "evaluate.held_out_split: the valid split of data/shards gives 4 images, expected 6 or more"),
        ("reference", "evaluate.reference_images: found 41, but the train split of data/shards has 40 images"),
        ("shard", "test-00000.safetensors: missing or not what index.json says"),
        ("weights", "evaluate.weights: nowhere.pth: no such file"),
        ("few", "evaluate.num_images: found 5, expected 6 or more for density-coverage"),
        ("out", "afile: found a file, expected a folder; name another"),
        ("image", "found one image, expected .safetensors, .npz or a folder of images"),
        ("two", "evaluate.weights: found nowhere.pth, expected a folder with the weights of inception, vgg16"),
        ("foreign", "--samples samples/samples.safetensors.npz: found no --out"),
        ("half", "samples/samples.safetensors: damaged"),
    ],
)
def test_says_what_is_wrong_in_one_line_and_writes_nothing(project: Path, broken: str, said: str) -> None:
    index = ShardIndex.load(project / "data" / "shards")
    samples = project / "samples" / "samples.safetensors"
    arguments: list[str] = []
    if broken == "protocol":
        _samples(project / "samples", index, _images(30, 99), protocol="ddim")
    elif broken == "count":
        _params(project, num_images=31)
    elif broken == "split":
        _params(project, held_out_split="valid")
    elif broken == "reference":
        _params(project, reference_images=41)
    elif broken == "shard":
        shard = project / "data" / "shards" / "test-00000.safetensors"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif broken == "weights":
        _params(project, features=["inception"], weights="nowhere.pth")
    elif broken == "few":
        _params(project, num_images=5, kid_subset_size=2)
    elif broken == "two":
        _params(project, features=["inception", "vgg16"], weights="nowhere.pth")
    elif broken == "out":
        (project / "afile").write_text("")
        arguments = ["--out", "afile"]
    elif broken == "image":
        (project / "one.png").write_bytes(b"")
        arguments = ["--samples", "one.png", "--out", "o"]
    elif broken == "foreign":
        arguments = ["--samples", "samples/samples.safetensors.npz"]
    elif broken == "half":
        samples.write_bytes(samples.read_bytes()[:1000])
    done = _run(*arguments)
    assert done.exit_code == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], done.stderr
    assert not any((project / name).exists() for name in (*OUTPUTS, "metrics/run.json"))
