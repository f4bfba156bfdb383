"""Keeps off the terminal what libraries write to standard error behind Python's back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from keras_vae.support.shared import SharedChange

STDERR = 2  # of the process: libraries write to it, whatever sys.stderr is, such as a notebook's


def quiet_stderr() -> SharedChange:
    """Discards what is written to file descriptor 2 during a block. Exceptions pass as usual."""
    return _quiet


def has_stderr() -> bool:
    """Whether the process has a file descriptor 2: a daemon may have closed it."""
    try:
        os.fstat(STDERR)
    except OSError:
        return False
    return True


def redirect_stderr(descriptor: int) -> Callable[[], None]:
    """Sends file descriptor 2, which must be open, to where another one goes. Returns what undoes that."""
    if sys.stderr is not None:
        sys.stderr.flush()
    kept = os.dup(STDERR)
    os.dup2(descriptor, STDERR)

    def undo() -> None:
        os.dup2(kept, STDERR)
        os.close(kept)

    return undo


def _silence() -> Callable[[], None]:
    if not has_stderr():
        return lambda: None
    sink = os.open(os.devnull, os.O_WRONLY)
    undo = redirect_stderr(sink)
    os.close(sink)
    return undo


_quiet = SharedChange(_silence)
