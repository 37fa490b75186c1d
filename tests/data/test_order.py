"""Places that cover a set evenly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unveil.data.order import spread


@settings(deadline=None)
@given(count=st.integers(1, 300), more=st.integers(0, 100_000))
def test_spread_covers_everything_evenly(count: int, more: int) -> None:
    total = count + more
    places = spread(total, count)
    assert len(places) == count and places[0] == 0 and places[-1] < total
    gaps = np.diff(np.append(places, total))
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
