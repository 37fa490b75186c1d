"""How often samples have what was asked for: as counted by hand."""

import pytest
import torch

from unveil.evaluation.metrics.attributes import attribute_metrics
from unveil.evaluation.oracle.facts import Answers

KNOWN = {
    "Smiling": Answers(share=0.5, images_yes=50, images_no=50, yes=0.9, no=0.8),
    "Bald": Answers(share=0.0, images_yes=0, images_no=100, yes=None, no=1.0),
    "Male": Answers(share=0.5, images_yes=50, images_no=50, yes=1.0, no=1.0),
}


def test_the_shares_are_those_counted_by_hand() -> None:
    told = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0], [-1, 1, 0], [0, 0, 0]], dtype=torch.int8)
    said = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]).bool()
    found = {metric.name: metric for metric in attribute_metrics(said, told, KNOWN)}
    assert list(found) == ["attribute_accuracy", "attribute_Smiling_yes", "attribute_Smiling_no", "attribute_Bald_yes"]
    smiling, no_smile, bald = list(found.values())[1:]
    assert (smiling.value, smiling.n, smiling.floor) == (2 / 3, 3, 0.9)
    assert (no_smile.value, no_smile.n, no_smile.floor) == (1.0, 1, 0.8)
    assert (bald.value, bald.n, bald.floor) == (0.5, 2, None)
    mean = found["attribute_accuracy"]
    assert mean.value == pytest.approx(((2 / 3 + 1) / 2 + 1 / 2) / 2) and mean.n == 4
    assert mean.floor == pytest.approx((0.9 + 0.8) / 2)
    for metric in found.values():
        assert metric.stderr is not None and metric.stderr > 0  # also where all of one are right


def test_the_errors_are_those_of_draws() -> None:
    """Over many draws of samples the values spread as far as their errors say."""
    generator = torch.Generator().manual_seed(0)
    told = torch.tensor([[1, 1, -1]] * 50 + [[-1, 0, 1]] * 50, dtype=torch.int8)
    right = torch.tensor([0.9, 0.7, 0.8])
    values, errors = [], []
    for _ in range(300):
        said = (torch.rand(100, 3, generator=generator) < right) == (told > 0)
        metrics = attribute_metrics(said, told, KNOWN)
        values.append([metric.value for metric in metrics])
        errors.append([metric.stderr for metric in metrics])
    spread, said = torch.tensor(values).std(dim=0), torch.tensor(errors).mean(dim=0)
    assert ((said / spread - 1).abs() < 0.2).all()


def test_nothing_is_found_where_nothing_was_told() -> None:
    assert attribute_metrics(torch.ones(4, 3).bool(), torch.zeros(4, 3, dtype=torch.int8), KNOWN) == []
