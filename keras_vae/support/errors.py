"""The exceptions that the command line turns into a single line."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from keras_vae.support.keras_internals import RaisedAsIs


class InputError(RaisedAsIs, ValueError):
    """Wrong use or bad input: the message says what, where and what to do.

    A `ValueError`, so that users of the library catch it like any wrong argument. The command line prints only its
    message, without a traceback, and exits with 2.
    """


class NotFiniteError(InputError):
    """The loss or its gradient is infinite or NaN: the step was skipped, and the model is as it was before."""


class RunError(RuntimeError):
    """The input is fine, but the work cannot be finished: a full disk, a folder that is gone, a lost worker.

    The command line prints only its message and exits with 1.
    """


class StoppedError(Exception):
    """Training was asked to stop, and has saved its state. The command line exits with 128 plus the signal's number.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def check_weight(name: str, value: Any) -> float:
    """Returns the number if it is finite and at least 0.

    Raises:
        InputError: it is not.
    """
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"{name}={value!r}: give a number of at least 0")
    return number


def check_count(name: str, value: Any) -> int:
    """Returns the number if it is whole and at least 1.

    Raises:
        InputError: it is not.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"{name}={value!r}: give a whole number from 1 on")
    return count
