"""What the artifacts of conditional models take besides latents or noise: numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae.export.errors import ExportError
from keras_vae.support.conditions import Condition, check_none
from keras_vae.support.errors import InputError


def condition_of(metadata: Mapping[str, str], row: Sequence[Any], path: Path) -> Condition | None:
    """What images can be asked for by, of a model's metadata; None of one without conditions.

    Args:
        metadata: of an artifact.
        row: shape of one row of its input `condition`; empty without that input.
        path: of the artifact, for messages.

    Raises:
        ExportError: metadata and input do not fit.
    """
    try:
        condition = Condition.of_metadata(metadata)
    except (ValueError, TypeError) as error:
        raise ExportError(f"{path}: its metadata's entry 'condition' is damaged ({error}): export it again") from error
    named = () if condition is None else (len(condition),)
    if tuple(row) != named:
        takes = f"conditions of {' x '.join(map(str, row))} numbers" if row else "no conditions"
        raise ExportError(
            f"{path} takes {takes}, and its metadata name {named[0] if named else 'none'}: export it with the entry of "
            "keras_vae.Condition(...).metadata()"
        )
    return condition


def beside(condition: Condition | None, asked: Any, count: int) -> tuple[np.ndarray, ...]:
    """What a model takes besides its first input: conditions, float32 (count, names), or nothing.

    Args:
        condition: the model's, or None.
        asked: as `Condition.rows` takes it, None for images of any kind.
        count: of images.

    Raises:
        ExportError: a condition that the model does not know, or any of a model without.
    """
    try:
        if condition is None:
            check_none(asked)
            return ()
        return (condition.rows(asked, count),)
    except InputError as error:
        raise ExportError(str(error)) from None


def every_kind(condition: Condition, count: int, seed: int = 0) -> np.ndarray:
    """Conditions of all kinds, none among them, float32 (count, names): classes in turn, attributes at random."""
    if condition.exclusive:
        kinds = np.concatenate([np.zeros((1, len(condition)), np.float32), condition.each()])
        return kinds[np.arange(count) % len(kinds)]
    rows = np.random.default_rng(seed).integers(-1, 2, (count, len(condition))).astype(np.float32)
    rows[::8] = 0.0
    return rows
