"""The heap of a process that trains for days."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim() -> None:
    """Gives the system back what was freed; does nothing where the C library is not glibc.

    glibc keeps freed pages between those in use, in a heap for each of TensorFlow's threads. Memory in use stays
    constant during training, but the retained part grows: benchmarks/NOTES.md has the figures. A call takes some
    milliseconds.
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (TypeError, OSError, AttributeError):  # Windows knows no library without a name; others no such function
        return lambda kept: None
