"""What every runtime asks of latents, and how it draws them: numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_vae.export.errors import ExportError


def check(z: Any, latent_dim: int) -> np.ndarray:
    """Latents as float32 (batch, latent_dim).

    Args:
        z: numbers, (batch, latent_dim).
        latent_dim: how many latents the decoder takes.

    Raises:
        ExportError: latents of another size, that are not numbers, or not finite.
    """
    return check_batch(z, (latent_dim,), "latents", "decoder")


def check_batch(values: Any, shape: tuple[int, ...], name: str, model: str) -> np.ndarray:
    """Numbers as float32 (batch, *shape).

    Args:
        values: numbers, (batch, *shape).
        shape: of one row.
        name: what the values are, in messages.
        model: what takes them, in messages.

    Raises:
        ExportError: values of another shape, that are not numbers, or not finite.
    """
    wanted = f"(batch, {', '.join(str(size) for size in shape)})"
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ExportError(f"{name} are not an array: give numbers, {wanted}") from error
    if array.dtype.kind not in "fiu":
        raise ExportError(f"{name} are of type {array.dtype}: give real numbers, {wanted}")
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise ExportError(f"{name} have shape {array.shape}: this {model} takes {wanted}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ExportError(f"{name} hold NaN or infinity, or more than float32 does: give finite numbers")
    return array


def draw(count: int, latent_dim: int, seed: int | None = None) -> np.ndarray:
    """Draws from the standard normal prior, float32 (count, latent_dim): the same for the same seed.

    Raises:
        ExportError: a count below 1, or a seed below 0.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ExportError(f"count={count!r}: give a whole number from 1 on")
    try:
        rng = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ExportError(f"seed={seed!r}: give a whole number from 0 on") from error
    return rng.standard_normal((count, latent_dim), np.float32)
