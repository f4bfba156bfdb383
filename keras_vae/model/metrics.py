"""Means of the objective's terms over images, and a metric that such a mean cannot express."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vae.support import moments, replicas

# A latent counts as active if its posterior mean varies over the data by more than this (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01
# Of variables that take in the whole batch on each replica.
SAME_ON_EVERY_REPLICA: dict[str, Any] = {"dtype": "float32", "aggregation": "only_first_replica"}


class TermMeans(keras.metrics.Metric):
    """Means of the objective's terms over all images so far, in two variables rather than two for each term.

    Means over images, not over batches: a smaller last batch weighs less. To Keras it is the metric of the first term;
    `others` are those of the rest, which read what this one keeps.

    Args:
        terms: names of the terms.
    """

    def __init__(self, terms: Sequence[str], **kwargs: Any) -> None:
        super().__init__(name=terms[0], **kwargs)
        self.terms = tuple(terms)
        self.sums = self.add_variable((len(self.terms),), "zeros", name="sums", **SAME_ON_EVERY_REPLICA)
        self.count = self.add_variable((), "zeros", name="count", **SAME_ON_EVERY_REPLICA)
        self.others = [_TermMean(term, self.means) for term in self.terms[1:]]

    def of(self, terms: dict[str, Any]) -> Any:
        """Means over the images of the whole batch, float32 (terms,); NaN for a term that was not computed.

        Args:
            terms: float32 (batch,) by name; of this replica's images.
        """
        missing = ops.full_like(terms["loss"], math.nan)
        return replicas.mean(ops.stack([terms.get(name, missing) for name in self.terms], axis=1))

    def update_state(self, means: Any, size: Any) -> None:
        """Takes in a batch.

        Args:
            means: over the images of the whole batch, float32 (terms,).
            size: number of these images, float32 ().
        """
        self.sums.assign_add(size * means)
        self.count.assign_add(size)

    def means(self) -> dict[str, Any]:
        """The means so far, float32 () by name."""
        return dict(zip(self.terms, ops.unstack(ops.divide_no_nan(self.sums, self.count)), strict=True))

    def result(self) -> Any:
        return self.means()[self.name]


class _TermMean(keras.metrics.Metric):
    def __init__(self, name: str, means: Callable[[], dict[str, Any]]) -> None:
        super().__init__(name=name)
        self.means = means

    def result(self) -> Any:
        return self.means()[self.name]


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
        self.count = self.add_variable((), "zeros", name="count", **SAME_ON_EVERY_REPLICA)
        self.mean = self.add_variable((latent_dim,), "zeros", name="mean", **SAME_ON_EVERY_REPLICA)
        self.squares = self.add_variable((latent_dim,), "zeros", name="squares", **SAME_ON_EVERY_REPLICA)

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
