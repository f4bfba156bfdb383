"""Textures: what features an image has, wherever they are in it, compared by a sliced Wasserstein distance."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

# 64, or other ones for each step, gave the same images, 4 worse ones (benchmarks/NOTES.md); sorting takes the time.
DIRECTIONS = 16


def distance(target: Any, features: Any) -> Any:
    """Half of the squared sliced Wasserstein distance of two images' features, for each pair of images.

    The features at all places of an image are projected onto up to 16 fixed directions in the space of channels. Along
    each, every value is compared with the target's of the same rank, wherever in the image that one is (Heitz et al.
    2021, arXiv 2006.07229, section 3). Squared differences are averaged over places and directions: features with the
    same values in other places are no distance apart, and the mean squared difference of the projections in the same
    places is an upper bound.

    Args:
        target: (batch, height, width, channels); no gradient goes to it.
        features: of the same shape.

    Returns:
        float32, shape (batch,).
    """
    along = ops.convert_to_tensor(directions(features.shape[-1]))
    values = _projected(features, along)
    matched = ops.stop_gradient(_of_same_rank(_projected(target, along), values))
    return 0.5 * ops.mean(ops.square(values - matched), axis=(1, 2))


@functools.cache
def directions(channels: int) -> np.ndarray:
    """Orthogonal directions in the space of channels, always the same: float32 (channels, up to `DIRECTIONS`)."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(channels, channels)))
    return axes[:, :DIRECTIONS].astype(np.float32)


def _projected(features: Any, along: Any) -> Any:
    """float32 (batch, directions, places)."""
    places, channels = features.shape[1] * features.shape[2], features.shape[3]
    flat = ops.reshape(ops.cast(features, "float32"), (-1, places, channels))
    return ops.transpose(ops.matmul(flat, along), (0, 2, 1))


def _of_same_rank(target: Any, values: Any) -> Any:
    """For each value the target's of the same rank along the last axis."""
    ranks = tf.argsort(tf.argsort(values))
    return tf.gather(tf.sort(target), ranks, batch_dims=2)  # Keras's take_along_axis copies both several times
