"""Changes of the whole process for the duration of a block of code, in one thread or in several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable


class SharedChange:
    """A context manager whose blocks may overlap: the first one to begin makes the change, the last to end undoes it.

    Args:
        make: makes the change and returns what undoes it.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._blocks = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._undo = self._make()
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                self._undo()
