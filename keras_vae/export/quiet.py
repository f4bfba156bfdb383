"""Keeps what libraries print past Python, into the standard error stream, off the terminal."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2  # of the process, which libraries write to, whatever sys.stderr is: a notebook's, say

_lock = threading.Lock()
_blocks = 0  # that are under way, in any thread
_kept = -1


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere for the length of the block. Exceptions pass as ever.

    Blocks may overlap, in one thread or several: the first to begin sends it there, the last to end brings it back.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _blocks, _kept
    with _lock:
        _blocks += 1
        if _blocks > 1:
            return
        try:
            _kept = os.dup(STDERR)
        except OSError:  # there is none
            _kept = -1
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, STDERR)
        os.close(sink)


def _leave() -> None:
    global _blocks
    with _lock:
        _blocks -= 1
        if _blocks == 0 and _kept != -1:
            os.dup2(_kept, STDERR)
            os.close(_kept)
