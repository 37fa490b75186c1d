"""Which images are taken of a set, where not all of them are."""

import numpy as np
from numpy.typing import NDArray


def spread(total: int, count: int) -> NDArray[np.int64]:
    """``count`` different places among ``total``, evenly spaced and rising: ``floor(i total / count)``.

    Drawn like this a set covers its whole split, whatever the order of the split, and needs no seed.
    """
    return np.arange(count, dtype=np.int64) * total // count
