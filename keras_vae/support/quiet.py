"""Keeps what libraries print past Python, into the standard error stream, off the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from keras_vae.support.shared import SharedChange

STDERR = 2  # of the process, which libraries write to, whatever sys.stderr is: a notebook's, say


def quiet_stderr() -> SharedChange:
    """Sends file descriptor 2 to nowhere for the length of a block. Exceptions pass as ever."""
    return _quiet


def _silence() -> Callable[[], None]:
    try:
        kept = os.dup(STDERR)
    except OSError:  # there is none
        return lambda: None
    if sys.stderr is not None:
        sys.stderr.flush()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, STDERR)
    os.close(sink)

    def undo() -> None:
        os.dup2(kept, STDERR)
        os.close(kept)

    return undo


_quiet = SharedChange(_silence)
