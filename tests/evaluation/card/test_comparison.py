"""Comparing two evaluations: what differs, what moved by more than noise, and what cannot be compared."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import git
from tests.evaluation.card.cards import FLAT, NAMES, TRAIN, card
from tests.evaluation.card.cards import metric as metric_of
from typer.testing import CliRunner, Result

from unveil.cli.cards import find_card
from unveil.cli.main import app
from unveil.data.pixels import ROUNDING
from unveil.data.protocols import PROTOCOLS
from unveil.errors import UnveilError
from unveil.evaluation.card.card import Card, parse_card
from unveil.evaluation.card.comparison import (
    LIMIT,
    CardDifference,
    Movement,
    compare_cards,
    conclusion,
    describe_difference,
    standard_error,
)
from unveil.evaluation.metrics.metric import Metric
from unveil.run.store import Store
from unveil.run.tracked import TrackedRun

ROOT = Path(__file__).resolve().parents[3]
NOISE = math.hypot(FLAT["fid_stderr"], FLAT["fid_stderr"])


def _moved(name: str, found: CardDifference) -> Movement:
    return next(move for move in found.movements if move.name == name)


def _with(**flat: float) -> Card:
    return card(FLAT | flat)


# ------------------------------------------------------------------------------------ what is found


def test_a_card_equals_itself_whatever_machine_made_it() -> None:
    found = compare_cards(card(), card(environment={"torch": "2.15.0"}, cost={"training_seconds": 9.0}))
    assert found.equal and found.within_noise
    assert {difference.key for difference in found.not_compared} == {
        "environment.torch",
        "environment.hardware.cpu",
        "cost.training_seconds",
    }


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"sampling": {"steps": 10, "nfe": 19}}, ["sampling.steps", "sampling.nfe"]),
        ({"model": {"network": {"channels": 64}}}, ["model.network.channels", "model.network.channel_multipliers"]),
        ({"lossy": ["JPEG."]}, ["lossy"]),
        ({"code": {"commit": "dead"}}, ["code.commit"]),
        ({"data": {"shard_hashes": {"train-00000": "ab"}}}, ["data.shard_hashes.train-00000"]),
    ],
)
def test_exactly_the_choices_that_differ_are_named(changes: dict[str, Any], keys: list[str]) -> None:
    found = compare_cards(card(), card(**changes))
    assert [difference.key for difference in found.differences] == keys
    assert not found.equal
    backwards = compare_cards(card(**changes), card()).differences
    assert {each.key: (each.b, each.a) for each in backwards} == {
        each.key: (each.a, each.b) for each in found.differences
    }


def test_a_card_from_before_decoder_and_rounding_were_stated_still_compares() -> None:
    """They say nothing about its numbers, which are those of the same decoder and rounding."""
    new = card(data={"decoder": PROTOCOLS["ddim"].decoder}, sampling={"rounding": ROUNDING})
    old = parse_card(card().to_json(), "a card of before")
    found = compare_cards(old, new)
    assert [difference.key for difference in found.differences] == ["data.decoder", "sampling.rounding"]
    assert {difference.a for difference in found.differences} == {"not stated"}
    assert {move.verdict for move in found.movements} == {"same"} and found.within_noise
    truncated = card(data={"decoder": PROTOCOLS["ddim"].decoder}, sampling={"rounding": "truncated"})
    assert [difference.key for difference in compare_cards(new, truncated).differences] == ["sampling.rounding"]


def test_a_choice_that_one_card_does_not_state_is_said_to_be_so() -> None:
    found = compare_cards(card(), card(sampling={"threshold": "clip"}))
    (difference,) = found.differences
    assert (difference.key, difference.a, difference.b) == ("sampling.threshold", "not stated", "clip")


@pytest.mark.parametrize(
    ("name", "errors", "verdict"),
    [
        ("fid", 0.999 * LIMIT, "within noise"),
        ("fid", -0.999 * LIMIT, "within noise"),
        ("fid", 1.001 * LIMIT, "worse"),
        ("fid", -1.001 * LIMIT, "better"),
        ("precision", 1.001 * LIMIT, "better"),
        ("precision", -1.001 * LIMIT, "worse"),
    ],
)
def test_a_metric_moved_if_it_did_by_more_than_the_limit(name: str, errors: float, verdict: str) -> None:
    noise = math.sqrt(2) * FLAT[f"{name}_stderr"]
    found = compare_cards(card(), _with(**{name: FLAT[name] + errors * noise}))
    move = _moved(name, found)
    assert move.verdict == verdict and move.z == pytest.approx(errors)
    assert found.within_noise == (verdict == "within noise") and not found.equal


def test_two_evaluations_of_one_model_are_rarely_told_apart() -> None:
    chance = random.Random(0)
    trials = 3000
    alarms = sum(
        _moved(
            "fid",
            compare_cards(
                _bare(chance.gauss(5, 0.1), 0.1),
                _bare(chance.gauss(5, 0.2), 0.2),
            ),
        ).verdict
        != "within noise"
        for _ in range(trials)
    )
    expected = math.erfc(LIMIT / math.sqrt(2))  # of a normal distribution, on both sides
    assert abs(alarms - expected * trials) < 4 * math.sqrt(expected * trials)


def _bare(value: float, stderr: float) -> Card:
    metric = Metric(name="fid", value=value, lower_is_better=True, n=10, stderr=stderr)
    return BARE.model_copy(update={"metrics": (metric,)})


BARE = card({"fid": 1.0})


def test_an_interval_stands_for_a_standard_error_that_is_missing() -> None:
    flat = {key: value for key, value in FLAT.items() if key != "fid_stderr"}
    metric = metric_of("fid", flat)
    assert standard_error(metric) == pytest.approx((12.4401 - 12.2003) / 2 / 1.959964, rel=1e-6)
    wide = metric.model_copy(update={"level": 0.6826895})  # one standard deviation on either side
    assert standard_error(wide) == pytest.approx((12.4401 - 12.2003) / 2, rel=1e-6)
    assert standard_error(metric_of("recall")) is None


def test_without_a_standard_error_it_is_not_said_to_be_noise() -> None:
    found = compare_cards(card(), _with(recall=0.53))
    move = _moved("recall", found)
    assert (move.verdict, move.z, move.reason) == ("unknown", None, "A and B without a standard error")
    assert not found.within_noise
    assert _moved("density", found).verdict == "same"


def test_without_any_noise_the_least_difference_counts() -> None:
    found = compare_cards(_with(fid_stderr=0.0), _with(fid_stderr=0.0, fid=12.3182))
    assert (_moved("fid", found).verdict, _moved("fid", found).z) == ("worse", None)


ON_FEATURES = {"fid", "kid", "precision", "recall", "density", "coverage", "inception_score", "fid_infinity"}
FROM_REFERENCE = ON_FEATURES - {"inception_score"}


@pytest.mark.parametrize(
    ("changes", "lost", "said"),
    [
        ({"data": {"protocol": "gan"}}, set(NAMES), "data.protocol is ddim in A and gan in B"),
        ({"data": {"shards": "ef" * 32}}, FROM_REFERENCE | {"bits_per_dim"}, "data.shards is abcdabcdabcd... in A"),
        ({"features": {"layer": "768"}}, ON_FEATURES, "features.inception.layer is 2048 in A and 768 in B"),
        ({"features": {"device": "cuda"}}, set(), ""),
        ({"data": {"reference": {"name": "train", "images": TRAIN, "taken": 9}}}, FROM_REFERENCE, "taken is 162770 in"),
        ({"evaluation": {"neighbours": 5}}, {"precision", "recall", "density", "coverage"}, "neighbours is not stated"),
        ({"n": 10_000}, ON_FEATURES - {"kid", "fid_infinity"}, "N is 50,000 in A and 10,000 in B"),
        ({"sampling": {"steps": 10}}, set(), ""),
    ],
)
def test_numbers_on_different_things_are_not_compared(changes: dict[str, Any], lost: set[str], said: str) -> None:
    found = compare_cards(card(), card(**changes))
    refused = {move.name for move in found.movements if move.verdict == "not comparable"}
    assert refused == lost
    assert all(said in move.reason and move.z is None for move in found.movements if move.name in lost)
    assert found.within_noise == (not lost)


def test_a_metric_of_one_card_alone_is_missing() -> None:
    few = card({key: value for key, value in FLAT.items() if key != "recall"})
    assert _moved("recall", compare_cards(card(), few)).reason == "B has none"
    move = _moved("recall", compare_cards(few, card()))
    assert (move.a, move.b, move.verdict, move.reason) == (None, 0.52, "missing", "A has none")


def test_what_is_neither_choice_nor_value_makes_cards_unequal_too() -> None:
    found = compare_cards(card(), card(notes=["another"]))
    assert found.others == ("notes",) and not found.equal and found.within_noise
    assert compare_cards(card(), _with(kid_floor=0.1)).others == ("intervals and controls of kid",)


# ------------------------------------------------------------------------------------- how it is said


def test_equal_cards_are_one_word() -> None:
    assert describe_difference(compare_cards(card(), card()), "one", "two") == [
        "A: one",
        "B: two",
        "equal: every choice and every number is the same",
    ]


def test_every_difference_has_its_line_and_the_last_one_concludes() -> None:
    other = card(
        FLAT | {"fid": 10.0, "recall": 0.6, "kid": 0.0084},
        sampling={"steps": 10},
        model={"weights_sha256": "1234" * 16},
        environment={"torch": "2.15.0"},
    )
    found = compare_cards(card(), other)
    lines = [" ".join(line.split()) for line in describe_difference(found, "one", "two")]
    assert "sampling.steps 18 -> 10" in lines
    assert "model.weights_sha256 987698769876... -> 123412341234..." in lines
    assert (
        f"fid 12.3181 -> 10 z = {(10.0 - 12.3181) / NOISE:+.1f} moved beyond noise (3 standard errors): B is better"
        in lines
    )
    assert "kid 0.0083727 -> 0.0084 z = +0.1 within noise" in lines
    assert "recall 0.52 -> 0.6 cannot say whether it is noise: A and B without a standard error" in lines
    assert "environment.torch 2.14.0 -> 2.15.0" in lines
    assert lines[-1] == conclusion(found)
    assert lines[-1].startswith("B is better beyond noise in fid; no more than noise in kid; the same in precision,")


# ---------------------------------------------------------------------------------------- the command


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that is a project with a card, and the file of a card that is better beyond noise."""
    card().save(tmp_path / "one" / "reports" / "card.json")
    _with(fid=10.0).save(tmp_path / "two" / "card.json")
    return tmp_path / "one", tmp_path / "two" / "card.json"


def test_status_says_whether_the_cards_differ_by_more_than_noise(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(str, pair)
    assert _run(one, one).exit_code == 0
    done = _run(one, two)
    assert done.exit_code == 1 and "B is better beyond noise in fid" in done.stdout
    assert _run(one, str(tmp_path / "two")).stdout.splitlines()[2:] == done.stdout.splitlines()[2:]
    _with(fid=12.32).save(tmp_path / "noise.json")
    assert _run(one, str(tmp_path / "noise.json")).exit_code == 0


def test_json_says_the_same(pair: tuple[Path, Path]) -> None:
    done = _run("--json", *map(str, pair))
    document = json.loads(done.stdout)
    assert done.exit_code == 1 and not document["equal"] and not document["within_noise"]
    assert document["movements"][0]["verdict"] == "better" and document["differences"] == []
    assert (document["a"], document["b"]) == tuple(map(str, pair))


def test_several_are_compared_with_the_first(pair: tuple[Path, Path]) -> None:
    one, two = map(str, pair)
    assert _run(one, one, one).exit_code == 0
    done = _run(one, one, two)
    assert done.exit_code == 1
    assert done.stdout == f"{_run(one, one).stdout}\n{_run(one, two).stdout}"


def test_bad_input_is_one_line_and_status_2(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half.json").write_text(card().to_json()[:500])
    bad = {
        "empty": "found a folder without reports/card.json or card.json",
        "half.json": "not valid JSON",
        "nowhere": "no DVC project here",
        "0" * 32: "found no store",
    }
    for name, said in bad.items():
        done = _run(str(pair[0]), name)
        assert done.exit_code == 2 and done.stdout == ""
        assert done.stderr.startswith(f"{name}: ") and said in done.stderr and done.stderr.count("\n") == 1


def test_needs_no_pytorch(pair: tuple[Path, Path]) -> None:
    code = (
        "import sys; from unveil.cli.cards import find_card; "
        "from unveil.evaluation.card.comparison import compare_cards; "
        "compare_cards(*map(find_card, sys.argv[1:])); sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run((sys.executable, "-c", code, *map(str, pair)), check=True, env=environment)


def test_a_run_in_mlflow_gives_its_card(project: Path, tmp_path: Path) -> None:
    card().save(tmp_path / "card.json")
    runs = []
    for stage, artifact in (("evaluate", True), ("train", False)):
        run = TrackedRun.start(Store.locate(project), {"unveil.stage": stage}, {})
        if artifact:
            run.log_artifact(tmp_path / "card.json")
        run.finish("FINISHED")
        assert run.run_id is not None
        runs.append(run.run_id)
    assert find_card(runs[0]) == card()
    with pytest.raises(UnveilError, match=r"found no card.json in this run of the train stage"):
        find_card(runs[1])
    with pytest.raises(UnveilError, match="has no such run"):
        find_card("0" * 32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc.*")
def test_a_revision_or_an_experiment_gives_its_card_from_dvcs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    monkeypatch.chdir(root)
    repo = Repo.init()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=without a card")
    git(root, "tag", "before")
    cards = (card(), _with(fid=10.0))
    for each in cards:
        each.save(root / "reports" / "card.json")
        repo.add(["reports/card.json"])
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message=a card")
    (root / "reports" / "card.json").unlink()
    base, head = git(root, "rev-parse", "HEAD~1"), git(root, "rev-parse", "HEAD")
    git(root, "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/fewer-steps", head)  # as DVC keeps an experiment
    monkeypatch.chdir(root / "reports")
    assert find_card("HEAD~1") == find_card(base) == cards[0]
    assert find_card("fewer-steps") == find_card("main") == cards[1]
    with pytest.raises(UnveilError, match="nowhere: found no such file, folder or revision"):
        find_card("nowhere")
    with pytest.raises(UnveilError, match=r"before: found no reports/card.json of this revision"):
        find_card("before")
    (root / ".dvc" / "cache").rename(tmp_path / "lost")
    with pytest.raises(UnveilError, match=r"HEAD: found no reports/card.json of this revision here"):
        find_card("HEAD")
