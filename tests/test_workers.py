"""Threads that share a batch."""

import threading
from collections.abc import Iterator

import pytest
import torch

from unveil.workers import ALONE, workers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Four cores, whatever there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "images", "count", "each"),
    [
        (4, 15, 1, 4),
        (4, 16, 2, 2),
        (4, 31, 2, 2),
        (4, 32, 4, 1),
        (4, 100, 4, 1),
        (4, 0, 1, 4),
        (6, 32, 3, 2),
        (1, 100, 1, 1),
    ],
)
def test_the_cores_are_divided_among_them(cores: int, images: int, count: int, each: int) -> None:
    torch.set_num_threads(cores)
    with workers(CPU, images) as found:
        assert found.count == count and torch.get_num_threads() == each
        assert found.map(lambda _: torch.get_num_threads(), range(count)) == [each] * count
    assert torch.get_num_threads() == cores


def test_a_gpu_has_one() -> None:
    with workers(torch.device("cuda"), 100) as found:
        assert found is ALONE


def test_parts_come_back_in_order_and_are_computed_at_once() -> None:
    meeting = threading.Barrier(2)

    def met(part: int) -> int:
        meeting.wait(timeout=30)
        return -part

    with workers(CPU, 16) as found:
        assert found.map(met, [3, 1, 2, 0]) == [-3, -1, -2, 0]
    assert ALONE.map(abs, [-2, 1]) == [2, 1]


def test_an_error_of_one_is_raised() -> None:
    def failing(part: int) -> int:
        if part == 1:
            raise ValueError("of part 1")
        return part

    with workers(CPU, 16) as found, pytest.raises(ValueError, match="of part 1"):
        found.map(failing, [0, 1, 2])
    assert torch.get_num_threads() == 4
