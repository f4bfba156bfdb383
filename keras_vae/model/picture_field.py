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
DECODED = 2048  # codes to find the patches' map from, at least
RIDGE = 1e-3  # of the regression, relative to the codes' variance
LEAST_SQUARE = 1e-10
EPSILON = 1e-4


class PictureField(keras.layers.Layer):
    """A velocity field that works on the image that latents are decoded to, as far as the decoder is linear.

        patches = x M,    v = convolutions(patches, t) M^T / |M|^2

    Parts that belong together, such as an eye and its brow, are neighbours in an image but scattered over the latents.
    A dense network would have to learn from codes what convolutions know beforehand. M is `patch_map`, and |M|^2 its
    rows' squared lengths.

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
        self.patch_map = self._array("patch_map", (latent_dim, SIDE * SIDE * components), "zeros")
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
        """The fitted weights that are initialized at random."""
        return [self.time, self.first, *(each for block in self.between for each in block[::2])]

    def set_patch_map(self, patch_map: np.ndarray) -> None:
        """Sets the map from codes to patches, float (latent_dim, 64 `components`), as `patch_map` finds it."""
        squares = np.square(patch_map).sum(axis=1)
        self.patch_map.assign(patch_map)
        self.scale.assign(1.0 / np.maximum(squares, EPSILON * squares.max()))

    def call(self, x: Any, waves: Any, condition: Any = None, conv_dtype: str = "float32") -> Any:
        """Velocities, float32 (batch, latent_dim), as x is.

        Args:
            x: codes in the axes in which they are white, or noise, or a mixture.
            waves: of the time, float32 (batch or 1, waves).
            condition: float32 (batch, condition_dim), or None.
            conv_dtype: in which convolutions are computed.
        """

        def convolved(x: Any, kernel: Any) -> Any:
            x, kernel = ops.cast(x, conv_dtype), ops.cast(kernel, conv_dtype)
            return ops.cast(ops.conv(x, kernel, padding="same", data_format="channels_last"), "float32")

        known = ops.matmul(waves, self.time) + self.time_bias
        if condition is not None:
            known = known + ops.matmul(condition, self.condition)
        known = ops.silu(known)
        places = ops.reshape(ops.matmul(x, self.patch_map), (-1, SIDE, SIDE, self.components))
        hidden = ops.matmul(places, self.first) + self.place
        for shift, shift_bias, kernel, bias, back in self.between:
            shifted = _normalized(hidden) + (ops.matmul(known, shift) + shift_bias)[:, None, None]
            hidden = hidden + convolved(ops.silu(convolved(shifted, kernel) + bias), back)
        places = ops.reshape(ops.matmul(_normalized(hidden), self.last), (-1, SIDE * SIDE * self.components))
        return ops.matmul(places, ops.transpose(self.patch_map)) * self.scale


def _normalized(x: Any) -> Any:
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + EPSILON)


def patch_map(codes: np.ndarray, decode: Callable[[np.ndarray], Any]) -> np.ndarray | None:
    """The linear map from codes to patches of decoded images that fits best, in the patches' principal components.

    Args:
        codes: latents, float (codes, latent_dim), of which there should be some times `latent_dim`, in white axes: of
            mean 0 and covariance I.
        decode: images of some of them, given their numbers: float (count, height, width, channels).

    Returns:
        float32 (latent_dim, 64 `components`), so scaled that what it makes of white codes has a mean square of 1; None
        where all images are alike.
    """
    known = np.pad(np.asarray(codes, np.float64), ((0, 0), (1, 0)), constant_values=1.0)
    products: Any = 0.0
    for rows in np.array_split(np.arange(len(codes)), len(codes) // 128 + 1):
        images = tf.image.resize(decode(rows), (SIDE * PATCH, SIDE * PATCH), method="area").numpy()
        products = products + known[rows].T @ images.reshape(len(rows), -1)
    ridge = RIDGE * len(codes) * np.diag(np.arange(known.shape[1]) > 0)  # not of the constant
    found = np.linalg.solve(known.T @ known + ridge, products)[1:]
    axes = len(found)
    patches = found.reshape(axes, SIDE, PATCH, SIDE, PATCH, -1).swapaxes(2, 3).reshape(axes * SIDE * SIDE, -1)
    _, components = np.linalg.eigh(patches.T @ patches)
    found = (patches @ components[:, ::-1][:, :COMPONENTS]).reshape(axes, -1)
    squares = np.square(found).sum() / found.shape[1]
    return (found / np.sqrt(squares)).astype(np.float32) if squares > LEAST_SQUARE else None
