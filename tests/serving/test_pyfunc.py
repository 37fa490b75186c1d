"""The model as MLflow loads and serves it: without this package, a checkout or a network, with the stage's bytes."""

import ast
import json
import shutil
import sys
from base64 import b64decode
from importlib.metadata import packages_distributions
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from tests.serving.elsewhere import Elsewhere, asked, is_well
from tests.serving.models import DIFFUSION, NETWORK, save_conditional
from torch import Tensor

import unveil
from unveil.averages import write_averages
from unveil.files import file_digest
from unveil.model import WEIGHTS_FILE, load_denoiser
from unveil.params import Params, load_params, render
from unveil.serving import bounds
from unveil.serving.package import CODE, REQUIREMENTS, packaged
from unveil.serving.request import Request
from unveil.serving.studio import Studio

pytestmark = pytest.mark.xdist_group("pyfunc")
ROWS: list[dict[str, Any]] = [
    {"seed": 3, "first": 5, "count": 2, "steps": 3},
    {"attributes": ["Smiling", "-Bald"], "guidance": 2.0},
]
ROOT = Path(unveil.__file__).parent
STANDARD = sys.stdlib_module_names
PLACES = [(0, 3, 5), (0, 3, 6), (1, 0, 0)]  # row, seed and number of their images
WRONG: list[tuple[list[Any], str]] = [
    ([{"seed": 1}, {"count": 1_000_000}], "row 1: count: found 1000000, expected a whole number in [1, 1024]"),
    ([{"count": 33}] * 2, "count: found 66 images, expected at most 64"),
    ([{}] * 100_000, "count: found 100,000 images, expected at most 64"),
    ([{"steps": 1001}], "row 0: steps: found 1,001, expected at most 1,000"),
    ([{"seed": -1}], "row 0: seed: found -1, expected a whole number in [0, 4294967296)"),
    ([{"guidance": -2.0}], "row 0: guidance: found -2.0, expected a number in [0, 100]"),
    ([{"stpes": 3}], "row 0: stpes: unknown key, did you mean steps?"),
    ([{"x" * 5_000_000: 3}], f"row 0: {'x' * 57}...: unknown key, expected "),
    ([{}, {"weights": "power:0.1"}], "row 1: the model/averages"),
    ([{"attributes": ["Smilin"]}], "row 0: attributes: found Smilin, did you mean Smiling?"),
    ([{"sampler": "../../params.yaml"}], 'row 0: sampler: found "../../params.yaml", expected ddpm | ddim'),
    ([{"weights": "/etc/passwd"}], 'row 0: weights: found "/etc/passwd", expected ema'),
    ([{"guide": "/etc", "guidance": 2.0}], "row 0: guide: found another folder than the server's"),
    ([3], "inputs: found no rows, expected a list of them"),
]


def save_params(models: Path, **sample: Any) -> None:
    """Write the params.yaml beside a model, which says how it draws."""
    usual: dict[str, Any] = {"sampler": "heun", "steps": 4, "grid": "karras", "precision": "fp32"}
    params = Params()
    train = params.train.replace(diffusion=DIFFUSION, attributes=NETWORK.attributes, ema_more_half_lives=(10,))
    settings = params.sample.replace(**usual | sample)
    (models.parent / "params.yaml").write_text(render(params.replace(train=train, sample=settings)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_conditional(tmp_path_factory.mktemp("project") / "models")
    save_params(folder)
    return folder


@pytest.fixture(scope="module")
def package(models: Path) -> Path:
    return packaged(models, models.with_name("package"))


@pytest.fixture(scope="module")
def older(package: Path) -> Path:
    """The same model by another version of the code."""
    copy = Path(shutil.copytree(package, package.with_name("older")))
    with ZipFile(package / CODE) as packed, ZipFile(copy / CODE, "w") as changed:
        for name in packed.namelist():
            text = packed.read(name).decode()
            if name.endswith("METADATA"):
                text = text.replace(unveil.__version__, "0.0.9")
            changed.writestr(name, f"{text}# as it was\n" if name == "unveil/__init__.py" else text)
    return copy


@pytest.fixture(scope="module")
def expected(models: Path) -> Tensor:
    """The images of ROWS, as the studio draws them, whose bytes are the sample stage's."""
    studio = Studio.load(models, "cpu")
    assert studio.usual.steps == 4
    return torch.cat([studio.images(studio.request(row)) for row in ROWS])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    return Elsewhere.made(tmp_path_factory.mktemp("elsewhere"))


def in_this_process(package: Path, rows: Any, **config: Any) -> Any:
    """The table of a model that was packaged by the code of this process."""
    return mlflow.pyfunc.load_model(str(package), model_config=config or None, suppress_warnings=True).predict(rows)


def pixels(images: list[bytes]) -> Tensor:
    """PNGs as uint8 [n, 3, H, W]."""
    return torch.stack([torch.tensor(np.asarray(Image.open(BytesIO(png)))).permute(2, 0, 1) for png in images])


def facts(png: bytes) -> dict[str, Any]:
    """What a picture says of itself."""
    found: dict[str, Any] = json.loads(Image.open(BytesIO(png)).info["unveil"])
    return found


def test_two_versions_are_loaded_and_served_elsewhere_and_draw_the_same_bytes(
    package: Path, older: Path, elsewhere: Elsewhere, expected: Tensor
) -> None:
    with elsewhere.serving(str(older)) as address:
        drawn, modules = elsewhere.draw(str(package), ROWS)
        answer = asked(address, ROWS)
        assert answer.ok, answer.text
        served = [{**row, "image": b64decode(row["image"])} for row in answer.json()["predictions"]]
        for rows, version in ((drawn, unveil.__version__), (served, "0.0.9")):
            assert torch.equal(pixels([row["image"] for row in rows]), expected)
            assert [(row["row"], row["seed"], row["first"]) for row in rows] == PLACES
            assert {facts(row["image"])["unveil"] for row in rows} == {version}
        for wrong, reason in WRONG:
            refusal = asked(address, wrong)
            assert 400 <= refusal.status_code < 500
            assert reason in refusal.json()["message"]
            assert str(older) not in refusal.text and refusal.elapsed.total_seconds() < 10
        assert asked(address, ROWS).text == answer.text and is_well(address)
    assert all(package / CODE in file.parents for file in modules)
    assert required([ROOT / file.relative_to(package / CODE / "unveil") for file in modules]) == set(REQUIREMENTS)


def required(modules: list[Path]) -> set[str]:
    """The distributions that modules import when they are imported, as REQUIREMENTS names them; it must name each."""
    names = set()
    for file in [*modules, ROOT / "serving" / "pyfunc.py"]:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                names |= {name.partition(".")[0] for name in imported}
    there = packages_distributions()
    named = {name.replace("-", "_"): name for name in REQUIREMENTS}
    plain = {name: {one.replace("-", "_").lower() for one in there[name]} for name in names - {"unveil"} - STANDARD}
    assert all(found & set(named) for found in plain.values()), plain
    return {named[one] for one in set().union(*plain.values()) & set(named)}


def test_a_table_says_what_is_not_usual_and_leaves_out_the_rest(package: Path, models: Path) -> None:
    table = pd.DataFrame([{"seed": 7}, {"steps": 3, "attributes": np.array(["Bald"])}])
    found = in_this_process(package, table)
    studio = Studio.load(models, "cpu")
    wanted = [studio.images(studio.request(row)) for row in ({"seed": 7}, {"steps": 3, "attributes": ["Bald"]})]
    assert torch.equal(pixels(list(found.image)), torch.cat(wanted))
    again = studio.request({key: value for key, value in facts(found.image[1]).items() if key in Request.model_fields})
    assert torch.equal(studio.images(again), wanted[1])


def test_what_switches_is_drawn_side_by_side(package: Path, models: Path) -> None:
    row = {"count": 2, "steps": 3, "switch": ["Smiling"]}
    found = in_this_process(package, [row])
    studio = Studio.load(models, "cpu")
    assert torch.equal(pixels(list(found.image)), studio.images(studio.request(row)))
    told = [facts(png)["attributes"] for png in found.image]
    assert told == [["-Smiling"], ["Smiling"]] * 2 and list(found["first"]) == [0, 0, 1, 1]


def test_bounds_are_those_of_a_server_and_may_be_lifted(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_IMAGES", 2)
    assert len(in_this_process(package, [{"count": 3, "steps": 1}], bounded=False)) == 3
    monkeypatch.setattr(bounds, "evaluations", lambda request, size: 5)
    with pytest.raises(MlflowException, match="stopped: it takes more than may be asked for"):
        in_this_process(package, [{"steps": 4}])
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    with pytest.raises(MlflowException, match="stopped: it takes longer than MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"):
        in_this_process(package, [{}])


def test_another_version_than_that_of_the_process_is_refused(older: Path) -> None:
    with pytest.raises(Exception, match=r"at work, expected that of the model, whose __init__.py differs"):
        in_this_process(older, [{}])


def test_weights_are_not_copied_and_averages_come_along_where_they_are_drawn_with(tmp_path: Path) -> None:
    models = save_conditional(tmp_path / "models")
    other = {name: value * 0.9 for name, value in load_denoiser(models).network.state_dict().items()}
    write_averages(models / "averages", 0, 0.0, [(10, other)], [], [], file_digest(models / WEIGHTS_FILE))
    save_params(models)
    plain = packaged(models, tmp_path / "package")
    assert (plain / "models" / WEIGHTS_FILE).samefile(models / WEIGHTS_FILE)
    assert not (plain / "models" / "averages").exists()
    save_params(models, weights="half-life:10", guidance=2.0, guide=str(tmp_path / "models"))
    found = in_this_process(packaged(models, tmp_path / "package"), [{}])
    studio = Studio.load(models, "cpu")
    wanted = studio.images(studio.usual.replace(guidance=1.0, guide=None))
    assert torch.equal(pixels(list(found.image)), wanted)
    shutil.rmtree(models / "averages")
    packaged(models, tmp_path / "package")
    assert load_params(tmp_path / "package" / "params.yaml", fill=True).sample.weights == "ema"


def test_mlflow_reads_what_the_model_takes_and_gives(package: Path) -> None:
    model = mlflow.models.Model.load(str(package))
    inputs, outputs = model.get_input_schema(), model.get_output_schema()
    assert set(inputs.input_names()) == set(Request.model_fields)
    kinds = {column.name: str(column.type) for column in inputs.inputs}
    assert (kinds["seed"], kinds["guidance"], kinds["sampler"]) == (
        "DataType.long",
        "DataType.double",
        "DataType.string",
    )
    assert kinds["attributes"] == "Array(string)"
    assert outputs.input_names() == ["row", "seed", "first", "image"]
    example = model.load_input_example(str(package))
    assert len(in_this_process(package, example)) == 1
    assert mlflow.pyfunc.get_model_dependencies(str(package)).endswith("requirements.txt")
