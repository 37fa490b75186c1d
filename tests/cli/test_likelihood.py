"""The command: its number, its file, its refusals."""

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from unveil.cli.likelihood import likelihood
from unveil.data.shards import ShardIndex, write_shard
from unveil.diffusion.config import Diffusion
from unveil.diffusion.likelihood import LikelihoodConfig, bits_per_dim
from unveil.errors import UnveilError
from unveil.files import file_digest
from unveil.model import ModelConfig, load_denoiser, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet

SIZE = 16
IMAGES = torch.randint(0, 256, (30, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards and a small model."""
    monkeypatch.chdir(tmp_path)
    shards = tmp_path / "data" / "shards"
    shards.mkdir(parents=True)
    flags, ids = torch.zeros(30, 40, dtype=torch.bool), torch.arange(30)
    splits = {"test": (write_shard(shards, "test", 0, IMAGES, flags, ids),)}
    index = ShardIndex.of(
        splits, (0.0,) * 3, (1.0,) * 3, source="cartoon", protocol="score-sde", image_size=SIZE, attributes=()
    )
    index.save(shards)
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(
            image_size=SIZE,
            channels=32,
            channel_multipliers=(1, 2),
            blocks=1,
            attention_resolutions=(),
            attention_head_channels=32,
            stem=4,
        )
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    data = {"source": index.source, "protocol": index.protocol, "image_size": SIZE, "shards": index.digest()}
    save_model(
        tmp_path / "models",
        network,
        ModelConfig(network.config, Diffusion(path="edm", parameterization="edm", objective="edm"), data, {}),
    )
    return tmp_path


def _run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(likelihood)
    return CliRunner().invoke(app, ["--device", "cpu", *arguments])


def test_says_bits_per_dimension_and_writes_what_made_them(project: Path) -> None:
    done = _run("--images", "3", "--probes", "2", "--seed", "5", "--out", "found/likelihood.json")
    assert done.exit_code == 0, done.output
    found = json.loads((project / "found" / "likelihood.json").read_text())
    denoiser = load_denoiser(project / "models")
    config = LikelihoodConfig(seed=5, probes=2)
    expected = bits_per_dim(denoiser, denoiser.path, IMAGES[[0, 10, 20]], config)  # evenly spread
    assert found["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-5)
    assert found["bits_per_dim_stderr"] == pytest.approx(expected.stderr, rel=1e-4)
    assert found["bits_per_dim_nfe"] == pytest.approx(expected.nfe.double().mean().item(), rel=1e-5)
    assert found["model"]["sha256"] == file_digest(project / "models" / "model.safetensors")
    assert found["data"]["shards"] == ShardIndex.load(project / "data" / "shards").digest()
    assert (found["data"]["split"], found["data"]["images"], found["method"]["probes"]) == ("test", 3, 2)
    assert f"{expected.mean:.4f} ± {expected.stderr:.4f} bits per dimension" in done.stdout


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("none", "config.json: not there"),
        ("many", "the test split has 30 images, expected 31"),
        ("split", "--split: found valid, expected one of test"),
        ("weights", "--weights: found best, expected ema"),
        ("infinite", "likelihood of the images 0 to 1: no step is short enough"),
    ],
)
def test_what_cannot_be_measured_is_one_line(project: Path, broken: str, said: str) -> None:
    arguments = ["--images", "31" if broken == "many" else "2", "--out", "likelihood.json"]
    if broken == "infinite":
        weights = load_denoiser(project / "models").network.state_dict()
        save_file({name: tensor * torch.nan for name, tensor in weights.items()}, project / "models/model.safetensors")
    elif broken == "none":
        (project / "models" / "config.json").unlink()
    elif broken in ("split", "weights"):
        arguments += [f"--{broken}", {"split": "valid", "weights": "best"}[broken]]
    done = _run(*arguments)
    assert isinstance(done.exception, UnveilError) and said in str(done.exception)
    assert "\n" not in str(done.exception) and not (project / "likelihood.json").exists()
