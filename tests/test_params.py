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
            text += f"{margin}{name}: {json.dumps(value).replace('NaN', '.nan').replace('Infinity', '.inf')}\n"
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
    "network.middle_attention = false; network.refinement_channels = 0; network.scale_shift_norm = false",
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


def changed(**changes: Any) -> str:
    """The values with others under dotted keys (written with __ for the dot)."""
    values = copy.deepcopy(VALUES)
    for dotted, value in changes.items():
        key = dotted.split("__")
        parent(values, key)[key[-1]] = value
    return dumped(values)


def cases(name: str) -> list[str]:
    return (Path(__file__).parent / f"params_{name}.txt").read_text(encoding="utf-8").splitlines()[1:]


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


def test_what_is_written_is_read_again() -> None:
    """Also paths that would be something else in YAML."""
    params = load_params(SHIPPED)
    params = params.replace(preprocess=params.preprocess.replace(protocol="squash"))
    for place in (
        "/data/celeba",
        "/a b/c: d",
        "/data/{x",
        "/d: [x",
        "/d #x",
        "@x",
        "%x",
        "2024-05-01",
        "null",
        "1e3",
        "é",
    ):
        path = Path(place)
        download = params.download.replace(
            source="folder",
            celeba=params.download.celeba.replace(path=path),
            folder=params.download.folder.replace(path=path, attributes=path),
        )
        changed = params.replace(download=download, evaluate=params.evaluate.replace(weights=path))
        assert parse_params(render(changed), "params.yaml") == changed, place


def test_a_retired_key_is_named_and_fmt_takes_it_out(tmp_path: Path) -> None:
    shipped = SHIPPED.read_text(encoding="utf-8")
    text = shipped.replace("\nevaluate:", "\nevaluate:\n  likelihood_images: 0\n  #", 1)
    with pytest.raises(UnveilError, match="likelihood_images: no longer a parameter: `unveil likelihood`"):
        parse_params(text, "params.yaml")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert load_params(tmp_path / "params.yaml", fill=True) == load_params(SHIPPED)


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
    first = min(range(len(rows)), key=lambda n: (not rows[n].strip().startswith(("lr:", "sampler:", "num_images:")), n))
    assert message.startswith(f"params.yaml:{first + 1}: ")
    assert message.endswith(" (and 2 more)")


def test_what_is_no_yaml_is_refused_with_its_line() -> None:
    for text in ("", "\n", "# only a comment\n", "---\n", "- 1\n", "3\n", "null\n", "text\n"):
        assert "download, preprocess, train, sample, oracle, evaluate" in refusal(text)
    line = 1 + next(n for n, row in enumerate(TEXT.splitlines()) if row.startswith("  lr:"))
    for written, place, words in (
        ("'0.0005", "", "not valid YAML"),
        ("heun: ddim", f":{line}", "not valid YAML: "),
        ("1.0e-4\n  lr: 0.0005", f":{line + 1}", f"train.lr: stands here and in line {line}; keep one"),
    ):
        message = refusal(TEXT.replace("lr: 0.0005", f"lr: {written}"))
        assert message.startswith(f"params.yaml{place}") and words in message


# Values and combinations


def test_what_cannot_work_is_shown_with_what_can() -> None:
    wrong = []
    for row in cases("refused"):
        changes, expected = row.split(" -> ")
        key, _, words = expected.partition(": ")
        message = refusal(dumped(made(changes)))
        if not (f": {full(key)}: found " in message and words in message):
            wrong.append((row, message))
    assert not wrong


def test_what_works_is_taken() -> None:
    for row in cases("taken"):
        Params.model_validate(made(row))


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(changed(preprocess__protocol="x" * 10_000))) < 200
    assert len(refusal(changed(**{"x" * 10_000: 1}))) < 300


def test_nearest_is_none_for_what_resembles_nothing() -> None:
    assert nearest("heun2", ["ddpm", "ddim", "heun"]) == "heun"
    assert nearest("qqqq", ["ddpm", "ddim", "heun"]) is None
    assert nearest("h" * 101, ["h" * 100]) is None  # which takes too long


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
    image_size: int, stem: int, channels: int, multipliers: list[int], attention: list[int], head: int, middle: bool
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


def test_the_widest_densities_give_finite_weights() -> None:
    for (objective, mean, std), side, sigma_data in product(
        (("edm", "p_mean", "p_std"), ("flow", "logit_mean", "logit_std")), (-10.0, 10.0), (1e-3, 1e3)
    ):
        numbers: dict[str, Any] = {mean: side, std: 5.0, "sigma_data": sigma_data, "objective": objective}
        built = build_objective(Diffusion(path="edm", parameterization="edm", **numbers))
        sigma = built.sample_sigma(10_000, torch.Generator().manual_seed(0))
        assert (sigma > 0).all() and sigma.isfinite().all() and built.weight(sigma).isfinite().all()


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
    st.none(), st.booleans(), NUMBERS, WORDS, st.lists(NUMBERS, max_size=3), st.dictionaries(WORDS, NUMBERS, max_size=2)
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
    if get_origin(annotation) is tuple:
        return isinstance(value, list)
    if options := get_args(annotation):
        return value in options if isinstance(options[0], str) else value is None or isinstance(value, str)
    if isinstance(value, bool) or annotation is bool:
        return isinstance(value, bool) and annotation is bool
    return isinstance(value, int if annotation is int else int | float)


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
    for name, content in {"large": b"#" * (2**20 + 1), "binary": b"train: \xff\xfe"}.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "none": "no such file",
        ".": "found a folder",
        "large": "found 1,048,577 bytes, expected at most 1,048,576",
        "binary": "found no text in UTF-8",
        "pipe": "found a pipe, expected a regular file",
    }.items():
        with pytest.raises(UnveilError, match=words) as caught:
            load_params(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_numbers_that_no_file_between_the_stages_could_hold_are_refused(repository: Path) -> None:
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    for key, number in (("max_minutes", "1e308"), ("log_every_images", str(2**64))):
        changed = re.sub(rf"^(  {key}:) \S+", rf"\g<1> {number}", text, flags=re.MULTILINE)
        with pytest.raises(UnveilError, match=rf"p: train\.{key}: found .*, expected a number of at most 64 bits"):
            parse_params(changed, "p")


def test_anchors_that_stay_small_are_read(repository: Path) -> None:
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    assert parse_params(text.replace("seed: 0 ", "seed: &seed 0 ", 1).replace("seed: 0 ", "seed: *seed ", 1), "")
