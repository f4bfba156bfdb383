"""Means of the objective's terms over images, and a metric that such a mean cannot express."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vae.support import moments, replicas

# A latent counts as active if its posterior mean varies over the data by more than this (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01


def track(trackers: dict[str, keras.metrics.Mean], terms: dict[str, Any]) -> dict[str, Any]:
    """Takes in a batch, and returns the means so far, over all replicas: float32 () by name.

    Means over images, not over batches: a smaller last batch weighs less.

    Args:
        trackers: Keras's running means by the terms' names.
        terms: float32 (batch,) by name.
    """
    for name, tracker in trackers.items():
        tracker.update_state(terms[name])
    if replicas.count() == 1:
        return {name: tracker.result() for name, tracker in trackers.items()}
    sums = [[tracker.total.value, tracker.count.value] for tracker in trackers.values()]
    totals, counts = tf.unstack(replicas.total(tf.convert_to_tensor(sums)), axis=1)
    return dict(zip(trackers, tf.unstack(tf.math.divide_no_nan(totals, counts)), strict=True))


@keras.saving.register_keras_serializable("keras_vae")
class ActiveUnits(keras.metrics.Metric):
    """Number of latents whose posterior mean varies over the images by a variance above 0.01.

    Burda et al. 2016, arXiv 1509.00519, section 5.2: A_u = Var_x(E_{q(u | x)}[u]). During training the weights change
    from batch to batch, so the figure only approximates what evaluation finds.

    Args:
        latent_dim: number of latents.
    """

    def __init__(self, latent_dim: int, name: str = "active_units", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.latent_dim = latent_dim
        # The same on every replica: each sees the moments of the whole batch.
        same: dict[str, Any] = {"dtype": "float32", "aggregation": "only_first_replica"}
        self.count = self.add_variable((), "zeros", name="count", **same)
        self.mean = self.add_variable((latent_dim,), "zeros", name="mean", **same)
        self.squares = self.add_variable((latent_dim,), "zeros", name="squares", **same)

    def update_state(self, means: Any) -> None:
        """Takes in the posterior means of a batch: float32 (batch, latent_dim)."""
        mean = replicas.mean(means)
        squares = replicas.total(ops.sum(ops.square(means - mean), axis=0))
        batch = (replicas.batch_size(means), mean, squares)
        merged = moments.merge((self.count, self.mean, self.squares), batch, ops.square)
        for variable, value in zip((self.count, self.mean, self.squares), merged, strict=True):
            variable.assign(value)

    def result(self) -> Any:
        variance = self.squares / ops.maximum(self.count, 1.0)
        return ops.sum(ops.cast(variance > ACTIVE_VARIANCE, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "latent_dim": self.latent_dim}
