"""params.yaml's schema: what it takes, what it refuses, and in which words."""

import copy
import json
import math
import os
import re
import time
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from unveil import params as schema
from unveil.data.celeba import SPLITS
from unveil.data.sources.cartoon import split_counts
from unveil.diffusion.choices import ObjectiveName, ParameterizationName, PathName
from unveil.diffusion.design import Diffusion, build_objective, build_parameterization, build_path
from unveil.errors import UnveilError
from unveil.networks.unet import UNet, UNetConfig
from unveil.params import Params, flatten, load_params, nearest, parse_params

SHIPPED = Path(__file__).parents[1] / "params.yaml"

# The shipped values, with those that the cases below rely on: tuning the demo must not break them.
VALUES: dict[str, Any] = YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8"))
VALUES["download"] |= {"source": "cartoon", "split": {"train": 0.72, "valid": 0.12, "test": 0.16}}
VALUES["download"]["cartoon"] |= {"num_faces": 12_500}
VALUES["preprocess"] |= {"protocol": "score-sde", "image_size": 64}
VALUES["train"] |= {"images": 64_000, "batch_size": 32, "lr": 5e-4, "warmup_images": 3200}
VALUES["train"]["network"] |= {
    "stem": 4,
    "channels": 128,
    "channel_multipliers": [1, 2],
    "attention_resolutions": [8],
    "attention_head_channels": 64,
}
VALUES["train"]["diffusion"] |= {"path": "flow", "parameterization": "x0", "objective": "flow"}
VALUES["sample"] |= {
    "num_samples": 2000,
    "sampler": "heun",
    "steps": 18,
    "grid": "karras",
    "variance": "small",
}
VALUES["sample"] |= {"sigma_min": 0.03, "sigma_max": 80.0, "grid_rows": 8, "grid_columns": 12}
VALUES["evaluate"] |= {"num_images": 2000, "reference_split": "train", "held_out_split": "test"}
VALUES["evaluate"] |= {"reference_images": 2000, "kid_subset_size": 1000}


def leaves(section: type[BaseModel] = Params, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every key below which there is no section, with its field."""
    found: dict[tuple[str, ...], Any] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= leaves(inner, (*prefix, name))
        else:
            found[(*prefix, name)] = field
    return found


LEAVES = leaves()
SECTIONS = sorted({key[:depth] for key in LEAVES for depth in range(1, len(key))})


PARTS = {part for key in LEAVES for part in key}


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


TEXT = dumped(VALUES)


def parent(values: dict[str, Any], key: Sequence[str]) -> dict[Any, Any]:
    for part in key[:-1]:
        values = values[part]
    return values


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


def test_flatten_of_a_section_leaves_its_own_name_out() -> None:
    params = load_params(SHIPPED)
    flat = flatten(params)
    assert flatten(params.sample) == {
        key.removeprefix("sample."): value for key, value in flat.items() if key.startswith("sample.")
    }
    assert flat["train.network.channel_multipliers"] == json.dumps(
        list(params.train.network.channel_multipliers)
    ).replace(" ", "")


def test_flatten_writes_a_path_as_text() -> None:
    params = parse_params(changed(download__folder__path="some/photos"), "params.yaml")
    assert params.download.folder.path == Path("some/photos")
    assert flatten(params)["download.folder.path"] == "some/photos"


@pytest.mark.parametrize("number", ["2e-4", "2E-4", "2.0e-4", ".0002", "0.0002", "+2e-4"])
def test_every_way_to_write_a_number_is_a_number(number: str) -> None:
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


def test_every_key_is_required_and_described() -> None:
    for key, field in LEAVES.items():
        assert field.is_required(), key
        assert field.description, key
        assert field.description.isprintable(), key


def test_every_number_has_a_range() -> None:
    unbounded = {key[-1] for key, field in LEAVES.items() if field.annotation in (int, float) and not field.metadata}
    assert unbounded == set()


# Keys and files


def test_an_unknown_key_names_the_nearest() -> None:
    message = refusal(TEXT.replace("  lr:", "  lrr:"))
    line = 1 + TEXT.splitlines().index(next(row for row in TEXT.splitlines() if row.startswith("  lr:")))
    assert message == f"params.yaml:{line}: train.lrr: unknown key, did you mean train.lr?"


@pytest.mark.parametrize(
    ("changes", "suggestion"),
    [
        ({"lr": 1e-4}, "train.lr"),
        ({"sampl": {}}, "sample"),
        ({"train__steps": 100}, "sample.steps"),
        ({"train__epochs": 3}, None),
        ({"train__network__Channels": 3}, "train.network.channels"),
        ({"train__network__chanels": 3}, "train.network.channels"),
        ({"evaluate__num_sampels": 3}, "sample.num_samples"),
    ],
)
def test_a_key_that_is_one_too_many(changes: dict[str, Any], suggestion: str | None) -> None:
    message = refusal(changed(**changes))
    (dotted,) = changes
    assert f": {dotted.replace('__', '.')}: unknown key" in message
    if suggestion is None:
        assert "expected seed, device, loader" in message
    else:
        assert message.endswith(f"did you mean {suggestion}?")


def test_a_missing_key_is_named_with_what_belongs_there() -> None:
    """One key of every type and range in each section; that all keys are required is seen above."""
    wrong, kinds = {}, {(key[:-1], str((field.annotation, field.metadata))): key for key, field in LEAVES.items()}
    for key in kinds.values():
        values = copy.deepcopy(VALUES)
        del parent(values, key)[key[-1]]
        message = refusal(dumped(values))
        if f": {'.'.join(key)}: missing, expected " not in message or LEAVES[key].description not in message:
            wrong[key] = message
    assert not wrong


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


@pytest.mark.parametrize("name", ["lrr", "learning_rate"])
def test_a_renamed_key_is_one_mistake(name: str) -> None:
    message = refusal(TEXT.replace("  lr:", f"  {name}:"))
    assert message.endswith(f": train.{name}: unknown key, did you mean train.lr?")


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_said_to_be_empty(text: str) -> None:
    assert "empty" in refusal(text) or "no mapping" in refusal(text)


@pytest.mark.parametrize("text", ["- 1\n", "3\n", "null\n", "text\n"])
def test_a_file_without_a_mapping(text: str) -> None:
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


# Values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__lr": -0.1}, "found -0.1, expected a number in (0, 1]"),
        ({"train__lr": "2e-4"}, 'found "2e-4", expected a number in (0, 1]; remove the quotes'),
        ({"train__lr": True}, "found true, expected a number in (0, 1]"),
        ({"train__lr": math.nan}, "found NaN, expected a number in (0, 1]"),
        ({"train__images": 2e6}, "found 2000000.0, expected a whole number >= 1; write 2000000"),
        ({"train__images": True}, "found true, expected a whole number >= 1"),
        ({"train__images": None}, "found null, expected a whole number >= 1"),
        ({"train__horizontal_flip": "yes"}, 'found "yes", expected true | false'),
        ({"train__horizontal_flip": 1}, "found 1, expected true | false"),
        ({"train__channels_last": 1}, "found 1, expected auto | true | false"),
        ({"train__channels_last": "atuo"}, "expected auto | true | false; did you mean auto?"),
        ({"train__augment": 1.5}, "expected a number in [0, 1]"),
        ({"train__betas": [0.9, 1.0]}, "found [0.9, 1.0], expected a list of 2 numbers in [0, 1)"),
        ({"train__betas": [0.9]}, "found [0.9], expected a list of 2 numbers in [0, 1)"),
        ({"train__betas": 0.9}, "found 0.9, expected a list of 2 numbers in [0, 1)"),
        (
            {"train__network__channel_multipliers": []},
            "expected a list of whole numbers in [1, 64], not empty, at most 12",
        ),
        ({"train__network__dropout": 1}, "found 1, expected a number in [0, 1)"),
        ({"sample__weights": ["ema"]}, "expected ema | half-life:N | power:S"),
        ({"download__celeba__path": 3}, "found 3, expected a path or null"),
        ({"download__celeba__path": ""}, 'found "", expected a path or null'),
        ({"sample__eta": 1.5}, "found 1.5, expected a number in [0, 1]"),
        ({"sample__sampler": "Huen"}, "dpmpp-2m-sde | rk45; did you mean heun?"),
        ({"preprocess__protocol": "score_sde"}, "did you mean score-sde?"),
        ({"preprocess__protocol": "?"}, "expected ddim | score-sde | score-sde-tf | gan | adm-ip | squash"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(changes: dict[str, Any], words: str) -> None:
    (dotted,) = changes
    message = refusal(changed(**changes))
    assert f": {dotted.replace('__', '.')}: " in message
    assert message.endswith(words)


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(changed(preprocess__protocol="x" * 10_000))) < 200


def test_nearest_is_none_for_what_resembles_nothing() -> None:
    assert nearest("heun2", ["ddpm", "ddim", "heun"]) == "heun"
    assert nearest("qqqq", ["ddpm", "ddim", "heun"]) is None


# Combinations

VP = {
    "train__network__stem": 1,
    "train__diffusion__path": "vp-linear",
    "train__diffusion__parameterization": "eps",
    "train__diffusion__objective": "simple",
    "train__network__attention_resolutions": [32],
}
EDM = {"train__diffusion__path": "edm", "train__diffusion__objective": "edm"}
SUB_VP = {"train__diffusion__path": "sub-vp"}
VP_SDE = {"train__diffusion__path": "vp-sde"}
SQUARED = {
    "train__diffusion__huber_scale": 0.0,
    "train__diffusion__difference_weight": 0.0,
    "train__diffusion__noise_candidates": 1,
}
VE = {"train__diffusion__path": "ve", "sample__sigma_max": 40}
ONE_HEAD = {"train__network__attention_head_channels": 0}
EVEN = {"sample__grid": "uniform-t"}
NO_PROFILES = {"train__ema_profiles": [], "train__snapshot_every_images": 0}
PLAIN = {
    "train__network__architecture": "plain",
    "train__network__blocks": 1,
    "train__network__attention_resolutions": [],
    "train__network__middle_attention": False,
    "train__network__refinement_channels": 0,
}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"preprocess__image_size": 60}, "preprocess.image_size", "a multiple of 8"),
        ({"preprocess__image_size": 60}, "preprocess.image_size", "nearest: 56 or 64"),
        ({"preprocess__image_size": 9}, "preprocess.image_size", "nearest: 8 or 16"),
        (
            {"preprocess__image_size": 8, "train__network__attention_resolutions": []},
            "train.network.channel_multipliers",
            "fewer of them: 2 leave a single pixel",
        ),
        (
            {"train__network__channel_multipliers": [1] * 9, "train__network__stem": 2},
            "preprocess.image_size",
            "a multiple of 512",
        ),
        ({"train__network__attention_resolutions": [32]}, "train.network.attention_resolutions", "16 | 8 "),
        (
            {"train__network__attention_head_channels": 96},
            "train.network.attention_head_channels",
            "divisor of",
        ),
        (
            ONE_HEAD | {"train__network__attention_heads": 3},
            "train.network.attention_heads",
            "0 or a divisor of 256, the",
        ),
        ({"train__network__attention_heads": 4}, "train.network.attention_heads", "attention_head_channels 0: one"),
        ({"train__network__channels": 40}, "train.network.channels", "a multiple of 32"),
        ({"train__network__norm_groups": 24}, "train.network.norm_groups", "a divisor of train.network.channels, 128"),
        (
            {"train__network__noise_embedding": "fourier"},
            "train.network.noise_embedding",
            "ddpm | adm for train.diffusion.path flow",
        ),
        *(
            (PLAIN | {f"train__network__{key}": value}, f"train.network.{key}", f"expected {expected}, because")
            for key, value, expected in (
                ("blocks", 2, "1"),
                ("attention_resolutions", [8], "[]"),
                ("middle_attention", True, "false"),
                ("dropout", 0.1, "0.0"),
                ("scale_shift_norm", True, "false"),
                ("resampling", "residual", "conv"),
                ("progressive_input", True, "false"),
                ("skip_rescale", True, "false"),
            )
        ),
        *(
            (SUB_VP | {"train__diffusion__objective": objective}, "train.diffusion.parameterization", "eps | v | edm")
            for objective in ("simple", "likelihood")
        ),
        (
            VP | {"train__diffusion__parameterization": "x0", "train__diffusion__beta_start": 1e-7},
            "train.diffusion.parameterization",
            "whose sigma starts at 0.000316",
        ),
        (
            SUB_VP | {"train__diffusion__objective": "flow", "train__diffusion__beta_min": 1e-4},
            "train.diffusion.beta_min",
            "1e-08",
        ),
        (VP | {"train__diffusion__beta_start": 1e-20}, "train.diffusion.beta_start", "1e-08"),
        (VE | {"train__diffusion__sigma_min": 1e-9}, "train.diffusion.sigma_min", "1e-08"),
        *(
            (
                {"train__diffusion__path": "vp-sigmoid", "train__diffusion__sigmoid_end": end},
                "train.diffusion.sigmoid_end",
                "above sigmoid_start, -3",
            )
            for end in (-3.0, -4.0)
        ),
        (
            VE | {"train__diffusion__sigma_min": 1.0, "sample__sigma_min": 0.1, "sample__sigma_max": 0.5} | EVEN,
            "sample.sigma_max",
            "in [1, 100]",
        ),
        (VE | {"train__diffusion__sigma_min": 1.0, "sample__sigma_max": 1.0} | EVEN, "sample.sigma_max", "above the"),
        (VP | {"sample__sigma_min": 0.002, "sample__sigma_max": 0.005} | EVEN, "sample.sigma_max", "in [0.01, 157]"),
        ({"train__batch_size": 64_001}, "train.batch_size", "at most train.images, 64000"),
        ({"train__warmup_images": 64_001}, "train.warmup_images", "at most train.images, 64000"),
        ({"download__split__train": 0.71}, "download.split", "sum to 0.99"),
        ({"download__source": "folder"}, "download.folder.path", "the folder of images"),
        (
            {"download__source": "folder", "download__folder__path": "x", "preprocess__protocol": "gan"},
            "preprocess.protocol",
            "adm-ip | squash",
        ),
        *(
            (
                {"train__diffusion__path": "edm", "train__diffusion__objective": objective},
                "train.diffusion.objective",
                f"expected edm | flow on path edm, which has no ends between which {objective} could draw evenly",
            )
            for objective in ("simple", "likelihood", "min-snr", "p2")
        ),
        ({"train__diffusion__parameterization": "velocity"}, "train.diffusion.parameterization", "needs stem 1"),
        ({"train__diffusion__sigmoid_end": -3.0}, "train.diffusion.sigmoid_end", "above sigmoid_start, -3"),
        ({"train__diffusion__beta_max": 0.1}, "train.diffusion.beta_max", "above beta_min, 0.1"),
        (
            {"train__diffusion__path": "vp-sigmoid", "train__diffusion__sigmoid_tau": 0.1},
            "train.diffusion.sigmoid_tau",
            "a number with which sigma stays in [1e-08, 1e+08] on path vp-sigmoid",
        ),
        (
            {"train__diffusion__path": "sub-vp", "train__diffusion__beta_max": 100.0},
            "train.diffusion.beta_max",
            "1e+08",
        ),
        (VP | {"train__diffusion__beta_end": 0.9}, "train.diffusion.beta_end", "1e+08"),
        ({"evaluate__likelihood_images": 1}, "evaluate.likelihood_images", "a single image has no standard error"),
        (
            {"evaluate__likelihood_images": 2001},
            "evaluate.likelihood_images",
            "at most 2000, the images that download.source cartoon has in split test",
        ),
        ({"train__diffusion__parameterization": "eps"}, "train.diffusion.parameterization", "2511.13720"),
        (VP | {"train__network__stem": 2}, "train.diffusion.parameterization", "eps needs stem 1"),
        ({"train__diffusion__beta_end": 1e-4}, "train.diffusion.beta_end", "above beta_start, 0.0001"),
        ({"sample__grid": "ddim-leading"}, "sample.grid", "uniform-t for train.diffusion.path flow, whose time is"),
        (EDM | {"sample__grid": "ddim-trailing"}, "sample.grid", "karras | log-linear | uniform-t for train"),
        (VP | {"sample__grid": "ddim-leading", "sample__steps": 1}, "sample.steps", "t = 0, where there is no noise"),
        *(
            (VP | {"sample__grid": f"ddim-{name}", "sample__steps": 1}, "sample.steps", "2 or more on sample.grid")
            for name in ("linspace", "quad")
        ),
        ({"sample__sampler": "rk45", "sample__steps": 1}, "sample.steps", "2 or more: sampler rk45"),
        ({"sample__s_tmin": 51.0}, "sample.s_tmin", "a number up to sample.s_tmax, 50"),
        (
            VP | {"sample__s_churn": 40, "sample__s_tmax": 200, "sample__sigma_max": 150},
            "sample.s_tmax",
            "at most 111: s_churn raises sigma 1.41 times, and vp-linear ends at 157",
        ),
        (
            VP | {"sample__s_churn": 40, "sample__s_tmax": 200, "sample__grid": "ddim-trailing"},
            "sample.s_tmax",
            "vp-linear ends at 157",
        ),
        (VP | {"sample__grid": "ddim-linspace", "sample__steps": 1001}, "sample.steps", "timesteps, 1000"),
        (
            {"sample__sampler": "ddpm", "sample__variance": "large"},
            "sample.variance",
            "only vp-linear, vp-cosine, vp-sigmoid, vp-sde have betas",
        ),
        (VP | {"sample__sigma_min": 0.002, "sample__grid": "log-linear"}, "sample.sigma_min", "in [0.01, 157]"),
        (VP | {"sample__sigma_max": 160, "sample__grid": "uniform-t"}, "sample.sigma_max", "in [0.01, 157]"),
        (VP | {"sample__sigma_min": 0.002}, "sample.sigma_min", "in [0.01, 157]"),
        (VP | {"train__diffusion__timesteps": 500}, "sample.sigma_max", "in [0.01, 12.5]"),
        ({"sample__sigma_min": 80}, "sample.sigma_min", "below sample.sigma_max, 80"),
        ({"sample__grid_rows": 1000}, "sample.grid_rows", "1000 x 12 = 12000"),
        ({"sample__num_samples": 1999}, "evaluate.num_images", "at most sample.num_samples, 1999"),
        (
            {"evaluate__reference_images": 9001},
            "evaluate.reference_images",
            "at most 9000, the images that download.source cartoon has in split train; 0 = all",
        ),
        (
            {"download__source": "celeba", "evaluate__reference_images": 162_771},
            "evaluate.reference_images",
            "at most 162770, the images that download.source celeba has in split train",
        ),
        (
            {"download__cartoon__num_faces": 6000},
            "evaluate.kid_subset_size",
            "at most 960, the images that download.source cartoon has in split test",
        ),
        (
            {
                "evaluate__reference_split": "valid",
                "evaluate__metrics": ["frechet"],
                "evaluate__reference_images": 0,
                "evaluate__kid_subset_size": 1501,
            },
            "evaluate.kid_subset_size",
            "at most 1500, the images that download.source cartoon has in split valid",
        ),
        (
            {"evaluate__reference_images": 999},
            "evaluate.kid_subset_size",
            "at most evaluate.reference_images, 999",
        ),
        ({"evaluate__features": ["clip", "clip"]}, "evaluate.features", "each name once"),
        ({"evaluate__features": ["dinov3"]}, "evaluate.features", "a list of efficientnet-lite0 | inception | dinov2"),
        ({"evaluate__features": []}, "evaluate.features", "not empty"),
        ({"evaluate__features": "inception"}, "evaluate.features", "a list of"),
        ({"evaluate__metrics": ["inception-score"]}, "evaluate.metrics", "needs inception among evaluate.features"),
        (
            {"evaluate__reference_split": "valid", "evaluate__reference_images": 0},
            "evaluate.metrics",
            "no memorization, which needs evaluate.reference_split train",
        ),
        ({"evaluate__control_images": 1}, "evaluate.control_images", "0, or 6 or more for density-coverage"),
        ({"evaluate__interval_splits": 3}, "evaluate.interval_splits", "0, or 10 to 1000"),
        ({"evaluate__reference_images": 1}, "evaluate.kid_subset_size", "at most evaluate.reference_images, 1"),
        (
            {"evaluate__kid_subset_size": 2001},
            "evaluate.kid_subset_size",
            "at most evaluate.num_images, 2000",
        ),
        ({"evaluate__held_out_split": "train"}, "evaluate.held_out_split", "expected valid | test"),
        ({"train__device": "cpu", "train__precision": "fp16"}, "train.precision", "fp16 needs cuda"),
        ({"sample__device": "cpu", "sample__precision": "fp16"}, "sample.precision", "fp16 needs cuda"),
        ({"train__ema_more_half_lives": [10_000, 5000]}, "train.ema_more_half_lives", "others than"),
        ({"train__ema_more_half_lives": [2000, 2000]}, "train.ema_more_half_lives", "whose values differ"),
        ({"train__ema_profiles": [0.1, 0.1]}, "train.ema_profiles", "whose values differ"),
        (
            SUB_VP | {"train__diffusion__objective": "p2", "train__diffusion__p2_k": 1e12},
            "train.diffusion.parameterization",
            "a few draws would decide every step",
        ),
        ({"train__diffusion__huber_scale": 1e-9}, "train.diffusion.huber_scale", "0, or a number in [0.0001, 100]"),
        (
            SUB_VP | {"train__diffusion__objective": "p2", "train__diffusion__p2_gamma": 0.1},
            "train.diffusion.parameterization",
            "a few draws would decide every step",
        ),
        (
            {"train__diffusion__huber_scale": 0.1, "train__diffusion__objective": "likelihood"},
            "train.diffusion.huber_scale",
            "0 with train.diffusion.objective likelihood",
        ),
        (
            {"train__diffusion__noise_candidates": 2, "train__diffusion__objective": "likelihood"}
            | {"train__diffusion__huber_scale": 0.0, "train__diffusion__difference_weight": 0.0},
            "train.diffusion.noise_candidates",
            "1 with train.diffusion.objective likelihood",
        ),
        (
            {"train__diffusion__difference_weight": 2.0, "train__diffusion__objective": "likelihood"}
            | {"train__diffusion__huber_scale": 0.0, "train__diffusion__noise_candidates": 1},
            "train.diffusion.difference_weight",
            "0 with train.diffusion.objective likelihood",
        ),
        ({"train__ema_profiles": []}, "train.snapshot_every_images", "0, because train.ema_profiles is empty"),
        ({"train__augment": 0.1, "train__horizontal_flip": True}, "train.horizontal_flip", "false with train.augment"),
        ({"train__snapshot_every_images": 1}, "train.snapshot_every_images", "at least train.batch_size"),
        (
            {"sample__weights": "half-life:50", "train__ema_rampup": 0.0},
            "sample.weights",
            "train.ema_rampup in (0, 0.69] to make a half-life with",
        ),
        ({"sample__weights": "emaa"}, "sample.weights", "ema | half-life:N | power:S"),
        ({"sample__weights": "power:0.5"}, "sample.weights", "S a relative standard deviation in [0.005, 0.28]"),
        (
            NO_PROFILES | {"sample__weights": "power:0.1"},
            "sample.weights",
            "ema, or what it is made from in train.ema_pr",
        ),
        (
            NO_PROFILES | {"sample__weights": "half-life:50", "train__ema_more_half_lives": [60]},
            "sample.weights",
            "ema | half-life:60, or what it is made from in train.ema_more_half_lives",
        ),
        (
            {"train__augment": 0.15, "train__network__noise_conditioning": "none"},
            "train.augment",
            "0.0 with train.network.noise_conditioning none",
        ),
    ],
)
def test_a_combination_that_cannot_work(changes: dict[str, Any], key: str, words: str) -> None:
    message = refusal(changed(**changes))
    assert f": {key}: found " in message
    assert words in message


@pytest.mark.parametrize(
    "changes",
    [
        VP,
        VP | {"train__diffusion__parameterization": "x0"},
        VP | {"train__diffusion__parameterization": "x0", "train__network__stem": 2},
        VP | {"sample__sampler": "ddpm", "sample__variance": "large"},
        VP | {"sample__grid": "ddim-leading", "sample__steps": 1000},
        VP | {"train__diffusion__timesteps": 500, "sample__grid": "ddim-trailing"},
        EDM | {"train__diffusion__parameterization": "edm"},
        EDM,
        EDM | {"train__diffusion__parameterization": "eps", "train__network__stem": 1},
        EDM | {"train__diffusion__objective": "flow"},
        *({"train__diffusion__parameterization": name} for name in ("v", "edm")),
        *({"train__diffusion__objective": name} for name in ("simple", "edm", "min-snr", "p2")),
        {"train__diffusion__objective": "likelihood"} | SQUARED,
        {"train__diffusion__input_perturbation": 0.1, "train__diffusion__flow_times": "uniform"},
        {"evaluate__likelihood_images": 2000},
        {"train__diffusion__parameterization": "eps", "train__network__stem": 1},
        {"sample__grid": "uniform-t"},
        {"sample__grid": "log-linear", "sample__sigma_min": 1e-4},
        EDM | {"sample__grid": "uniform-t"},
        PLAIN,
        PLAIN | {"train__network__norm_groups": 24, "train__network__norm_eps": 1e-5},
        {"train__network__noise_embedding": "fourier", "train__network__noise_conditioning": "none"},
        *({"train__augment": 0.15, "train__network__noise_conditioning": name} for name in ("all", "bottleneck")),
        *({"train__channels_last": value} for value in ("auto", True, False)),
        *(SUB_VP | {"train__diffusion__objective": name} for name in ("edm", "min-snr", "p2", "flow")),
        SUB_VP | {"train__diffusion__objective": "simple", "train__diffusion__parameterization": "v"},
        VE | {"sample__sigma_max": 0.04} | EVEN | {"sample__sigma_min": 0.02},
        VP_SDE | {"sample__sampler": "ddpm", "sample__variance": "large"},
        VP_SDE
        | EVEN
        | {"train__diffusion__objective": "likelihood", "train__diffusion__parameterization": "v"}
        | SQUARED,
        VP | {"sample__grid": "uniform-t", "sample__sigma_min": 0.002},
        VP | {"sample__grid": "ddim-trailing", "sample__steps": 1},
        VP | {"sample__grid": "ddim-quad"},
        VP | {"sample__s_churn": 40, "sample__s_tmax": 200},
        {"sample__s_churn": 40, "sample__s_tmax": 1e6},
        VP | {"sample__sampler": "ddim", "sample__s_churn": 40, "sample__s_tmax": 200},
        {"train__network__attention_resolutions": []},
        ONE_HEAD,
        ONE_HEAD | {"train__network__attention_heads": 4},
        {"train__ema_half_life_images": 0},
        {"train__ema_more_half_lives": [50_000], "train__ema_rampup": 0.0},
        {"sample__weights": "power:0.075"},
        {"sample__weights": "half-life:3000"},  # from the snapshots
        NO_PROFILES | {"sample__weights": "half-life:3000", "train__ema_more_half_lives": [3000]},
        {"evaluate__reference_images": 0},
        {"evaluate__reference_images": 9000},
        {"evaluate__num_images": 2500, "sample__num_samples": 2500},  # the held-out split has 2000
        {
            "download__source": "celeba",
            "sample__num_samples": 50_000,
            "evaluate__num_images": 50_000,
            "evaluate__reference_images": 162_770,
        },
        {"download__source": "celeba", "preprocess__image_size": 32},
        {"download__source": "folder", "download__folder__path": "photos", "preprocess__protocol": "squash"},
        {"train__precision": "fp16", "sample__device": "cuda", "sample__precision": "fp16"},
        {"train__preview_every_images": 0, "train__checkpoint_every_images": 0, "train__warmup_images": 0},
    ],
)
def test_a_combination_that_works(changes: dict[str, Any]) -> None:
    if changes.get("train__network__stem") == 1 and "train__network__attention_resolutions" not in changes:
        changes = changes | {"train__network__attention_resolutions": [32]}
    if changes.get("train__network__stem") == 2:
        changes = changes | {"train__network__attention_resolutions": [16]}
    Params.model_validate(altered(**changes))


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


@settings(max_examples=30, deadline=None)
@given(
    timesteps=st.integers(2, 3000),
    start=st.floats(1e-6, 1e-2),
    end=st.floats(1.1e-2, 0.9),
)
def test_the_sigmas_of_vp_linear_against_a_cumulative_product(timesteps: int, start: float, end: float) -> None:
    diffusion = load_params(SHIPPED).train.diffusion.model_copy(
        update={"path": "vp-linear", "timesteps": timesteps, "beta_start": start, "beta_end": end}
    )
    alpha_bar = np.cumprod(1 - np.linspace(start, end, timesteps, dtype=np.longdouble))
    sigmas = np.sqrt((1 - alpha_bar) / alpha_bar)
    least, greatest = diffusion.sigma_range()
    assert least == pytest.approx(float(sigmas[0]), rel=1e-9)
    if float(sigmas[-1]) < 1e100:
        assert greatest == pytest.approx(float(sigmas[-1]), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    path=st.sampled_from(get_args(PathName)),
    timesteps=st.integers(2, 2000),
    offset=st.floats(1e-3, 1),
    tau=st.floats(0.8, 10),
    beta_max=st.floats(0.2, 40),
    sigma_max=st.floats(1.1, 1e4),
)
def test_the_sigmas_of_every_path_are_those_of_the_path_itself(
    path: PathName, timesteps: int, offset: float, tau: float, beta_max: float, sigma_max: float
) -> None:
    changes = {"timesteps": timesteps, "cosine_offset": offset, "sigmoid_tau": tau, "beta_max": beta_max}
    diffusion = load_params(SHIPPED).train.diffusion.model_copy(update=changes | {"path": path, "sigma_max": sigma_max})
    built = build_path(Diffusion(**diffusion.model_dump()))
    assert diffusion.sigma_range() == pytest.approx(built.sigma_range(), rel=1e-9)


def test_every_path_goes_with_every_parameterization_and_with_the_objectives_that_it_has_ends_for() -> None:
    taken = 0
    for path, parameterization, objective in product(
        get_args(PathName), get_args(ParameterizationName), get_args(ObjectiveName)
    ):
        parts = {"path": path, "parameterization": parameterization, "objective": objective}
        values = (
            VALUES["train"]["diffusion"] | parts | {"huber_scale": 0.0, "difference_weight": 0.0, "noise_candidates": 1}
        )
        config = Diffusion(**values)
        try:
            schema.Diffusion.model_validate(values)
        except ValidationError as error:
            (problem,) = error.errors()[0]["ctx"]["problems"]
            reason = "which has no ends" if path == "edm" else "a few draws would decide every step"
            with pytest.raises(ValueError, match=reason):
                build_objective(config)
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


@pytest.mark.parametrize(
    ("key", "outside", "ends"),
    [
        ("sample__sigma_min", (1e-60, 1e60), (1e-8, 79.0)),
        ("sample__sigma_max", (1e-60, 1e60), (0.04, 1e8)),
        ("sample__rho", (0.001, 1e3), (0.5, 100.0)),
        ("train__diffusion__p_mean", (-300.0, 300.0), (-10.0, 10.0)),
        ("train__diffusion__logit_mean", (-300.0, 300.0), (-10.0, 10.0)),
        ("train__diffusion__p_std", (0.0, 300.0), (1e-3, 5.0)),
        ("train__diffusion__logit_std", (0.0, 300.0), (1e-3, 5.0)),
        ("train__diffusion__sigma_data", (1e-40, 1e40), (1e-3, 1e3)),
    ],
)
def test_numbers_beyond_float32_are_refused(key: str, outside: tuple[float, ...], ends: tuple[float, ...]) -> None:
    for value in outside:
        assert f"{key.replace('__', '.')}: found {json.dumps(value)}, expected a number in" in refusal(
            changed(**{key: value})
        )
    for value in ends:
        Params.model_validate(altered(**{key: value}))


@pytest.mark.parametrize(
    ("objective", "mean", "std"), [("edm", "p_mean", "p_std"), ("flow", "logit_mean", "logit_std")]
)
@pytest.mark.parametrize("side", [-10.0, 10.0])
def test_the_widest_densities_give_finite_weights(objective: Any, mean: str, std: str, side: float) -> None:
    for sigma_data in (1e-3, 1e3):
        numbers: dict[str, Any] = {mean: side, std: 5.0, "sigma_data": sigma_data}
        config = Diffusion("edm", "edm", objective, **numbers)
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
        least, greatest = schema.Diffusion.model_validate(values).sigma_range()
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
        "a: &a [*a]": "found more than 10,000 values",
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
