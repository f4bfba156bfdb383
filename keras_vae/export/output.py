"""What exported images are: float32 in [0, 1], or 8-bit levels, rounded by a layer behind the decoder."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_vae.export.generator import as_inputs, inputs_of
from keras_vae.support.keras_defaults import keras_defaults


class ToUint8(keras.layers.Layer):
    """Images in [0, 1] as the nearest 8-bit levels."""

    def call(self, images: Any) -> Any:
        return to_uint8(images)


def to_uint8(images: Any) -> Any:
    """What `keras_vae.support.pixels.to_uint8` does, of a tensor."""
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        return images
    return ops.cast(ops.round(ops.clip(images, 0.0, 1.0) * 255.0), "uint8")


@keras_defaults()
def with_output(decoder: keras.Model, output: str) -> keras.Model:
    """The decoder with images of this type, one of `keras_vae.export.formats.OUTPUTS`; itself for "float32".

    Args:
        decoder: Keras model from latents, and conditions, to float32 images, which computes in float32.
    """
    if output == "float32":
        return decoder
    given = as_inputs([keras.Input(row, dtype="float32") for row in inputs_of(decoder).values()])
    return keras.Model(given, ToUint8(dtype="float32", name="image")(decoder(given)))


def before_rounding(decoder: keras.Model) -> keras.Model:
    """The decoder that `with_output` was given: for writers that compute the rest in lower precision."""
    return decoder.layers[-2] if isinstance(decoder.layers[-1], ToUint8) else decoder
