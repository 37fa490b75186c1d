"""params.yaml's schema: what it takes, what it refuses, and in which words."""

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from unveil.data.celeba import SPLITS
from unveil.data.sources.cartoon import split_counts
from unveil.diffusion.config import Diffusion, ObjectiveName, ParameterizationName, PathName
from unveil.diffusion.design import build_parameterization, build_path
from unveil.diffusion.objectives import build_objective
from unveil.errors import UnveilError
from unveil.messages import comment_of, nearest, section_at
from unveil.networks.config import UNetConfig
from unveil.networks.unet import UNet
from unveil.params import SCHEMA, Params, load_params, parse_params, render
from unveil.section import flatten

SHIPPED = Path(__file__).parents[1] / "params.yaml"

# The shipped values, with those that the cases below rely on: tuning the demo must not break them.
VALUES: dict[str, Any] = YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8"))
RELIED_ON = """
download.source = cartoon; download.split = {train: 0.72, valid: 0.12, test: 0.16}; download.cartoon.num_faces = 12500
preprocess.protocol = score-sde; preprocess.image_size = 64
train.images = 64000; train.batch_size = 32; train.lr = 0.0005; train.warmup_images = 3200
network.stem = 4; network.channels = 128; network.channel_multipliers = [1, 2]
network.attention_resolutions = [8]; network.attention_head_channels = 64
diffusion.path = flow; diffusion.parameterization = x0; diffusion.objective = flow
sample.num_samples = 2000; sample.sampler = heun; sample.steps = 18; sample.grid = karras; sample.variance = small
sample.sigma_min = 0.03; sample.sigma_max = 80.0; sample.grid_rows = 8; sample.grid_columns = 12
evaluate.num_images = 2000; evaluate.reference_split = train; evaluate.held_out_split = test
evaluate.reference_images = 2000; evaluate.kid_subset_size = 1000
"""
LEAVES = {key: field for key, field in SCHEMA.items() if section_at(field) is None}
PARTS = {part for key in LEAVES for part in key}
SECTIONS = [key for key, field in SCHEMA.items() if section_at(field) is not None]


def dumped(values: dict[Any, Any], margin: str = "") -> str:
    """As YAML, which JSON is a part of: a line for every key. YAML's own writer takes a hundred times as long."""
    text = ""
    for key, value in values.items():
        name = key if key in PARTS else json.dumps(key, ensure_ascii=False)
        if isinstance(value, dict) and value:
            text += f"{margin}{name}:\n{dumped(value, margin + '  ')}"
        else:
            text += f"{margin}{name}: {json.dumps(value)}\n".replace("NaN", ".nan").replace("Infinity", ".inf")
    return text


def parent(values: dict[str, Any], key: Sequence[str]) -> dict[Any, Any]:
    for part in key[:-1]:
        values = values[part]
    return values


NAMED = {
    "VP": "network.stem = 1; network.attention_resolutions = [32]; diffusion.path = vp-linear; "
    "diffusion.parameterization = eps; diffusion.objective = simple",
    "EDM": "diffusion.path = edm; diffusion.objective = edm",
    "SUB_VP": "diffusion.path = sub-vp",
    "VP_SDE": "diffusion.path = vp-sde",
    "SQUARED": "diffusion.huber_scale = 0.0; diffusion.difference_weight = 0.0; diffusion.noise_candidates = 1",
    "VE": "diffusion.path = ve; sample.sigma_max = 40",
    "ONE_HEAD": "network.attention_head_channels = 0",
    "EVEN": "sample.grid = uniform-t",
    "NO_PROFILES": "train.ema_profiles = []; train.snapshot_every_images = 0",
    "PLAIN": "network.architecture = plain; network.blocks = 1; network.attention_resolutions = []; "
    "network.middle_attention = false; network.refinement_channels = 0",
}


def full(key: str) -> str:
    return f"train.{key}" if key.startswith(("network", "diffusion")) else key


def made(changes: str) -> dict[str, Any]:
    """The values with changes such as ``VP; train.lr = 0.1``; a later one counts."""
    values = copy.deepcopy(VALUES)
    for change in changes.split("; "):
        for pair in NAMED.get(change, change).split("; "):
            dotted, _, text = pair.partition(" = ")
            key = full(dotted).split(".")
            parent(values, key)[key[-1]] = YAML(typ="safe", pure=True).load(f"[{text}]")[0]
    return values


VALUES = made(RELIED_ON.strip().replace("\n", "; "))
TEXT = dumped(VALUES)


def altered(**changes: Any) -> dict[str, Any]:
    """The shipped values with others under dotted keys (written with __ for the dot)."""
    values = copy.deepcopy(VALUES)
    for dotted, value in changes.items():
        key = dotted.split("__")
        parent(values, key)[key[-1]] = value
    return values


def changed(**changes: Any) -> str:
    return dumped(altered(**changes))


def refusal(text: str) -> str:
    """The message with which a text is refused: always one line of printable characters."""
    with pytest.raises(UnveilError) as caught:
        parse_params(text, "params.yaml")
    message = str(caught.value)
    assert message.isprintable(), message
    assert message.startswith("params.yaml"), message
    return message


# What is taken


def test_the_shipped_file_is_taken_and_nothing_in_it_is_lost() -> None:
    shipped = YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8"))
    flat = flatten(load_params(SHIPPED))
    assert list(flat) == [".".join(key) for key in LEAVES]
    for key in LEAVES:
        section: Any = shipped
        for part in key:
            section = section[part]
        value = flat[".".join(key)]
        assert (json.loads(str(value)) if isinstance(section, list) else value) == section


def test_flatten_of_a_section_leaves_its_own_name_out_and_what_nothing_reads_if_asked() -> None:
    params = parse_params(changed(download__folder__path="some/photos"), "params.yaml")
    flat, read = flatten(params), flatten(params, read=True)
    assert flatten(params.sample) == {key[7:]: value for key, value in flat.items() if key.startswith("sample.")}
    assert flat["download.folder.path"] == "some/photos"  # of a path
    unread = {key for key in flat if key not in read}
    assert {"train.diffusion.beta_start", "train.diffusion.sigma_max", "sample.eta", "sample.s_tmax"} <= unread
    assert not {"train.diffusion.logit_mean", "sample.s_churn", "sample.rho", "sample.num_samples"} & unread


def test_every_way_to_write_a_number_is_a_number() -> None:
    for number in ("2e-4", "2E-4", "2.0e-4", ".0002", "0.0002", "+2e-4"):
        assert parse_params(TEXT.replace("lr: 0.0005", f"lr: {number}"), "params.yaml").train.lr == 2e-4


def test_a_whole_number_is_taken_where_a_number_is_meant() -> None:
    assert parse_params(changed(sample__sigma_max=80), "params.yaml").sample.sigma_max == 80.0
    assert parse_params(changed(train__betas=[0, 0]), "params.yaml").train.betas == (0.0, 0.0)


def test_a_date_is_text_as_in_yaml_1_2() -> None:
    for date in ("2024-05-01", "2024-13-45"):  # the second is not even one
        text = TEXT.replace("path: null\n", f"path: {date}\n", 1)
        assert parse_params(text, "params.yaml").download.celeba.path == Path(date)


def test_what_dvc_writes_for_an_experiment_is_taken(tmp_path: Path) -> None:
    """`dvc exp run -S` rewrites the whole file: lists in block style, null as nothing, other floats."""
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text(encoding="utf-8"), encoding="utf-8")
    with import_module("dvc.utils.serialize").modify_yaml(str(path)) as values:
        values["train"]["lr"] = 2e-7
        values["train"]["betas"] = [0.5, 0.75]
    params = load_params(path)
    assert path.read_text(encoding="utf-8") != SHIPPED.read_text(encoding="utf-8")
    assert params.train.lr == 2e-7
    assert params.train.betas == (0.5, 0.75)
    assert params.evaluate == load_params(SHIPPED).evaluate


def test_params_are_frozen_and_can_be_compared() -> None:
    params = load_params(SHIPPED)
    assert params == load_params(SHIPPED)
    assert hash(params) == hash(load_params(SHIPPED))
    with pytest.raises(ValidationError):
        params.train.lr = 1.0  # type: ignore[misc]


def test_the_shipped_file_is_rendered_and_every_value_has_a_default_a_text_and_a_range(repository: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    assert text == render(load_params(SHIPPED)), "write it anew: `unveil params fmt`"
    for key, field in SCHEMA.items():
        said = " ".join((field.description or "").split())
        assert said.isprintable() and comment_of(field).startswith(said), key
        assert not field.is_required(), key
        if key not in LEAVES:
            continue
        assert field.annotation not in (int, float) or field.metadata, f"{key} has no range"
        kind = get_args(field.annotation)[0] if get_origin(field.annotation) is tuple else field.annotation
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        unsaid = [name for name in choices if str(name).lower() not in re.split(r"[\s(),;:]+", said)]
        assert not unsaid, f"{key} does not explain {unsaid}"
        ends = [getattr(part, end, None) for part in field.metadata for end in ("ge", "gt", "le", "lt")]
        bounds = {str(end) for end in ends if end is not None}
        assert all(bound in comment_of(field) for bound in bounds), key


def test_the_parameters_need_no_pytorch() -> None:
    code = "import sys, unveil.params, unveil.recipes; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# Keys and files


def test_a_key_that_is_one_too_many() -> None:
    for changes, suggestion in (
        ({"lr": 1e-4}, "did you mean train.lr?"),
        ({"sampl": {}}, "did you mean sample?"),
        ({"train__steps": 100}, "did you mean sample.steps?"),
        ({"train__epochs": 3}, "expected seed, device, loader"),
        ({"train__network__Channels": 3}, "did you mean train.network.channels?"),
        ({"train__network__chanels": 3}, "did you mean train.network.channels?"),
        ({"evaluate__num_sampels": 3}, "did you mean sample.num_samples?"),
    ):
        ((dotted, _),) = changes.items()
        message = refusal(changed(**changes))
        assert f": {dotted.replace('__', '.')}: unknown key, {suggestion}" in message


def test_a_missing_key_is_named_with_what_belongs_there() -> None:
    """One key of every type and range in each section; that all keys are required is seen above."""
    wrong, kinds = {}, {(key[:-1], str((field.annotation, field.metadata))): key for key, field in LEAVES.items()}
    for key in kinds.values():
        values = copy.deepcopy(VALUES)
        del parent(values, key)[key[-1]]
        message = refusal(dumped(values))
        if (
            f": {'.'.join(key)}: missing, expected " not in message
            or comment_of(LEAVES[key]).split(";")[0] not in message
        ):
            wrong[key] = message
    assert not wrong


def test_a_missing_key_has_its_default_if_asked_for() -> None:
    text = TEXT.replace("  lr: 0.0005\n", "")
    assert parse_params(text, "params.yaml", fill=True).train.lr == 2e-4
    assert render(parse_params("download: {}", "params.yaml", fill=True)) == render(Params())


def test_a_section_must_be_a_mapping() -> None:
    messages = {".".join(key): refusal(changed(**{"__".join(key): 3})) for key in SECTIONS}
    assert not {key: said for key, said in messages.items() if f": {key}: found 3, expected the keys " not in said}


def test_the_first_of_several_is_reported_and_the_others_counted() -> None:
    text = changed(train__lr=-1, sample__sampler="huen", evaluate__num_images=0, download__workers=0)
    message = refusal(text)
    rows = text.splitlines()
    first = min(
        range(len(rows)),
        key=lambda n: (not rows[n].strip().startswith(("lr:", "sampler:", "num_images:")), n),
    )
    assert message.startswith(f"params.yaml:{first + 1}: ")
    assert message.endswith(" (and 2 more)")


def test_a_renamed_key_is_one_mistake() -> None:
    line = 1 + next(n for n, row in enumerate(TEXT.splitlines()) if row.startswith("  lr:"))
    for name in ("lrr", "learning_rate"):
        message = refusal(TEXT.replace("  lr:", f"  {name}:"))
        assert message == f"params.yaml:{line}: train.{name}: unknown key, did you mean train.lr?"


def test_an_empty_file_and_one_without_a_mapping() -> None:
    for text in ("", "\n", "# only a comment\n", "---\n", "- 1\n", "3\n", "null\n", "text\n"):
        assert "download, preprocess, train, sample, evaluate" in refusal(text)


def test_yaml_errors_carry_the_line() -> None:
    rows = TEXT.splitlines()
    at = next(n for n, row in enumerate(rows) if row.startswith("  sampler:"))
    broken = "\n".join([*rows[:at], "  sampler: 'heun", *rows[at + 1 :]])
    assert "not valid YAML" in refusal(broken)
    broken = "\n".join([*rows[:at], "  sampler: heun: ddim", *rows[at + 1 :]])
    assert refusal(broken).startswith(f"params.yaml:{at + 1}: not valid YAML: ")


def test_a_key_that_stands_twice_names_both_lines() -> None:
    text = TEXT.replace("  lr: 0.0005", "  lr: 1.0e-4\n  lr: 0.0005")
    line = 1 + next(n for n, row in enumerate(TEXT.splitlines()) if row.startswith("  lr:"))
    assert refusal(text) == f"params.yaml:{line + 1}: train.lr: stands here and in line {line}; keep one"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, word in [(tmp_path / "none.yaml", "no such file"), (tmp_path, "found a folder")]:
        with pytest.raises(UnveilError, match=word) as caught:
            load_params(path)
        assert str(path) in str(caught.value)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"train: \xff\xfe")
    with pytest.raises(UnveilError, match="found no text in UTF-8"):
        load_params(binary)


# Values and combinations

REFUSED = r"""
train.lr = -0.1 -> train.lr: found -0.1, expected a number in (0, 1]
train.lr = "2e-4" -> train.lr: found "2e-4", expected a number in (0, 1]; remove the quotes
train.lr = true -> train.lr: found true, expected a number in (0, 1]
train.lr = .nan -> train.lr: found NaN, expected a number in (0, 1]
train.images = 2000000.0 -> train.images: found 2000000.0, expected a whole number >= 1; write 2000000
train.images = true -> train.images: found true, expected a whole number >= 1
train.images = null -> train.images: found null, expected a whole number >= 1
train.horizontal_flip = "yes" -> train.horizontal_flip: found "yes", expected true | false
train.horizontal_flip = 1 -> train.horizontal_flip: found 1, expected true | false
train.channels_last = 1 -> train.channels_last: found 1, expected auto | true | false
train.channels_last = atuo -> train.channels_last: expected auto | true | false; did you mean auto?
train.augment = 1.5 -> train.augment: expected a number in [0, 1]
train.betas = [0.9, 1.0] -> train.betas: found [0.9, 1.0], expected a list of 2 numbers in [0, 1)
train.betas = [0.9] -> train.betas: found [0.9], expected a list of 2 numbers in [0, 1)
train.betas = 0.9 -> train.betas: found 0.9, expected a list of 2 numbers in [0, 1)
network.channel_multipliers = [] -> network.channel_multipliers: expected a list of whole numbers in [1, 64], not empty,
network.dropout = 1 -> network.dropout: found 1, expected a number in [0, 1)
sample.weights = [ema] -> sample.weights: expected ema | half-life:N | power:S
download.celeba.path = 3 -> download.celeba.path: found 3, expected a path or null
download.celeba.path = "" -> download.celeba.path: found "", expected a path or null
sample.eta = 1.5 -> sample.eta: found 1.5, expected a number in [0, 1]
sample.sampler = Huen -> sample.sampler: dpmpp-2m-sde | rk45; did you mean heun?
preprocess.protocol = score_sde -> preprocess.protocol: did you mean score-sde?
preprocess.protocol = "?" -> preprocess.protocol: expected ddim | score-sde | score-sde-tf | gan | adm-ip | squash
preprocess.image_size = 60 -> preprocess.image_size: a multiple of 8
preprocess.image_size = 60 -> preprocess.image_size: nearest: 56 or 64
preprocess.image_size = 9 -> preprocess.image_size: nearest: 8 or 16
preprocess.image_size = 8; network.attention_resolutions = [] -> network.channel_multipliers: fewer of them: 2 leave a s
network.channel_multipliers = [1, 1, 1, 1, 1, 1, 1, 1, 1]; network.stem = 2 -> preprocess.image_size: a multiple of 512
network.attention_resolutions = [32] -> network.attention_resolutions: 16 | 8
network.attention_head_channels = 96 -> network.attention_head_channels: divisor of
ONE_HEAD; network.attention_heads = 3 -> network.attention_heads: 0 or a divisor of 256, the
network.attention_heads = 4 -> network.attention_heads: attention_head_channels 0: one
network.channels = 40 -> network.channels: a multiple of 32
network.norm_groups = 24 -> network.norm_groups: a divisor of train.network.channels, 128
network.noise_embedding = fourier -> network.noise_embedding: ddpm | adm for train.diffusion.path flow
PLAIN; network.blocks = 2 -> network.blocks: expected 1, because
PLAIN; network.attention_resolutions = [8] -> network.attention_resolutions: expected [], because
PLAIN; network.middle_attention = true -> network.middle_attention: expected false, because
PLAIN; network.dropout = 0.1 -> network.dropout: expected 0.0, because
PLAIN; network.scale_shift_norm = true -> network.scale_shift_norm: expected false, because
PLAIN; network.resampling = residual -> network.resampling: expected conv, because
PLAIN; network.progressive_input = true -> network.progressive_input: expected false, because
PLAIN; network.skip_rescale = true -> network.skip_rescale: expected false, because
SUB_VP; diffusion.objective = simple -> diffusion.parameterization: eps | v | edm
SUB_VP; diffusion.objective = likelihood -> diffusion.parameterization: eps | v | edm
VP; diffusion.parameterization = x0; diffusion.beta_start = 1.0e-7 -> diffusion.parameterization: whose sigma starts at
SUB_VP; diffusion.objective = flow; diffusion.beta_min = 0.0001 -> diffusion.beta_min: 1e-08
VP; diffusion.beta_start = 1.0e-20 -> diffusion.beta_start: 1e-08
VE; diffusion.sigma_min = 1.0e-9 -> diffusion.sigma_min: 1e-08
diffusion.path = vp-sigmoid; diffusion.sigmoid_end = -3.0 -> diffusion.sigmoid_end: above sigmoid_start, -3
diffusion.path = vp-sigmoid; diffusion.sigmoid_end = -4.0 -> diffusion.sigmoid_end: above sigmoid_start, -3
VE; EVEN; sample.sigma_max = 0.5; diffusion.sigma_min = 1.0; sample.sigma_min = 0.1 -> sample.sigma_max: in [1, 100]
VE; EVEN; sample.sigma_max = 1.0; diffusion.sigma_min = 1.0 -> sample.sigma_max: above the
VP; EVEN; sample.sigma_min = 0.002; sample.sigma_max = 0.005 -> sample.sigma_max: in [0.01, 157]
train.batch_size = 64001 -> train.batch_size: at most train.images, 64000
train.warmup_images = 64001 -> train.warmup_images: at most train.images, 64000
download.split.train = 0.71 -> download.split: sum to 0.99
download.source = folder -> download.folder.path: the folder of images
download.source = folder; download.folder.path = x; preprocess.protocol = gan -> preprocess.protocol: adm-ip | squash
EDM; diffusion.objective = simple -> diffusion.objective: expected edm | flow on path edm, which has no ends between whi
EDM; diffusion.objective = likelihood -> diffusion.objective: expected edm | flow on path edm, which has no ends between
EDM; diffusion.objective = min-snr -> diffusion.objective: expected edm | flow on path edm, which has no ends between wh
EDM; diffusion.objective = p2 -> diffusion.objective: expected edm | flow on path edm, which has no ends between which p
diffusion.parameterization = velocity -> diffusion.parameterization: needs stem 1
diffusion.sigmoid_end = -3.0 -> diffusion.sigmoid_end: above sigmoid_start, -3
diffusion.beta_max = 0.1 -> diffusion.beta_max: above beta_min, 0.1
diffusion.path = vp-sigmoid; diffusion.sigmoid_tau = 0.1 -> diffusion.sigmoid_tau: a number with which sigma stays in [1
SUB_VP; diffusion.beta_max = 100.0 -> diffusion.beta_max: 1e+08
VP; diffusion.beta_end = 0.9 -> diffusion.beta_end: 1e+08
diffusion.parameterization = eps -> diffusion.parameterization: 2511.13720
VP; network.stem = 2 -> diffusion.parameterization: eps needs stem 1
diffusion.beta_end = 0.0001 -> diffusion.beta_end: above beta_start, 0.0001
sample.grid = ddim-leading -> sample.grid: uniform-t for train.diffusion.path flow, whose time is
EDM; sample.grid = ddim-trailing -> sample.grid: karras | log-linear | uniform-t for train
VP; sample.grid = ddim-leading; sample.steps = 1 -> sample.steps: t = 0, where there is no noise
VP; sample.grid = ddim-linspace; sample.steps = 1 -> sample.steps: 2 or more on sample.grid
VP; sample.grid = ddim-quad; sample.steps = 1 -> sample.steps: 2 or more on sample.grid
sample.sampler = rk45; sample.steps = 1 -> sample.steps: 2 or more: sampler rk45
sample.s_tmin = 51.0 -> sample.s_tmin: a number up to sample.s_tmax, 50
VP; sample.s_churn = 40; sample.s_tmax = 200; sample.sigma_max = 150 -> sample.s_tmax: at most 111: s_churn raises sigma
VP; sample.s_churn = 40; sample.s_tmax = 200; sample.grid = ddim-trailing -> sample.s_tmax: vp-linear ends at 157
VP; sample.grid = ddim-linspace; sample.steps = 1001 -> sample.steps: timesteps, 1000
sample.sampler = ddpm; sample.variance = large -> sample.variance: only vp-linear, vp-cosine, vp-sigmoid, vp-sde have be
VP; sample.sigma_min = 0.002; sample.grid = log-linear -> sample.sigma_min: in [0.01, 157]
VP; EVEN; sample.sigma_max = 160 -> sample.sigma_max: in [0.01, 157]
VP; sample.sigma_min = 0.002 -> sample.sigma_min: in [0.01, 157]
VP; diffusion.timesteps = 500 -> sample.sigma_max: in [0.01, 12.5]
sample.sigma_min = 80 -> sample.sigma_min: below sample.sigma_max, 80
sample.grid_rows = 1000 -> sample.grid_rows: 1000 x 12 = 12000
sample.num_samples = 1999 -> evaluate.num_images: at most sample.num_samples, 1999
evaluate.reference_images = 9001 -> evaluate.reference_images: at most 9000, the images that download.source cartoon has
download.source = celeba; evaluate.reference_images = 162771 -> evaluate.reference_images: at most 162770, the images th
download.cartoon.num_faces = 6000 -> evaluate.kid_subset_size: at most 960, the images that download.source cartoon has
evaluate.held_out_split = valid; evaluate.kid_subset_size = 1501 -> evaluate.kid_subset_size: at most 1500, the images
evaluate.reference_images = 999 -> evaluate.kid_subset_size: at most evaluate.reference_images, 999
evaluate.features = [clip, clip] -> evaluate.features: each name once
evaluate.features = [dinov3] -> evaluate.features: a list of efficientnet-lite0 | inception | dinov2
evaluate.features = [] -> evaluate.features: not empty
evaluate.features = inception -> evaluate.features: a list of
evaluate.metrics = [inception-score] -> evaluate.metrics: needs inception among evaluate.features
evaluate.reference_split = valid; evaluate.reference_images = 0 -> evaluate.metrics: no memorization, which needs evalua
evaluate.control_images = 1 -> evaluate.control_images: 0, or 6 or more for density-coverage
evaluate.interval_splits = 3 -> evaluate.interval_splits: 0, or 10 to 1000
evaluate.reference_images = 1 -> evaluate.kid_subset_size: at most evaluate.reference_images, 1
evaluate.kid_subset_size = 2001 -> evaluate.kid_subset_size: at most evaluate.num_images, 2000
evaluate.held_out_split = train -> evaluate.held_out_split: expected valid | test
train.device = cpu; train.precision = fp16 -> train.precision: fp16 needs cuda
sample.device = cpu; sample.precision = fp16 -> sample.precision: fp16 needs cuda
train.ema_more_half_lives = [10000, 5000] -> train.ema_more_half_lives: others than
train.ema_more_half_lives = [2000, 2000] -> train.ema_more_half_lives: whose values differ
train.ema_profiles = [0.1, 0.1] -> train.ema_profiles: whose values differ
SUB_VP; diffusion.objective = p2; diffusion.p2_k = 1.0e+12 -> diffusion.parameterization: a few draws would decide every
diffusion.huber_scale = 1.0e-9 -> diffusion.huber_scale: 0, or a number in [0.0001, 100]
SUB_VP; diffusion.objective = p2; diffusion.p2_gamma = 0.1 -> diffusion.parameterization: a few draws would decide every
diffusion.huber_scale = 0.1; diffusion.objective = likelihood -> diffusion.huber_scale: 0 with train.diffusion.objective
SQUARED; diffusion.noise_candidates = 2; diffusion.objective = likelihood -> diffusion.noise_candidates: 1 with train.di
SQUARED; diffusion.difference_weight = 2.0; diffusion.objective = likelihood -> diffusion.difference_weight: 0 with trai
train.ema_profiles = [] -> train.snapshot_every_images: 0, because train.ema_profiles is empty
train.augment = 0.1; train.horizontal_flip = true -> train.horizontal_flip: false with train.augment
train.snapshot_every_images = 1 -> train.snapshot_every_images: at least train.batch_size
sample.weights = half-life:50; train.ema_rampup = 0.0 -> sample.weights: train.ema_rampup in (0, 0.69] to make a half-li
sample.weights = emaa -> sample.weights: ema | half-life:N | power:S
sample.weights = power:0.5 -> sample.weights: S a relative standard deviation in [0.005, 0.28]
NO_PROFILES; sample.weights = power:0.1 -> sample.weights: ema, or what it is made from in train.ema_pr
NO_PROFILES; sample.weights = half-life:50; train.ema_more_half_lives = [60] -> sample.weights: ema | half-life:60, or w
train.augment = 0.15; network.noise_conditioning = none -> train.augment: 0.0 with train.network.noise_conditioning none
"""
TAKEN = r"""
VP
VP; diffusion.parameterization = x0
VP; diffusion.parameterization = x0; network.stem = 2; network.attention_resolutions = [16]
VP; sample.sampler = ddpm; sample.variance = large
VP; sample.grid = ddim-leading; sample.steps = 1000
VP; diffusion.timesteps = 500; sample.grid = ddim-trailing
EDM; diffusion.parameterization = edm
EDM
EDM; diffusion.parameterization = eps; network.stem = 1; network.attention_resolutions = [32]
EDM; diffusion.objective = flow
diffusion.parameterization = v
diffusion.parameterization = edm
diffusion.objective = simple
diffusion.objective = edm
diffusion.objective = min-snr
diffusion.objective = p2
SQUARED; diffusion.objective = likelihood
diffusion.input_perturbation = 0.1; diffusion.flow_times = uniform
diffusion.parameterization = eps; network.stem = 1; network.attention_resolutions = [32]
EVEN
sample.grid = log-linear; sample.sigma_min = 0.0001
EDM; EVEN
PLAIN
PLAIN; network.norm_groups = 24; network.norm_eps = 1.0e-5
network.noise_embedding = fourier; network.noise_conditioning = none
train.augment = 0.15; network.noise_conditioning = all
train.augment = 0.15; network.noise_conditioning = bottleneck
train.channels_last = auto
train.channels_last = true
train.channels_last = false
SUB_VP; diffusion.objective = edm
SUB_VP; diffusion.objective = min-snr
SUB_VP; diffusion.objective = p2
SUB_VP; diffusion.objective = flow
SUB_VP; diffusion.objective = simple; diffusion.parameterization = v
VE; EVEN; sample.sigma_max = 0.04; sample.sigma_min = 0.02
VP_SDE; sample.sampler = ddpm; sample.variance = large
SQUARED; VP_SDE; EVEN; diffusion.objective = likelihood; diffusion.parameterization = v
VP; EVEN; sample.sigma_min = 0.002
VP; sample.grid = ddim-trailing; sample.steps = 1
VP; sample.grid = ddim-quad
VP; sample.s_churn = 40; sample.s_tmax = 200
sample.s_churn = 40; sample.s_tmax = 1.0e+6
VP; sample.sampler = ddim; sample.s_churn = 40; sample.s_tmax = 200
network.attention_resolutions = []
ONE_HEAD
ONE_HEAD; network.attention_heads = 4
train.ema_half_life_images = 0
train.ema_more_half_lives = [50000]; train.ema_rampup = 0.0
sample.weights = power:0.075
sample.weights = half-life:3000
NO_PROFILES; sample.weights = half-life:3000; train.ema_more_half_lives = [3000]
evaluate.reference_images = 0
evaluate.reference_images = 9000
evaluate.num_images = 2500; sample.num_samples = 2500
download.source = celeba; sample.num_samples = 50000; evaluate.num_images = 50000; evaluate.reference_images = 162770
download.source = celeba; preprocess.image_size = 32
download.source = folder; download.folder.path = photos; preprocess.protocol = squash
train.precision = fp16; sample.device = cuda; sample.precision = fp16
train.preview_every_images = 0; train.checkpoint_every_images = 0; train.warmup_images = 0
"""


def test_what_cannot_work_is_shown_with_what_can() -> None:
    wrong = []
    for row in REFUSED.strip().split("\n"):
        changes, expected = row.split(" -> ")
        key, _, words = expected.partition(": ")
        message = refusal(dumped(made(changes)))
        if not (f": {full(key)}: found " in message and words in message):
            wrong.append((row, message))
    assert not wrong


def test_what_works_is_taken() -> None:
    for row in TAKEN.strip().split("\n"):
        Params.model_validate(made(row))


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(changed(preprocess__protocol="x" * 10_000))) < 200


def test_nearest_is_none_for_what_resembles_nothing() -> None:
    assert nearest("heun2", ["ddpm", "ddim", "heun"]) == "heun"
    assert nearest("qqqq", ["ddpm", "ddim", "heun"]) is None


@settings(max_examples=15, deadline=None)
@given(
    faces=st.integers(100, 20_000),
    valid=st.integers(1, 49),
    test=st.integers(1, 49),
    protocol=st.sampled_from(["squash", "adm-ip"]),
)
def test_split_sizes_are_those_that_the_cartoon_source_draws(faces: int, valid: int, test: int, protocol: str) -> None:
    split = {"train": 1 - (valid + test) / 100, "valid": valid / 100, "test": test / 100}
    text = changed(
        download__split=split,
        download__cartoon__num_faces=faces,
        preprocess__protocol=protocol,
        evaluate__reference_images=0,
    )
    sizes = dict(zip(SPLITS, split_counts(faces, split), strict=True))
    if protocol == "adm-ip":
        sizes["train"] = faces
    if (smallest := min(sizes["train"], sizes["test"])) < VALUES["evaluate"]["kid_subset_size"]:
        assert f"evaluate.kid_subset_size: found 1000, expected at most {smallest}, " in refusal(text)
    else:
        assert parse_params(text, "params.yaml").split_sizes() == sizes


@settings(max_examples=15, deadline=None)
@given(
    image_size=st.integers(8, 96),
    stem=st.sampled_from([1, 2, 3, 4]),
    channels=st.sampled_from([16, 32, 48, 64]),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    attention=st.lists(st.sampled_from([2, 4, 8, 16, 24]), max_size=2),
    head=st.sampled_from([0, 16, 32, 64]),
    middle=st.booleans(),
)
def test_a_network_is_taken_if_it_can_be_built_and_run(
    image_size: int,
    stem: int,
    channels: int,
    multipliers: list[int],
    attention: list[int],
    head: int,
    middle: bool,
) -> None:
    network = VALUES["train"]["network"] | {
        "stem": stem,
        "channels": channels,
        "channel_multipliers": multipliers,
        "blocks": 1,
        "attention_resolutions": attention,
        "attention_head_channels": head,
        "middle_attention": middle,
    }
    text = changed(preprocess__image_size=image_size, train__network=network)
    sides = [image_size // stem // 2**level for level in range(len(multipliers))]
    widths = [channels * multiplier for multiplier in multipliers]
    attending = [width for width, side in zip(widths, sides, strict=True) if side in attention]
    attending += widths[-1:] if middle else []
    works = image_size % (stem * 2 ** (len(multipliers) - 1)) == 0 and sides[-1] > 1
    works = works and set(attention) <= set(sides) and channels % 32 == 0
    if not works or (head and any(width % head for width in attending)):
        refusal(text)
        return
    params = parse_params(text, "params.yaml")
    with torch.device("meta"):
        net = UNet(UNetConfig(image_size=image_size, **params.train.network.model_dump()))
        images = torch.empty(1, 3, image_size, image_size)
        assert net(images, torch.empty(1)).shape == images.shape
    assert list(params.train.network.resolutions(image_size)) == sides


def test_the_sigmas_of_every_path_are_those_of_the_path_itself() -> None:
    for path in get_args(PathName):
        diffusion = Diffusion(path=path, objective="flow", timesteps=700, cosine_offset=0.01, beta_max=18.0)
        assert diffusion.sigma_range() == build_path(diffusion).sigma_range()


def test_every_path_goes_with_every_parameterization_and_with_the_objectives_that_it_has_ends_for() -> None:
    taken = 0
    for path, parameterization, objective in product(
        get_args(PathName), get_args(ParameterizationName), get_args(ObjectiveName)
    ):
        parts = {"path": path, "parameterization": parameterization, "objective": objective}
        values = (
            VALUES["train"]["diffusion"] | parts | {"huber_scale": 0.0, "difference_weight": 0.0, "noise_candidates": 1}
        )
        try:
            config = Diffusion.model_validate(values)
        except ValidationError as error:
            (problem,) = error.errors()[0]["ctx"]["problems"]
            reason = "which has no ends" if path == "edm" else "a few draws would decide every step"
            assert reason in problem.expected
            continue
        build_objective(config)
        build_parameterization(config)
        taken += 1
    assert taken == 7 * 5 * 6 + 5 * 2 - 2  # x0 on sub-vp with simple and likelihood


def test_ema_decay_halves_the_weight_of_the_past_in_one_half_life() -> None:
    train = load_params(SHIPPED).train
    steps = train.ema_half_life_images / train.batch_size
    assert train.ema_decay**steps == pytest.approx(0.5, rel=1e-12)
    assert train.model_copy(update={"ema_half_life_images": 0}).ema_decay == 0.0


def test_numbers_beyond_float32_are_refused() -> None:
    for key, low, high in (
        ("sample.sigma_min", 1e-8, 79.0),
        ("sample.sigma_max", 0.04, 1e8),
        ("sample.rho", 0.5, 100.0),
        ("diffusion.p_mean", -10.0, 10.0),
        ("diffusion.logit_mean", -10.0, 10.0),
        ("diffusion.p_std", 1e-3, 5.0),
        ("diffusion.logit_std", 1e-3, 5.0),
        ("diffusion.sigma_data", 1e-3, 1e3),
    ):
        for value in (low, high):
            Params.model_validate(made(f"{key} = {value!r}"))
        for beyond in ("-300.0", "1.0e+60"):
            assert f"{full(key)}: found {float(beyond)}, expected a number in" in refusal(
                dumped(made(f"{key} = {beyond}"))
            )


@pytest.mark.parametrize(
    ("objective", "mean", "std"), [("edm", "p_mean", "p_std"), ("flow", "logit_mean", "logit_std")]
)
@pytest.mark.parametrize("side", [-10.0, 10.0])
def test_the_widest_densities_give_finite_weights(objective: Any, mean: str, std: str, side: float) -> None:
    for sigma_data in (1e-3, 1e3):
        numbers: dict[str, Any] = {mean: side, std: 5.0, "sigma_data": sigma_data}
        config = Diffusion(path="edm", parameterization="edm", objective=objective, **numbers)
        built = build_objective(config)
        sigma = built.sample_sigma(10_000, torch.Generator().manual_seed(0))
        assert (sigma > 0).all() and sigma.isfinite().all()
        assert built.weight(sigma).isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    start=st.floats(-20, 20), end=st.floats(-20, 20), tau=st.floats(0.1, 10), timesteps=st.sampled_from([2, 3, 10, 100])
)
def test_any_sigmoid_is_taken_or_refused_in_one_line(start: float, end: float, tau: float, timesteps: int) -> None:
    names = {"sigmoid_start": start, "sigmoid_end": end, "sigmoid_tau": tau, "timesteps": timesteps}
    values = VALUES["train"]["diffusion"] | {"path": "vp-sigmoid", "parameterization": "v"} | names
    try:
        least, greatest = Diffusion.model_validate(values).sigma_range()
    except ValidationError as error:
        assert {entry["type"] for entry in error.errors()} == {"combination"}
        return
    assert 1e-8 <= least < greatest <= 1e8


# Properties: whatever is wrong, one line that names the key

# Without the line breaks of other alphabets, which ruamel.yaml does not write as it reads them.
NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=30) | st.integers()
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
NUMBERS = st.integers() | st.floats()
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    WORDS,
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(WORDS, NUMBERS, max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(key=st.sampled_from([*LEAVES, *SECTIONS]), name=NAMES)
def test_a_renamed_key_is_named(key: tuple[str, ...], name: str | int) -> None:
    values = copy.deepcopy(VALUES)
    section = parent(values, key)
    if name in section:
        return
    section[name] = section.pop(key[-1])
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name))
    expected = f": {'.'.join((*key[:-1], shown))}: unknown key, did you mean {'.'.join(key)}?"
    assert refusal(dumped(values)).endswith(expected)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value has the type of a field, whatever its range."""
    if get_origin(annotation) is not None and get_origin(annotation) is not tuple:
        options = get_args(annotation)
        return value in options if isinstance(options[0], str) else value is None or isinstance(value, str)
    if get_origin(annotation) is tuple:
        return isinstance(value, list)
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(key=st.sampled_from(list(LEAVES)), value=ANYTHING)
def test_a_value_of_the_wrong_type_is_named(key: tuple[str, ...], value: Any) -> None:
    values = copy.deepcopy(VALUES)
    parent(values, key)[key[-1]] = value
    text = dumped(values)
    if fits(value, LEAVES[key].annotation):
        try:  # the right type: taken, or refused for its range or for what it does not go with
            parse_params(text, "params.yaml")
        except UnveilError as error:
            assert str(error).isprintable()
        return
    message = refusal(text)
    assert f": {'.'.join(key)}: found " in message
    assert " expected " in message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_taken_or_refused_in_one_line(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TEXT)))
    length = data.draw(st.integers(0, 40))
    scrap = data.draw(
        st.text(max_size=8) | st.sampled_from(["[", "{", "'", '"', "&a", "*a", "!!int x", "- ", ": ", "|"])
    )
    try:
        parse_params(TEXT[:start] + scrap + TEXT[start + length :], "params.yaml")
    except UnveilError as error:
        assert str(error).isprintable()
        assert str(error).startswith("params.yaml")


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    refusal(text)


def test_what_is_larger_or_deeper_than_any_parameters_is_refused_at_once() -> None:
    names = "abcdefghi"
    laughs = "a: &a [x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(names)
    )
    started = time.monotonic()
    for text, words in {
        laughs: "found more than 10,000 values, each alias replaced by what it stands for",
        "a: &a [*a]": "found more than 16 levels",
        "a: " + "[" * 1000 + "]" * 1000: "found more than 16 levels",
        "a: " + "{a: " * 100_000: "found more than 16 levels",
        "- " * 5000: "found more than 16 levels",
    }.items():
        with pytest.raises(UnveilError, match=words):
            parse_params(text, "params.yaml")
    assert time.monotonic() - started < 10


def test_a_file_of_parameters_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UnveilError, match=r"params.yaml: found 1,048,577 bytes, expected at most 1,048,576"):
        load_params(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnveilError, match=r"params.yaml: found a pipe, expected a regular file"):
        load_params(path)


def test_numbers_that_no_file_between_the_stages_could_hold_are_refused(repository: Path) -> None:
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    for key, number in (("max_minutes", "1e308"), ("log_every_images", str(2**64))):
        changed = re.sub(rf"^(  {key}:) \S+", rf"\g<1> {number}", text, flags=re.MULTILINE)
        with pytest.raises(UnveilError, match=rf"p: train\.{key}: found .*, expected a number of at most 64 bits"):
            parse_params(changed, "p")


def test_anchors_that_stay_small_are_read(repository: Path) -> None:
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    assert parse_params(text.replace("seed: 0 ", "seed: &seed 0 ", 1).replace("seed: 0 ", "seed: *seed ", 1), "")
