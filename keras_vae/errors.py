"""The one exception the command line turns into a single line and exit status 2."""

from __future__ import annotations


class InputError(ValueError):
    """Wrong use or bad input: the message says what, where and what to do.

    A `ValueError`, so that library users catch it as they would any wrong argument; the
    command line prints its message alone, without a traceback, and exits with 2.
    """
