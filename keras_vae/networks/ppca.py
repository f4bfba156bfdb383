"""Probabilistic PCA with convolutions beside it: a network that begins where the linear VAE ends.

The best VAE whose encoder and decoder are linear is probabilistic PCA (Lucas et al. 2019, arXiv 1911.02469), whose
weights need no training: they follow from the images' covariance. So one path of this network is linear and fixed by
`adapt`; convolutions beside it learn what is left, and sharpen what the linear path draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vae.networks.dfc import LEAKY_SLOPE
from keras_vae.networks.layers import BatchNormalization, HalvingConv2D, UpsampledConv2D
from keras_vae.networks.parts import ImageShape, SafeLogVariance, condition_input, conditioned, doublings, inputs

SIDE = 64  # pixels a side, at most, of the images in the linear path
LOWEST = 4  # pixels a side of the lowest resolution, about
WIDEST = 8  # times `width`, of the lowest resolutions
REFINING = 2  # times `width`, of the convolutions that see the linear path's image
MARGIN = 0.01  # by which that image is kept from 0 and 1, where the logit is infinite
ADAPTED_TO = 10_000  # images, at most
OVERSAMPLING, POWER_ITERATIONS = 32, 2  # of the randomized decomposition
LEAST_VARIANCE = 1e-6  # of the noise, with images in [0, 1]


@keras.saving.register_keras_serializable("keras_vae")
class LinearMap(layers.Layer):
    """x W + b with weights that are given rather than trained: float32 (batch, inputs) to (batch, outputs).

    Args:
        outputs: how many.
        bias: its initial value; the kernel begins with zeros.
        **kwargs: as `keras.layers.Layer`: name, dtype.
    """

    def __init__(self, outputs: int, bias: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outputs = outputs
        self.initial_bias = bias

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (input_shape[-1], self.outputs)
        initial = keras.initializers.Constant(self.initial_bias)
        self.kernel = self.add_weight(shape, "zeros", name="kernel", trainable=False)
        self.bias = self.add_weight(shape[1:], initial, name="bias", trainable=False)

    def call(self, x: Any) -> Any:
        return ops.matmul(x, self.kernel) + self.bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.outputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "outputs": self.outputs, "bias": self.initial_bias}


@keras.saving.register_keras_serializable("keras_vae")
class Corrected(layers.Layer):
    """sigmoid(logit(image) + correction): float32 images in [0, 1] from an image and logits of its shape."""

    def call(self, image: Any, correction: Any) -> Any:
        image = ops.clip(image, MARGIN, 1.0 - MARGIN)
        return ops.sigmoid(ops.log(image / (1.0 - image)) + correction)

    def compute_output_shape(self, image_shape: Any, correction_shape: Any) -> Any:
        return image_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config()  # Keras records no dtype policy for layers that leave this method out


def ppca_encoder(
    image_shape: ImageShape, latent_dim: int, dtype: Any, width: int, condition_dim: int = 0
) -> keras.Model:
    """The posterior of probabilistic PCA, plus what convolutions make of the image.

    Args:
        image_shape: (height, width, channels), 16 pixels a side or more.
        latent_dim: number of latents.
        dtype: Keras dtype policy of the convolutions; the linear path is float32.
        width: channels of the first convolution, doubled in each that follows, up to eight times.
        condition_dim: numbers in a condition, which shifts the linear path's centre and the channels of each
            resolution; 0 for none.

    Returns:
        as `keras_vae.networks.dfc.dfc_encoder`.
    """
    image = keras.Input(image_shape, name="image")
    condition = condition_input(condition_dim)
    pixels = layers.Flatten(dtype="float32", name="pixels")(_reduced(image))
    linear_mean = LinearMap(latent_dim, dtype="float32", name="linear_mean")(pixels)
    linear_mean = _recentred(linear_mean, condition)
    x = image
    for index in range(_halvings(image_shape)):
        x = HalvingConv2D(_channels(width, index), dtype=dtype, name=f"conv{index + 1}")(x)
        x = conditioned(x, condition, dtype, f"conv{index + 1}")
        x = _normalized(x, dtype, f"conv{index + 1}")
    # Zeros: at first, the posterior is the linear path's.
    zero = {"kernel_initializer": "zeros", "dtype": "float32"}
    flat = layers.Flatten(dtype=dtype, name="flatten")(x)
    correction = layers.Dense(latent_dim, name="mean_correction", **zero)(flat)
    mean = layers.Add(dtype="float32", name="mean")([linear_mean, correction])
    # Averaged over places: the linear VAE's variance is the same for all images, and little is added to it.
    averages = layers.GlobalAveragePooling2D(dtype=dtype, name="averages")(x)
    raw_log_var = layers.Dense(latent_dim, name="raw_log_var", **zero)(averages)
    log_var = SafeLogVariance(dtype="float32", name="log_var")(raw_log_var)
    return keras.Model(inputs(image, condition), {"mean": mean, "log_var": log_var}, name="encoder")


def ppca_decoder(
    image_shape: ImageShape, latent_dim: int, dtype: Any, width: int, condition_dim: int = 0
) -> keras.Model:
    """Probabilistic PCA's image, corrected by convolutions that see both the latents and that image.

    Args as in `ppca_encoder`; returns as `keras_vae.networks.dfc.dfc_decoder`.
    """
    z = keras.Input((latent_dim,), name="z")
    condition = condition_input(condition_dim)
    small = _reduced_shape(image_shape)
    linear = LinearMap(math.prod(small), bias=0.5, dtype="float32", name="linear_image")(z)
    linear = _recentred(linear, condition)
    linear = layers.Reshape(small, dtype="float32", name="linear_pixels")(linear)
    linear = _enlarged(linear, image_shape)

    halvings = _halvings(image_shape)
    lowest, crops = doublings(image_shape, halvings)
    shape = (*lowest, _channels(width, halvings - 1))
    x = layers.Dense(math.prod(shape), dtype=dtype, name="project")(z)
    x = layers.Reshape(shape, dtype=dtype, name="reshape")(x)
    x = conditioned(x, condition, dtype, "project")
    for index, crop in enumerate(crops[:-1], start=1):
        filters = _channels(width, halvings - 1 - index)
        x = UpsampledConv2D(filters, "edge", crop, normalized=True, dtype=dtype, name=f"conv{index}")(x)
        x = conditioned(x, condition, dtype, f"conv{index}")
        x = layers.LeakyReLU(LEAKY_SLOPE, dtype=dtype, name=f"conv{index}_act")(x)
    # At half the image's resolution, where a convolution costs a quarter.
    drawn = HalvingConv2D(width, dtype=dtype, name="linear_features")(linear)
    x = layers.Concatenate(dtype=dtype, name="both")([x, drawn])
    x = conditioned(x, condition, dtype, "both")
    x = shortcut = _convolved(x, REFINING * width, dtype, "refine1")
    x = _convolved(x, REFINING * width, dtype, "refine2")
    x = _convolved(x, REFINING * width, dtype, "refine3")
    x = layers.Add(dtype=dtype, name="refined")([shortcut, x])
    x = UpsampledConv2D(max(width // 2, 1), "edge", crops[-1], normalized=True, dtype=dtype, name="full")(x)
    x = layers.LeakyReLU(LEAKY_SLOPE, dtype=dtype, name="full_act")(x)
    correction = layers.Conv2D(
        image_shape[2], 3, padding="same", kernel_initializer="zeros", dtype=dtype, name="correction"
    )(x)
    image = Corrected(dtype="float32", name="image")(linear, correction)
    return keras.Model(inputs(z, condition), image, name="decoder")


def adapt(encoder: keras.Model, decoder: keras.Model, batches: Iterable[Any], seed: int = 0) -> None:
    """Sets the linear path to the optimum of the linear VAE, for images.

    With the covariance's largest eigenvalues l, their axes U and the mean s of the other eigenvalues, the decoder's
    matrix is W = U sqrt(l - s), and the posterior has the mean (x - centre) W / l and the variance s / l (Tipping and
    Bishop 1999, equations 7 to 9): over all images, each latent has the deviation 1. Variances below e^-10 come out
    larger, by `SafeLogVariance`. Of conditional networks the centre is linear in the condition, by least squares.

    Args:
        encoder, decoder: of this family.
        batches: float32 (count, height, width, channels) each, in [0, 1]; of each, only the linear path's pixels are
            kept. For conditional networks, pairs of these and conditions (count, condition_dim).
        seed: of the randomized decomposition.
    """
    given, latent_dim = encoder.inputs, decoder.inputs[0].shape[1]
    look = keras.Model(given[0], encoder.get_layer("pixels").output)
    pairs = batches if len(given) > 1 else ((batch, np.empty((len(batch), 0), np.float32)) for batch in batches)
    pixels, conditions = (
        np.concatenate(each) for each in zip(*((np.asarray(look(x)), np.asarray(c)) for x, c in pairs), strict=True)
    )
    centre = pixels.mean(axis=0)
    pixels -= centre
    shifts = np.empty((0, len(centre)), np.float32)
    if conditions.size:
        known = np.pad(conditions, ((0, 0), (1, 0)), constant_values=1.0)
        constant, *others = np.linalg.pinv(known) @ pixels  # of many solutions the shortest: of classes, no constant
        for rows, of in zip(_parts(pixels), _parts(known), strict=True):
            rows -= of @ np.stack([constant, *others])
        centre, shifts = centre + constant, np.stack(others)
    values, axes = principal_axes(pixels, latent_dim, seed)
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in _parts(pixels))
    rest = squares / len(pixels) - float(values.sum())
    noise = max(rest / max(pixels.shape[1] - latent_dim, 1), LEAST_VARIANCE)
    values = np.maximum(values, noise)  # a latent without an axis of its own keeps the standard normal
    weights = axes * np.sqrt(values - noise)
    encoder.get_layer("linear_mean").set_weights([weights / values, -centre @ (weights / values)])
    decoder.get_layer("linear_image").set_weights([weights.T, centre])
    encoder.get_layer("raw_log_var").bias.assign(np.log(noise / values))
    if conditions.size:
        encoder.get_layer("linear_condition").kernel.assign(-shifts @ (weights / values))
        decoder.get_layer("linear_condition").kernel.assign(shifts)


def is_adapted(decoder: keras.Model) -> bool:
    """Whether `adapt` has set the linear path."""
    linear = decoder.get_layer("linear_image")  # of images that are all alike, the kernel stays zero
    return bool(np.any(np.asarray(linear.kernel)) or np.any(np.asarray(linear.bias) != linear.initial_bias))


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    """Views of some 256 rows each."""
    return np.array_split(rows, len(rows) // 256 + 1)


def principal_axes(centred: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of a covariance, and their axes, by a randomized range finder.

    Halko et al. 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1: products with the data instead of its covariance, which
    would have pixels squared many values.

    Args:
        centred: float32 (samples, dimensions), their mean removed.
        count: how many axes.
        seed: of the random start.

    Returns:
        float64 (count,) and float32 (dimensions, count); zeros for those that the samples do not have.
    """
    found = min(count + OVERSAMPLING, *centred.shape)
    start = np.random.default_rng(seed).standard_normal((centred.shape[1], found), np.float32)
    basis, _ = np.linalg.qr(centred @ start)
    for _ in range(POWER_ITERATIONS):
        basis, _ = np.linalg.qr(centred.T @ basis)
        basis, _ = np.linalg.qr(centred @ basis)
    _, singular, axes = np.linalg.svd(basis.T @ centred, full_matrices=False)
    values, columns = np.zeros(count), np.zeros((centred.shape[1], count), np.float32)
    kept = min(count, found)
    values[:kept] = np.square(singular[:kept], dtype=np.float64) / len(centred)
    columns[:, :kept] = axes[:kept].T
    return values, columns


def _recentred(linear: Any, condition: Any) -> Any:
    """The linear path's result, shifted by what is given for the condition."""
    if condition is None:
        return linear
    shift = LinearMap(linear.shape[1], dtype="float32", name="linear_condition")(condition)
    return layers.Add(dtype="float32", name="linear_recentred")([linear, shift])


def _halvings(image_shape: ImageShape) -> int:
    return max(2, math.ceil(math.log2(max(image_shape[:2]) / LOWEST)))


def _channels(width: int, level: int) -> int:
    return width * min(2**level, WIDEST)


def _normalized(x: Any, dtype: Any, name: str) -> Any:
    x = BatchNormalization(dtype=dtype, name=f"{name}_norm")(x)
    return layers.LeakyReLU(LEAKY_SLOPE, dtype=dtype, name=f"{name}_act")(x)


def _convolved(x: Any, filters: int, dtype: Any, name: str) -> Any:
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, dtype=dtype, name=name)(x)
    return _normalized(x, dtype, name)


def _factor(image_shape: ImageShape) -> int:
    """By how much the linear path's images are smaller."""
    return math.ceil(max(image_shape[:2]) / SIDE)


def _reduced_shape(image_shape: ImageShape) -> ImageShape:
    factor = _factor(image_shape)
    height, width, channels = image_shape
    return math.ceil(height / factor), math.ceil(width / factor), channels


def _reduced(image: Any) -> Any:
    factor = _factor(image.shape[1:])
    if factor == 1:
        return image
    return layers.AveragePooling2D(factor, padding="same", dtype="float32", name="reduced")(image)


def _enlarged(image: Any, image_shape: ImageShape) -> Any:
    factor = _factor(image_shape)
    if factor == 1:
        return image
    image = layers.UpSampling2D(factor, interpolation="bilinear", dtype="float32", name="enlarged")(image)
    # Half of it before the image, as padding "same" of the pooling has it.
    surplus = [large - wanted for large, wanted in zip(image.shape[1:3], image_shape[:2], strict=True)]
    surplus = [(each // 2, each - each // 2) for each in surplus]
    return layers.Cropping2D(surplus, dtype="float32", name="cropped")(image) if np.any(surplus) else image
