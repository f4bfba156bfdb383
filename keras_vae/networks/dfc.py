"""The paper's network (Hou et al., arXiv 1610.00291, figure 2)."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers

from keras_vae.networks.layers import BatchNormalization, HalvingConv2D, UpsampledConv2D
from keras_vae.networks.parts import ImageShape, condition_input, conditioned, doublings, inputs, posterior

BLOCKS = 4
# Hou et al. give no slope; 0.2 is that of their code (houxianxu/DFC-VAE, CVAE.lua).
LEAKY_SLOPE = 0.2


def dfc_encoder(
    image_shape: ImageShape, latent_dim: int, dtype: Any, width: int, condition_dim: int = 0
) -> keras.Model:
    """The encoder of Hou et al. (arXiv 1610.00291, figure 2): four 4x4 convolutions of stride 2.

    Three, for images of which a side has 16 pixels.

    Args:
        image_shape: (height, width, channels), 16 pixels a side or more.
        latent_dim: number of latents.
        dtype: Keras dtype policy of the hidden layers.
        width: channels of the first convolution, doubled in each that follows; the paper's is 32.
        condition_dim: numbers in a condition, which shifts the channels of each resolution; 0 for none.

    Returns:
        Keras model from images (batch, height, width, channels) in [0, 1], and conditions (batch, condition_dim) if
        there are any, to {"mean", "log_var"}, each float32 (batch, latent_dim).
    """
    x = image = keras.Input(image_shape, name="image")
    condition = condition_input(condition_dim)
    for index in range(_blocks(image_shape)):
        name = f"conv{index + 1}"
        # The bias would be cancelled by the normalization that follows.
        x = HalvingConv2D(width * 2**index, dtype=dtype, name=name)(x)
        x = conditioned(x, condition, dtype, name)
        x = BatchNormalization(dtype=dtype, name=f"{name}_norm")(x)
        x = layers.LeakyReLU(LEAKY_SLOPE, dtype=dtype, name=f"{name}_act")(x)
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    return keras.Model(inputs(image, condition), posterior(x, latent_dim), name="encoder")


def dfc_decoder(
    image_shape: ImageShape, latent_dim: int, dtype: Any, width: int, condition_dim: int = 0
) -> keras.Model:
    """The decoder of Hou et al.: nearest x2 upsampling, replication padding, 3x3 convolution, four times.

    Three times, for images of which a side has 16 pixels.

    Args as in `dfc_encoder`; the last layer is a sigmoid, so that images are in [0, 1].

    Returns:
        Keras model from latents (batch, latent_dim), and conditions if there are any, to float32 images (batch, height,
        width, channels).
    """
    blocks = _blocks(image_shape)
    lowest, crops = doublings(image_shape, blocks)
    z = keras.Input((latent_dim,), name="z")
    condition = condition_input(condition_dim)
    shape = (*lowest, width * 2 ** (blocks - 1))
    x = layers.Dense(math.prod(shape), dtype=dtype, name="project")(z)
    x = layers.Reshape(shape, dtype=dtype, name="reshape")(x)
    x = conditioned(x, condition, dtype, "project")
    for index, crop in enumerate(crops[:-1], start=1):
        filters = width * 2 ** (blocks - 1 - index)
        x = UpsampledConv2D(filters, "edge", crop, normalized=True, dtype=dtype, name=f"conv{index}")(x)
        x = conditioned(x, condition, dtype, f"conv{index}")
        x = layers.LeakyReLU(LEAKY_SLOPE, dtype=dtype, name=f"conv{index}_act")(x)
    x = UpsampledConv2D(image_shape[2], "edge", crops[-1], dtype=dtype, name=f"conv{blocks}")(x)
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(inputs(z, condition), image, name="decoder")


def _blocks(image_shape: ImageShape) -> int:
    """The paper's four, or three for sides of 16 pixels: of one place, repeated at its edges, only flat images come."""
    return BLOCKS if min(image_shape[:2]) > 2**BLOCKS else BLOCKS - 1
