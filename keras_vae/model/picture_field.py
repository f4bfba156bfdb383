"""The part of a prior's velocity field that sees latents as an image: convolutions on the picture that they draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

SIDE = 8  # places a side of the grid that a picture is divided into
PATCH = 8  # pixels a side of each place, of the picture scaled to 64x64
COMPONENTS = 48  # numbers that describe a place, at most
CHANNELS = 64
BLOCKS = 2
DRAWN = 2048  # images from which the picture is found
EPSILON = 1e-4


@keras.saving.register_keras_serializable("keras_vae")
class PictureField(keras.layers.Layer):
    """Velocities of codes by convolutions over the image that they draw, as far as a decoder is linear.

        places = x picture,    v = convolutions(places, t) picture^T / |picture|^2

    What belongs together in an image, such as an eye and its brow, is near in it. In latents everything is mixed, and a
    dense network would have to learn from codes what convolutions know beforehand.

    Args:
        latent_dim: number of latents.
        waves: numbers that tell the time.
        channels: of the convolutions.
        components: numbers that describe each of the 8x8 places.
        condition_dim: numbers in a condition, 0 for none.
    """

    def __init__(
        self, latent_dim: int, waves: int, channels: int, components: int, condition_dim: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.channels, self.components = channels, components
        self.picture = self._array("picture", (latent_dim, SIDE * SIDE * components), "zeros")
        self.scale = self._array("scale", (latent_dim,), "zeros")
        self.time = self._array("time", (waves, channels))
        self.time_bias = self._array("time_bias", (channels,), "zeros")
        self.condition = self._array("condition", (condition_dim, channels), "zeros") if condition_dim else None
        self.first = self._array("first", (components, channels))
        self.place = self._array("place", (SIDE, SIDE, channels), "zeros")
        self.between = [
            (
                self._array(f"shift_{block}", (channels, channels)),
                self._array(f"shift_bias_{block}", (channels,), "zeros"),
                self._array(f"conv_{block}", (3, 3, channels, channels)),
                self._array(f"conv_bias_{block}", (channels,), "zeros"),
                self._array(f"back_{block}", (3, 3, channels, channels)),
            )
            for block in range(BLOCKS)
        ]
        self.last = self._array("last", (channels, components), "zeros")  # no velocity at first
        self.built = True

    def _array(self, name: str, shape: tuple[int, ...], initializer: str = "glorot_uniform") -> Any:
        return self.add_weight(shape=shape, initializer=initializer, name=name, dtype="float32", trainable=False)

    @property
    def field_weights(self) -> list[Any]:
        """The weights that are fitted: all but the picture's."""
        return self.weights[2:]

    @property
    def kernels(self) -> list[Any]:
        """Those of them that begin at random."""
        return [self.time, self.first, *(each for block in self.between for each in block[::2])]

    def set_picture(self, picture: np.ndarray) -> None:
        """Sets what codes draw, float (latent_dim, 64 `components`), as `linear_picture` finds it."""
        squares = np.square(picture).sum(axis=1)
        self.picture.assign(picture)
        self.scale.assign(1.0 / np.maximum(squares, EPSILON * squares.max()))

    def call(self, x: Any, waves: Any, condition: Any = None, dtype: str = "float32") -> Any:
        """Velocities, float32 (batch, latent_dim), as x is.

        Args:
            x: codes in the axes in which they are white, or noise, or a mixture.
            waves: of the time, float32 (batch or 1, waves).
            condition: float32 (batch, condition_dim), or None.
            dtype: in which to convolve.
        """

        def convolved(x: Any, kernel: Any) -> Any:
            x, kernel = ops.cast(x, dtype), ops.cast(kernel, dtype)
            return ops.cast(ops.conv(x, kernel, padding="same", data_format="channels_last"), "float32")

        known = ops.matmul(waves, self.time) + self.time_bias
        if condition is not None:
            known = known + ops.matmul(condition, self.condition)
        known = ops.silu(known)
        places = ops.reshape(ops.matmul(x, self.picture), (-1, SIDE, SIDE, self.components))
        hidden = ops.matmul(places, self.first) + self.place
        for shift, shift_bias, kernel, bias, back in self.between:
            shifted = _unit(hidden) + (ops.matmul(known, shift) + shift_bias)[:, None, None]
            hidden = hidden + convolved(ops.silu(convolved(shifted, kernel) + bias), back)
        places = ops.reshape(ops.matmul(_unit(hidden), self.last), (-1, SIDE * SIDE * self.components))
        return ops.matmul(places, ops.transpose(self.picture)) * self.scale


def _unit(x: Any) -> Any:
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + EPSILON)


def linear_picture(codes: np.ndarray, decode: Callable[[np.ndarray], Any]) -> np.ndarray:
    """What each axis of codes draws: the linear map to decoded images that fits best, in principal parts of 8x8 pixels.

    Args:
        codes: some thousand, in the axes in which they are white, float (codes, axes).
        decode: images of some of them, given their numbers: float (count, height, width, channels).

    Returns:
        float32 (axes, 64 `components`), of which white codes give numbers of mean square 1.
    """
    known = np.pad(np.asarray(codes, np.float64), ((0, 0), (1, 0)), constant_values=1.0)
    products: Any = 0.0
    for rows in np.array_split(np.arange(len(codes)), len(codes) // 128 + 1):
        images = tf.image.resize(decode(rows), (SIDE * PATCH, SIDE * PATCH), method="area").numpy()
        products = products + known[rows].T @ images.reshape(len(rows), -1)
    found = np.linalg.lstsq(known.T @ known, products, rcond=1e-9)[0][1:]
    axes = len(found)
    patches = found.reshape(axes, SIDE, PATCH, SIDE, PATCH, -1).swapaxes(2, 3).reshape(axes * SIDE * SIDE, -1)
    _, parts = np.linalg.eigh(patches.T @ patches)
    picture = (patches @ parts[:, ::-1][:, :COMPONENTS]).reshape(axes, -1)
    return (picture / np.sqrt(np.square(picture).sum() / picture.shape[1])).astype(np.float32)
