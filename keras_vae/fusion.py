"""Networks in fewer operations, for training: the same function and gradients, but for rounding.

Layers keep their names, weights and files; what changes is how a step computes them. `benchmarks/NOTES.md` has what each
change gains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from export.upsampling import TAPS, convolves, doubles, end_crop, padding_of

# Up to so many places in an image, a convolution in bfloat16 is faster as a matrix product on a CPU: of a few places,
# oneDNN's gradient with respect to many weights takes several times as long.
MATRIX_PLACES = 36


def fuse(network: keras.Model) -> keras.Model:
    """The same network, which shares its layers and weights, in fewer operations.

    - Nearest x2 upsampling, padding and a 3x3 convolution become one 2x2 convolution at the low resolution (Shi et al.
      2016, arXiv 1609.05158): 2.25 times fewer multiplications, and nothing but the result is computed, or kept for the
      gradient, at the high one. `export.rewrite` does the same to what is exported.
    - Batch normalization becomes TensorFlow's fused operation, whose sums are float32 whatever it normalizes.

    Args:
        network: a functional or sequential Keras model; others are returned as they are. Models within it are fused
            too.
    """
    seen: dict[int, _Upsampled] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Model):
            return fuse(layer)(*args, **kwargs)
        x = args[0] if args else None
        before = seen.get(id(x))
        made: _Upsampled | None = None
        if doubles(layer):
            made = _Upsampled(layer(x), x)
        elif type(layer) is layers.BatchNormalization and _is_plain(layer, x):
            return FusedBatchNormalization(layer)(x)
        elif before is not None:
            if not before.padding and not any(before.crop) and (crop := end_crop(layer)):
                made = replace(before, tensor=layer(x), crop=crop)
            elif not before.padding and (padding := padding_of(layer, x)):
                if not (padding == "zero" and any(before.crop)):
                    made = replace(before, tensor=layer(x), padding=padding)
            elif (padding := convolves(layer, before.padding, before.crop)) and layer.activity_regularizer is None:
                return UpsampledConv2D(layer, padding, before.crop)(before.source)
        if made is None:
            return layer(*args, **kwargs)
        seen[id(made.tensor)] = made
        return made.tensor

    try:
        return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)
    except ValueError:  # what Keras raises of a subclassed model
        return network


@dataclass
class _Upsampled:
    tensor: Any  # held, so that its id stays its own
    source: Any
    padding: str = ""  # "edge" or "zero"
    crop: tuple[int, int] = (0, 0)  # rows and columns less than twice the source's


def _is_plain(norm: layers.BatchNormalization, x: Any) -> bool:
    """Whether it is batch normalization of images over their channels, as TensorFlow's fused operation computes it."""
    axis = norm.axis if isinstance(norm.axis, int) else norm.axis[0]
    whole = norm.scale and norm.center and not (norm.renorm or norm.synchronized)
    return len(x.shape) == 4 and axis in (3, -1) and whole and norm.activity_regularizer is None


class _Wrapper(layers.Layer):
    """A layer's own weights, in float32 whatever its policy, computed with in another way."""

    def __init__(self, layer: layers.Layer, **kwargs: Any) -> None:
        # Without autocast variables are not rounded before they are summed up.
        super().__init__(dtype=layer.dtype_policy, autocast=False, name=layer.name, **kwargs)
        self.layer = layer
        self.built = True


class FusedBatchNormalization(_Wrapper):
    """Batch normalization in one operation forward and one back."""

    def call(self, images: Any, training: bool = False) -> Any:
        norm = self.layer
        if not (training and norm.trainable):
            return norm(images, training=False)
        images = ops.cast(images, self.compute_dtype)
        none = tf.zeros((0,))
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=tf.convert_to_tensor(norm.gamma),
            offset=tf.convert_to_tensor(norm.beta),
            mean=none,
            variance=none,
            epsilon=norm.epsilon,
            is_training=True,
        )
        # The operation's variance is the unbiased estimate, Keras's moving one follows the biased.
        count = ops.cast(tf.size(images, tf.int64) // images.shape[-1], "float32")
        variance = variance * (ops.maximum(count - 1.0, 1.0) / count)
        for moving, now in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
            moving.assign(moving * norm.momentum + ops.stop_gradient(now) * (1.0 - norm.momentum))
        return normalized

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class UpsampledConv2D(_Wrapper):
    """Nearest x2 upsampling, padding and a 3x3 convolution, as one 2x2 convolution at the low resolution.

    Shape (batch, height, width, channels) to (batch, 2 * height, 2 * width, filters), less `crop` rows and columns.

    Args:
        layer: the 3x3 convolution.
        padding: "edge", which repeats the border, or "zero".
        crop: rows and columns, 0 or 1 each, that the upsampled image has too many at its end.
    """

    def __init__(self, layer: layers.Conv2D, padding: str, crop: tuple[int, int]) -> None:
        super().__init__(layer)
        self.padding = padding
        self.crop = crop

    def call(self, images: Any) -> Any:
        conv = self.layer
        images = ops.cast(images, self.compute_dtype)
        kernel = ops.cast(_folded(conv.kernel), images.dtype)
        padded = _edge_padded(images) if self.padding == "edge" else tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        pixels = _convolved(padded, kernel)
        if conv.use_bias:
            pixels = tf.nn.bias_add(pixels, ops.cast(tf.tile(conv.bias, (4,)), pixels.dtype))
        pixels = tf.nn.depth_to_space(pixels, 2)
        height, width = (2 * side - crop for side, crop in zip(images.shape[1:3], self.crop, strict=True))
        # tf.slice, whose gradient pads; that of Python's slices fills a whole image with zeros for each.
        pixels = tf.slice(pixels, (0, 1, 1, 0), (-1, height, width, -1))
        return conv.activation(pixels)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sides, _ = input_shape
        height, width = (side and 2 * side - crop for side, crop in zip(sides, self.crop, strict=True))
        return (batch, height, width, self.layer.filters)


# The matrix of `TAPS`, for rows and columns: from the nine places of a kernel to four places by four pixels.
FOLD = np.einsum("apk,bql->pqabkl", TAPS, TAPS).reshape(16, 9).astype(np.float32)


def _folded(kernel: Any) -> Any:
    """(3, 3, channels, filters) to (2, 2, channels, 4 * filters), summed up in float32."""
    channels, filters = kernel.shape[2:]
    folded = tf.matmul(FOLD, tf.reshape(kernel, (9, channels * filters)))
    folded = tf.transpose(tf.reshape(folded, (2, 2, 2, 2, channels, filters)), (0, 1, 4, 2, 3, 5))
    return tf.reshape(folded, (2, 2, channels, 4 * filters))


@tf.custom_gradient
def _edge_padded(images: Any) -> Any:
    """The border repeated: as tf.pad(..., "SYMMETRIC"), whose operations, there and back, are several times slower."""

    def gradient(upstream: Any) -> Any:
        for axis in (2, 1):
            size = upstream.shape[axis]
            first, last = _part(upstream, axis, 0, 2), _part(upstream, axis, size - 2, 2)
            ends = [tf.reduce_sum(end, axis, keepdims=True) for end in (first, last)]
            upstream = tf.concat([ends[0], _part(upstream, axis, 2, size - 4), ends[1]], axis)
        return upstream

    padded = images
    for axis in (1, 2):
        size = padded.shape[axis]
        padded = tf.concat([_part(padded, axis, 0, 1), padded, _part(padded, axis, size - 1, 1)], axis)
    return padded, gradient


def _part(images: Any, axis: int, start: int, size: int) -> Any:
    begin, sizes = [0, 0, 0, 0], [-1, -1, -1, -1]
    begin[axis], sizes[axis] = start, size
    return tf.slice(images, begin, sizes)


def _convolved(padded: Any, kernel: Any) -> Any:
    """A 2x2 convolution without padding."""
    height, width, channels = padded.shape[1] - 1, padded.shape[2] - 1, padded.shape[3]
    if padded.dtype != tf.bfloat16 or height * width > MATRIX_PLACES or tf.config.list_physical_devices("GPU"):
        return tf.nn.conv2d(padded, kernel, 1, "VALID")
    windows = [tf.slice(padded, (0, row, column, 0), (-1, height, width, -1)) for row in (0, 1) for column in (0, 1)]
    columns = tf.reshape(tf.concat(windows, 3), (-1, 4 * channels))
    return tf.reshape(tf.matmul(columns, tf.reshape(kernel, (4 * channels, -1))), (-1, height, width, kernel.shape[3]))
