"""How the perceptual distances enter the loss: weighted, as in the paper, or as likelihoods of features, in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import layers, ops

from keras_vae.model.distributions import RunningVariance
from keras_vae.support.errors import InputError, check_weight

CALIBRATIONS = ("calibrated", "balanced")
# Values that each layer of "balanced" counts as, per value of the image. On faces of 64x64, after four minutes of
# vae-123 at 150 nats: 1/3 gave 0.16 of the photos' sharpness and a feature distance of 0.771, 1 gave 0.21 and 0.768,
# 2.5 0.23 and 0.775; plain squared error 0.10 and 0.762, and in 15 minutes more than all of these.
BALANCE = 2.5
MIN_FEATURE_VARIANCE = 1e-8  # below the rounding of bfloat16 features of length 1

PerceptualWeight = float | tuple[float, ...] | str


class WeightedDistance:
    """Distances, each times its weight, added up: of layers, the paper's loss (Hou et al., equation 2).

    Args:
        weights: one for each distance.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)
        self.count = len(self.weights)

    def __call__(self, distances: Any, sizes: Sequence[int] = (), training: bool = False) -> Any:
        """The term of each image.

        Args:
            distances: float32 (batch, terms), as `PerceptualLoss.distances` returns them.
            sizes: number of values behind each; only `FeatureLikelihood` uses it.
            training: whether variances follow this batch; here there are none.

        Returns:
            float32 (batch,).
        """
        return ops.sum(distances * ops.convert_to_tensor(self.weights, "float32"), axis=1)


class FeatureLikelihood(layers.Layer):
    """-log p(features of x | features decoded), in nats: each term a Gaussian with its own optimal variance.

    Args:
        count: number of terms, such as layers.
        counted_as: number of values that each counts as, however many it has; None for those it has.
    """

    def __init__(self, count: int, counted_as: float | None = None, **kwargs: Any) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.variances = RunningVariance(count, minimum=MIN_FEATURE_VARIANCE, name="variances")
        self.built = True
        self.count, self.counted_as = count, counted_as

    def call(self, distances: Any, sizes: Sequence[int], training: bool = False) -> Any:
        """As `WeightedDistance`; in training with the batch's own variances, in evaluation with their running mean."""
        squared_errors = 2.0 * distances
        variances = self.variances(squared_errors, training=training)
        nats = 0.5 * (squared_errors / variances + ops.log(2.0 * math.pi * variances))
        values = sizes if self.counted_as is None else [self.counted_as] * len(sizes)
        return ops.sum(nats * ops.convert_to_tensor(values, "float32"), axis=1)


def feature_term(weight: PerceptualWeight, count: int, image_size: int) -> WeightedDistance | FeatureLikelihood:
    """The term that a perceptual weight stands for; the loss takes it times `loss_factor(weight)`.

    Args:
        weight: as `check_perceptual_weight` returns it.
        count: number of terms: layers, and textures.
        image_size: number of values in an image.
    """
    if weight == "calibrated":
        return FeatureLikelihood(count, name="feature_term")
    if weight == "balanced":
        return FeatureLikelihood(count, BALANCE * image_size, name="feature_term")
    return WeightedDistance(weight if isinstance(weight, tuple) else [1.0] * count)


def check_terms(terms: Sequence[str], count: int) -> None:
    """Refuses a feature network that compares other than a model was made for.

    Raises:
        InputError: it has more or fewer terms.
    """
    if len(terms) != count:
        raise InputError(
            f"vae.perceptual compares {', '.join(terms)}, and this model was made for {count} terms: give it the "
            "layers and texture_layers that the model was made with"
        )


def loss_factor(weight: PerceptualWeight) -> float:
    """The factor of the reported term in the loss: a single number is not part of the figure, as in the paper."""
    return weight if isinstance(weight, float) else 1.0


def check_perceptual_weight(weight: float | Sequence[float] | str, counts: tuple[int, int] | None) -> PerceptualWeight:
    """Returns a usable weight of the perceptual term: a number, one per term, "calibrated" or "balanced".

    Args:
        weight: as it was given.
        counts: number of layers, and of texture layers, whose weights follow; None without a feature network.

    Raises:
        InputError: it is something else.
    """
    layer_count, texture_count = counts or (0, 0)
    each = "layer and then texture layer" if texture_count else "layer"
    choices = f"a number, one number a {each}, {' or '.join(map(repr, CALIBRATIONS))}"
    if isinstance(weight, str):
        if weight not in CALIBRATIONS:
            raise InputError(f"perceptual_weight={weight!r}: give {choices}")
        return weight
    if isinstance(weight, (int, float)):
        return check_weight("perceptual_weight", weight)
    weights = tuple(check_weight("perceptual_weight", each) for each in weight)
    if counts is not None and len(weights) != layer_count + texture_count:
        textures = f" and {texture_count} texture layers" if texture_count else ""
        raise InputError(
            f"perceptual_weight has {len(weights)} numbers for {layer_count} layers{textures}: give {choices}"
        )
    return weights
