"""Encoder and decoder families, by name.

A family is a pair of functions that return plain Keras models: the encoder maps images to
`{"mean", "log_var"}`, the decoder maps latents to images. Both take and return float32; what is
computed in between follows the dtype policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers, ops

from keras_vae.errors import InputError

ImageShape = tuple[int, int, int]

# Hou et al. give no slope; 0.2 is that of their code (houxianxu/DFC-VAE, CVAE.lua).
LEAKY_SLOPE = 0.2
# Keras's default of 0.99 needs hundreds of steps before evaluation sees the images' statistics;
# 0.9 is what Torch, in which the paper's code is written, uses.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-3

DFC_WIDTHS = (32, 64, 128, 256)


@keras.saving.register_keras_serializable("keras_vae")
class ReplicationPadding2D(layers.Layer):
    """Repeats the border: shape (batch, height, width, channels) to (batch, height + 2, width + 2, channels).

    Made of slices and concatenations rather than a mirrored pad, which has no counterpart in ONNX.
    """

    def call(self, images: Any) -> Any:
        rows = ops.concatenate([images[:, :1], images, images[:, -1:]], axis=1)
        return ops.concatenate([rows[:, :, :1], rows, rows[:, :, -1:]], axis=2)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        return (batch, height and height + 2, width and width + 2, channels)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()  # Keras records no dtype policy for layers that leave this method out


@keras.saving.register_keras_serializable("keras_vae")
class SafeLogVariance(layers.Layer):
    """Bends a log-variance so that its exponential stays finite and its gradient alive.

    Between -10 and 2 nothing changes; beyond, it grows with the logarithm of the excess. Early steps throw
    log-variances to hundreds, whose exponential, a term of the KL, is infinite; a clipped one would never come back.
    """

    LOW, HIGH = -10.0, 2.0

    def call(self, log_var: Any) -> Any:
        inside = ops.clip(log_var, self.LOW, self.HIGH)
        excess = log_var - inside
        return inside + ops.sign(excess) * ops.log1p(ops.abs(excess))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config()  # as above


def _normalized(x: Any, dtype: Any, name: str) -> Any:
    x = layers.BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, dtype=dtype, name=f"{name}_norm"
    )(x)
    return layers.LeakyReLU(negative_slope=LEAKY_SLOPE, dtype=dtype, name=f"{name}_act")(x)


def dfc_encoder(image_shape: ImageShape, latent_dim: int, dtype: Any) -> keras.Model:
    """The encoder of Hou et al. (arXiv 1610.00291, figure 2): four 4x4 convolutions of stride 2.

    Args:
        image_shape: (height, width, channels), height and width multiples of 16.
        latent_dim: number of latents.
        dtype: Keras dtype policy of the hidden layers.

    Returns:
        Keras model from images (batch, height, width, channels) in [0, 1] to
        {"mean", "log_var"}, each float32 (batch, latent_dim).
    """
    image = keras.Input(image_shape, name="image")
    x = image
    for index, width in enumerate(DFC_WIDTHS, start=1):
        # The bias would be cancelled by the normalization that follows.
        x = layers.Conv2D(width, 4, 2, "same", use_bias=False, dtype=dtype, name=f"conv{index}")(x)
        x = _normalized(x, dtype, f"conv{index}")
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    # The posterior's parameters leave in float32: exp(log_var) is summed over latents into the KL.
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(x)
    log_var = layers.Dense(latent_dim, dtype="float32", name="raw_log_var")(x)
    log_var = SafeLogVariance(dtype="float32", name="log_var")(log_var)
    return keras.Model(image, {"mean": mean, "log_var": log_var}, name="encoder")


def dfc_decoder(image_shape: ImageShape, latent_dim: int, dtype: Any) -> keras.Model:
    """The decoder of Hou et al.: nearest x2 upsampling, replication padding, 3x3 convolution, four times.

    Args and dtype as in `dfc_encoder`; the last layer is a sigmoid, so that images are in [0, 1].

    Returns:
        Keras model from latents (batch, latent_dim) to float32 images (batch, height, width, channels).
    """
    height, width, channels = image_shape
    z = keras.Input((latent_dim,), name="z")
    scale = 2 ** len(DFC_WIDTHS)
    small = (height // scale, width // scale, DFC_WIDTHS[-1])
    x = layers.Dense(small[0] * small[1] * small[2], dtype=dtype, name="project")(z)
    x = layers.Reshape(small, dtype=dtype, name="reshape")(x)
    for index, filters in enumerate((*DFC_WIDTHS[-2::-1], channels), start=1):
        x = layers.UpSampling2D(2, interpolation="nearest", dtype=dtype, name=f"upsample{index}")(x)
        x = ReplicationPadding2D(dtype=dtype, name=f"pad{index}")(x)
        last = index == len(DFC_WIDTHS)
        x = layers.Conv2D(filters, 3, padding="valid", use_bias=last, dtype=dtype, name=f"conv{index}")(x)
        if not last:
            x = _normalized(x, dtype, f"conv{index}")
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(z, image, name="decoder")


def _dfc_check(image_shape: ImageShape) -> None:
    height, width, _ = image_shape
    if height % 16 or width % 16 or min(height, width) < 16:
        raise InputError(
            f"image size {height}x{width}: the network 'dfc' halves images four times and makes sizes that are "
            "multiples of 16 (16, 32, 48, 64, ... pixels a side)"
        )


@dataclass(frozen=True)
class Family:
    """An encoder and a decoder that belong together, and the image sizes they can make."""

    encoder: Callable[[ImageShape, int, Any], keras.Model]
    decoder: Callable[[ImageShape, int, Any], keras.Model]
    check: Callable[[ImageShape], None]


FAMILIES = {"dfc": Family(dfc_encoder, dfc_decoder, _dfc_check)}


def check(network: str, image_shape: ImageShape, latent_dim: int) -> None:
    """Refuses what `build` cannot make, without building anything.

    Raises:
        InputError: unknown network, an image shape it cannot make, or a latent_dim below 1.
    """
    if network not in FAMILIES:
        raise InputError(f"unknown network {network!r}: choose one of {', '.join(FAMILIES)}")
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise InputError(f"image_shape={image_shape}: give (height, width, channels) with 1 or 3 channels")
    FAMILIES[network].check(image_shape)
    if latent_dim < 1:
        raise InputError(f"latent_dim={latent_dim}: give at least 1 latent")


def build(network: str, image_shape: ImageShape, latent_dim: int, dtype: Any) -> tuple[keras.Model, keras.Model]:
    """Builds the encoder and decoder of a family.

    Args:
        network: name of the family, a key of `FAMILIES`.
        image_shape: (height, width, channels).
        latent_dim: number of latents.
        dtype: Keras dtype policy, or its name, of the hidden layers.

    Raises:
        InputError: as `check`.
    """
    check(network, image_shape, latent_dim)
    family = FAMILIES[network]
    return family.encoder(image_shape, latent_dim, dtype), family.decoder(image_shape, latent_dim, dtype)
