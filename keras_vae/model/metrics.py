"""Means of the objective's terms over images, and a metric that such a mean cannot express."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vae.support import replicas

# Of the posterior mean over the data, above which a latent is taken to carry something (Burda et al. 2016).
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

    Burda et al. 2016, arXiv 1509.00519, section 5.2: A_u = Var_x(E_{q(u | x)}[u]). While a model trains, the epoch's
    images are seen by changing weights, and the figure is only near to what evaluation finds.

    Args:
        latent_dim: number of latents.
    """

    def __init__(self, latent_dim: int, name: str = "active_units", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.latent_dim = latent_dim
        # The same on every replica: each takes in the whole batch.
        same: dict[str, Any] = {"dtype": "float32", "aggregation": "only_first_replica"}
        self.count = self.add_variable((), "zeros", name="count", **same)
        self.mean = self.add_variable((latent_dim,), "zeros", name="mean", **same)
        self.squares = self.add_variable((latent_dim,), "zeros", name="squares", **same)

    def update_state(self, means: Any) -> None:
        """Takes in the posterior means of a batch: float32 (batch, latent_dim)."""
        # Two sets' squared deviations add up as in Chan et al. 1979: no difference of large sums.
        size = replicas.batch_size(means)
        mean = replicas.mean(means)
        shift = mean - self.mean
        total = self.count + size
        self.squares.assign(
            self.squares
            + replicas.total(ops.sum(ops.square(means - mean), axis=0))
            + ops.square(shift) * self.count * size / ops.maximum(total, 1.0)
        )
        self.mean.assign(self.mean + shift * size / ops.maximum(total, 1.0))
        self.count.assign(total)

    def result(self) -> Any:
        variance = self.squares / ops.maximum(self.count, 1.0)
        return ops.sum(ops.cast(variance > ACTIVE_VARIANCE, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "latent_dim": self.latent_dim}
