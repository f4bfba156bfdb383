"""The paper's blocks as Keras layers that are fast in training and in inference alike.

`UpsampledConv2D` is the decoder's block, `HalvingConv2D` the encoder's convolution. `benchmarks/NOTES.md` has what each
gains.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from keras_vae.support import replicas

# Keras's default of 0.99 needs hundreds of steps before evaluation sees the images' statistics; 0.9 is what Torch, in
# which the paper's code is written, uses.
MOMENTUM = 0.9
EPSILON = 1e-3
FUSED = ("float32", "bfloat16", "float16")  # what TensorFlow's fused operation takes
PADDINGS = ("edge", "zero")
MATRIX_PLACES = 100  # up to this many positions, a 2x2 convolution in bfloat16 is faster as a matrix product on a CPU
HALVED_PLACES = 36  # the same where pixels have to be rearranged for it

# What row 2q - 1 + s of the result sees of rows q - 1 and q of the input: the sums, over the kernel's three rows, that
# belong to each of the two. The same for columns.
TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]])  # [s, row, kernel row]
# Of rows and columns: from the nine positions of a kernel to four positions by four pixels.
FOLD = np.einsum("apk,bql->pqabkl", TAPS, TAPS).reshape(16, 9)


@keras.saving.register_keras_serializable("keras_vae")
class BatchNormalization(layers.BatchNormalization):
    """Batch normalization of images, (batch, height, width, channels), in one operation forward and one backward.

    Statistics are float32 whatever the images are, and over the whole batch where several replicas share it. In
    inference, with `trainable=False`, or in float64, it is Keras's.

    Args:
        momentum: of the moving mean and variance.
        epsilon: added to the variance.
        **kwargs: as `keras.layers.BatchNormalization`; the axis is the last, and both scale and center are on.
    """

    def __init__(self, momentum: float = MOMENTUM, epsilon: float = EPSILON, **kwargs: Any) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, images: Any, training: bool | None = None) -> Any:
        if not (training and self.trainable) or self.compute_dtype not in FUSED:
            return super().call(images, training=training)
        if replicas.count() > 1:
            mean, variance = replicas.moments(images)
            self._follow(mean, variance)
            scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
            return ops.cast(ops.cast(images, "float32") * scale + (self.beta - mean * scale), self.compute_dtype)
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.zeros((0,)),
            variance=tf.zeros((0,)),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation's variance is the unbiased estimate, Keras's moving one follows the biased.
        count = ops.cast(tf.size(images, tf.int64) // images.shape[-1], "float32")
        self._follow(mean, variance * (ops.maximum(count - 1.0, 1.0) / count))
        return normalized

    def _follow(self, mean: Any, variance: Any) -> None:
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + ops.stop_gradient(now) * (1.0 - self.momentum))

    def scale_and_offset(self) -> tuple[Any, Any]:
        """What inference multiplies each channel by, and adds to it: float32 (channels,)."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale


@keras.saving.register_keras_serializable("keras_vae")
class HalvingConv2D(layers.Conv2D):
    """A 4x4 convolution with stride 2, padding "same" and no bias; faster in bfloat16 on a CPU if positions are few.

    Args:
        filters: number of output channels.
        **kwargs: as `keras.layers.Layer`: name, dtype, trainable.
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        settings = {"kernel_size": 4, "strides": 2, "padding": "same", "use_bias": False}
        super().__init__(filters, **{**kwargs, **settings})

    def convolution_op(self, images: Any, kernel: Any) -> Any:
        _, height, width, channels = images.shape
        if height % 2 or width % 2 or not as_matrix(images, height // 2 * width // 2, HALVED_PLACES):
            return super().convolution_op(images, kernel)
        # As a convolution of 2x2 windows whose positions hold 2x2 pixels each.
        filters = kernel.shape[3]
        kernel = tf.transpose(tf.reshape(kernel, (2, 2, 2, 2, channels, filters)), (0, 2, 1, 3, 4, 5))
        padded = tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return convolved(tf.nn.space_to_depth(padded, 2), tf.reshape(kernel, (2, 2, 4 * channels, filters)))


@keras.saving.register_keras_serializable("keras_vae")
class UpsampledConv2D(layers.Layer):
    """Nearest x2 upsampling, padding and a 3x3 convolution, as one 2x2 convolution at the low resolution.

    Upsampling makes four equal pixels of each one, so a pixel of the result depends on only 2x2 different ones. With
    the kernel's weights added up, one convolution computes all four pixels of a position, which are then laid out side
    by side (Shi et al. 2016, arXiv 1609.05158): 2.25 times fewer multiplications, and nothing but the result at the
    high resolution. In inference the normalization is folded into kernel and bias.

    Weights are float32, and added up before they are rounded to what the layer computes in.

    Shape: (batch, height, width, channels) to (batch, 2 * height - crop[0], 2 * width - crop[1], filters), of the
    layer's compute dtype; height and width are known.

    Args:
        filters: number of output channels.
        padding: around the upsampled image: "edge" repeats its border, "zero" is zeros.
        crop: rows and columns, 0 or 1 each, to crop from the upsampled image's end, for odd sides.
        normalized: whether `BatchNormalization` follows, instead of a bias.
        **kwargs: as `keras.layers.Layer`: name, dtype, trainable.

    Raises:
        ValueError: another padding or crop.
    """

    def __init__(
        self,
        filters: int,
        padding: str = "edge",
        crop: tuple[int, int] = (0, 0),
        normalized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if padding not in PADDINGS or not {*crop} <= {0, 1} or len(crop) != 2:
            raise ValueError(f"padding={padding!r}, crop={crop}: give {' or '.join(PADDINGS)}, and 0 or 1 twice")
        self.filters = filters
        self.padding = padding
        self.crop = (int(crop[0]), int(crop[1]))
        self.normalization = BatchNormalization(dtype=self.dtype_policy, name="norm") if normalized else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # Without autocast, which would round the kernel before it is added up.
        self.kernel = self.add_weight((3, 3, input_shape[-1], self.filters), name="kernel", autocast=False)
        if self.normalization is None:
            self.bias = self.add_weight((self.filters,), "zeros", name="bias", autocast=False)
        else:
            self.normalization.build(self.compute_output_shape(input_shape))

    def call(self, images: Any, training: bool | None = None) -> Any:
        norm = self.normalization
        if norm is None:
            return self._convolved(images, self.kernel, self.bias)
        if training and norm.trainable:
            return norm(self._convolved(images, self.kernel), training=True)
        scale, offset = norm.scale_and_offset()
        return self._convolved(images, self.kernel * scale, offset)

    def _convolved(self, images: Any, kernel: Any, bias: Any = None) -> Any:
        """The block without its normalization, with a float32 kernel (3, 3, channels, filters) and bias (filters,)."""
        _, height, width, _ = self.compute_output_shape(images.shape)
        if self.padding == "zero" and any(self.crop):
            # The zeros begin among the last pixels' copies: computed at the high resolution, as defined.
            pixels = ops.repeat(ops.repeat(images, 2, axis=1), 2, axis=2)[:, :height, :width]
            pixels = tf.nn.conv2d(pixels, self._cast(kernel), 1, "SAME")
            return pixels if bias is None else tf.nn.bias_add(pixels, self._cast(bias))
        padded = edge_padded(images) if self.padding == "edge" else tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = self._cast(folded(kernel))
        if bias is None:
            pixels = convolved(padded, kernel)
        else:  # never as a matrix product, of which TensorFlow adds the bias's gradient up in bfloat16
            pixels = tf.nn.bias_add(tf.nn.conv2d(padded, kernel, 1, "VALID"), self._cast(tf.tile(bias, (4,))))
        pixels = tf.nn.depth_to_space(pixels, 2)
        # tf.slice, whose gradient pads; that of Python's slices fills a whole image with zeros for each.
        return tf.slice(pixels, (0, 1, 1, 0), (-1, height, width, -1))

    def _cast(self, weight: Any) -> Any:
        return ops.cast(weight, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sides, _ = input_shape
        height, width = (side and 2 * side - crop for side, crop in zip(sides, self.crop, strict=True))
        return (batch, height, width, self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "padding": self.padding,
            "crop": self.crop,
            "normalized": self.normalization is not None,
        }


def folded(kernel: Any) -> Any:
    """The 3x3 kernel as a 2x2 one of four pixels each: (3, 3, channels, filters) to (2, 2, channels, 4 * filters).

    The pixels of a position come row by row, as `tf.nn.depth_to_space` takes them.
    """
    channels, filters = kernel.shape[2:]
    weights = tf.matmul(tf.constant(FOLD, kernel.dtype), tf.reshape(kernel, (9, channels * filters)))
    weights = tf.transpose(tf.reshape(weights, (2, 2, 2, 2, channels, filters)), (0, 1, 4, 2, 3, 5))
    return tf.reshape(weights, (2, 2, channels, 4 * filters))


def convolved(padded: Any, kernel: Any) -> Any:
    """A 2x2 convolution without padding: (batch, height, width, channels) to (batch, height - 1, width - 1, filters).

    As a matrix product where that is faster.
    """
    height, width, channels = padded.shape[1] - 1, padded.shape[2] - 1, padded.shape[3]
    if not as_matrix(padded, height * width, MATRIX_PLACES):
        return tf.nn.conv2d(padded, kernel, 1, "VALID")
    windows = [tf.slice(padded, (0, row, column, 0), (-1, height, width, -1)) for row in (0, 1) for column in (0, 1)]
    columns = tf.reshape(tf.concat(windows, 3), (-1, 4 * channels))
    return tf.reshape(tf.matmul(columns, tf.reshape(kernel, (4 * channels, -1))), (-1, height, width, kernel.shape[3]))


def as_matrix(images: Any, places: int, most: int) -> bool:
    """Whether a convolution is faster as a matrix product: in bfloat16 on a CPU, with few positions and many weights.

    oneDNN's gradient with respect to the kernel takes several times as long there.
    """
    return images.dtype == "bfloat16" and places <= most and not tf.config.list_physical_devices("GPU")


@tf.custom_gradient
def edge_padded(images: Any) -> Any:
    """The border repeated: (batch, height, width, channels) to (batch, height + 2, width + 2, channels).

    As `tf.pad(..., "SYMMETRIC")`, whose operations, forward and backward, are several times slower.
    """

    def gradient(upstream: Any) -> Any:
        for axis in (2, 1):
            size = images.shape[axis] + 2  # the upstream gradient may not know it
            if size == 3:  # one row, three times
                upstream = tf.reduce_sum(upstream, axis, keepdims=True)
                continue
            first, inner, last = tf.split(upstream, [2, size - 4, 2], axis)
            first, last = (tf.reduce_sum(end, axis, keepdims=True) for end in (first, last))
            upstream = tf.concat([first, inner, last], axis)
        return upstream

    rows = tf.concat([images[:, :1], images, images[:, -1:]], 1)
    return tf.concat([rows[:, :, :1], rows, rows[:, :, -1:]], 2), gradient
