"""What can go wrong in an export. Each message is one line: what, where and what to do."""

from __future__ import annotations

from keras_vae.support.errors import InputError, RunError


class ExportError(InputError):
    """A decoder, a path or an artifact that cannot be used."""


class MissingRuntimeError(ExportError):
    """A package that a format needs is not installed."""


class VerificationError(RunError):
    """An artifact computes something else than the decoder it was made from."""
