"""The sample stage: what it writes, and that batches and processes leave no trace in it."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from stages import sample
from unveil import generation
from unveil.averages import save_snapshot, write_averages
from unveil.diffusion.config import Diffusion
from unveil.diffusion.samplers import Step
from unveil.errors import UnveilError
from unveil.evaluation.images.scales import load_scales
from unveil.files import file_digest
from unveil.generation import Watch
from unveil.model import ModelConfig, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.recipes import apply_recipe

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16
DATA = {"source": "cartoon", "protocol": "squash", "image_size": SIZE, "shards": "abc"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and the smoke recipe's parameters, in which the stage can run."""
    monkeypatch.setenv("UNVEIL_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    _save_model(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    apply_recipe("smoke", tmp_path / "params.yaml")
    _set(tmp_path, num_samples=11, batch_size=5, precision="fp32", grid_rows=2, grid_columns=4)
    return tmp_path


def _save_model(folder: Path, weight: float = 0.05, attributes: tuple[str, ...] = (), seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = UNet(
        UNetConfig(
            image_size=SIZE,
            channels=32,
            channel_multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            attention_head_channels=32,
            stem=4,
            attributes=attributes,
        )
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=weight)
    save_model(
        folder / "models",
        network,
        ModelConfig(network.config, Diffusion(path="flow", parameterization="x0", objective="flow"), DATA, {}),
    )


def _set(folder: Path, train: dict[str, Any] | None = None, **changes: Any) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["train"] |= train or {}
    params["sample"] |= changes
    params["evaluate"] |= {"num_images": 2, "kid_subset_size": 2}  # it must not ask for more samples than there are
    yaml.dump(params, folder / "params.yaml")


def _run() -> Result:
    return CliRunner().invoke(sample.app, [])


def _samples() -> tuple[Tensor, Tensor, dict[str, Any]]:
    with safe_open("samples/samples.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        return file.get_tensor("images"), file.get_tensor("ids"), facts


def test_it_writes_samples_a_grid_and_a_strip(project: Path) -> None:
    done = _run()
    assert done.exit_code == 0, done.output
    images, ids, facts = _samples()
    assert images.shape == (11, 3, SIZE, SIZE) and images.dtype == torch.uint8
    assert ids.tolist() == list(range(11))
    assert len(images.flatten(1).unique(dim=0)) == 11
    assert {key: facts[key] for key in DATA} == DATA
    assert facts["model"] == file_digest(project / "models" / "model.safetensors")
    assert (facts["sampler"], facts["steps"], facts["nfe"], facts["seed"]) == ("heun", 4, 7, 0)
    with Image.open("samples/grid.png") as grid:
        assert grid.size == (4 * (SIZE + 2) + 2, 2 * (SIZE + 2) + 2)
        corner = torch.tensor(grid.getpixel((2, 2)))
    assert torch.equal(corner.to(torch.uint8), images[0, :, 0, 0])
    with Image.open("samples/trajectory.png") as strip:  # four faces, two rows each; the start and four steps
        assert strip.size == (5 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2)
        end = torch.tensor(strip.getpixel((4 * (SIZE + 2) + 2, 2)))
    assert torch.equal(end.to(torch.uint8), images[0, :, 0, 0])
    record = json.loads((project / "samples" / "run.json").read_text())
    assert record["metrics"]["nfe"] == 7 and record["metrics"]["num_samples"] == 11


def test_the_same_seed_is_the_same_bytes(project: Path) -> None:
    first = [_run().exit_code, file_digest(project / "samples" / "samples.safetensors")]
    second = [_run().exit_code, file_digest(project / "samples" / "samples.safetensors")]
    assert first == second and first[0] == 0


@pytest.mark.parametrize(
    "sampler",
    [
        {"sampler": "heun"},
        {"sampler": "ddim", "eta": 0.7},
        {"sampler": "predictor-corrector", "threshold": "dynamic"},
        {"sampler": "dpmpp-2m-sde"},
        {"sampler": "rk45", "rtol": 0.1, "atol": 0.1, "sigma_min": 2.0},
    ],
    ids=lambda sampler: str(sampler["sampler"]),
)
def test_the_batch_size_and_the_number_of_samples_leave_no_trace(project: Path, sampler: dict[str, Any]) -> None:
    results = []
    for batch_size, count in ((5, 11), (11, 11), (3, 8), (1, 9)):
        _set(project, **sampler, batch_size=batch_size, num_samples=count)
        done = _run()
        assert done.exit_code == 0, done.output
        results.append(_samples()[0].int())
    for other in results[1:]:  # float32 sums in another order may round to the neighbouring pixel value
        assert (results[0][: len(other)] - other).abs().max() <= 1
    _set(project, seed=1)
    assert _run().exit_code == 0
    assert (_samples()[0].int() - results[0][:9]).abs().max() > 1


def test_rk45_reports_the_evaluations_of_the_sample_that_needed_most(project: Path) -> None:
    counts = set()
    for batch_size in (4, 11):
        _set(project, sampler="rk45", rtol=0.1, atol=0.1, sigma_min=2.0, batch_size=batch_size)
        done = _run()
        assert done.exit_code == 0, done.output
        counts.add(_samples()[2]["nfe"])
    assert len(counts) == 1 and counts.pop() > 7
    with Image.open("samples/trajectory.png") as strip:  # the start, the smallest sigma, the image
        assert strip.size == (3 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2)


def test_steps_of_a_long_batch_are_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "STEP_SECONDS", 0)
    _set(project, num_samples=8, batch_size=8, steps=3)
    done = _run()
    assert done.exit_code == 0, done.output
    assert "samples 0 to 7: step 2 of 3" in done.output


@pytest.mark.parametrize("sampler", ["heun", "rk45"])
def test_a_model_that_went_wrong_is_one_line(project: Path, sampler: str) -> None:
    _save_model(project, weight=1e30)
    _set(project, sampler=sampler)
    done = _run()
    assert done.exit_code == 1
    assert "samples 0 to 4 " in done.output and "train again" in done.output and done.output.count("\n") == 1
    assert not (project / "samples" / "samples.safetensors").exists()


def test_rk45_that_finds_no_step_names_its_tolerances(project: Path) -> None:
    _save_model(project, weight=1e30)  # not smooth at any step: found at once
    _set(project, sampler="rk45", rtol=1e-12, atol=1e-12)
    done = _run()
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert "raise sample.rtol and sample.atol, 1e-12 and 1e-12, which may be beyond fp32" in done.output


def _set_diffusion(folder: Path, **changes: Any) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["train"]["diffusion"] |= changes
    yaml.dump(params, folder / "params.yaml")


def test_a_model_of_another_diffusion_is_refused(project: Path) -> None:
    _set(project, grid="ddim-trailing")
    _set_diffusion(project, path="vp-linear", parameterization="v")
    done = _run()
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert "found train.diffusion.path vp-linear, train.diffusion.parameterization v, " in done.output
    assert "expected path flow, parameterization x0, as models/config.json says of the model" in done.output


def test_values_that_the_models_path_does_not_read_may_differ(project: Path) -> None:
    _set_diffusion(project, beta_end=0.01, sigma_data=0.7, sigma_max=90.0, objective="min-snr", t_min=0.1)
    done = _run()
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("path", "parameterization", "key", "value"),
    [("vp-linear", "v", "timesteps", 999), ("ve", "v", "sigma_max", 90.0), ("flow", "edm", "sigma_data", 0.6)],
)
def test_a_value_that_the_models_denoiser_reads_must_be_the_same(
    path: Any, parameterization: Any, key: str, value: Any
) -> None:
    model = ModelConfig(
        UNetConfig(image_size=SIZE, channels=32, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(4,)),
        Diffusion(path=path, parameterization=parameterization, objective="flow"),
        DATA,
        {},
    )
    model.check_diffusion(model.diffusion, Path("models"))
    with pytest.raises(UnveilError, match=rf"found train\.diffusion\.{key} {value}, expected {key} "):
        model.check_diffusion(model.diffusion.replace(**{key: value}), Path("models"))


def test_no_model_is_one_line(project: Path) -> None:
    (project / "models" / "model.safetensors").unlink()
    done = _run()
    assert done.exit_code == 1 and "run the train stage" in done.output and done.output.count("\n") == 1


def test_of_the_steps_only_a_few_faces_of_the_first_batch_are_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand steps of a whole batch would be gigabytes."""
    kept: list[list[Step]] = []
    original = Watch

    def watch(*arguments: Any) -> Any:
        watching = original(*arguments)
        kept.append(watching.strip)
        return watching

    monkeypatch.setattr(sample, "Watch", watch)
    assert _run().exit_code == 0
    assert [len(strip) for strip in kept] == [5]
    assert all(step.x.shape[0] == step.denoised.shape[0] == 4 for step in kept[0])


def _save_averages(folder: Path) -> None:
    """Two snapshots of the model's parameters, and of a tenth more; a half-life of a tenth less."""
    state = load_file(folder / "models" / "model.safetensors")
    names = {name for name, _ in ModelConfig.load(folder / "models").build().network.named_parameters()}
    scaled = {factor: {name: factor * state[name] for name in names} for factor in (1.0, 1.1)}
    paths = [folder / "scratch" / f"{images:03d}.safetensors" for images in (50, 100)]
    for images, path in zip((50, 100), paths, strict=True):
        save_snapshot(path, images, {0.05: scaled[1.0], 0.1: scaled[1.1]})
    half_life = state | {name: 0.9 * state[name] for name in names}
    write_averages(folder / "models" / "averages", 100, 0.09, [(20, half_life)], (0.05, 0.1), paths)


def test_the_weights_that_are_chosen_are_sampled_with_and_named(project: Path) -> None:
    _save_averages(project)
    train = {"ema_more_half_lives": [20], "ema_profiles": [0.05, 0.1]}
    images: dict[str, Tensor] = {}
    for weights in ("ema", "half-life:20", "power:0.05", "power:0.1", "power:0.07"):
        _set(project, train, weights=weights)
        done = _run()
        assert done.exit_code == 0, done.output
        images[weights], _, facts = _samples()
        assert facts["weights"] == weights
        assert facts["model"] == file_digest(project / "models" / "model.safetensors")
        index = file_digest(project / "models" / "averages" / "index.json")
        assert facts.get("averages") == (None if weights == "ema" else index)
    assert (images["ema"].int() - images["power:0.05"].int()).abs().max() <= 2  # the same weights, but in fp16
    distinct = [images[name] for name in ("ema", "half-life:20", "power:0.1", "power:0.07")]
    assert all(not torch.equal(a, b) for a, b in combinations(distinct, 2))


def test_weights_that_are_not_there_are_refused_in_one_line(project: Path) -> None:
    _save_averages(project)
    train = {"ema_more_half_lives": [20, 30], "ema_profiles": [0.05, 0.1]}
    for weights, said in (("power:0.01", "only with an error of"), ("power:0.27", "only with an error of")):
        _set(project, train, weights=weights)
        done = _run()
        assert done.exit_code == 1 and said in done.output and len(done.output.strip().splitlines()) == 1
    (project / "models" / "averages" / "index.json").unlink()
    done = _run()
    assert done.exit_code == 1 and "models/averages/index.json: not there" in done.output
    _set(project, train, weights="ema")
    assert _run().exit_code == 0


# ------------------------------------------------------------------------- attributes and guidance

NAMES = ("Smiling", "Bald")


def _conditional(project: Path, **changes: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images, what they were asked for, and the facts, of a model that knows two attributes."""
    _set(project, {"attributes": list(NAMES), "ema_profiles": [0.05, 0.1]}, **changes)
    done = _run()
    assert done.exit_code == 0, done.output
    asked = load_file("samples/samples.safetensors")["attributes"]
    images, _, facts = _samples()
    return images, asked, facts


@pytest.fixture
def conditional(project: Path) -> Path:
    _save_model(project, attributes=NAMES)
    return project


def test_what_is_asked_for_is_drawn_and_stored(conditional: Path) -> None:
    """At the same noise; partly told, told nothing, and told the opposite are different images."""
    found = {}
    for request in ([], ["Smiling"], ["-Smiling"], ["Smiling", "-Bald"]):
        images, asked, facts = _conditional(conditional, attributes=request)
        expected = [[(name in request) - (f"-{name}" in request) for name in NAMES]] * 11
        assert asked.tolist() == expected and asked.dtype == torch.int8
        assert (facts["attributes"], facts["asked"]) == (list(NAMES), request)
        found[str(request)] = images
    for one, other in combinations(found.values(), 2):
        assert not torch.equal(one, other)


def test_asked_for_as_the_data_each_image_takes_the_attributes_of_a_training_image(
    conditional: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.tensor([[1, -1], [-1, -1], [1, 1]], dtype=torch.int8)
    monkeypatch.setattr(generation, "load_attributes", lambda folder, split, names: rows)
    images, asked, _ = _conditional(conditional, attributes=["data"])
    assert {tuple(row) for row in asked.tolist()} == {tuple(row) for row in rows.tolist()}
    fewer, same, _ = _conditional(conditional, attributes=["data"], num_samples=8, batch_size=3)
    assert torch.equal(same, asked[:8]) and (fewer.int() - images[:8].int()).abs().max() <= 1


@pytest.mark.parametrize("guide", [None, "half-life:20", "power:0.07", "snapshot:50", "other"])
def test_guidance_is_counted_and_named_with_every_guide(conditional: Path, guide: str | None) -> None:
    _save_averages(conditional)
    _save_model(conditional / "other", attributes=("Bald", "Male"), seed=1)
    train = {"ema_more_half_lives": [20]}
    _set(conditional, train)
    named = "other/models" if guide == "other" else guide
    plain, _, facts = _conditional(conditional, attributes=["Bald"])
    assert facts["nfe"] == 7 and not {"guidance", "guide"} & facts.keys()
    found, _, facts = _conditional(conditional, attributes=["Bald"], guidance=2.0, guide=named)
    assert facts["nfe"] == 14 and (facts["guidance"], facts["guide"]) == (2.0, named)
    assert not torch.equal(found, plain) and ("guide_sha256" in facts) == (guide == "other")
    facts = _conditional(conditional, attributes=["Bald"], guidance=2.0, guidance_interval=[0.3, 5.0])[2]
    assert 7 < facts["nfe"] < 14 and facts["guidance_interval"] == [0.3, 5.0]


def test_every_scale_draws_the_same_images_of_the_same_requests(conditional: Path) -> None:
    """Scale 1 is the model as it is, scale 0 the model told nothing, at the seeds of the samples themselves."""
    how = {"attributes": ["Bald"], "guidance_scales": [1.0, 0.0, 2.0], "guidance_images": 13, "batch_size": 5}
    guided, asked, facts = _conditional(conditional, guidance=2.0, **how)
    assert facts["nfe"] == 14 and "scales" not in facts
    found = load_scales(Path("samples/by_guidance.safetensors"), facts["model"])
    assert list(found.images) == [1.0, 0.0, 2.0] and found.names == NAMES
    assert found.attributes is not None and found.attributes.tolist() == asked[:1].tolist() * 13
    plain, *_ = _conditional(conditional, attributes=["Bald"], guidance=1.0, guidance_scales=[])
    told_nothing, *_ = _conditional(conditional, attributes=[])
    for scale, images in ((1.0, plain), (0.0, told_nothing), (2.0, guided)):
        assert len(found.images[scale]) == 13
        assert (found.images[scale][:11].int() - images.int()).abs().max() <= 1
    assert not load_scales(Path("samples/by_guidance.safetensors"), None).images  # of the last run, without scales


@pytest.mark.parametrize(
    ("train", "changes", "words"),
    [
        ({"attributes": ["smiling"]}, {}, "did you mean Smiling"),
        ({"attributes": ["Smiling"]}, {"attributes": ["-Smilling"]}, "did you mean Smiling"),
        ({"attributes": []}, {"attributes": ["Smiling"]}, "expected some of none"),
        ({"attributes": []}, {"guidance": 2.0}, "or a sample.guide"),
        ({"attributes": ["Smiling"]}, {"guidance": 2.0, "guidance_interval": [3.0, 1.0]}, "the smaller one first"),
        ({"attributes": ["Bald"]}, {"attributes": ["Bald"]}, "knows no others"),  # than the trained model does
        ({"attributes": ["Smiling"]}, {"guidance": 2.0, "guide": "nowhere"}, "nowhere/config.json"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    project: Path, train: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    _save_model(project, attributes=("Smiling",))
    _set(project, train, **changes)
    done = _run()
    assert done.exit_code == 1 and words in done.output and len(done.output.splitlines()) < 4, done.output
