"""Models on disk: what is written comes back, and what is damaged is one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.diffusion.config import Diffusion
from unveil.diffusion.parameterizations import X0
from unveil.diffusion.paths import Flow
from unveil.errors import UnveilError
from unveil.model import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, load_denoiser, save_model
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.weights import WeightsChoice

CONFIG = ModelConfig(
    network=UNetConfig(
        image_size=8,
        channels=32,
        channel_multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(4,),
        attention_head_channels=16,
        dropout=0.3,
    ),
    diffusion=Diffusion(path="flow", parameterization="x0", objective="flow", logit_mean=0.8),
    data={"source": "cartoon", "protocol": "ddim", "image_size": 8, "shards": "abc"},
    training={"images": 100, "batch_size": 4, "lr": 1e-4, "betas": [0.9, 0.99], "precision": "fp32"},
)


def _network(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    network = UNet(CONFIG.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "models", _network(), CONFIG)
    return tmp_path / "models"


def _refusal(call: Callable[[], object]) -> str:
    """The one line that a call ends with."""
    with pytest.raises(UnveilError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# ------------------------------------------------------------------------------------- models


def test_a_model_comes_back_as_it_was(model: Path) -> None:
    assert ModelConfig.load(model) == CONFIG
    denoiser = load_denoiser(model)
    assert (denoiser.path, denoiser.parameterization) == (Flow(), X0())
    network = _network()
    for name, value in network.state_dict().items():
        assert torch.equal(denoiser.network.state_dict()[name], value)
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])
    assert torch.equal(denoiser.network(x, c_noise), network.eval()(x, c_noise))


def test_a_loaded_model_is_for_use_not_for_training(model: Path) -> None:
    denoiser = load_denoiser(model)
    assert not any(module.training for module in denoiser.modules())
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_the_same_model_is_the_same_bytes(model: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", _network(), CONFIG)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()
    assert sorted(path.name for path in model.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_folder_without_a_model_says_which_stage_makes_one(tmp_path: Path, model: Path) -> None:
    assert "run the train stage" in _refusal(lambda: load_denoiser(tmp_path))
    assert CONFIG_FILE in _refusal(lambda: load_denoiser(tmp_path))
    (model / WEIGHTS_FILE).unlink()
    assert f"{model / WEIGHTS_FILE}: not there" in _refusal(lambda: load_denoiser(model))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"format": 1}', '{"format": 1, "network": 3}', "\x00"])
def test_a_damaged_configuration_is_one_line(model: Path, text: str) -> None:
    (model / CONFIG_FILE).write_text(text)
    message = _refusal(lambda: load_denoiser(model))
    assert message.startswith(f"{model / CONFIG_FILE}: ") and message.endswith("; run the train stage again")


def test_a_configuration_that_is_not_text_is_one_line(model: Path) -> None:
    (model / CONFIG_FILE).write_bytes(b"\xff\xfe\x00\x01")
    assert "not valid JSON" in _refusal(lambda: load_denoiser(model))


def _change(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((model / CONFIG_FILE).read_text())
    change(values)
    (model / CONFIG_FILE).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": None}, "data: found null, expected"),
        ({"data": {"image_size": [8]}}, "data: expected texts and whole numbers"),
        ({"training": []}, "training: found [], expected"),
        ({"training": {"ema_half_life_images": "x"}}, "training: expected a number of at least 0 as ema_half_life_"),
        ({"training": {"lr": float("nan")}}, "not valid JSON"),
        ({"network": {}}, "network.image_size is missing"),
        ({"more": 1}, "more: unknown key"),
    ],
)
def test_a_section_that_cannot_be_is_named(model: Path, values: dict[str, Any], said: str) -> None:
    _change(model, lambda config: config.update(values))
    assert f"{model / CONFIG_FILE}: {said}" in _refusal(lambda: load_denoiser(model))


def _set(config: dict[str, Any], key: str, value: object) -> None:
    config["network"][key] = value


def test_another_format_is_one_line(model: Path) -> None:
    _change(model, lambda values: values.update(format=2))
    assert f"{model / CONFIG_FILE}: format: found 2, expected 1; run the train stage again" in _refusal(
        lambda: load_denoiser(model)
    )


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("network", {"surprise": 1}),
        ("network", {"channel_multipliers": 3}),
        ("diffusion", {"surprise": 1}),
        ("diffusion", {"path": "evil"}),
        ("diffusion", {"sigma_data": "x"}),
        ("diffusion", {"timesteps": 1000.0}),
        ("network", {"dropout": None}),
        ("network", {"channels": True}),
    ],
)
def test_keys_and_values_from_elsewhere_are_one_line(model: Path, section: str, values: dict[str, object]) -> None:
    _change(model, lambda config: config[section].update(values))
    (key,) = values
    assert f"{CONFIG_FILE}: {section}.{key}: " in _refusal(lambda: load_denoiser(model))


@pytest.mark.parametrize(
    ("section", "values", "word"),
    [
        ("network", {"image_size": 9}, "9"),
        ("network", {"channels": "many"}, ""),
        ("network", {"channel_multipliers": []}, ""),
        ("network", {"attention_head_channels": 128}, "64 channels"),
        ("network", {"dropout": 7}, ""),
        ("diffusion", {"path": "vee"}, '"vee"'),
        ("diffusion", {"parameterization": "w"}, '"w"'),
    ],
)
def test_a_network_that_cannot_be_built_is_one_line(
    model: Path, section: str, values: dict[str, object], word: str
) -> None:
    _change(model, lambda config: config[section].update(values))
    message = _refusal(lambda: load_denoiser(model))
    assert CONFIG_FILE in message and word in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 100,
        lambda data: b"<html>quota exceeded</html>",
        lambda data: data + b"more",
    ],
    ids=["empty", "truncated", "noise", "a web page", "too long"],
)
def test_damaged_weights_are_one_line(model: Path, damage: Callable[[bytes], bytes]) -> None:
    path = model / WEIGHTS_FILE
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: damaged" in _refusal(lambda: load_denoiser(model))


@pytest.mark.parametrize(
    "network",
    [
        CONFIG.network.replace(channels=64),
        CONFIG.network.replace(blocks=3),
        CONFIG.network.replace(channel_multipliers=(1,)),
        CONFIG.network.replace(image_channels=1),
    ],
    ids=["wider", "deeper", "fewer levels", "grey"],
)
def test_weights_that_do_not_fit_are_one_line(model: Path, network: UNetConfig) -> None:
    save_model(model, UNet(network), CONFIG)
    assert f"{model / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: " in _refusal(lambda: load_denoiser(model))


def test_the_line_names_a_parameter_its_shapes_and_how_many_differ(model: Path) -> None:
    _change(model, lambda config: config["network"].update(channels=64))
    message = _refusal(lambda: load_denoiser(model))
    assert message == (
        f"{model / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: embedding.layers.0.weight: found [128, 32], "
        f"expected [256, 64] (and {len(_network().state_dict()) - 2} more); run the train stage again"
    )


def test_a_network_beyond_any_memory_is_not_built(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelConfig, "build", lambda config: pytest.fail("it was built"))
    _change(model, lambda config: config["network"].update(channels=16_384, channel_multipliers=[64] * 4))
    assert "does not fit" in _refusal(lambda: load_denoiser(model))
    for key, value in (("blocks", 10_000), ("channels", 10**6), ("channel_multipliers", [1] * 13)):
        _change(model, lambda config: config["network"].update(channels=32, channel_multipliers=[1]))
        _change(model, partial(_set, key=key, value=value))
        assert f"{CONFIG_FILE}: network.{key}: found " in _refusal(lambda: load_denoiser(model))


def test_a_configuration_of_before_the_newest_keys_is_read_and_of_after_them_refused(model: Path) -> None:
    values = json.loads((model / CONFIG_FILE).read_text())
    old = {"image_size", "channels", "channel_multipliers", "blocks", "attention_resolutions"}
    kept = {key: value for key, value in values["network"].items() if key in old}
    diffusion = {key: values["diffusion"][key] for key in ("path", "parameterization", "objective")}
    _change(model, lambda config: config.update(network=kept, diffusion=diffusion))
    assert ModelConfig.load(model).network == UNetConfig(
        image_size=8, channels=32, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(4,)
    )
    _change(model, lambda config: config["network"].update(attention_of_the_future=1))
    assert "network.attention_of_the_future: unknown key" in _refusal(lambda: load_denoiser(model))


def test_nothing_old_is_lost_when_writing_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (model / WEIGHTS_FILE).read_bytes()

    def full(tensors: dict[str, Tensor], path: Path, metadata: None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unveil.tensors.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_model(model, _network(1), CONFIG)
    assert (model / WEIGHTS_FILE).read_bytes() == before
    assert sorted(path.name for path in model.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_the_models_own_half_life_is_the_model(tmp_path: Path) -> None:
    save_model(tmp_path, _network(), replace(CONFIG, training={"ema_half_life_images": 50}))
    own = load_denoiser(tmp_path, weights=WeightsChoice("half-life", 50)).network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in load_denoiser(tmp_path).network.state_dict().items())
    with pytest.raises(UnveilError, match="found no averages, expected half-life:60"):
        load_denoiser(tmp_path, weights=WeightsChoice("half-life", 60))


def test_what_serves_a_model_takes_nothing_of_training_or_of_a_run() -> None:
    code = "import sys, unveil.model, unveil.diffusion.sampling; print(*(n for n in sys.modules if 'unveil' in n))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    rooms = {".".join(name.split(".")[:2]) for name in found}
    assert "unveil.averages" in rooms
    assert not rooms & {"unveil.training", "unveil.run", "unveil.params", "unveil.evaluation", "unveil.data"}
