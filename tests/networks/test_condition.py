"""What a network is told of an image: one value, that is sliced, moved and dropped as one."""

import pytest
import torch

from unveil.networks.condition import Condition, told

COUNT, KINDS = 4000, 6
TOLD = Condition(
    torch.arange(COUNT)[:, None].repeat(1, 9).float(),
    torch.where(torch.rand(COUNT, KINDS, generator=torch.Generator().manual_seed(0)) < 0.5, 1, -1).to(torch.int8),
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("here", [slice(3, 9), torch.tensor([5, 0, 7])], ids=["slice", "places"])
def test_its_parts_go_together(here: slice | torch.Tensor) -> None:
    assert TOLD.augmentation is not None and TOLD.attributes is not None
    some = TOLD[here].to("cpu")
    assert some.augmentation is not None and torch.equal(some.augmentation, TOLD.augmentation[here])
    assert some.attributes is not None and torch.equal(some.attributes, TOLD.attributes[here])
    assert (len(TOLD), len(some), len(Condition())) == (COUNT, len(some.attributes), 0)
    assert len(Condition(attributes=TOLD.attributes)) == COUNT
    assert Condition(TOLD.augmentation)[here].attributes is None and Condition()[here] == Condition()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_all_attributes_of_an_image_are_dropped_together_and_each_by_itself(rate: float) -> None:
    dropped = TOLD.dropped(rate, rate, _generator())
    assert dropped.augmentation is TOLD.augmentation
    assert TOLD.attributes is not None and dropped.attributes is not None
    assert dropped.attributes.dtype == torch.int8
    gone = dropped.attributes == 0
    assert torch.equal(dropped.attributes[~gone], TOLD.attributes[~gone])
    width = min(rate, 1 - rate)
    shares = torch.linspace(rate - width, rate + width, 10_001, dtype=torch.float64)
    for found, expected in (
        (gone.all(1), rate + (1 - rate) * float((shares**KINDS).mean())),
        (gone[:, 2], rate + (1 - rate) * rate),
        ((~gone).all(1), (1 - rate) * float(((1 - shares) ** KINDS).mean())),
    ):
        assert found.double().mean().item() == pytest.approx(expected, abs=4 * (0.25 / COUNT) ** 0.5 * (0 < rate < 1))


def test_what_is_dropped_of_an_image_does_not_depend_on_how_the_batch_is_divided() -> None:
    whole = TOLD.dropped(0.3, 0.3, _generator()).attributes
    for part in (slice(0, 1000), slice(1000, 4000)):
        alone = TOLD[part].dropped(0.3, 0.3, _generator(), COUNT, part).attributes
        assert whole is not None and alone is not None and torch.equal(alone, whole[part])


def test_where_nothing_is_told_nothing_is_dropped() -> None:
    generator = _generator()
    condition = Condition(TOLD.augmentation)
    assert condition.dropped(0.5, 0.5, generator) is condition
    assert torch.equal(generator.get_state(), _generator().get_state())


@pytest.mark.parametrize(
    ("request_", "words"),
    [(["smiling"], "did you mean Smiling"), (["Smiling", "-Smiling"], "twice"), (["Hat"], "expected some of Smiling")],
)
def test_what_cannot_be_told_is_named(request_: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        told(request_, ["Smiling", "Bald"])


def test_columns_are_taken_by_their_place_and_one_that_is_not_there_is_not_told() -> None:
    taken = Condition(attributes=torch.tensor([[1, -1, 0]], dtype=torch.int8)).taken([1, None, 0])
    assert taken.attributes is not None and taken.attributes.tolist() == [[-1, 0, 1]]
