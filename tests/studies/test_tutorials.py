"""The study of mistakes: each is one change, every run is made once, and what it writes says what was run."""

import json
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from studies.__main__ import app
from studies.tutorials import (
    BASELINES,
    CASES,
    CONTROLS,
    MISTAKES,
    PIXELS,
    Budget,
    Case,
    Clock,
    Result,
    ScaledBatches,
    Setup,
    ToldPlace,
    TutorialStudy,
    chosen,
    fill_report,
    iterate,
    pixel_range,
    sampling_denoiser,
    seeds_of,
    shown,
    shrunk,
    table,
    training_parts,
    verdict,
    visited,
    write_report,
)
from torch import Tensor
from typer.testing import CliRunner

from studies import tutorials
from unveil.data.pixels import to_float
from unveil.data.shards import Shard, ShardIndex, write_shard
from unveil.diffusion import samplers
from unveil.diffusion.loss import Draws, Loss
from unveil.diffusion.objectives import Simple
from unveil.diffusion.paths import VPLinear
from unveil.errors import UnveilError
from unveil.networks.config import UNetConfig

SIDE = 8
TINY = Budget(
    network=UNetConfig(
        image_size=SIDE,
        channels=16,
        channel_multipliers=(1, 1),
        blocks=1,
        attention_resolutions=(4,),
        attention_head_channels=16,
    ),
    images=16,
    batch_size=4,
    samples=10,
    reference_images=12,
    steps=5,
    log_every_images=8,
    checkpoint_every_images=8,
)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of coloured noise, at twice the study's side."""
    folder = tmp_path_factory.mktemp("shards")
    generator = torch.Generator().manual_seed(0)
    splits: dict[str, tuple[Shard, ...]] = {}
    for split, count in (("train", 24), ("valid", 2), ("test", 10)):
        images = torch.randint(256, (count, 3, 2 * SIDE, 2 * SIDE), dtype=torch.uint8, generator=generator)
        splits[split] = (write_shard(folder, split, 0, images, torch.zeros(count, 40) > 0, torch.arange(count)),)
    _index(splits).save(folder)
    return folder


def _index(splits: dict[str, tuple[Shard, ...]]) -> ShardIndex:
    return ShardIndex.of(
        splits,
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        source="cartoon",
        protocol="ddim",
        image_size=2 * SIDE,
        attributes=("Smiling",),
    )


@pytest.fixture(autouse=True)
def small_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four numbers an image in the place of 1280, and no network: the distances' own tests have the real ones."""
    _use_small_features(monkeypatch)


def _use_small_features(patch: pytest.MonkeyPatch) -> None:
    def extract(images: Tensor, *_: Any) -> Tensor:
        x = to_float(images)
        return torch.cat([x.mean((2, 3)), x.flatten(1).std(1, keepdim=True)], 1)

    patch.setattr(tutorials, "extract", extract)
    patch.setattr(tutorials, "load_extractor", lambda name: name)


def _study(
    shards: Path, out: Path, budget: Budget = TINY, say: Callable[[str], None] = lambda line: None
) -> TutorialStudy:
    return TutorialStudy(shards, out, budget, say)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "training.json"  # it says how fast the training was
    }


def _kept(folder: Path) -> dict[str, Any]:
    """The bytes of each file but the ledger, and each point and fact of that."""
    ledger = json.loads((folder / "study.json").read_text())
    points = {f"point {point['name']}": point for point in ledger.pop("points")}
    return _bytes(folder) | points | {"study.json": ledger}


# ------------------------------------------------------------------------------------- the cases


def test_every_mistake_changes_one_thing() -> None:
    baseline = BASELINES[0].setup
    assert baseline == Setup()
    for case in MISTAKES:
        assert len(case.setup.changes) == 1, case.name
        assert "seed" not in case.setup.changes, case.name
    for case in BASELINES[1:]:
        assert list(case.setup.changes) == ["seed"]


def test_every_field_is_used_and_every_name_and_change_is_there_once() -> None:
    changed = {name for case in (*MISTAKES, *CONTROLS) for name in case.setup.changes}
    assert changed == {field.name for field in fields(Setup)} - {"seed"}
    assert len({case.name for case in CASES}) == len({case.title for case in CASES}) == len(CASES)
    assert len({case.setup for case in CASES}) == len(CASES)


def test_mistakes_of_sampling_share_the_training_of_the_run_without_them() -> None:
    names = {case.name for case in (*MISTAKES, *CONTROLS) if case.setup.training == Setup()}
    assert names == {
        "raw-weights",
        "leading-timesteps",
        "first-timesteps",
        "place-as-timestep",
        "no-clipping",
        "noise-read-as-image",
        "ddim",
    }
    trainings = {case.name: case.setup.training for case in CASES}
    assert trainings["unit-pixels"] == trainings["unit-pixels-shown-as-signed"] != Setup()
    assert trainings["image-loss"] == trainings["image-prediction"] != Setup()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_training_is_its_own_training(case: Case) -> None:
    assert case.setup.training.training == case.setup.training
    assert case.setup.training.seed == case.setup.seed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_a_mistake_of_the_network_changes_the_network(case: Case) -> None:
    config, expected = TINY.network_of(case.setup), TINY.network
    if case.name == "no-attention":
        expected = expected.replace(attention_resolutions=(), middle_attention=False)
    elif case.name == "plain-unet":
        expected = expected.replace(architecture="plain", channel_multipliers=(1, 2))
    elif case.name in ("no-time", "time-at-bottleneck"):
        expected = expected.replace(noise_conditioning="none" if case.name == "no-time" else "bottleneck")
    assert config == expected


# ------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("pixels", [name for name in PIXELS if name != "unit-shown-as-signed"])
def test_what_a_process_saw_is_shown_as_it_was(pixels: str) -> None:
    images = torch.randint(256, (5, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = ScaledBatches(images, 5, 0, *PIXELS[pixels]).batch(0).images
    low, high = {"signed": (-1, 1), "unit": (0, 1), "bytes": (0, 255)}[pixels]
    assert low <= x.min() < x.max() <= high
    assert sorted(shown(x, pixels).sum((1, 2, 3)).tolist()) == sorted(images.long().sum((1, 2, 3)).tolist())


def test_unit_pixels_shown_as_signed_are_pale() -> None:
    x = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    assert shown(x, "unit-shown-as-signed").flatten().tolist() == [128, 255]
    assert shown(x, "unit").flatten().tolist() == [0, 255]


@pytest.mark.parametrize(("pixels", "low", "high"), [("signed", -1, 1), ("unit", 0, 1), ("bytes", 0, 255)])
def test_clipping_is_to_black_and_white(pixels: str, low: float, high: float) -> None:
    assert pixel_range(pixels) == (low, high)
    black_and_white = torch.tensor(pixel_range(pixels)).reshape(2, 1, 1, 1)
    assert shown(black_and_white, pixels).flatten().tolist() == [0, 255]


def test_what_is_not_finite_is_shown() -> None:
    assert shown(torch.tensor([torch.nan, torch.inf, -torch.inf]).reshape(3, 1, 1, 1), "signed").flatten().tolist() == [
        128,
        255,
        0,
    ]


@pytest.mark.parametrize("timesteps", [500, 1000])
def test_the_network_is_told_the_place_of_the_timestep(timesteps: int) -> None:
    path = ToldPlace(timesteps, steps=50)
    sigmas = visited(Setup(told="place", timesteps=timesteps), path, 50)[:-1]
    assert path.c_noise(sigmas).tolist() == list(reversed(range(50)))
    assert torch.equal(path.sigmas, VPLinear(timesteps).sigmas)


def test_the_first_timesteps_end_far_from_noise() -> None:
    path = VPLinear()
    sigmas = visited(Setup(spacing="first"), path, 50)
    assert path.t(sigmas[:-1]).round().tolist() == list(reversed(range(50)))
    assert sigmas[0] < 0.5 and visited(Setup(), path, 50)[0] == path.sigmas[-1]


def test_only_the_right_reading_of_the_output_denoises() -> None:
    """With a network that knows the answer, the denoiser gives the image back; read otherwise it does not."""
    x0 = torch.rand(4, 3, SIDE, SIDE) * 2 - 1
    noise = torch.randn_like(x0)
    sigma = torch.tensor([0.5, 1.0, 2.0, 5.0])
    x = x0 + sigma[:, None, None, None] * noise
    answers = {"noise": noise, "image": x0}
    for target, answer in answers.items():
        oracle = _Constant(answer)
        denoiser, objective = training_parts(oracle, Setup(target=target))  # type: ignore[arg-type]
        assert Loss(objective)(denoiser, x0, Draws(sigma, noise)).max() < 1e-10
        for read_as in answers:
            setup = Setup(target=target, read_as=read_as)  # type: ignore[arg-type]
            found = sampling_denoiser(oracle, setup, 50)(x, sigma)
            assert torch.allclose(found, x0, atol=1e-5) == (target == read_as)


class _Constant(torch.nn.Module):
    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.answer


def test_the_losses_are_what_their_names_say() -> None:
    network = _Constant(torch.full((4, 3, SIDE, SIDE), 0.25))
    x0, noise = torch.rand(4, 3, SIDE, SIDE), torch.randn(4, 3, SIDE, SIDE)
    for setup, answer in ((Setup(), noise), (Setup(target="image"), x0), (Setup(process="autoencoder"), x0)):
        denoiser, objective = training_parts(network, setup)
        sigma = objective.sample_sigma(4, torch.Generator().manual_seed(0))
        expected = (network.answer - answer).square().flatten(1).mean(1)
        torch.testing.assert_close(Loss(objective)(denoiser, x0, Draws(sigma, noise)), expected)


def test_the_image_is_learned_at_the_same_timesteps_as_the_noise() -> None:
    """One change only: the density of the noise levels is the same for both targets, draw by draw."""
    generator = torch.Generator()
    drawn = [
        training_parts(_Constant(torch.zeros(1)), Setup(target=target))[1].sample_sigma(64, generator.manual_seed(5))
        for target in ("noise", "image")
    ]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert isinstance(training_parts(_Constant(torch.zeros(1)), Setup())[1], Simple)


def test_iterating_ends_at_a_fixed_point_and_a_sampler_does_not() -> None:
    """For data N(0, 1) the mean at level s is x / (1 + s^2): iterated, all spread is lost; DDIM keeps it."""

    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)

    sigmas = torch.cat([torch.linspace(3, 0.05, 200, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) * 10**0.5
    *_, last = samplers.ddim(gaussian, sigmas, x, lambda: x)
    assert iterate(gaussian, sigmas, x).std() < 0.01
    assert last.x.std() == pytest.approx(1, rel=0.05)


def test_images_are_shrunk_by_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutorials, "SHRUNK_AT_ONCE", 2)
    images = torch.arange(3 * 3 * 4 * 4, dtype=torch.uint8).reshape(3, 3, 4, 4)
    expected = images.reshape(3, 3, 2, 2, 2, 2).float().mean((3, 5)).round().to(torch.uint8)
    assert torch.equal(shrunk(images, 2), expected)
    assert shrunk(images, 4) is images
    with pytest.raises(UnveilError, match="images of 4 pixels, expected a multiple of 3"):
        shrunk(images, 3)


# ------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="session")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole study, made once."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        _use_small_features(patch)
        study = _study(shards, out)
        write_report(study, study.run(CASES, 1e6), out / "figures")
    return out


def test_the_whole_study_is_there(whole: Path) -> None:
    values = json.loads((whole / "results.json").read_text())
    assert [row["name"] for row in values["runs"]] == [case.name for case in CASES]
    assert {tuple(row["changes"]) for row in values["runs"][: len(BASELINES)]} == {(), ("seed",)}
    assert all(np.isfinite(row["frechet"]) for row in values["runs"])
    assert {path.stem for path in (whole / "figures").glob("*.png")} == {"overview", *(case.name for case in CASES)}
    text = (whole / "table.md").read_text()
    assert all(f"| {case.title} |" in text for case in CASES)
    assert not (whole / "checkpoints").exists() or not list((whole / "checkpoints").iterdir())


def test_pictures_are_small_and_stand_beside_the_run_without_the_mistake(whole: Path) -> None:
    with Image.open(whole / "figures" / "no-time.png") as both, Image.open(whole / "figures" / "baseline.png") as one:
        assert both.mode == one.mode == "P"
        assert both.width == one.width and both.height > 1.5 * one.height


def test_a_run_differs_from_the_run_without_the_mistake(whole: Path, shards: Path) -> None:
    """Each case is really run as its setup says: no two give the same samples."""
    study = _study(shards, whole)
    pictures = [study.pictures(case).numpy().tobytes() for case in CASES]
    # Where a network starts at F = 0, sixteen images do not teach it to attend or to tell times apart visibly.
    assert len(set(pictures)) >= len(CASES) - 4


def test_a_finished_study_is_not_made_again(whole: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _bytes(whole)
    study = _study(shards, whole)
    monkeypatch.setattr(study, "make", lambda cases: pytest.fail("made again"))
    write_report(study, study.run(CASES, 0), whole / "figures")
    assert _bytes(whole) == before


def test_the_same_study_gives_the_same_bytes(whole: Path, shards: Path, tmp_path: Path) -> None:
    cases = chosen(["raw-weights", "image-loss"])
    _study(shards, tmp_path).run(cases, 1e6)
    made = _kept(tmp_path)
    assert made == {name: kept for name, kept in _kept(whole).items() if name in made}


def test_a_killed_study_goes_on(whole: Path, shards: Path, tmp_path: Path) -> None:
    """Killed in the middle of the second training, it keeps the first run, and ends as if it had not been."""
    cases = chosen(["raw-weights"])[:2]

    def say(line: str) -> None:
        if line.startswith("baseline-seed-1") and " 16 images" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _study(shards, tmp_path, say=say).run(cases, 1e6)
    assert [path.name for path in (tmp_path / "trainings").iterdir()] == ["baseline"]
    assert list((tmp_path / "checkpoints" / "seed-1").glob("step-*"))
    lines: list[str] = []
    _study(shards, tmp_path, say=lines.append).run(cases, 1e6)
    assert not any(line.startswith("baseline ") for line in lines)
    made = _kept(tmp_path)
    assert made == {name: kept for name, kept in _kept(whole).items() if name in made}


def test_a_training_that_is_there_is_sampled(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(shards, tmp_path)
    study.run([CASES[0]], 1e6)
    monkeypatch.setattr(study, "train", lambda case: pytest.fail("trained again"))
    results = study.run([CASES[0], *chosen(["noise-read-as-image"])[-1:]], 1e6)
    assert results[0].loss == results[1].loss and results[0].frechet != results[1].frechet


def test_raw_weights_and_their_average_differ(whole: Path) -> None:
    raw, averaged = (load_file(whole / "trainings/baseline" / f"{name}.safetensors") for name in ("raw", "averaged"))
    assert raw.keys() == averaged.keys()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_time_that_runs_out_keeps_what_is_finished(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(shards, tmp_path)
    begins = iter([True, False])
    monkeypatch.setattr(Clock, "begin", lambda clock: next(begins))
    with pytest.raises(UnveilError, match=r"over before baseline-seed-1, baseline-seed-2; .* the same command goes on"):
        study.run(BASELINES, 1e6)
    assert list(_study(shards, tmp_path).results) == [BASELINES[0].name]


def test_the_clock_says_how_long_and_what_would_be_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(seconds=250, count=6, jobs=2)
    assert clock.begin()  # nothing is known yet
    now = 100.0
    clock.end()
    clock.end()
    assert clock.left() == "2 of 6 trainings done, about 3:20 left"
    assert clock.begin()  # two at a time take 100 s
    now = 151.0
    assert not clock.begin()


@pytest.mark.slow
def test_processes_make_the_same_study(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time: the samples are the same; the features are the real ones."""
    monkeypatch.undo()
    study = _study(shards, tmp_path, say=print)
    results = study.run(BASELINES[:2], 1e6, jobs=2)
    assert [result.name for result in results] == ["baseline", "baseline-seed-1"]
    for case in BASELINES[:2]:
        torch.testing.assert_close(study.pictures(case), _study(shards, whole).pictures(case), atol=1, rtol=0)
    weights = [load_file(out / "trainings/seed-1/averaged.safetensors") for out in (tmp_path, whole)]
    torch.testing.assert_close(weights[0], weights[1])


def test_another_budget_in_the_same_folder_is_refused(whole: Path, shards: Path) -> None:
    before = _bytes(whole)
    with pytest.raises(UnveilError, match=r"study.json: measured with another images \(16, now 32\); choose"):
        _study(shards, whole, replace(TINY, images=32))
    assert _bytes(whole) == before


def test_a_damaged_result_is_named(shards: Path, tmp_path: Path) -> None:
    study = _study(shards, tmp_path)
    study.run([CASES[0]], 1e6)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UnveilError, match=r"study.json: not valid JSON"):
        _study(shards, tmp_path)


# ------------------------------------------------------------------------------------- the table


def _result(name: str, frechet: float) -> Result:
    return Result(name, frechet, loss=0.1, parameters=1, nfe=50)


SEEDS = [_result("baseline", 10.0), _result("baseline-seed-1", 12.0), _result("baseline-seed-2", 11.0)]


def test_a_difference_counts_beyond_the_seeds() -> None:
    assert seeds_of(SEEDS) == (11.0, 2.0)
    for frechet, expected in ((15.0, "no difference"), (15.1, "worse"), (7.0, "no difference"), (6.9, "better")):
        result = _result("no-time", frechet)
        assert verdict(result, [*SEEDS, result]) == expected
    assert verdict(_result("no-time", 99.0), SEEDS[:1]) == ""
    with pytest.raises(ValueError, match="without a mistake"):
        seeds_of([_result("no-time", 1.0)])


def test_the_table_says_what_was_measured() -> None:
    text = table([*SEEDS, _result("no-time", 22.0)], {"floor": 3.0, "noise": 400.0}, Budget())
    assert "| no time conditioning | 22 | 2.00 | worse | 0.1 |" in text
    assert "| without a mistake | 10 | 0.91 |  | 0.1 |" in text
    assert "500 samples" in text and "held-out real images, is 3" in text and "uniform noise, is 400" in text


@pytest.mark.parametrize("old", ["", "an older table\n"])
def test_the_table_goes_into_its_place_in_a_report(tmp_path: Path, old: str) -> None:
    path = tmp_path / "REPORT.md"
    path.write_text(f"above\n<!-- tutorials -->\n{old}<!-- /tutorials -->\nbelow\n")
    for _ in range(2):
        fill_report(path, "the table\n")
        expected = "above\n<!-- tutorials -->\n\nthe table\n\n<!-- /tutorials -->\nbelow\n"
        assert path.read_text() == expected


@pytest.mark.parametrize("text", ["", "<!-- /tutorials --><!-- tutorials -->", "<!-- tutorials -->" * 2])
def test_a_report_without_the_place_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "REPORT.md"
    path.write_text(text)
    with pytest.raises(UnveilError, match="has no place for the table"):
        fill_report(path, "the table")
    assert path.read_text() == text
    with pytest.raises(UnveilError, match="cannot be read"):
        fill_report(tmp_path / "none.md", "the table")


def test_the_report_of_the_project_has_the_place_and_every_picture(repository: Path) -> None:
    text = (repository / "REPORT.md").read_text(encoding="utf-8")
    assert text.count("<!-- tutorials -->") == text.count("<!-- /tutorials -->") == 1
    for case in (*MISTAKES, *CONTROLS):
        assert f"docs/tutorials/{case.name}.png" in text, case.name
        assert (repository / "docs" / "tutorials" / f"{case.name}.png").is_file(), case.name


# ------------------------------------------------------------------------------------- the command


def test_a_run_that_is_not_known_is_refused(shards: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["tutorials", "--only", "no-tme", "--shards", str(shards), "--out", str(tmp_path)])
    assert found.exit_code == 1
    assert "--only: found 'no-tme', expected one of baseline, " in found.output
    assert len(found.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_missing_shards_are_named(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["tutorials", "--shards", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert found.exit_code == 1
    assert "none/index.json: not there" in found.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--images", "--samples", "--minutes", "--jobs"])
def test_a_number_below_its_range_is_refused(option: str) -> None:
    found = CliRunner().invoke(app, ["tutorials", option, "-1"])
    assert found.exit_code == 2 and option in found.output


def test_only_adds_the_runs_without_a_mistake() -> None:
    assert [case.name for case in chosen(["raw-weights", "no-time"])] == [
        *(case.name for case in BASELINES),
        "no-time",
        "raw-weights",
    ]
    assert chosen([]) == list(CASES)


def test_the_command_makes_the_study(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutorials, "Budget", lambda images, samples: replace(TINY, images=images, samples=samples))
    arguments = ["--only", "raw-weights", "--images", "8", "--samples", "10", "--jobs", "1"]
    arguments += ["--shards", str(shards), "--out", str(tmp_path / "out"), "--figures", str(tmp_path / "docs")]
    found = CliRunner().invoke(app, ["tutorials", *arguments])
    assert found.exit_code == 0, found.output
    assert found.output.rstrip().endswith((tmp_path / "out/table.md").read_text().rstrip())
    assert (tmp_path / "docs" / "overview.png").is_file() and (tmp_path / "docs" / "raw-weights.png").is_file()
    assert json.loads((tmp_path / "out/study.json").read_text())["images"] == 8


def test_the_budget_is_the_commands(tmp_path: Path) -> None:
    """The command's defaults are the study's."""
    import inspect

    from studies.__main__ import tutorials as command

    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    assert (defaults["images"], defaults["samples"]) == (Budget().images, Budget().samples)
    assert len(visited(Setup(), VPLinear(), Budget().steps)) == 26
