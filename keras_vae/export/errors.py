"""What can go wrong, each message one line: what, where and what to do."""

from __future__ import annotations


class ExportError(ValueError):
    """A decoder, a path or an artifact that cannot be used."""


class MissingRuntimeError(ExportError):
    """A package that a format needs is not installed."""


class VerificationError(Exception):
    """An artifact that computes something else than the decoder it was made from."""
