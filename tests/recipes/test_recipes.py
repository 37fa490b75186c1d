"""The recipes: what they hold, and how one gets into params.yaml."""

import errno
import json
import math
import os
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from unveil import recipes
from unveil.cli.main import app
from unveil.diffusion.grids import karras
from unveil.errors import UnveilError
from unveil.messages import look_up
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.parameter_file import parse_mapping
from unveil.params import Params, load_params, parse_params, render
from unveil.recipes import apply_recipe, load_recipe, names
from unveil.section import flatten
from unveil.training.ema import decay

SHIPPED = Path(__file__).parents[2] / "params.yaml"
# Those that the documentation names.
NAMES = ["demo", "celeba256-ddpm", "celeba64-attributes", "celeba64-ddpm", "celeba64-edm", "celeba64-tutorial", "smoke"]
PARTIAL = ["unet-adm", "unet-ddpm", "unet-ddpmpp", "unet-ncsnpp", "unet-plain"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the shipped params.yaml."""
    copy = tmp_path / "params.yaml"
    copy.write_bytes(SHIPPED.read_bytes())
    return copy


# What they hold


def test_the_recipes_are_demo_the_other_complete_ones_and_the_partial_ones() -> None:
    assert names() == [*NAMES, *PARTIAL]
    assert [name for name in names() if load_recipe(name).section] == PARTIAL
    assert len({load_recipe(name).params for name in NAMES}) == len(NAMES)
    assert all(re.fullmatch(r"[ -~]{11,99}", load_recipe(name).description) for name in names())


def test_demo_is_what_params_yaml_ships() -> None:
    mended = "copy the values of params.yaml that are not the defaults into src/unveil/recipes/demo.yaml"
    assert load_recipe("demo").to_yaml() == SHIPPED.read_text(encoding="utf-8"), mended


def differences(name: str) -> dict[str, Any]:
    """What a recipe's file says, by dotted key."""

    def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    text = (Path(recipes.__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(flat(parse_mapping(text, name)[1]["params"]))


def test_recipes_are_differences_from_the_defaults_and_nothing_else() -> None:
    defaults = Params()
    for name in names():
        for key, value in differences(name).items():
            default = look_up(defaults, tuple(key.split(".")))
            assert value != (list(default) if isinstance(default, tuple) else default), f"{name}: {key}"
    assert sum(len(differences(name)) for name in names()) <= 240


def test_smoke_is_small_and_its_splits_hold_what_it_evaluates() -> None:
    params = load_recipe("smoke").params
    assert params.download.source == "cartoon"
    faces = params.download.cartoon.num_faces
    split = params.download.split
    assert faces <= 300
    assert params.preprocess.protocol == "score-sde"
    assert params.preprocess.image_size <= 32
    assert params.train.images <= 1024
    assert params.sample.steps == 4
    assert params.evaluate.features == ("efficientnet-lite0",)  # ships in a package: no network
    for share in (split.train, split.valid, split.test):
        assert round(share * faces) >= 20
    assert params.preprocess.shard_size < split.train * faces  # more than one shard
    assert params.train.images >= 2 * params.train.checkpoint_every_images


# What the papers and their code say.
PUBLISHED = {
    "celeba64-ddpm": """
        preprocess: {protocol: ddim, image_size: 64}
        network: {stem: 1, blocks: 2, attention_resolutions: [16], attention_head_channels: 0, dropout: 0.1}
        diffusion: {path: vp-linear, parameterization: eps, objective: simple, timesteps: 1000, beta_start: 0.0001}
        train: {lr: 0.0002, betas: [0.9, 0.999], batch_size: 128, gradient_clip: 1.0, warmup_images: 0, ema_rampup: 0.0}
        sample: {sampler: ddim, steps: 100, eta: 0.0, threshold: none, grid: ddim-leading, num_samples: 50000}
        evaluate: {num_images: 50000}""",
    "celeba64-edm": """
        network: {stem: 1, blocks: 4, dropout: 0.05, resampling: residual-project, skip_rescale: true}
        diffusion: {path: edm, parameterization: edm, objective: edm, sigma_data: 0.5, p_mean: -1.2, p_std: 1.2}
        train: {images: 200000000, batch_size: 256, lr: 0.0002, betas: [0.9, 0.999], warmup_images: 10000000,
                ema_half_life_images: 500000, ema_rampup: 0.05}
        sample: {sampler: heun, steps: 40, grid: karras, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0}
        evaluate: {num_images: 50000}""",
    "celeba64-tutorial": """
        preprocess: {protocol: squash}
        diffusion: {path: vp-linear, parameterization: eps, objective: simple, timesteps: 500, beta_end: 0.02}
        train: {images: 8138500, lr: 0.0001, batch_size: 8, gradient_clip: 0.0, warmup_images: 0,
                ema_half_life_images: 0}
        sample: {sampler: ddpm, steps: 500}""",
    "celeba256-ddpm": """
        preprocess: {image_size: 256}
        network: {stem: 1, blocks: 2, dropout: 0.0, attention_resolutions: [16]}
        diffusion: {timesteps: 1000}
        train: {lr: 0.00002, batch_size: 64, gradient_clip: 1.0, warmup_images: 320000}
        sample: {steps: 1000}""",
}
WIDTHS = {
    "celeba64-ddpm": (128, 256, 256, 256, 512),
    "celeba64-edm": (128, 256, 256, 256),
    "celeba64-tutorial": (64, 128, 256, 512),
    "celeba256-ddpm": (128, 128, 256, 256, 512, 512),  # google/ddpm-celebahq-256's block_out_channels
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_of_celeba_are_what_was_published(name: str) -> None:
    params = load_recipe(name).params
    found = flatten(params)
    for section, values in parse_mapping(textwrap.dedent(PUBLISHED[name]), name)[1].items():
        prefix = f"train.{section}" if section in ("network", "diffusion") else section
        for key, value in values.items():
            shown = json.dumps(value, separators=(",", ":")) if isinstance(value, list) else value
            assert found[f"{prefix}.{key}"] == shown, key
    assert params.train.network.widths == WIDTHS[name]
    evaluate = params.evaluate
    assert (evaluate.features, evaluate.reference_split, evaluate.reference_images) == (("inception",), "train", 0)
    assert (params.download.source, evaluate.held_out_split) == ("celeba", "test")
    if name.endswith("ddpm"):
        assert decay(params.train.batch_size, params.train.ema_half_life_images) == pytest.approx(0.9999, abs=1e-9)
        assert params.train.images / params.train.batch_size == 500_000


def test_what_the_comments_of_the_recipes_say_holds() -> None:
    tutorial = load_recipe("celeba64-tutorial").params
    assert tutorial.train.images == 50 * 162_770
    assert math.floor(tutorial.train.diffusion.sigma_range()[1]) == 12  # the signal is not gone at the end
    assert tutorial.evaluate.num_images <= 19_962  # so that the test split gives a floor at the same N
    assert load_recipe("celeba64-ddpm").params.train.network.resolutions(64) == (64, 32, 16, 8, 4)


def test_celeba64_attributes_is_celeba64_edm_told_attributes() -> None:
    """What it says of its sources holds: EDM2's grid at steps 17 to 22, and an eighth of the training."""
    edm, params = flatten(load_recipe("celeba64-edm").params), load_recipe("celeba64-attributes").params
    told = {"train.attributes", "train.ema_profiles", "train.snapshot_every_images"}
    asked = {"attributes", "guidance", "guidance_interval", "guidance_scales", "guidance_images"}
    changed = {key for key, value in flatten(params).items() if value != edm[key]}
    assert changed == told | {f"sample.{key}" for key in asked} | {"evaluate.metrics"}
    grid = [f"{sigma:.2f}" for sigma in karras(32, 0.002, 80.0).tolist()]
    assert [f"{sigma:.2f}" for sigma in params.sample.guidance_interval] == [grid[23], grid[17]]
    assert params.train.images == 8 * params.train.snapshot_every_images
    assert len(params.train.attributes) == 11
    assert (params.train.attribute_dropout, params.train.condition_dropout) == (0.5, 0.1)


def test_celeba64_ddpm_says_how_its_clipping_differs_from_ddims() -> None:
    """DDIM's loss is summed over an image; its gradient, threshold and Adam's epsilon are 12,288 times ours.

    Its code clips the denoised image in every step of its DDPM sampler, and with eta 0 never.
    """
    text = (Path(recipes.__file__).parent / "celeba64-ddpm.yaml").read_text(encoding="utf-8")
    params = load_recipe("celeba64-ddpm").params
    numbers = 3 * params.preprocess.image_size**2
    with torch.device("meta"):
        network = UNet(UNetConfig(image_size=64, **params.train.network.model_dump()))
    clipped = 1 / numbers / sum(part.numel() for part in network.parameters()) ** 0.5
    epsilon = torch.optim.Adam([torch.zeros(1)]).defaults["eps"]
    for number in (1 / numbers, epsilon / numbers, clipped):
        assert f"{number:.1e}".replace("e-0", "e-") in text
    assert f"{numbers:,} numbers" in text and epsilon > clipped
    assert re.search(r"3\.26.*\n.*variance: large.*threshold: clip", text) and params.sample.threshold == "none"


# Into params.yaml


def test_applied_a_recipe_is_what_the_file_says_and_applied_again_nothing_changes(path: Path) -> None:
    for name in NAMES:
        path.write_bytes(SHIPPED.read_bytes())
        changed, kept = apply_recipe(name, path)
        assert kept is None
        params = load_params(path)
        assert params == load_recipe(name).params == parse_params(load_recipe(name).to_yaml(), name)
        shipped, found = flatten(load_params(SHIPPED)), flatten(params)
        assert changed == [key for key in shipped if shipped[key] != found[key]]
        once, stamp = path.read_bytes(), path.stat().st_mtime_ns
        assert apply_recipe(name, path) == ([], None)
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (once, stamp)


def test_only_the_last_recipe_counts(path: Path) -> None:
    """So demo, after any other, restores the shipped file byte for byte."""
    for name in (*NAMES, *reversed(NAMES), "celeba64-ddpm", "demo"):
        apply_recipe(name, path)
        assert path.read_text(encoding="utf-8") == load_recipe(name).to_yaml(), name
    assert path.read_bytes() == SHIPPED.read_bytes()


def test_demo_mends_the_layout_and_replaces_wrong_values(path: Path) -> None:
    """`dvc exp run -S` leaves lists in block style and nulls empty; the shipped file comes back whole."""
    with import_module("dvc.utils.serialize").modify_yaml(str(path)) as values:
        values["train"]["lr"] = "fast"
        values["train"]["betas"] = [0.5, 0.75]
    assert b"  - 0.75" in path.read_bytes()
    assert "train.lr" in apply_recipe("demo", path)[0]
    assert path.read_bytes() == SHIPPED.read_bytes()


def test_a_file_that_is_none_of_parameters_is_left_alone(path: Path) -> None:
    shipped = SHIPPED.read_text(encoding="utf-8")
    for text, words in {
        shipped.replace("\ntrain:", "\ntraining:"): "found no section train, expected a file of parameters",
        re.sub(r"(?m)^  lr: \S+", "  lr: [", shipped): "not valid YAML",
        "": "empty",
    }.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UnveilError, match=re.escape(words)) as caught:
            apply_recipe("smoke", path)
        assert str(caught.value).isprintable()
        assert path.read_text(encoding="utf-8") == text


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UnveilError, match="cannot be written: No space"):
        apply_recipe("smoke", path)
    assert path.read_bytes() == SHIPPED.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["params.yaml"]


def test_what_a_user_wrote_beside_the_values_is_kept(path: Path) -> None:
    for own in ("# mine\n", "mine: {a: 1}\n", "evaluate_more: 1\n"):
        text = SHIPPED.read_text(encoding="utf-8") + own
        path.write_text(text, encoding="utf-8")
        _, kept = apply_recipe("demo", path)
        assert kept is not None and kept.read_text(encoding="utf-8") == text
        assert path.read_bytes() == SHIPPED.read_bytes()


# Partial recipes


def test_a_partial_recipe_is_its_section_over_the_defaults_and_keeps_the_rest(path: Path) -> None:
    for name in ("unet-adm", "unet-ddpm", "unet-ddpmpp", "unet-plain"):
        text = re.sub(r"(?m)^  lr: \S+", "  lr: 3.0e-4", load_recipe("celeba64-ddpm").to_yaml())
        path.write_text(text, encoding="utf-8")
        before, recipe = load_params(path), load_recipe(name)
        apply_recipe(name, path)
        after = load_params(path)
        assert after.train == before.train.replace(network=recipe.params.train.network)
        assert after == before.replace(train=after.train)
        assert path.read_text(encoding="utf-8") == render(after)
        assert apply_recipe(name, path) == ([], None)
        assert recipe.to_yaml() == render(recipe.params, ("train", "network"))
        assert recipe.to_yaml().startswith("train:") and "lr:" not in recipe.to_yaml()


def test_a_partial_recipe_that_does_not_fit_the_rest_is_refused(path: Path) -> None:
    """Random frequencies cannot tell the demo's times, which run to 1000, apart."""
    with pytest.raises(UnveilError, match=r"train.network.noise_embedding: found \"fourier\", expected ddpm \| adm"):
        apply_recipe("unet-ncsnpp", path)
    assert path.read_bytes() == SHIPPED.read_bytes()


# The command


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["recipes", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_list_names_each_with_its_description() -> None:
    code, output, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == names()
    for line, name in zip(output.splitlines(), names(), strict=True):
        assert line.endswith(load_recipe(name).description)


@pytest.mark.parametrize("name", ["celeba64-edm", "unet-adm"])
def test_show_prints_the_whole_file(name: str) -> None:
    recipe = load_recipe(name)
    assert run("show", name) == (0, f"# {name}: {recipe.description}\n{recipe.to_yaml()}", "")


def test_apply_says_what_it_did(path: Path) -> None:
    code, output, _ = run("apply", "celeba64-edm", "--params", str(path))
    assert code == 0
    assert re.fullmatch(rf"{re.escape(str(path))}: recipe celeba64-edm, \d+ values changed\n", output)
    assert run("apply", "celeba64-edm", "--params", str(path))[1].endswith("nothing to change\n")


def test_an_unknown_name_is_one_line_with_the_nearest() -> None:
    for command in ("show", "apply"):
        code, output, error = run(command, "celeba64-dpm")
        assert (code, output, error.count("\n")) == (1, "", 1)
        assert "'celeba64-dpm'" in error and "did you mean celeba64-ddpm?" in error
    assert all(name in run("show", "qqq")[2] for name in NAMES)


def test_apply_without_a_params_file_is_one_line(tmp_path: Path) -> None:
    code, output, error = run("apply", "demo", "--params", str(tmp_path / "params.yaml"))
    assert (code, output, error.count("\n")) == (1, "", 1)
    assert "no such file" in error
