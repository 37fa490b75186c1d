"""Seeds: their values decide results, so they are written down here."""

import hashlib

import numpy as np

from unveil.seeds import batch_seed, image_seed, step_seed


def test_the_values_are_those_that_all_results_so_far_were_made_with() -> None:
    digest = hashlib.sha256(b"noise 7 12").digest()
    assert image_seed("noise", 7, 12) == int.from_bytes(digest, "little")
    assert step_seed("noise", 7, 12) == int.from_bytes(digest[:8], "little")
    assert (batch_seed("order", 7, 12), batch_seed("flips", 7, 12)) == ([7, 0, 12], [7, 1, 12])


def test_no_two_streams_share_their_low_bits() -> None:
    purposes = ("noise", "augment", "dropout", "dropout 1", "validation")
    seeds = [step_seed(purpose, seed, step) for purpose in purposes for seed in (0, 1) for step in range(1000)]
    assert len({seed % 2**32 for seed in seeds}) == 10_000
    drawn = {np.random.default_rng(image_seed("sample", 0, number)).integers(2**62) for number in range(1000)}
    assert len(drawn) == 1000
