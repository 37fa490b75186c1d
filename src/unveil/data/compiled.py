"""Loops over pixels, compiled."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile by numba, to run without Python's lock. What is compiled is kept on disk, where that can be written."""
    result: Any
    try:
        result = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # a read-only checkout of a user without a home
        result = njit(nogil=True)(function)
    return result
