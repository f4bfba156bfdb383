"""Keeps what libraries print past Python, into the standard error stream, off the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere for the length of the block. Exceptions pass as ever."""
    try:
        stderr = sys.stderr.fileno()
        kept = os.dup(stderr)
    except (OSError, ValueError, AttributeError):  # a notebook, or no standard error at all
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stderr.flush()
        os.dup2(sink, stderr)
        yield
    finally:
        os.dup2(kept, stderr)
        os.close(kept)
        os.close(sink)
