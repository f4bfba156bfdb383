"""A residual network with group normalization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from keras_vae.networks.layers import UpsampledConv2D
from keras_vae.networks.parts import ImageShape, condition_input, conditioned, doublings, inputs, posterior
from keras_vae.support.errors import InputError

SMALLEST = 8  # pixels a side of the lowest resolution, at most
WIDEST = 4  # times `width`, of the low resolutions
GROUPS = 8  # of group normalization; small enough that the narrowest layer has four channels in each
ATTENTION_HEADS = 4


def resnet_encoder(
    image_shape: ImageShape,
    latent_dim: int,
    dtype: Any,
    width: int,
    blocks: int,
    attention: bool,
    condition_dim: int = 0,
) -> keras.Model:
    """Residual blocks with group normalization and SiLU, halving the image down to 8 pixels a side or less.

    The layout of latent diffusion's autoencoder (Rombach et al. 2022, arXiv 2112.10752), smaller, with latents
    that have no positions. Group normalization sees one image at a time: batches of any size train alike.

    Args:
        image_shape: (height, width, channels), 16 pixels a side or more.
        latent_dim: number of latents.
        dtype: Keras dtype policy of the hidden layers.
        width: channels at the image's own resolution, a multiple of 8; twice that after one halving, four times
            from the second on.
        blocks: residual blocks at each resolution.
        attention: whether the lowest resolution has self-attention between its two last blocks.
        condition_dim: as `keras_vae.networks.dfc.dfc_encoder`.

    Returns:
        as `keras_vae.networks.dfc.dfc_encoder`.
    """
    image = keras.Input(image_shape, name="image")
    condition = condition_input(condition_dim)
    halvings = _halvings(image_shape)
    x = layers.Conv2D(width, 3, padding="same", dtype=dtype, name="stem")(image)
    x = conditioned(x, condition, dtype, "stem")
    for level in range(halvings):
        for block in range(blocks):
            x = _residual(x, _channels(width, level), dtype, f"level{level}_block{block}")
        x = layers.Conv2D(_channels(width, level), 3, 2, "same", dtype=dtype, name=f"halve{level}")(x)
        x = conditioned(x, condition, dtype, f"halve{level}")
    x = _bottom(x, _channels(width, halvings), dtype, attention)
    x = _group_normalized(x, dtype, "out")
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    return keras.Model(inputs(image, condition), posterior(x, latent_dim), name="encoder")


def resnet_decoder(
    image_shape: ImageShape,
    latent_dim: int,
    dtype: Any,
    width: int,
    blocks: int,
    attention: bool,
    condition_dim: int = 0,
) -> keras.Model:
    """The mirror of `resnet_encoder`, with nearest x2 upsampling and a sigmoid at the end.

    Args as in `resnet_encoder`; returns as `keras_vae.networks.dfc.dfc_decoder`.
    """
    halvings = _halvings(image_shape)
    lowest, crops = doublings(image_shape, halvings)
    z = keras.Input((latent_dim,), name="z")
    condition = condition_input(condition_dim)
    shape = (*lowest, _channels(width, halvings))
    x = layers.Dense(math.prod(shape), dtype=dtype, name="project")(z)
    x = layers.Reshape(shape, dtype=dtype, name="reshape")(x)
    x = conditioned(x, condition, dtype, "project")
    x = _bottom(x, shape[2], dtype, attention)
    for level, crop in zip(reversed(range(halvings)), crops, strict=True):
        channels = _channels(width, level)
        x = UpsampledConv2D(channels, "zero", crop, dtype=dtype, name=f"double{level}")(x)
        x = conditioned(x, condition, dtype, f"double{level}")
        for block in range(blocks):
            x = _residual(x, channels, dtype, f"level{level}_block{block}")
    x = _group_normalized(x, dtype, "out")
    x = layers.Conv2D(image_shape[2], 3, padding="same", dtype=dtype, name="to_image")(x)
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(inputs(z, condition), image, name="decoder")


def check_resnet_options(options: Mapping[str, Any]) -> None:
    if options["width"] % GROUPS:
        raise InputError(f"network option width={options['width']}: 'resnet' takes multiples of {GROUPS}")


def _halvings(image_shape: ImageShape) -> int:
    return max(1, math.ceil(math.log2(max(image_shape[:2]) / SMALLEST)))


def _channels(width: int, level: int) -> int:
    return width * min(2**level, WIDEST)


def _group_normalized(x: Any, dtype: Any, name: str) -> Any:
    x = layers.GroupNormalization(GROUPS, epsilon=1e-5, dtype=dtype, name=f"{name}_norm")(x)
    return layers.Activation("silu", dtype=dtype, name=f"{name}_act")(x)


def _residual(x: Any, channels: int, dtype: Any, name: str) -> Any:
    shortcut = x
    if x.shape[-1] != channels:
        shortcut = layers.Conv2D(channels, 1, dtype=dtype, name=f"{name}_shortcut")(x)
    x = _group_normalized(x, dtype, f"{name}_in")
    x = layers.Conv2D(channels, 3, padding="same", dtype=dtype, name=f"{name}_conv1")(x)
    x = _group_normalized(x, dtype, f"{name}_mid")
    # Zeros make each block the identity at first, which lets deep ones train (Goyal et al. 2017, arXiv 1706.02677).
    x = layers.Conv2D(channels, 3, padding="same", kernel_initializer="zeros", dtype=dtype, name=f"{name}_conv2")(x)
    return layers.Add(dtype=dtype, name=f"{name}_add")([shortcut, x])


def _bottom(x: Any, channels: int, dtype: Any, attention: bool) -> Any:
    x = _residual(x, channels, dtype, "bottom_block0")
    if attention:
        x = _attended(x, dtype)
    return _residual(x, channels, dtype, "bottom_block1")


def _attended(x: Any, dtype: Any) -> Any:
    height, width, channels = x.shape[1:]
    tokens = layers.GroupNormalization(GROUPS, epsilon=1e-5, dtype=dtype, name="attention_norm")(x)
    tokens = layers.Reshape((height * width, channels), dtype=dtype, name="attention_tokens")(tokens)
    tokens = layers.MultiHeadAttention(ATTENTION_HEADS, channels // ATTENTION_HEADS, dtype=dtype, name="attention")(
        tokens, tokens
    )
    tokens = layers.Reshape((height, width, channels), dtype=dtype, name="attention_image")(tokens)
    return layers.Add(dtype=dtype, name="attention_add")([x, tokens])
