"""Pipeline folders: diffusers opens ours and makes the same images, and ours are theirs."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from unveil.averages import Averages, write_averages
from unveil.cli.main import app
from unveil.data.shards import Shard, ShardIndex
from unveil.diffusion.config import Diffusion, Sampler
from unveil.diffusion.grids import ddim_timesteps
from unveil.diffusion.paths import DiscreteVP
from unveil.diffusion.sampling import run_sampler
from unveil.errors import UnveilError
from unveil.files import file_digest
from unveil.interchange.pipeline import export_pipeline, import_pipeline, read_pipeline
from unveil.model import ModelConfig, load_denoiser, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.design import build_network

ROOT = Path(__file__).parents[2]
SIZE = 16
NETWORK = UNetConfig(
    image_size=SIZE,
    channels=64,
    channel_multipliers=(1, 2),
    blocks=1,
    attention_resolutions=(8,),
    attention_head_channels=32,
)
STEPS = 6


def _awake(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.06)
    return network


def _model(folder: Path, path: Any = "vp-linear", parameterization: Any = "eps", network: Any = NETWORK) -> Path:
    diffusion = Diffusion(path=path, parameterization=parameterization, objective="simple", timesteps=60, beta_end=0.2)
    data = {"source": "cartoon", "protocol": "ddim", "image_size": SIZE, "shards": "0" * 64}
    save_model(folder, _awake(build_network(network)), ModelConfig(network, diffusion, data, {"images": 1}))
    return folder


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _model(tmp_path_factory.mktemp("saved") / "models")


@pytest.fixture
def models(saved_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_model, tmp_path / "models"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """An index alone: no image of it is read."""
    index = ShardIndex.of(
        source="cartoon",
        protocol="score-sde",
        image_size=SIZE,
        attributes=(),
        splits={"train": (Shard("train-00000.safetensors", 4, "1" * 64),)},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    index.save(tmp_path / "shards")
    return tmp_path / "shards"


class _TheirNoise:
    """The noise of a diffusers pipeline with this seed, draw by draw."""

    def __init__(self, count: int) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.shape = (count, 3, SIZE, SIZE)

    def __call__(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)


def _their_images(folder: Path, scheduler: str, **call: Any) -> Any:
    opened: Any = (DDPMPipeline if scheduler == "ddpm" else DDIMPipeline).from_pretrained(folder)
    opened.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    return opened(2, generator=generator, num_inference_steps=STEPS, output_type="np", **call).images


def _our_images(models: Path, scheduler: Any, threshold: Any) -> Any:
    denoiser = load_denoiser(models)
    config = Sampler(sampler=scheduler, steps=STEPS, grid="ddim-leading", threshold=threshold)
    assert isinstance(denoiser.path, DiscreteVP)
    timesteps = ddim_timesteps(STEPS, denoiser.path.timesteps, "leading")
    sigmas = torch.cat([denoiser.path.sigmas[timesteps], torch.zeros(1)])
    noise = _TheirNoise(2)
    with torch.inference_mode():
        start = noise() * denoiser.path.start_scale(sigmas[0]).item()
        *_, last = run_sampler(config, denoiser, sigmas, start, noise)
    return (last.x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("path", "parameterization", "scheduler", "threshold"),
    [
        ("vp-linear", "eps", "ddpm", "clip"),
        ("vp-cosine", "x0", "ddpm", "clip"),
        ("vp-linear", "v", "ddim", "none"),
        ("vp-cosine", "eps", "ddim", "none"),
    ],
)
def test_diffusers_opens_an_exported_model_and_makes_the_same_images(
    path: str, parameterization: str, scheduler: Any, threshold: Any, tmp_path: Path
) -> None:
    models = _model(tmp_path / "models", path, parameterization)
    export_pipeline(models, tmp_path / "out", scheduler, threshold=threshold)
    theirs = _their_images(tmp_path / "out", scheduler)
    assert theirs.std() > 0.01
    assert abs(_our_images(models, scheduler, threshold) - theirs).max() < 1e-4


def test_their_ddim_with_clipping_is_ours_if_its_noise_follows_from_the_clipped_image(
    models: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnveilError, match=r"^--threshold: found clip with --scheduler ddim"):
        export_pipeline(models, tmp_path / "out", "ddim", threshold="clip")
    assert not (tmp_path / "out").exists()
    export_pipeline(models, tmp_path / "out", "ddim")
    _edit(tmp_path / "out" / "scheduler" / "scheduler_config.json", clip_sample=True)
    ours = _our_images(models, "ddim", "clip")
    assert abs(ours - _their_images(tmp_path / "out", "ddim", use_clipped_model_output=True)).max() < 1e-4
    assert abs(ours - _their_images(tmp_path / "out", "ddim")).max() > 0.1  # why it is refused


def test_an_import_leaves_no_averages_of_another_model(models: Path, shards: Path, tmp_path: Path) -> None:
    export_pipeline(models, tmp_path / "out")
    old = torch.zeros(1)
    write_averages(models / "averages", 10, 0.09, [(5, {"w": old})], [], [])
    import_pipeline(tmp_path / "out", models, shards, force=True)
    found = Averages.beside(models / "model.safetensors")
    assert [path.name for path in found.folder.iterdir()] == ["index.json"]
    assert found.choices() == [] and found.model == file_digest(models / "model.safetensors")


def test_import_of_an_export_is_the_model(models: Path, shards: Path, tmp_path: Path) -> None:
    export_pipeline(models, tmp_path / "out")
    import_pipeline(tmp_path / "out", tmp_path / "again", shards)
    before, after = load_file(models / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    config, again = ModelConfig.load(models), ModelConfig.load(tmp_path / "again")
    assert (again.network, again.diffusion) == (config.network, config.diffusion)
    index = ShardIndex.load(shards)
    assert again.data == {
        "source": "cartoon",
        "protocol": "score-sde",
        "image_size": SIZE,
        "shards": index.digest(),
    }
    assert json.loads((tmp_path / "again" / "run.json").read_text())["stage"] == "import"


@pytest.fixture(scope="module")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As diffusers' example of unconditional training saves it."""
    folder = tmp_path_factory.mktemp("saved") / "theirs"
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIZE,
        layers_per_block=1,
        block_out_channels=(64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    return folder


@pytest.fixture
def theirs(saved_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_pipeline, tmp_path / "theirs"))


def test_a_pipeline_of_diffusers_becomes_our_denoiser(theirs: Path, shards: Path, tmp_path: Path) -> None:
    import_pipeline(theirs, tmp_path / "models", shards)
    denoiser = load_denoiser(tmp_path / "models")
    peer = DDPMPipeline.from_pretrained(theirs)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 3, SIZE, SIZE, generator=generator) for _ in range(2))
    t = torch.tensor([10, 800])
    noisy = peer.scheduler.add_noise(x0, noise, t)
    alpha_bar = peer.scheduler.alphas_cumprod[t].double()
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt().float()
    with torch.no_grad():
        predicted = peer.unet(noisy, t).sample
        expected = (noisy - (1 - alpha_bar).sqrt().float()[:, None, None, None] * predicted) / alpha_bar.sqrt().float()[
            :, None, None, None
        ]
        found = denoiser(noisy / alpha_bar.sqrt().float()[:, None, None, None], sigma)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_the_flat_layout_of_the_first_repositories_is_read(theirs: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        shutil.copy(theirs / file, flat)
    shutil.copy(theirs / "unet" / "diffusion_pytorch_model.safetensors", flat)
    flattened, nested = read_pipeline(flat), read_pipeline(theirs)
    assert (flattened.network, flattened.diffusion) == (nested.network, nested.diffusion)
    assert flattened.weights.keys() == nested.weights.keys()


def test_half_precision_weights_are_taken_as_float32(theirs: Path) -> None:
    path = theirs / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert {tensor.dtype for tensor in read_pipeline(theirs).weights.values()} == {torch.float32}


# What is refused


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _refusal(folder: Path) -> str:
    with pytest.raises(UnveilError) as caught:
        read_pipeline(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_pickle_is_never_opened(theirs: Path) -> None:
    weights = theirs / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), theirs / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    message = _refusal(theirs)
    assert "diffusion_pytorch_model.bin: a pickle" in message and "save_pretrained" in message


def test_what_is_missing_or_damaged_is_named(theirs: Path, tmp_path: Path) -> None:
    assert "no such folder" in _refusal(tmp_path / "none")
    weights = theirs / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    assert "diffusion_pytorch_model.safetensors: damaged" in _refusal(theirs)
    weights.unlink()
    assert "diffusion_pytorch_model.safetensors: not there" in _refusal(theirs)
    config = theirs / "unet" / "config.json"
    config.write_text("{")
    assert "config.json: not valid JSON" in _refusal(theirs)
    config.write_text("[]")
    assert "config.json: found [], expected an object" in _refusal(theirs)
    (theirs / "model_index.json").unlink()
    assert "model_index.json: not there" in _refusal(theirs)


def test_another_pipeline_is_refused(theirs: Path) -> None:
    index = theirs / "model_index.json"
    _edit(index, vqvae=["diffusers", "VQModel"])
    assert "model_index.json: vqvae: unknown setting" in _refusal(theirs)
    _edit(index, unet=["diffusers", "UNet2DConditionModel"])
    assert "unet.1: found \"UNet2DConditionModel\", expected 'UNet2DModel'" in _refusal(theirs)


def test_weights_of_another_shape_are_refused(theirs: Path) -> None:
    _edit(theirs / "unet" / "config.json", block_out_channels=[128, 128])
    assert "expected" in _refusal(theirs) and "by its config.json" in _refusal(theirs)


def test_shapes_are_compared_before_there_is_memory_for_the_weights(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unveil.interchange.pipeline.load_tensors", lambda *_: pytest.fail("they were read"))
    for widths, said in (
        ([8192, 8192], "expected [32768, 8192] (and "),
        ([10**6, 10**6], "config.json: channels: found 1000000, expected less than or equal to 16384"),
    ):
        _edit(theirs / "unet" / "config.json", block_out_channels=widths)
        assert said in _refusal(theirs)
    _edit(theirs / "unet" / "config.json", block_out_channels=[64, 64], layers_per_block=10_000)
    assert "layers_per_block: found 10000, expected less than or equal to 64" in _refusal(theirs)


def test_heads_and_sizes_that_cannot_be_are_one_line(theirs: Path) -> None:
    _edit(theirs / "unet" / "config.json", attention_head_dim=48)
    assert "cannot be divided into heads of 48" in _refusal(theirs)
    _edit(theirs / "unet" / "config.json", attention_head_dim=8, sample_size=17)
    assert "image_size: found 17, expected a multiple of the downsampling 2" in _refusal(theirs)


def test_images_of_another_size_are_refused_and_nothing_is_written(theirs: Path, shards: Path, tmp_path: Path) -> None:
    _edit(theirs / "unet" / "config.json", sample_size=32)
    with pytest.raises(UnveilError, match=r"images of 16 pixels, expected 32, the model's; set preprocess\.image_size"):
        import_pipeline(theirs, tmp_path / "models", shards)
    assert not (tmp_path / "models").exists()


def test_an_export_replaces_nothing_and_leaves_nothing_half_done(models: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(
            UnveilError, match="already there, expected a folder to be made; give another, or remove it"
        ):
            export_pipeline(models, tmp_path / name)
    stemmed = _model(
        tmp_path / "stemmed",
        network=UNetConfig(
            image_size=SIZE, channels=32, channel_multipliers=(1,), blocks=1, attention_resolutions=(), stem=2
        ),
        parameterization="x0",
    )
    with pytest.raises(UnveilError, match=r"train.network.stem: found 2, expected 1"):
        export_pipeline(stemmed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_without_a_class_and_images_without_colour_are_refused(theirs: Path) -> None:
    _edit(theirs / "unet" / "config.json", in_channels=1, out_channels=1)
    assert "config.json: in_channels: found 1, expected 3" in _refusal(theirs)
    _edit(theirs / "model_index.json", unet=[])
    assert "model_index.json: unet.0 is missing" in _refusal(theirs)


def test_paths_that_cannot_be_written_or_read_are_one_line(
    models: Path, theirs: Path, shards: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UnveilError, match=r"file: found a file, expected a folder"):
        export_pipeline(models, file / "out")
    with pytest.raises(UnveilError, match=r"file: found a file, expected a folder"):
        import_pipeline(theirs, file, shards)
    assert file.read_text() == "mine"
    weights = theirs / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert "diffusion_pytorch_model.safetensors: found a folder, expected a regular file" in _refusal(theirs)


def test_a_damaged_configuration_is_not_exported(models: Path, tmp_path: Path) -> None:
    config = json.loads((models / "config.json").read_text())
    _edit(models / "config.json", diffusion=config["diffusion"] | {"beta_end": "x"})
    with pytest.raises(UnveilError, match=r'diffusion.beta_end: found "x", expected a valid number'):
        export_pipeline(models, tmp_path / "out")


# What was there


def test_a_trained_model_is_replaced_only_by_force(models: Path, theirs: Path, shards: Path) -> None:
    (models / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    with pytest.raises(UnveilError, match=r"config\.json: there already; give --force .*another --models"):
        import_pipeline(theirs, models, shards)
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before
    import_pipeline(theirs, models, shards, force=True)
    assert {path.name for path in models.iterdir()} == before.keys() | {"run.json", "averages"}
    assert (models / "notes.txt").read_text() == "mine"
    assert (models / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert ModelConfig.load(models).training["imported_from"] == "theirs"


@pytest.mark.parametrize("moves", [1, 2, 3])  # the first puts the whole import beside the model
def test_an_import_that_is_cut_short_leaves_one_model_or_none(
    moves: int, models: Path, theirs: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.replace, iter(range(100))

    def replace(source: Path, target: Path) -> None:
        if target.parent == models and next(count) >= moves:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        import_pipeline(theirs, models, shards, force=True)
    with pytest.raises(UnveilError, match=r"config\.json: not there"):
        load_denoiser(models)


def test_an_import_is_written_through_links(models: Path, theirs: Path, shards: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("averages", "model.safetensors"):
        if (models / name).exists():
            (models / name).rename(disk / name)
        elif name == "averages":
            (disk / name).mkdir()
        (models / name).symlink_to(disk / name)
    import_pipeline(theirs, models, shards, force=True)
    assert (models / "averages").is_symlink()
    assert (models / "model.safetensors").is_symlink()
    load_denoiser(models)
    assert not list(models.glob(".*"))


def test_an_import_that_cannot_be_written_leaves_the_model_that_was_there(
    models: Path, theirs: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in models.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unveil.interchange.pipeline.save_model", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        import_pipeline(theirs, models, shards, force=True)
    assert str(raised.value.filename).startswith(str(models))  # so that the command's line names it
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before


# The command


def test_the_command_says_what_it_did_and_what_comes_next(models: Path, shards: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    out = str(tmp_path / "out")
    done = run(app, ["export", out, "--models", str(models), "--scheduler", "ddim"])
    assert (done.exit_code, done.stdout) == (0, f"{out}: open it with DDIMPipeline.from_pretrained\n")
    assert isinstance(DDIMPipeline.from_pretrained(out).scheduler, DDIMScheduler)
    _edit(tmp_path / "out" / "scheduler" / "scheduler_config.json", clip_sample=True)
    done = run(app, ["import", out, "--models", str(tmp_path / "again"), "--shards", str(shards)])
    assert done.exit_code == 0
    assert "sample.sampler: ddim, sample.grid: ddim-leading, sample.threshold: clip" in done.stdout
    assert "not represented: clip_sample true: diffusers' DDIM" in done.stdout
    assert "dvc repro" in done.stdout
    done = run(app, ["import", out, "--models", str(tmp_path / "again"), "--shards", str(shards)])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert (
        run(app, ["import", out, "--models", str(tmp_path / "again"), "--shards", str(shards), "--force"]).exit_code
        == 0
    )
    (tmp_path / "file").write_text("")
    done = run(app, ["import", out, "--models", str(tmp_path / "other"), "--shards", str(tmp_path / "file")])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"{tmp_path / 'file' / 'index.json'}: the system says: Not a directory")
    done = run(app, ["import", str(tmp_path / "none"), "--models", str(tmp_path / "other")])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_the_command_says_how_many_steps_a_short_chain_has(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(out), "--models", str(models), "--threshold", "clip"])
    assert (
        done.stdout
        == f"{out}: open it with DDPMPipeline.from_pretrained and call it with num_inference_steps=60 or fewer\n"
    )
    assert DDPMPipeline.from_pretrained(out).scheduler.config["clip_sample"] is True


def test_what_params_yaml_must_say_of_an_imported_model_is_printed(theirs: Path, shards: Path, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    params = tmp_path / "params.yaml"
    arguments = [
        "import",
        str(theirs),
        "--shards",
        str(shards),
        "--params",
        str(params),
        "--models",
        str(tmp_path / "m"),
    ]
    params.write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, arguments)
    lines = [line for line in done.stdout.splitlines() if line.startswith("train.")]
    assert {"train.network.stem: 1", "train.network.attention_resolutions: [8]"} & set(lines) == {
        "train.network.stem: 1"
    }
    assert {"train.network.channel_multipliers: [1, 1]", "train.diffusion.path: vp-linear"} <= set(lines)
    assert not any("timesteps" in line for line in lines)  # they agree
    for line in lines:  # what is printed, once it is set, is all
        key, value = line.split(": ")
        name = key.rpartition(".")[2]
        section = text.index("\ntrain:")
        text = text[:section] + re.sub(rf"(?m)^(    {name}:).*$", rf"\1 {value}", text[section:], count=1)
    params.write_text(text.replace("image_size: 64", f"image_size: {SIZE}"), encoding="utf-8")
    done = CliRunner().invoke(app, [*arguments, "--force"])
    assert done.exit_code == 0, done.stderr
    assert "train." not in done.stdout
