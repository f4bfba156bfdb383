"""Networks in fewer operations, for training: the same function and gradients, but for rounding.

Layers keep their names, weights and files; what changes is how a step computes them. `benchmarks/NOTES.md` has what
each change gains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from keras_vae.export.upsampling import TAPS, convolves, doubles, end_crop, padding_of
from keras_vae.support import replicas
from keras_vae.support.keras_defaults import keras_defaults

# Up to so many places in an image, a convolution in bfloat16 is faster as a matrix product on a CPU: of a few places,
# oneDNN's gradient with respect to many weights takes several times as long.
MATRIX_PLACES = 100
HALVED_PLACES = 36  # the same where pixels have to be laid out for it


@keras_defaults()
def fuse(network: keras.Model) -> keras.Model:
    """The same network, which shares its layers and weights, in fewer operations.

    - Nearest x2 upsampling, padding and a 3x3 convolution become one 2x2 convolution at the low resolution (Shi et al.
      2016, arXiv 1609.05158): 2.25 times fewer multiplications, and nothing but the result is computed, or kept for the
      gradient, at the high one. `keras_vae.export.rewrite` does the same to what is exported.
    - A convolution of bfloat16 with few places and many weights becomes a matrix product, on a CPU.
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
        elif _halves_to_few_places(layer, x):
            return HalvedConv2D(layer)(x)
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

    if isinstance(network, keras.Sequential):
        network = keras.Model(network.inputs, network.outputs, name=network.name)
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
    known = norm.compute_dtype in ("float32", "bfloat16", "float16") and norm.activity_regularizer is None
    return len(x.shape) == 4 and axis in (3, -1) and whole and known


def _halves_to_few_places(layer: Any, x: Any) -> bool:
    """Whether it is a convolution as in the paper's encoder, 4x4 with stride 2, that is faster as a matrix product."""
    if type(layer) is not layers.Conv2D or layer.data_format != "channels_last":
        return False
    plain = (layer.dilation_rate, layer.groups, layer.use_bias, layer.activity_regularizer) == ((1, 1), 1, False, None)
    halves = (layer.kernel_size, layer.strides, layer.padding) == ((4, 4), (2, 2), "same")
    height, width = x.shape[1:3]
    if not (plain and halves) or height is None or width is None or height % 2 or width % 2:
        return False
    return _as_matrix(layer.compute_dtype, height * width // 4, HALVED_PLACES)


def _as_matrix(dtype: str, places: int, most: int) -> bool:
    return dtype == "bfloat16" and places <= most and not tf.config.list_physical_devices("GPU")


class _Wrapper(layers.Layer):
    """A layer computed in another way, with its own weights, in float32 whatever its policy, until they are cast."""

    def __init__(self, layer: layers.Layer) -> None:
        # Keras rounds the variables of a layer whose policy is mixed, or that takes part in its parent's autocast.
        super().__init__(dtype="float32", autocast=False, name=layer.name)
        self.layer = layer
        self.built = True

    def cast(self, tensor: Any) -> Any:
        """A tensor in the precision that the layer computes in."""
        return ops.cast(tensor, self.layer.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, images: Any, **kwargs: Any) -> Any:
        return keras.KerasTensor(self.compute_output_shape(images.shape), self.layer.compute_dtype)


class WithoutActivation(_Wrapper):
    """A convolution less its activation."""

    def call(self, images: Any) -> Any:
        conv = self.layer
        outputs = conv.convolution_op(self.cast(images), self.cast(conv.kernel))
        return ops.add(outputs, self.cast(conv.bias)) if conv.use_bias else outputs


class FusedBatchNormalization(_Wrapper):
    """Batch normalization in one operation forward and one back; over all replicas' images where there are several."""

    def call(self, images: Any, training: bool = False) -> Any:
        norm = self.layer
        if not (training and norm.trainable):
            return norm(images, training=False)
        images = self.cast(images)
        if replicas.count() > 1:
            mean, variance = replicas.moments(images)
            self._follow(mean, variance)
            scale = tf.math.rsqrt(variance + norm.epsilon) * norm.gamma
            return self.cast(ops.cast(images, "float32") * scale + (norm.beta - mean * scale))
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
        self._follow(mean, variance * (ops.maximum(count - 1.0, 1.0) / count))
        return normalized

    def _follow(self, mean: Any, variance: Any) -> None:
        norm = self.layer
        for moving, now in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
            moving.assign(moving * norm.momentum + ops.stop_gradient(now) * (1.0 - norm.momentum))


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
        images = self.cast(images)
        kernel = self.cast(_folded(conv.kernel))
        padded = _edge_padded(images) if self.padding == "edge" else tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        if conv.use_bias:
            pixels = tf.nn.bias_add(tf.nn.conv2d(padded, kernel, 1, "VALID"), self.cast(tf.tile(conv.bias, (4,))))
        else:
            pixels = _convolved(padded, kernel)
        pixels = tf.nn.depth_to_space(pixels, 2)
        height, width = (2 * side - crop for side, crop in zip(images.shape[1:3], self.crop, strict=True))
        # tf.slice, whose gradient pads; that of Python's slices fills a whole image with zeros for each.
        pixels = tf.slice(pixels, (0, 1, 1, 0), (-1, height, width, -1))
        return conv.activation(pixels)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sides, _ = input_shape
        height, width = (side and 2 * side - crop for side, crop in zip(sides, self.crop, strict=True))
        return (batch, height, width, self.layer.filters)


class HalvedConv2D(_Wrapper):
    """A 4x4 convolution with stride 2 as one of 2x2 windows, whose places hold 2x2 pixels each."""

    def call(self, images: Any) -> Any:
        conv = self.layer
        images = self.cast(images)
        channels, filters = conv.kernel.shape[2:]
        kernel = tf.reshape(self.cast(conv.kernel), (2, 2, 2, 2, channels, filters))
        kernel = tf.reshape(tf.transpose(kernel, (0, 2, 1, 3, 4, 5)), (2, 2, 4 * channels, filters))
        padded = tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return conv.activation(_convolved(tf.nn.space_to_depth(padded, 2), kernel))


# The matrix of `TAPS`, for rows and columns: from the nine places of a kernel to four places by four pixels.
FOLD = np.einsum("apk,bql->pqabkl", TAPS, TAPS).reshape(16, 9)


def _folded(kernel: Any) -> Any:
    """(3, 3, channels, filters) to (2, 2, channels, 4 * filters), summed up in float32."""
    channels, filters = kernel.shape[2:]
    folded = tf.matmul(tf.constant(FOLD, kernel.dtype), tf.reshape(kernel, (9, channels * filters)))
    folded = tf.transpose(tf.reshape(folded, (2, 2, 2, 2, channels, filters)), (0, 1, 4, 2, 3, 5))
    return tf.reshape(folded, (2, 2, channels, 4 * filters))


@tf.custom_gradient
def _edge_padded(images: Any) -> Any:
    """The border repeated: as tf.pad(..., "SYMMETRIC"), whose operations, there and back, are several times slower."""

    def gradient(upstream: Any) -> Any:
        for axis in (2, 1):
            size = images.shape[axis] + 2
            if size == 3:  # one row, three times
                upstream = tf.reduce_sum(upstream, axis, keepdims=True)
                continue
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
    """A 2x2 convolution without padding or bias, whose gradient TensorFlow sums up in bfloat16 for all but its own."""
    height, width, channels = padded.shape[1] - 1, padded.shape[2] - 1, padded.shape[3]
    if not _as_matrix(padded.dtype.name, height * width, MATRIX_PLACES):
        return tf.nn.conv2d(padded, kernel, 1, "VALID")
    windows = [tf.slice(padded, (0, row, column, 0), (-1, height, width, -1)) for row in (0, 1) for column in (0, 1)]
    columns = tf.reshape(tf.concat(windows, 3), (-1, 4 * channels))
    return tf.reshape(tf.matmul(columns, tf.reshape(kernel, (4 * channels, -1))), (-1, height, width, kernel.shape[3]))
