"""The study of what moves a distance: what it measures, that it goes on, what it says, and its formula."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studies.__main__ import app
from studies.distances import bias_rate, protocols_verdict, shifted, sizes_table
from tests.data.archives import make_celeba
from torch import Tensor
from typer.testing import CliRunner, Result

from studies import distances
from unveil.data.config import Celeba, Download
from unveil.data.preprocess import preprocess
from unveil.data.protocols import PROTOCOLS
from unveil.data.shards import ShardIndex
from unveil.data.sources import fetch
from unveil.evaluation.metrics.distances import frechet_distance, statistics

IMAGES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    celeba = make_celeba(root / "celeba", num_images=50)
    fetch(root / "data" / "raw", Download(source="celeba", celeba=Celeba(path=celeba)), say=lambda line: None)
    _preprocess(root, "score-sde")
    return root


def _preprocess(root: Path, protocol: str) -> None:
    preprocess(
        root / "data" / "raw",
        root / "data" / "shards",
        protocol=protocol,
        image_size=16,
        shard_size=100,
        on_corrupt="error",
        workers=1,
    )


def means(images: Tensor, *_: Any) -> Tensor:
    """Features that take no time: means over a row of blocks, 6 numbers an image."""
    return images.float().unflatten(3, (2, -1)).mean(dim=(2, 4)).flatten(1)


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distances, "extract", means)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["distances", "--images", str(IMAGES), *arguments])


def measured(folder: Path) -> dict[str, float]:
    points = json.loads((folder / "reports" / "distances" / "distances.json").read_text())["points"]
    return {point["key"]: point["distance"] for point in points}


def study(folder: Path) -> distances.DistanceStudy:
    data = folder / "data"
    return distances.DistanceStudy(
        data / "shards", data / "raw", folder / "out", distances.DistanceSettings(IMAGES), lambda line: None
    )


def test_it_measures_writes_and_says(project: Path) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    found = measured(project)
    assert sum(key.startswith("protocols/") for key in found) == len(PROTOCOLS) ** 2
    floor = found["protocols/score-sde/score-sde"]
    assert found["changes/saved as PNG/reference"] == floor
    assert found["changes/saved as PNG/untouched"] == pytest.approx(
        0, abs=1e-6 * found["changes/uniform noise/reference"]
    )
    blurred = [found[f"changes/blur, sigma {sigma}/untouched"] for sigma in ("0.5 pixels", "1 pixel", "2 pixels")]
    assert blurred == sorted(blurred) and blurred[-1] < found["changes/uniform noise/untouched"]
    out = project / "reports" / "distances"
    text = (out / "distances.md").read_text()
    assert text.strip() in done.output
    assert ShardIndex.load(project / "data" / "shards").digest() in text
    assert text.count("\n| `score-sde` |") == 1 and "| saved as PNG |" in text
    for name in ("distances.png", "protocols.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 100


def test_it_goes_on_where_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run().exit_code == 0
    found, out = measured(project), project / "reports" / "distances"
    content = json.loads((out / "distances.json").read_text())
    content["points"].pop()
    (out / "distances.json").write_text(json.dumps(content))

    def never(*_: Any) -> Tensor:
        raise AssertionError("features that are there were extracted again")

    monkeypatch.setattr(distances, "extract", never)
    done = run()
    assert done.exit_code == 0 and done.output.count("distance   1 of 1") == 1
    assert measured(project) == found


def test_the_sets_are_those_of_evaluate(project: Path) -> None:
    one = study(project)
    assert sorted({name for pair in one.pairs() for name in (pair.one, pair.other)}) == sorted(one.sets)
    assert len({pair.key for pair in one.pairs()}) == len(list(one.pairs()))
    assert torch.equal(one.sets["held out"](), one.held_out)
    for name, make in one.sets.items():
        images = make()
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 16, 16), name
        assert len(images) == IMAGES or name in ("train, twice as many", "held out, all", "valid")


def test_sets_that_must_not_share_images_do_not(project: Path) -> None:
    one = study(project)
    inside = [pair for pair in one.pairs() if pair.one == pair.other]
    assert len(inside) >= len(one.curve()) + distances.DRAWS
    for pair in inside:
        assert pair.rows is not None and pair.other_rows is not None
        assert not set(pair.rows.tolist()) & set(pair.other_rows.tolist())
        assert max(*pair.rows.tolist(), *pair.other_rows.tolist()) < len(one.sets[pair.one]())


@pytest.mark.parametrize("protocol", ["squash", "score-sde"])
def test_the_shards_own_resize_is_no_change(project: Path, protocol: str) -> None:
    _preprocess(project, protocol)
    one = study(project)
    assert len(one.resizes) == len(distances.RESIZES) - 1
    own = next(title for title in distances.RESIZES if title not in one.resizes)
    assert torch.equal(one.resized(one.held_out_ids, own), one.held_out)
    for title in one.resizes:
        assert not torch.equal(one.resized(one.held_out_ids, title), one.held_out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "26"], "--images: found 26, but the test split of data/shards has 10"),
        (["--held-out", "train"], "--held-out: found 'train', expected valid or test"),
        (["--features", "vgg"], "found 'vgg', expected"),
        (["--raw", "elsewhere"], "elsewhere/source.json: not there"),
        (["--shards", "elsewhere"], "elsewhere/index.json: not there"),
    ],
)
def test_a_mistake_is_one_line(project: Path, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1 and words in done.output, done.output
    assert done.output.count("\n") == 1 and not (project / "reports").exists()


def test_distances_of_another_study_are_not_mixed_with(project: Path) -> None:
    assert run().exit_code == 0
    path = project / "reports" / "distances" / "distances.json"
    before = path.read_bytes()
    done = run("--seed", "1")
    assert done.exit_code == 1 and "measured with another seed" in done.output
    assert path.read_bytes() == before
    features = next((project / "reports" / "distances" / "features").iterdir())
    features.write_bytes(b"no tensors")
    path.write_text(json.dumps({**json.loads(before), "points": []}))
    done = run()
    assert done.exit_code == 1 and f"{features.relative_to(project)}: damaged" in done.output
    path.write_text("{")
    done = run()
    assert done.exit_code == 1 and "not valid JSON" in done.output and done.output.count("\n") == 1


def test_an_archive_of_other_images_is_refused(project: Path, tmp_path: Path) -> None:
    celeba = make_celeba(tmp_path / "celeba", num_images=50, seed=1)
    shutil.rmtree(project / "data" / "raw")
    fetch(project / "data" / "raw", Download(source="celeba", celeba=Celeba(path=celeba)), say=lambda line: None)
    done = run()
    assert done.exit_code == 1 and "is not the one in the shards" in done.output and done.output.count("\n") == 1


def test_shards_that_train_on_all_images_are_refused(project: Path) -> None:
    _preprocess(project, "adm-ip")
    done = run()
    assert done.exit_code == 1 and "has the held-out images in train" in done.output and done.output.count("\n") == 1


def test_the_bias_to_first_order_is_that_of_a_simulation() -> None:
    random = np.random.default_rng(0)
    factor = random.standard_normal((4, 4)) * (1.0, 0.6, 0.3, 0.1)
    covariance = factor @ factor.T

    def set_of(count: int) -> Any:
        return statistics(torch.from_numpy(random.standard_normal((count, 4)) @ factor.T))

    found = [frechet_distance(set_of(300), set_of(600)) for _ in range(400)]
    expected = (1 / 300 + 1 / 600) * bias_rate(covariance)
    assert np.mean(found) == pytest.approx(expected, abs=float(4 * np.std(found) / 20 + 0.02 * expected))


def test_the_bias_of_one_feature_is_one_and_a_half_variances() -> None:
    # sum l = v; one term of the second sum: v v 2 / (2 v) / 2 = v / 2
    assert bias_rate(np.array([[4.0]])) == pytest.approx(6.0)
    assert bias_rate(np.diag([4.0, 0.0])) == pytest.approx(6.0)  # a direction without variance adds nothing


def test_a_shift_moves_every_pixel_by_one() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    assert torch.equal(shifted(images)[..., 1:], images[..., :-1])
    assert torch.equal(shifted(images)[..., 0], images[..., 0])


def test_the_tables_say_what_was_measured() -> None:
    found = {f"protocols/{one}/{two}": 2.0 if one == two else 50.0 for one in PROTOCOLS for two in PROTOCOLS}
    found |= {"protocols/gan/ddim": 7.25, "protocols/ddim/squash": 1234.5}
    said = protocols_verdict(found)
    assert "is 2.00 to 2.00;" in said and "7.25 (gan against ddim) to 1,23" in said
    text = sizes_table({"sizes/250/held out": 20.0, "sizes/250/train": 19.5}, [250], 2000.0)
    assert text.splitlines()[-1] == "| 250 | 20.0 | 19.5 | 5,000 | 16.0 |"
