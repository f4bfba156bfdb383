"""What the families of networks have in common."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

ImageShape = tuple[int, int, int]


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


def condition_input(size: int) -> Any:
    """The input of conditions (`keras_vae.Condition`), float32 (batch, size); None of a network without any."""
    return keras.Input((size,), name="condition", dtype="float32") if size else None


def inputs(first: Any, condition: Any) -> Any:
    """A network's inputs: the first, or the first and the condition."""
    return first if condition is None else [first, condition]


def conditioned(x: Any, condition: Any, dtype: Any, name: str) -> Any:
    """Channels shifted by what a condition makes of them: of none, as they are.

    The shift is linear, and zeros at first: an unknown condition, of zeros, always leaves them as they are.

    Args:
        x: (batch, ..., channels).
        condition: float32 (batch, conditions), or None for a network without conditions.
        dtype: Keras dtype policy.
        name: of what is shifted.
    """
    if condition is None:
        return x
    shape = (*(1,) * (len(x.shape) - 2), x.shape[-1])
    zero = {"kernel_initializer": "zeros", "use_bias": False, "dtype": dtype}
    shift = layers.Dense(shape[-1], name=f"{name}_condition", **zero)(condition)
    shift = layers.Reshape(shape, dtype=dtype, name=f"{name}_shift")(shift)
    return layers.Add(dtype=dtype, name=f"{name}_shifted")([x, shift])


class Unknown(layers.Layer):
    """The condition of which nothing is known, zeros: float32 (batch, size) for anything of a batch."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: Any) -> Any:
        return ops.zeros((ops.shape(x)[0], self.size), "float32")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], self.size)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


def without_condition(network: keras.Model) -> keras.Model:
    """A conditional network for images of any kind, of which nothing is known; another network as it is."""
    if len(network.inputs) == 1:
        return network
    first, condition = network.inputs
    given = keras.Input(first.shape[1:], name=first.name)
    unknown = Unknown(condition.shape[1], dtype="float32")(given)
    return keras.Model(given, network([given, unknown]), name=network.name)


def posterior(features: Any, latent_dim: int) -> dict[str, Any]:
    """The end of an encoder: {"mean", "log_var"}, float32 (batch, latent_dim) each, of features (batch, size)."""
    # In float32: exp(log_var) is summed over latents into the KL.
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(features)
    log_var = layers.Dense(latent_dim, dtype="float32", name="raw_log_var")(features)
    return {"mean": mean, "log_var": SafeLogVariance(dtype="float32", name="log_var")(log_var)}


def doublings(image_shape: ImageShape, count: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The lowest resolution, and the surplus rows and columns to crop after each doubling."""
    height, width, _ = image_shape
    crops: list[tuple[int, int]] = []
    for _ in range(count):
        crops.insert(0, (height % 2, width % 2))
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return (height, width), crops
