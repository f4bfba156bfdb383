"""The one exception the command line turns into a single line and exit status 2."""

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
