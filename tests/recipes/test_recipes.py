"""The recipes: what they hold, and how one gets into params.yaml."""

import errno
import math
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from unveil import recipes
from unveil.cli.main import app
from unveil.errors import UnveilError
from unveil.networks.unet import UNet, UNetConfig
from unveil.params import flatten, load_params, parse_params
from unveil.recipes import apply_recipe, load_recipe, names

SHIPPED = Path(__file__).parents[2] / "params.yaml"
# Those that the documentation names.
NAMES = ["demo", "celeba256-ddpm", "celeba64-ddpm", "celeba64-edm", "celeba64-tutorial", "smoke"]
PARTIAL = ["unet-adm", "unet-ddpm", "unet-ddpmpp", "unet-ncsnpp", "unet-plain"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the shipped params.yaml."""
    copy = tmp_path / "params.yaml"
    copy.write_bytes(SHIPPED.read_bytes())
    return copy


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each recipe makes of the shipped params.yaml."""
    found, path = {}, tmp_path_factory.mktemp("applied") / "params.yaml"
    for name in NAMES:
        path.write_bytes(SHIPPED.read_bytes())
        apply_recipe(name, path)
        found[name] = path.read_bytes()
    return found


def without_values(text: str) -> list[str]:
    """What a recipe must not change: the keys with their indentation, and the comments."""
    return [re.sub(r"^(\s*[\w]+:)[^#]*", r"\1 ", line).rstrip() for line in text.splitlines()]


# What they hold


def test_the_recipes_are_demo_the_other_complete_ones_and_the_partial_ones() -> None:
    assert names() == [*NAMES, *PARTIAL]
    assert [name for name in names() if load_recipe(name).over is not None] == PARTIAL


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_described_in_one_line_and_is_a_valid_params_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description.isprintable()
    assert 10 < len(recipe.description) < 100
    assert parse_params(recipe.to_yaml(), name) == recipe.params


def test_demo_is_what_params_yaml_ships() -> None:
    mended = "copy the values of params.yaml into src/unveil/recipes/demo.yaml"
    assert flatten(load_recipe("demo").params) == flatten(load_params(SHIPPED)), mended


def test_no_two_recipes_are_the_same() -> None:
    assert len({load_recipe(name).params for name in NAMES}) == len(NAMES)


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


def test_celeba64_ddpm_is_ddims_published_configuration() -> None:
    params = load_recipe("celeba64-ddpm").params
    train, network, diffusion = params.train, params.train.network, params.train.diffusion
    assert (params.download.source, params.preprocess.protocol, params.preprocess.image_size) == (
        "celeba",
        "ddim",
        64,
    )
    assert (network.stem, network.widths, network.blocks) == (1, (128, 256, 256, 256, 512), 2)
    assert (network.attention_resolutions, network.attention_head_channels, network.dropout) == (
        (16,),
        0,
        0.1,
    )
    assert network.resolutions(64) == (64, 32, 16, 8, 4)  # the paper's five resolutions, appendix D.1
    assert (diffusion.path, diffusion.parameterization, diffusion.objective) == ("vp-linear", "eps", "simple")
    assert (diffusion.timesteps, diffusion.beta_start, diffusion.beta_end) == (1000, 1e-4, 0.02)
    assert (train.lr, train.betas, train.batch_size) == (2e-4, (0.9, 0.999), 128)
    assert (train.gradient_clip, train.warmup_images, train.horizontal_flip) == (1.0, 0, True)
    assert train.ema_decay == pytest.approx(0.9999, abs=1e-9)
    assert train.ema_rampup == 0
    assert train.images / train.batch_size == 500_000
    sample = params.sample
    assert (sample.sampler, sample.steps, sample.eta, sample.threshold) == ("ddim", 100, 0.0, "none")
    assert sample.grid == "ddim-leading"  # its range(0, 1000, 10)
    assert sample.num_samples == params.evaluate.num_images == 50_000
    evaluate = params.evaluate
    assert (evaluate.features, evaluate.reference_split, evaluate.reference_images) == (("inception",), "train", 0)


def test_celeba64_ddpm_says_how_its_clipping_differs_from_ddims() -> None:
    """DDIM's loss is summed over an image; its gradient, threshold and Adam's epsilon are 12,288 times ours."""
    text = (Path(recipes.__file__).parent / "celeba64-ddpm.yaml").read_text(encoding="utf-8")
    params = load_recipe("celeba64-ddpm").params
    numbers = 3 * params.preprocess.image_size**2
    with torch.device("meta"):
        network = UNet(UNetConfig(image_size=64, **params.train.network.model_dump()))
    weights = sum(part.numel() for part in network.parameters())
    epsilon = torch.optim.Adam([torch.zeros(1)]).defaults["eps"]
    said = (
        f"{numbers:,} numbers",
        f"{1 / numbers:.1e}",
        f"{epsilon / numbers:.1e}",
        f"{1 / numbers / weights**0.5:.1e}",
    )
    for number in said:
        assert number.replace("e-0", "e-") in text
    assert epsilon > 1 / numbers / weights**0.5


def test_celeba64_ddpm_hints_at_the_clipping_of_the_published_ddpm() -> None:
    """DDIM's code clips the denoised image in every step of its DDPM sampler, and with eta 0 never."""
    text = (Path(recipes.__file__).parent / "celeba64-ddpm.yaml").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("variance: large"))
    assert "3.26" in line and "threshold: clip" in line
    assert load_recipe("celeba64-ddpm").params.sample.threshold == "none"


def test_celeba64_edm_has_the_settings_of_edms_faces() -> None:
    params = load_recipe("celeba64-edm").params
    train, diffusion = params.train, params.train.diffusion
    assert (train.images, train.batch_size, train.lr, train.betas) == (200_000_000, 256, 2e-4, (0.9, 0.999))
    assert (train.warmup_images, train.ema_half_life_images, train.ema_rampup) == (10_000_000, 500_000, 0.05)
    assert train.network.widths == (128, 256, 256, 256)
    assert (train.network.blocks, train.network.dropout, train.network.stem) == (4, 0.05, 1)
    assert (train.network.resampling, train.network.skip_rescale) == ("residual-project", True)  # DDPM++
    assert {diffusion.path, diffusion.parameterization, diffusion.objective} == {"edm"}
    assert (diffusion.sigma_data, diffusion.p_mean, diffusion.p_std) == (0.5, -1.2, 1.2)
    sample = params.sample
    assert (sample.sampler, sample.steps, sample.grid) == ("heun", 40, "karras")
    assert (sample.sigma_min, sample.sigma_max, sample.rho) == (0.002, 80.0, 7.0)
    evaluate = params.evaluate
    assert (evaluate.features, evaluate.num_images, evaluate.reference_images) == (("inception",), 50_000, 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("celeba")])
def test_recipes_of_celeba_compare_with_all_training_images(name: str) -> None:
    evaluate = load_recipe(name).params.evaluate
    assert (evaluate.features, evaluate.reference_split, evaluate.reference_images) == (("inception",), "train", 0)
    assert evaluate.held_out_split == "test"


def test_celeba64_tutorial_is_fifty_epochs_of_raw_weights() -> None:
    params = load_recipe("celeba64-tutorial").params
    train, diffusion = params.train, params.train.diffusion
    assert train.images == 50 * 162_770
    assert (train.lr, train.batch_size, train.gradient_clip, train.warmup_images) == (1e-4, 8, 0.0, 0)
    assert train.ema_decay == 0.0
    assert (diffusion.path, diffusion.parameterization, diffusion.objective) == ("vp-linear", "eps", "simple")
    assert (diffusion.timesteps, diffusion.beta_start, diffusion.beta_end) == (500, 1e-4, 0.02)
    assert (params.sample.sampler, params.sample.steps) == ("ddpm", diffusion.timesteps)
    assert (params.download.source, params.preprocess.protocol) == ("celeba", "squash")
    assert math.floor(diffusion.sigma_range()[1]) == 12  # the signal is not gone at the end: what its comment says
    assert params.evaluate.num_images <= 19_962  # so that the test split gives a floor at the same N


def test_celeba256_ddpm_has_the_network_of_ddpms_celebahq() -> None:
    params = load_recipe("celeba256-ddpm").params
    train, network = params.train, params.train.network
    assert (params.preprocess.image_size, network.stem) == (256, 1)
    assert network.widths == (128, 128, 256, 256, 512, 512)  # google/ddpm-celebahq-256's block_out_channels
    assert network.resolutions(256)[4:5] == network.attention_resolutions == (16,)
    assert (network.blocks, network.dropout) == (2, 0.0)
    assert (train.lr, train.batch_size, train.gradient_clip) == (2e-5, 64, 1.0)
    assert train.warmup_images / train.batch_size == 5000
    assert train.ema_decay == pytest.approx(0.9999, abs=1e-9)
    assert train.diffusion.timesteps == params.sample.steps == 1000


# Into params.yaml


@pytest.mark.parametrize("name", NAMES)
def test_applied_a_recipe_is_what_the_file_says_and_applied_again_nothing_changes(name: str, path: Path) -> None:
    changed = apply_recipe(name, path)
    params = load_params(path)
    assert params == load_recipe(name).params
    shipped, found = flatten(load_params(SHIPPED)), flatten(params)
    assert set(changed) >= {key for key in shipped if shipped[key] != found[key]}
    assert (path.read_bytes() == SHIPPED.read_bytes()) == (name == "demo")
    once, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert apply_recipe(name, path) == []
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (once, stamp)


def test_only_the_last_recipe_counts(applied: dict[str, bytes], path: Path) -> None:
    """So demo, after any other, restores the shipped file byte for byte."""
    assert applied["demo"] == SHIPPED.read_bytes() and len(set(applied.values())) == len(NAMES)
    for name in (*NAMES, *reversed(NAMES), "celeba64-ddpm", "demo"):
        apply_recipe(name, path)
        assert path.read_bytes() == applied[name], name


def test_comments_stay_and_stand_in_their_column(applied: dict[str, bytes]) -> None:
    shipped = SHIPPED.read_text(encoding="utf-8")
    for name, text in applied.items():
        assert without_values(text.decode()) == without_values(shipped), name
        for line in text.decode().splitlines():
            if not line.strip().startswith("#") and "#" in line:
                before, comment = line[: line.index("#")], line.index("#")
                assert comment == max(31, len(before.rstrip()) + 2), name


def test_demo_mends_what_dvc_made_of_the_layout(path: Path) -> None:
    """`dvc exp run -S` leaves lists in block style and nulls empty; the shipped file comes back whole."""
    with import_module("dvc.utils.serialize").modify_yaml(str(path)) as values:
        values["train"]["lr"] = 2e-4
        values["train"]["betas"] = [0.5, 0.75]
    assert b"  - 0.75" in path.read_bytes()
    apply_recipe("demo", path)
    assert path.read_bytes() == SHIPPED.read_bytes()


def test_a_file_of_ones_own_keeps_its_comments_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    demo = load_recipe("demo").to_yaml()
    mine = demo.replace("  lr: ", "  # my choice\n  lr:    ").replace(
        "\n  lr_schedule: ", "   # tuned\n  lr_schedule: "
    )
    path.write_text("# mine\n\n" + mine, encoding="utf-8")
    apply_recipe("celeba64-edm", path)
    text = path.read_text(encoding="utf-8")
    assert load_params(path) == load_recipe("celeba64-edm").params
    assert text.startswith("# mine\n\ndownload:\n")
    row = next(line for line in mine.splitlines() if line.endswith("# tuned"))
    assert "  # my choice\n" + "  lr: 2.0e-4".ljust(row.index("#")) + "# tuned\n" in text


def test_flow_mappings_are_rewritten_in_their_place(path: Path) -> None:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines(keepends=True)
    start = next(n for n, line in enumerate(lines) if line.startswith("  split:"))
    path.write_text(
        "".join([*lines[:start], "  split: {train: 0.5, valid: 0.25, test: 0.25} # mine\n", *lines[start + 4 :]]),
        encoding="utf-8",
    )
    apply_recipe("demo", path)
    split = load_params(SHIPPED).download.split
    assert f"  split: {{train: {split.train}, valid: {split.valid}, test: {split.test}}} # mine\n" in path.read_text()


def test_values_that_were_wrong_are_replaced(path: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(?m)^  lr: \S+", "  lr: fast", text), encoding="utf-8")
    assert apply_recipe("demo", path) == ["train.lr"]
    assert path.read_bytes() == SHIPPED.read_bytes()


@pytest.mark.parametrize(
    ("pattern", "replacement", "words"),
    [
        (r"(?m)^  lr: .*\n", "", "train.lr: missing"),
        (r"(?m)^  lr: ", "  rate: ", "train.rate: unknown key"),
        (r"(?m)^  lr: \S+", "  lr: [", "not valid YAML"),
        (r"(?m)^  lr: \S+", "  lr: {a: 1}", "train.lr: found"),
        (r"(?m)^  steps: \S+(.*\n)  grid: \S+", r"  steps: &n 3\1  grid: *n", "sample.grid: a YAML alias"),
        (r"(?s)\A.*\Z", "", "empty"),
    ],
)
def test_a_file_that_cannot_be_rewritten_is_left_alone(pattern: str, replacement: str, words: str, path: Path) -> None:
    text = re.sub(pattern, replacement, SHIPPED.read_text(encoding="utf-8"), count=1)
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


# Partial recipes


@pytest.mark.parametrize("name", PARTIAL)
def test_a_partial_recipe_changes_its_own_section_alone(name: str, applied: dict[str, bytes], path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.over is not None
    path.write_bytes(applied[recipe.over])
    before = flatten(load_params(path))
    apply_recipe(name, path)
    after = flatten(load_params(path))
    assert load_params(path) == recipe.params
    network = {key for key in before if key.startswith("train.network.")}
    assert {".".join(key) for key in recipe.values} == network
    assert {key for key in before if before[key] != after[key]} <= network


def test_a_partial_recipe_keeps_what_was_chosen_otherwise(path: Path) -> None:
    text = re.sub(r"(?m)^  lr: \S+", "  lr: 3.0e-4", SHIPPED.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    apply_recipe("unet-adm", path)
    params = load_params(path)
    assert (params.train.lr, params.train.network.resampling) == (3e-4, "residual")
    assert without_values(path.read_text(encoding="utf-8")) == without_values(text)
    assert apply_recipe("unet-adm", path) == []


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


@pytest.mark.parametrize("command", ["show", "apply"])
def test_an_unknown_name_is_one_line_with_the_nearest(command: str) -> None:
    code, output, error = run(command, "celeba64-dpm")
    assert (code, output) == (1, "")
    assert error.count("\n") == 1
    assert "'celeba64-dpm'" in error
    assert "did you mean celeba64-ddpm?" in error
    _, _, error = run(command, "qqq")
    assert all(name in error for name in NAMES)


def test_apply_without_a_params_file_is_one_line(tmp_path: Path) -> None:
    code, output, error = run("apply", "demo", "--params", str(tmp_path / "params.yaml"))
    assert (code, output, error.count("\n")) == (1, "", 1)
    assert "no such file" in error


def test_python_m_runs_it(path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "unveil", "recipes", "apply", "smoke"],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(SHIPPED.parent / "src")},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert load_params(path) == load_recipe("smoke").params
