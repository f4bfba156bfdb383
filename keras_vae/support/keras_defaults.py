"""Keras's global settings as this package needs them, whatever a user has set for other models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_vae.support.shared import SharedChange


@contextlib.contextmanager
def keras_defaults(dtype: Any = "float32") -> Iterator[None]:
    """A block in which Keras has its own defaults, and afterwards the user's again; also a decorator.

    Inputs, layers and Python's numbers take what is not given from `keras.config`: floatx, image_data_format and
    dtype_policy. Whatever makes, rewrites or traces our networks does so in here, so that images and latents are
    float32 and have their channels last in any case. Blocks may overlap, in several threads.

    Args:
        dtype: the dtype policy, or its name, of layers that are given none.
    """
    before = keras.config.dtype_policy()  # each thread has its own
    with _defaults:
        keras.config.set_dtype_policy(dtype)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)


def _set_defaults() -> Callable[[], None]:
    floatx, data_format = keras.config.floatx(), keras.config.image_data_format()
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")

    def undo() -> None:
        keras.config.set_floatx(floatx)
        keras.config.set_image_data_format(data_format)

    return undo


_defaults = SharedChange(_set_defaults)
