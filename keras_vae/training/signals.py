"""SIGTERM and Ctrl-C while a run trains: the first ends it after a step, a second one at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Signals:
    """Notes SIGTERM and Ctrl-C, so that training can end after a step; a second one ends it at once.

    Attributes:
        number: of the signal received; 0 if there was none.
    """

    def __init__(self) -> None:
        self.number = 0

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """A block in which signals are noted."""
        return handled(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        name = signal.Signals(number).name
        print(
            f"\n{name}: stopping after this step, or the validation under way; once more stops at once", file=sys.stderr
        )


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A block in which SIGTERM and Ctrl-C call a handler; elsewhere than in the main thread, where Python has none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
