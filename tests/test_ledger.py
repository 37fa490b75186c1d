"""Points that are kept: work goes on where it was, and never with points of something else."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from unveil.errors import UnveilError
from unveil.ledger import Ledger


@dataclass(frozen=True)
class Weighed:
    """A point of these tests."""

    name: str
    grams: float | None


FACTS = {"model": "abc", "sizes": (1, 2), "sampler": {"steps": 5}}


def opened(path: Path, **changes: object) -> Ledger[Weighed]:
    return Ledger(path, FACTS | changes, Weighed)


def test_points_are_there_again_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "points.json"
    ledger = opened(path)
    assert ledger.points == [] and not path.parent.exists()
    for point in (Weighed("b", 2.5), Weighed("a", None)):
        ledger.add(point)
        assert opened(path).points == ledger.points
    assert ledger.points == [Weighed("b", 2.5), Weighed("a", None)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "d" * 64}, r"another model \('abc', now 'ddd.*\.\.\..*'\); choose another --out"),
        ({"sampler": {"steps": 6}, "sizes": (1,)}, r"another sampler .*, sizes \(\[1, 2\], now \[1\]\); choose"),
        ({"more": 1}, r"another more \(None, now 1\)"),
    ],
)
def test_points_of_other_facts_are_not_mixed_with(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = tmp_path / "points.json"
    opened(path).save()
    before = path.read_bytes()
    with pytest.raises(UnveilError, match=f"^{path}: measured with {said}"):
        opened(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "{}", '{"points": [{"name": 1, "grams": 1}]}'])
def test_a_damaged_ledger_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(UnveilError, match=r"points\.json: .*; remove it, and run again$"):
        opened(tmp_path / "points.json")
