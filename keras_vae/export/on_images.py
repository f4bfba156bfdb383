"""Compares what takes images, exported encoders and scorers, with Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_vae.support.true_float32 import true_float32

TOLERANCE = 1e-4
BATCH_SIZES = (1, 7)

Arrays: TypeAlias = Mapping[str, Any]
Run: TypeAlias = Callable[[np.ndarray], Arrays]  # what was exported
Reference: TypeAlias = Callable[[np.ndarray, Arrays], Arrays]  # of images, and what was made of them: what should be


@true_float32()
def difference(run: Run, reference: Reference, image_shape: tuple[int, ...]) -> float:
    """How far what was exported is from Keras on noise: the largest difference, relative to values above 1.

    Args:
        run: what was exported, from images, float32 (batch, *image_shape), to arrays by name.
        reference: what it is compared with, in all that this returns.
        image_shape: (height, width, channels).
    """
    rng = np.random.default_rng(0)
    found = []
    for batch in BATCH_SIZES:
        images = rng.uniform(size=(batch, *image_shape)).astype(np.float32)
        made = run(images)
        found += [relative_difference(made[name], values) for name, values in reference(images, made).items()]
    return max(found)


def of_encoder(encoder: keras.Model) -> Reference:
    """What an exported encoder should make of images: `mean` and `log_var`."""
    return lambda images, _: mean_and_log_var(encoder, images)


def of_scorer(score: Any) -> Reference:
    """What an exported scorer should make of images; `score` is as `keras_vae.export.scorer.export_scorer` takes it.

    Two scores that are all but equal may change places: ranks are those of what the exported scorer found.
    """
    return lambda images, made: {**score(images), "rank": score.rank(made["score"])}


def mean_and_log_var(encoder: keras.Model, images: Any) -> dict[str, Any]:
    """What an encoder returns, which may be a pair, by name."""
    outputs = encoder(images, training=False)
    mean, log_var = (outputs["mean"], outputs["log_var"]) if isinstance(outputs, dict) else outputs
    return {"mean": mean, "log_var": log_var}


def relative_difference(found: Any, wanted: Any) -> float:
    """The largest difference of two arrays, relative to wanted values whose magnitude is above 1."""
    wanted = np.asarray(wanted)
    return float((np.abs(np.asarray(found) - wanted) / np.maximum(1.0, np.abs(wanted))).max())
