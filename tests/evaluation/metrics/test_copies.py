"""Copies: found where they are, and not where they are not, at the stated rate."""

import numpy as np
import pytest
import torch
from scipy.stats import nhypergeom
from torch import Tensor

from unveil.errors import UnveilError
from unveil.evaluation.card.sentences import on_duplicates, on_training, verdict
from unveil.evaluation.metrics.copies import (
    Copies,
    find_copies,
    nearest,
    quantile_test,
    rank_test,
    to_show,
)

N, D = 200, 12


def _faces(count: int, seed: int, repeats: int = 0, variety: float = 1.0) -> Tensor:
    """Features of a population with clusters; ``repeats`` of them are near-duplicates of others, as real sets hold."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, D, generator=torch.Generator().manual_seed(99))
    found = centres[torch.randint(5, (count,), generator=generator)] + variety * torch.randn(
        count, D, generator=generator
    )
    if repeats:
        found[:repeats] = found[-repeats:] + 1e-3 * torch.randn(repeats, D, generator=generator)
    return found


TRAINING, HELD_OUT = _faces(400, 1), _faces(N, 2)


def _verdicts(found: Copies) -> tuple[bool | None, bool]:
    return found.of_training.memorized, found.duplicates.duplicated


def test_nearest_equals_brute_force() -> None:
    queries, targets = _faces(37, 3).double(), _faces(61, 4).double()
    expected = (queries[:, None] - targets).norm(dim=2).sort(dim=1)
    found = nearest(queries.float(), targets.float(), 5)
    np.testing.assert_array_equal(found.indices, expected.indices[:, :5].numpy())
    np.testing.assert_allclose(found.distances, expected.values[:, :5].numpy(), rtol=1e-6)
    assert nearest(queries, targets[:3], 5).indices.shape == (37, 3)


def test_nearest_others_equals_brute_force_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.evaluation.metrics.copies.BLOCK_ROWS", 7)
    features = _faces(50, 5)
    features[31] = features[2]
    distances = (features.double()[:, None] - features.double()).norm(dim=2).fill_diagonal_(float("inf"))
    found = nearest(features)
    np.testing.assert_allclose(found.distances[:, 0], distances.min(dim=1).values.numpy(), rtol=1e-6)
    assert found.indices[31, 0] == 2 and found.indices[2, 0] == 31 and found.distances[2, 0] == 0


def test_equal_vectors_are_at_no_distance_however_far_from_the_origin() -> None:
    features = 1000 + _faces(20, 6)
    found = nearest(features * (1 + 1e-7), features)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(20))
    assert (found.distances == 0).all()


def test_ranks_that_all_tie_say_nothing() -> None:
    found = rank_test(np.ones(60), np.ones(80))
    assert (found.found, found.p) == (0.5, 0.5)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (300, 99), (50, 400)])
def test_quantile_test_has_the_exact_chance(n: int, m: int) -> None:
    random = np.random.default_rng(1)
    one, other = random.random(n), random.random(m)
    found = quantile_test(one, other, 0.05, random)
    k = round(0.05 * (m + 1))
    below = int((one < np.sort(other)[k - 1]).sum())
    assert found.found == below / n and found.expected == k / (m + 1)
    assert found.p == pytest.approx(nhypergeom(n + m, n, k).sf(below - 1), rel=1e-9)


@pytest.mark.parametrize("rounded", [False, True])
def test_quantile_test_is_right_about_chance(rounded: bool) -> None:
    """Of equal distributions, tied or not: the mean share is the expected one, and p < 0.05 at most at 5 %."""
    random = np.random.default_rng(2)
    values = random.random((1000, 2, 120))
    if rounded:
        values = values.round(1)
    found = [quantile_test(one, other, 0.05, random) for one, other in values]
    shares = np.array([share.found for share in found])
    assert abs(shares.mean() - found[0].expected) < 4 * shares.std() / np.sqrt(len(shares))
    assert np.mean([share.p < 0.05 for share in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("seeds", "most"), [(20, 1), pytest.param(200, 2, marks=pytest.mark.calibration)])
def test_honest_models_raise_no_alarm_at_any_seed(seeds: int, most: int) -> None:
    """At most at 1 in 1000 for each flag."""
    verdicts = [
        _verdicts(find_copies(_faces(N, s), _faces(400, s + 1), _faces(N, s + 2), s))
        for s in range(10, 10 + 3 * seeds, 3)
    ]
    assert sum(verdict != (False, False) for verdict in verdicts) <= most


def test_honest_models_raise_no_alarm_where_real_sets_repeat_themselves() -> None:
    for seed in range(10, 70, 3):
        sets = (_faces(N, seed, 20), _faces(400, seed + 1, 40), _faces(N, seed + 2, 20))
        assert _verdicts(find_copies(*sets, seed)) == (False, False)


@pytest.mark.parametrize("seed", range(3))
def test_returned_training_images_are_memorized_and_no_duplicates(seed: int) -> None:
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:N]
    found = find_copies(TRAINING[rows], TRAINING, HELD_OUT, seed)
    assert _verdicts(found) == (True, False)
    np.testing.assert_array_equal(found.neighbours.indices[:, 0], rows.numpy())
    assert found.of_training.nearer.found == 1 and found.of_training.nearest[0.01].found == 1


def test_a_tenth_of_training_images_among_honest_samples_is_found() -> None:
    samples = _faces(500, 7)
    samples[:50] = TRAINING[:50] + 0.01
    assert _verdicts(find_copies(samples, TRAINING, _faces(500, 8), 0)) == (True, False)


def test_other_held_out_images_are_not_memorized() -> None:
    verdicts = {seed: _verdicts(find_copies(_faces(N, 1000 + seed), TRAINING, HELD_OUT, seed)) for seed in range(20)}
    assert verdicts == dict.fromkeys(range(20), (False, False))


def test_the_held_out_images_themselves_are_not_memorized() -> None:
    found = find_copies(HELD_OUT, TRAINING, HELD_OUT, 0)
    assert _verdicts(found) == (False, False)
    assert found.of_training.nearer.found == pytest.approx(0.5)


@pytest.mark.parametrize("jitter", [0.0, 1e-6])
@pytest.mark.parametrize("seed", range(3))
def test_thirty_images_repeated_are_duplicates_and_not_memorized(seed: int, jitter: float) -> None:
    samples = _faces(30, 2000 + seed).repeat(7, 1)[:N]
    samples = samples + jitter * torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    found = find_copies(samples, TRAINING, HELD_OUT, seed)
    assert _verdicts(found) == (False, True)
    assert found.duplicates.exact == N and found.of_training.num_samples == 30


def test_one_in_twenty_repeated_is_found() -> None:
    samples = _faces(1000, 3000)
    samples[:50] = samples[-50:]
    found = find_copies(samples, TRAINING, _faces(1000, 3001), 0)
    assert _verdicts(found) == (False, True)
    assert found.duplicates.exact == 100
    assert found.duplicates.near.found >= 0.1


def test_a_model_of_typical_faces_is_not_called_memorized() -> None:
    """Its samples are nearer to training images than faces are, but as near to held-out ones: 1 % of false alarms."""
    alarms = 0
    for seed in range(20):
        training, held_out = _faces(400, 5000 + 2 * seed), _faces(400, 5001 + 2 * seed)
        found = find_copies(_faces(N, 6000 + seed, variety=0.6), training, held_out, seed).of_training
        assert found.nearer.found > 0.7 and found.nearer.p < 1e-6
        alarms += found.memorized is True
    assert alarms <= 2


@pytest.mark.parametrize(("copied", "training", "held_out"), [(100, 12_000, 400), (2000, 2000, 30)])
def test_copies_are_found_though_training_images_are_many_more(copied: int, training: int, held_out: int) -> None:
    """Of so many training images, every sample is nearest to one: the equal and the outstanding ones tell."""
    seen, samples = _faces(training, 1), _faces(2000, 2)
    for noise in (0.0, 0.02):
        samples[:copied] = seen[:copied] + noise * torch.randn(copied, D, generator=torch.Generator().manual_seed(3))
        found = find_copies(samples, seen, _faces(held_out, 4), 0).of_training
        assert found.memorized is True
        # Near-duplicates count once.
        assert found.equal.found == (0 if noise else pytest.approx(copied / 2000, rel=0.05))
        assert found.standing_out.found > 0.9 * copied / 2000
    honest = find_copies(_faces(2000, 5), seen, _faces(held_out, 4), 0).of_training
    assert honest.memorized is False and "no sign" in verdict(honest)


def test_typical_faces_are_not_called_free_of_signs() -> None:
    found = find_copies(_faces(N, 6000, variety=0.6), _faces(400, 5000), _faces(400, 5001), 0).of_training
    assert found.memorized is False and "typical faces, or too few held-out images to tell" in verdict(found)
    assert not any("no sign" in line for line in on_training(found))


@pytest.mark.parametrize(("total", "memorized"), [(None, False), (3999, False), (4001, None)])
def test_finding_nothing_among_few_of_the_training_images_says_nothing(
    total: int | None, memorized: bool | None
) -> None:
    found = find_copies(_faces(N, 1000), TRAINING, HELD_OUT, 0, training_total=total).of_training
    assert found.memorized is memorized
    assert f"searched 400 of {total or 400:,} training images" in on_training(found)
    assert ("evaluate.reference_images: 0" in verdict(found)) == (memorized is None)
    assert find_copies(TRAINING[:N], TRAINING, HELD_OUT, 0, training_total=total).of_training.memorized is True


@pytest.mark.parametrize("scale", [0.95, 0.5])
def test_less_spread_is_no_repetition(scale: float) -> None:
    samples = _faces(1000, 7)
    same, less = (find_copies(part, TRAINING, _faces(1000, 8), 0).duplicates for part in (samples, scale * samples))
    assert not less.duplicated and less.near.found == same.near.found
    narrow = find_copies(_faces(1000, 7, variety=scale), TRAINING, _faces(1000, 8), 0).duplicates
    assert not narrow.duplicated


def test_exact_repetitions_that_are_few_are_found_by_themselves() -> None:
    samples = _faces(2000, 7)
    samples[:15] = samples[-15:]
    found = find_copies(samples, TRAINING, _faces(2000, 8), 0).duplicates
    assert found.duplicated and found.exact == 30 and found.near.found < 2 * found.near.expected + 0.03
    held_out = _faces(2000, 8)
    held_out[:10] = held_out[-10:]
    assert not find_copies(samples, TRAINING, held_out, 0).duplicates.duplicated


def test_held_out_images_that_were_trained_on_leave_it_undecided() -> None:
    found = find_copies(TRAINING[:N], TRAINING, TRAINING[100 : 100 + N], seed=0, shared=N)
    assert found.of_training.memorized is None
    text = " ".join(on_training(found.of_training))
    assert "200 of the 200 held-out images are training images" in text and "cannot be said" in text


def test_copies_are_found_though_real_sets_share_some() -> None:
    """3 % of the held-out images equal training images: the bounds are 0, and ties fall at random."""
    held_out = _faces(N, 4000)
    held_out[:6] = TRAINING[:6]
    found = find_copies(TRAINING[100 : 100 + N], TRAINING, held_out, seed=0)
    assert found.of_training.memorized is True
    assert any("6 held-out images equal a training image" in note for note in on_training(found.of_training))


def test_sets_of_other_sizes_are_compared_at_one_and_said_so() -> None:
    found = find_copies(_faces(300, 8), TRAINING, _faces(90, 9), seed=0)
    assert _verdicts(found) == (False, False)
    assert found.duplicates.num_compared == 90 and found.duplicates.num_samples == 300
    assert any("only 90 held-out images" in note for note in on_training(found.of_training))
    assert any("single" in note for note in on_duplicates(found.duplicates))


def test_to_show_takes_the_nearest_and_an_even_draw() -> None:
    samples = _faces(60, 10)
    samples[41] = TRAINING[7]
    neighbours = find_copies(samples, TRAINING, HELD_OUT, 0).neighbours
    found = to_show(neighbours, 6)
    assert found[0] == 41 and len(found) == 12 and list(found[6:]) == [0, 10, 20, 30, 40, 50]
    assert neighbours.indices.shape == (60, 5) and neighbours.indices[41, 0] == 7


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        (torch.zeros(1, D), r"features of the samples: found shape \[1, 12\], expected \[N, D\] with N >= 2"),
        (torch.full((9, D), float("nan")), "features of the samples: found NaN"),
        (torch.zeros(9, D + 1), "features of the training images: found 12 numbers an image, expected 13"),
    ],
)
def test_bad_features_are_one_line(samples: Tensor, line: str) -> None:
    with pytest.raises(UnveilError, match=line):
        find_copies(samples, TRAINING, HELD_OUT, 0)


def test_samples_that_are_all_one_image_are_duplicates() -> None:
    generator = torch.Generator().manual_seed(0)
    training, held_out = torch.randn(2, 100, 8, generator=generator)
    found = find_copies(torch.randn(1, 8, generator=generator).repeat(100, 1), training, held_out, seed=0)
    assert found.duplicates.duplicated and found.duplicates.exact == 100
    assert found.of_training.num_samples == 1 and found.of_training.memorized is False
