"""The exceptions that the command line turns into a single line."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


class InputError(ValueError):
    """Wrong use or bad input: the message says what, where and what to do.

    A `ValueError`, so that library users catch it as they would any wrong argument; the
    command line prints its message alone, without a traceback, and exits with 2.
    """

    _keras_call_info_injected = True  # else Keras puts a paragraph around what `vae(images)` raises


class NotFiniteError(InputError):
    """The loss or its gradient is infinite or NaN: the step was left out, and the model is as it was before."""


class RunError(RuntimeError):
    """Training cannot go on for what happened outside of it: a full disk, a folder that is gone, a lost worker.

    The command line exits with 1.
    """


class StoppedError(Exception):
    """Training was asked to stop, and has saved where it is. The command line exits with 128 and the signal's number.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def check_weight(name: str, value: Any) -> float:
    """Returns a number that is finite and at least 0.

    Raises:
        InputError: it is not.
    """
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"{name}={value!r}: give a number of at least 0")
    return number


def check_count(name: str, value: Any) -> int:
    """Returns a whole number from 1 on.

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
