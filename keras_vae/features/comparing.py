"""The features of two images compared, place by place, in few passes over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

# Under the square root: where all channels are near 0, noise is not scaled up to length 1.
LENGTH_EPSILON = 1e-6


def texture_of(layer: str) -> str:
    return f"texture of {layer}"


def distances_in_chain(
    model: keras.Model,
    images: Any,
    targets: Mapping[str, Any],
    compared: Mapping[str, Compared],
    textures: Mapping[str, Callable[[Any, Any], Any]],
) -> dict[str, Any]:
    """The distances by their terms' names, in few passes over the features of a chain (`Network.is_chain`).

    A layer that is compared hands its output on together with the distance, and so takes the two gradients that come
    back in one pass. A ReLU before max pooling comes after it, where there are four times fewer values: the largest
    value is the same, and so is the one that the gradient goes to.
    """
    distances = {}
    x, is_rectified = images, True
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            x = ops.cast(x if is_rectified else tf.nn.relu(x), layer.compute_dtype)
            kernel, bias = (ops.cast(weight, layer.compute_dtype) for weight in (layer.kernel, layer.bias))
            x, is_rectified = tf.nn.bias_add(layer.convolution_op(x, kernel), bias), False
        elif isinstance(layer, layers.MaxPooling2D):
            x = layer(x)
        if layer.name in compared:
            (x, distances[layer.name]), is_rectified = compared[layer.name](x, targets[layer.name]), True
        if layer.name in textures:
            x, is_rectified = x if is_rectified else tf.nn.relu(x), True
            distances[texture_of(layer.name)] = textures[layer.name](targets[layer.name], x)
    return distances


class Compared:
    """Features and their distance to target ones, with the gradients of both in one pass, compiled by XLA.

    On a CPU TensorFlow would write out each step of it, millions of float32 values; here only the features are kept.

    Args:
        normalize: as `PerceptualLoss`.
        rectified: whether the features are the ReLU of the input.
    """

    def __init__(self, normalize: bool, rectified: bool) -> None:
        self.rectified = rectified
        self.distance = _distance_of_units if normalize else _distance
        self.forward = tf.function(self.distance, jit_compile=True)
        self.backward = tf.function(self._backward, jit_compile=True)

    def __call__(self, features: Any, target: Any) -> tuple[Any, Any]:
        @tf.custom_gradient
        def compared(features: Any, target: Any) -> Any:
            features = tf.nn.relu(features) if self.rectified else features
            distance = self.forward(target, features)
            return (features, distance), lambda *upstream: (self.backward(target, features, *upstream), None)

        return compared(features, target)

    def _backward(self, target: Any, features: Any, onward: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(features)
            # A second ReLU changes nothing, and its gradient is that of the first.
            found = tf.nn.relu(features) if self.rectified else features
            distance = self.distance(target, found)
        return tape.gradient([found, distance], features, [onward, upstream])


def _distance(target: Any, feature: Any) -> Any:
    """1/(2CHW) times the sum of squared differences: float32, shape (batch,)."""
    # Flattened, XLA's loop over them is faster.
    target, feature = (ops.cast(ops.reshape(each, (ops.shape(each)[0], -1)), "float32") for each in (target, feature))
    return 0.5 * ops.mean(ops.square(feature - target), axis=1)


def _distance_of_units(target: Any, feature: Any) -> Any:
    return _distance(*(unit_length(ops.cast(each, "float32")) for each in (target, feature)))


def unit_length(features: Any) -> Any:
    squared = ops.sum(ops.square(features), axis=-1, keepdims=True)
    return features * ops.rsqrt(squared + LENGTH_EPSILON)
