"""Encoder and decoder families, by name.

A family is a pair of functions that return plain Keras models: the encoder maps images to
`{"mean", "log_var"}`, the decoder maps latents to images. Both take and return float32; what is
computed in between follows the dtype policy. Any image size from a family's least on will do: where a side is odd,
the encoder rounds its half up and the decoder cuts off what its doubling made too much.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

ImageShape = tuple[int, int, int]

# Hou et al. give no slope; 0.2 is that of their code (houxianxu/DFC-VAE, CVAE.lua).
LEAKY_SLOPE = 0.2
# Keras's default of 0.99 needs hundreds of steps before evaluation sees the images' statistics;
# 0.9 is what Torch, in which the paper's code is written, uses.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-3

DFC_BLOCKS = 4
LEAST_SIZE = 16

RESNET_SMALLEST = 8  # pixels a side of the lowest resolution, at most
RESNET_WIDEST = 4  # times `width`, of the low resolutions
RESNET_GROUPS = 8  # of group normalization; small enough that the narrowest layer has four channels in each
ATTENTION_HEADS = 4


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


def _posterior(features: Any, latent_dim: int) -> dict[str, Any]:
    # The posterior's parameters leave in float32: exp(log_var) is summed over latents into the KL.
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(features)
    log_var = layers.Dense(latent_dim, dtype="float32", name="raw_log_var")(features)
    return {"mean": mean, "log_var": SafeLogVariance(dtype="float32", name="log_var")(log_var)}


def _sizes(image_shape: ImageShape, halvings: int) -> list[tuple[int, int]]:
    """Height and width at each resolution, the image's own first."""
    sizes = [image_shape[:2]]
    for _ in range(halvings):
        height, width = sizes[-1]
        sizes.append((math.ceil(height / 2), math.ceil(width / 2)))
    return sizes


def _doubled(x: Any, size: tuple[int, int], dtype: Any, name: str) -> Any:
    """Nearest x2 upsampling, cut to a size where that is odd."""
    x = layers.UpSampling2D(2, interpolation="nearest", dtype=dtype, name=f"upsample{name}")(x)
    excess = (x.shape[1] - size[0], x.shape[2] - size[1])
    if any(excess):
        x = layers.Cropping2D(((0, excess[0]), (0, excess[1])), dtype=dtype, name=f"crop{name}")(x)
    return x


# The paper's network -----------------------------------------------------------------------------


def dfc_encoder(image_shape: ImageShape, latent_dim: int, dtype: Any, width: int) -> keras.Model:
    """The encoder of Hou et al. (arXiv 1610.00291, figure 2): four 4x4 convolutions of stride 2.

    Args:
        image_shape: (height, width, channels), 16 pixels a side or more.
        latent_dim: number of latents.
        dtype: Keras dtype policy of the hidden layers.
        width: channels of the first convolution, doubled in each that follows; the paper's is 32.

    Returns:
        Keras model from images (batch, height, width, channels) in [0, 1] to
        {"mean", "log_var"}, each float32 (batch, latent_dim).
    """
    image = keras.Input(image_shape, name="image")
    x = image
    for index in range(DFC_BLOCKS):
        name = f"conv{index + 1}"
        # The bias would be cancelled by the normalization that follows.
        x = layers.Conv2D(width * 2**index, 4, 2, "same", use_bias=False, dtype=dtype, name=name)(x)
        x = _normalized(x, dtype, name)
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    return keras.Model(image, _posterior(x, latent_dim), name="encoder")


def dfc_decoder(image_shape: ImageShape, latent_dim: int, dtype: Any, width: int) -> keras.Model:
    """The decoder of Hou et al.: nearest x2 upsampling, replication padding, 3x3 convolution, four times.

    Args as in `dfc_encoder`; the last layer is a sigmoid, so that images are in [0, 1].

    Returns:
        Keras model from latents (batch, latent_dim) to float32 images (batch, height, width, channels).
    """
    sizes = _sizes(image_shape, DFC_BLOCKS)
    z = keras.Input((latent_dim,), name="z")
    small = (*sizes[-1], width * 2 ** (DFC_BLOCKS - 1))
    x = layers.Dense(math.prod(small), dtype=dtype, name="project")(z)
    x = layers.Reshape(small, dtype=dtype, name="reshape")(x)
    for index in range(1, DFC_BLOCKS + 1):
        last = index == DFC_BLOCKS
        filters = image_shape[2] if last else width * 2 ** (DFC_BLOCKS - 1 - index)
        x = _doubled(x, sizes[DFC_BLOCKS - index], dtype, str(index))
        x = ReplicationPadding2D(dtype=dtype, name=f"pad{index}")(x)
        x = layers.Conv2D(filters, 3, padding="valid", use_bias=last, dtype=dtype, name=f"conv{index}")(x)
        if not last:
            x = _normalized(x, dtype, f"conv{index}")
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(z, image, name="decoder")


# Residual network --------------------------------------------------------------------------------


def resnet_encoder(
    image_shape: ImageShape, latent_dim: int, dtype: Any, width: int, blocks: int, attention: bool
) -> keras.Model:
    """Residual blocks with group normalization and SiLU, halving the image down to 8 pixels a side or less.

    The layout of latent diffusion's autoencoder (Rombach et al. 2022, arXiv 2112.10752), smaller, with latents that
    have no places. Group normalization sees one image at a time: batches of any size train alike.

    Args:
        image_shape: (height, width, channels), 16 pixels a side or more.
        latent_dim: number of latents.
        dtype: Keras dtype policy of the hidden layers.
        width: channels at the image's own resolution, a multiple of 8; twice that after one halving, four times
            from the second on.
        blocks: residual blocks at each resolution.
        attention: whether the lowest resolution has self-attention between its two last blocks.

    Returns:
        as `dfc_encoder`.
    """
    image = keras.Input(image_shape, name="image")
    halvings = _halvings(image_shape)
    x = layers.Conv2D(width, 3, padding="same", dtype=dtype, name="stem")(image)
    for level in range(halvings):
        for block in range(blocks):
            x = _residual(x, _resnet_width(width, level), dtype, f"level{level}_block{block}")
        x = layers.Conv2D(_resnet_width(width, level), 3, 2, "same", dtype=dtype, name=f"halve{level}")(x)
    x = _bottom(x, _resnet_width(width, halvings), dtype, attention)
    x = _group_normalized(x, dtype, "out")
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    return keras.Model(image, _posterior(x, latent_dim), name="encoder")


def resnet_decoder(
    image_shape: ImageShape, latent_dim: int, dtype: Any, width: int, blocks: int, attention: bool
) -> keras.Model:
    """The mirror of `resnet_encoder`, with nearest x2 upsampling and a sigmoid at the end.

    Args as in `resnet_encoder`; returns as `dfc_decoder`.
    """
    halvings = _halvings(image_shape)
    sizes = _sizes(image_shape, halvings)
    z = keras.Input((latent_dim,), name="z")
    small = (*sizes[-1], _resnet_width(width, halvings))
    x = layers.Dense(math.prod(small), dtype=dtype, name="project")(z)
    x = layers.Reshape(small, dtype=dtype, name="reshape")(x)
    x = _bottom(x, small[2], dtype, attention)
    for level in reversed(range(halvings)):
        channels = _resnet_width(width, level)
        x = _doubled(x, sizes[level], dtype, str(level))
        x = layers.Conv2D(channels, 3, padding="same", dtype=dtype, name=f"double{level}")(x)
        for block in range(blocks):
            x = _residual(x, channels, dtype, f"level{level}_block{block}")
    x = _group_normalized(x, dtype, "out")
    x = layers.Conv2D(image_shape[2], 3, padding="same", dtype=dtype, name="to_image")(x)
    image = layers.Activation("sigmoid", dtype="float32", name="image")(x)
    return keras.Model(z, image, name="decoder")


def _check_resnet_options(options: Mapping[str, Any]) -> None:
    if options["width"] % RESNET_GROUPS:
        raise InputError(f"network option width={options['width']}: 'resnet' takes multiples of {RESNET_GROUPS}")


def _halvings(image_shape: ImageShape) -> int:
    return max(1, math.ceil(math.log2(max(image_shape[:2]) / RESNET_SMALLEST)))


def _resnet_width(width: int, level: int) -> int:
    return width * min(2**level, RESNET_WIDEST)


def _group_normalized(x: Any, dtype: Any, name: str) -> Any:
    x = layers.GroupNormalization(RESNET_GROUPS, epsilon=1e-5, dtype=dtype, name=f"{name}_norm")(x)
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
    tokens = layers.GroupNormalization(RESNET_GROUPS, epsilon=1e-5, dtype=dtype, name="attention_norm")(x)
    tokens = layers.Reshape((height * width, channels), dtype=dtype, name="attention_tokens")(tokens)
    tokens = layers.MultiHeadAttention(ATTENTION_HEADS, channels // ATTENTION_HEADS, dtype=dtype, name="attention")(
        tokens, tokens
    )
    tokens = layers.Reshape((height, width, channels), dtype=dtype, name="attention_image")(tokens)
    return layers.Add(dtype=dtype, name="attention_add")([x, tokens])


# Families by name --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """An encoder and a decoder that belong together.

    Attributes:
        encoder, decoder: called with (image_shape, latent_dim, dtype, **options); as `dfc_encoder` and `dfc_decoder`
            they return Keras models.
        options: the options of both, with defaults: whole numbers from 1 on, or True and False.
        least_size: pixels a side of the smallest images.
        check_options: raises `InputError` for options that do not go together; they are complete, and of the defaults'
            types.
    """

    encoder: Callable[..., keras.Model]
    decoder: Callable[..., keras.Model]
    options: Mapping[str, int | bool] = field(default_factory=dict)
    least_size: int = LEAST_SIZE
    check_options: Callable[[Mapping[str, Any]], None] | None = None


FAMILIES = {
    "dfc": Family(dfc_encoder, dfc_decoder, {"width": 32}),
    "resnet": Family(
        resnet_encoder,
        resnet_decoder,
        {"width": 32, "blocks": 1, "attention": False},
        check_options=_check_resnet_options,
    ),
}


def check(
    network: str, image_shape: ImageShape, latent_dim: int, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Refuses what `build` cannot make, without building anything.

    Returns:
        The family's options, with defaults for those that are not given.

    Raises:
        InputError: unknown network or option, an image shape it cannot make, or a latent_dim below 1.
    """
    if network not in FAMILIES:
        raise InputError(f"unknown network {network!r}: choose one of {', '.join(FAMILIES)}")
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise InputError(f"image_shape={image_shape}: give (height, width, channels) with 1 or 3 channels")
    family = FAMILIES[network]
    if min(image_shape[:2]) < family.least_size:
        raise InputError(
            f"image size {image_shape[0]}x{image_shape[1]}: the network {network!r} makes images of "
            f"{family.least_size} pixels a side and more"
        )
    if latent_dim < 1:
        raise InputError(f"latent_dim={latent_dim}: give at least 1 latent")
    defaults = family.options
    complete = {**defaults, **(options or {})}
    for name, value in complete.items():
        if name not in defaults:
            raise InputError(f"network {network!r} has no option {name!r}: it has {', '.join(defaults) or 'none'}")
        if isinstance(defaults[name], bool):
            if not isinstance(value, bool):
                raise InputError(f"network option {name}={value!r}: give True or False")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"network option {name}={value!r}: give a whole number from 1 on")
    if family.check_options is not None:
        family.check_options(complete)
    return complete


@keras_defaults()
def build(
    network: str, image_shape: ImageShape, latent_dim: int, dtype: Any, options: Mapping[str, Any] | None = None
) -> tuple[keras.Model, keras.Model]:
    """Builds the encoder and decoder of a family.

    Args:
        network: name of the family, a key of `FAMILIES`.
        image_shape: (height, width, channels).
        latent_dim: number of latents.
        dtype: Keras dtype policy, or its name, of the hidden layers.
        options: the family's own, such as {"width": 64}.

    Raises:
        InputError: as `check`.
    """
    complete = check(network, image_shape, latent_dim, options)
    family = FAMILIES[network]
    return (
        family.encoder(image_shape, latent_dim, dtype, **complete),
        family.decoder(image_shape, latent_dim, dtype, **complete),
    )


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """Returns (height, width, channels).

    Raises:
        InputError: it is not three whole numbers.
    """
    try:
        height, width, channels = map(operator.index, image_shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"image_shape={image_shape!r}: give (height, width, channels)") from error
    return height, width, channels


@keras_defaults()
def make(
    network: str,
    image_shape: Sequence[int],
    latent_dim: int,
    dtype: Any,
    options: Mapping[str, Any],
    encoder: keras.Model | None = None,
    decoder: keras.Model | None = None,
) -> tuple[keras.Model, keras.Model, ImageShape, int]:
    """The networks that a model asks for: a family's, or the user's own, and what these say of image and latents.

    Returns:
        encoder, decoder, image_shape, latent_dim.

    Raises:
        InputError: they cannot be had, do not fit in memory, or both a family and networks are named.
    """
    image_shape = check_image_shape(image_shape)
    if encoder is None and decoder is None:
        try:
            return (*build(network, image_shape, latent_dim, dtype, options), image_shape, latent_dim)
        except tf.errors.ResourceExhaustedError as error:
            raise InputError(
                f"network {network!r} of image_shape={image_shape}, latent_dim={latent_dim} and {dict(options)} "
                "does not fit in memory: give smaller ones"
            ) from error
    if options or network != "dfc":
        raise InputError("encoder and decoder are given, and network or network_options too: leave these out")
    if encoder is None or decoder is None:
        raise InputError("give both encoder and decoder, or neither and the name of a network")
    return adopt(encoder, decoder, image_shape, latent_dim)


# Networks of the user's own ----------------------------------------------------------------------


@keras_defaults()
def adopt(
    encoder: keras.Model, decoder: keras.Model, image_shape: ImageShape, latent_dim: int
) -> tuple[keras.Model, keras.Model, ImageShape, int]:
    """Makes any Keras encoder and decoder fit: named float32 outputs, a log-variance in a safe range.

    Args:
        encoder: from images to {"mean", "log_var"}, to the two in that order, or to one output
            (batch, 2 * latent_dim), the means first.
        decoder: from latents to images in [0, 1].
        image_shape, latent_dim: what to call the models with where they do not say themselves.

    Returns:
        encoder, decoder, image_shape, latent_dim. What fits already is returned as it is.

    Raises:
        InputError: outputs of another form, models that do not fit each other, or images outside [0, 1].
    """
    for role, model in (("encoder", encoder), ("decoder", decoder)):
        if not isinstance(model, keras.Model):
            raise InputError(f"{role}={model!r}: give a Keras model")
    image = keras.Input(_declared(encoder, "encoder", image_shape), name="image")
    z = keras.Input(_declared(decoder, "decoder", (latent_dim,)), name="z")
    outputs, decoded = encoder(image), decoder(z)
    posterior = _named_posterior(outputs)
    if not keras.utils.is_keras_tensor(decoded) or tuple(decoded.shape[1:]) != tuple(image.shape[1:]):
        raise InputError(
            f"the decoder makes {_shape(decoded)} of latents, the encoder takes images {tuple(image.shape)}: "
            "give a pair that fits"
        )
    if posterior["mean"].shape[1] != z.shape[1]:
        raise InputError(
            f"the encoder makes {posterior['mean'].shape[1]} latents, the decoder takes {z.shape[1]}: give a pair that "
            "fits (one output of the encoder is read as means and log-variances side by side)"
        )
    if not (isinstance(outputs, dict) and any(isinstance(layer, SafeLogVariance) for layer in encoder.layers)):
        mean = layers.Activation("linear", dtype="float32", name="mean")(posterior["mean"])
        log_var = SafeLogVariance(dtype="float32", name="log_var")(posterior["log_var"])
        encoder = keras.Model(image, {"mean": mean, "log_var": log_var}, name="encoder")
    if keras.backend.standardize_dtype(decoded.dtype) != "float32":
        decoder = keras.Model(z, layers.Activation("linear", dtype="float32", name="image")(decoded), name="decoder")
    # A linear end is 0 for latents of zeros; it fits a Gaussian likelihood, though no pictures.
    far_out = 100.0 * np.random.default_rng(0).standard_normal((16, z.shape[1])).astype(np.float32)
    for latents, severe in ((np.zeros_like(far_out), True), (far_out, False)):
        made = ops.convert_to_numpy(decoder(latents))
        if not (made.min() >= 0.0 and made.max() <= 1.0):
            message = f"the decoder makes values from {made.min():g} to {made.max():g}: end it with a sigmoid, for "
            if severe:
                raise InputError(f"{message}images in [0, 1]")
            warnings.warn(f"{message}images in [0, 1] whatever the latents", stacklevel=3)
            break
    return encoder, decoder, tuple(image.shape[1:]), int(z.shape[1])


def _declared(model: keras.Model, role: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one input of a model, less the batch."""
    shape = getattr(model, "input_shape", None) if model.built else None
    if shape is None:
        return otherwise
    if isinstance(shape, (list, dict)) or len(shape) != len(otherwise) + 1 or None in shape[1:]:
        wanted = "(height, width, channels)" if role == "encoder" else "(latents,)"
        raise InputError(f"the {role} takes {shape}: give one with a single input of fixed shape, {wanted}")
    return tuple(shape[1:])


def _named_posterior(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, dict) and set(outputs) == {"mean", "log_var"}:
        posterior = outputs
    elif isinstance(outputs, (list, tuple)) and len(outputs) == 2:
        posterior = dict(zip(("mean", "log_var"), outputs, strict=True))
    elif keras.utils.is_keras_tensor(outputs) and len(outputs.shape) == 2 and (outputs.shape[1] or 1) % 2 == 0:
        half = outputs.shape[1] // 2
        posterior = {"mean": outputs[:, :half], "log_var": outputs[:, half:]}
    else:
        posterior = {}
    if (
        not posterior
        or any(len(part.shape) != 2 for part in posterior.values())
        or (posterior["mean"].shape != posterior["log_var"].shape)
    ):
        raise InputError(
            f"the encoder returns {_shape(outputs)}: give one that returns {{'mean', 'log_var'}}, "
            "the two in that order, or one output (batch, 2 * latent_dim)"
        )
    return posterior


def _shape(outputs: Any) -> str:
    if isinstance(outputs, dict):
        return "{" + ", ".join(f"{name!r}: {_shape(part)}" for name, part in outputs.items()) + "}"
    if isinstance(outputs, (list, tuple)):
        return ", ".join(map(_shape, outputs)) or "nothing"
    return str(tuple(outputs.shape))
