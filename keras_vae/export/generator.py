"""Prior and decoder in one: from standard normal noise to images."""

from __future__ import annotations

import keras

from keras_vae.export.formats import LATENTS, NOISE
from keras_vae.support.keras_defaults import keras_defaults


@keras_defaults()
def compose(decoder: keras.Model, prior: keras.layers.Layer | None) -> keras.Model:
    """A Keras model of a named input: `noise` to images where there is a prior, else `z` to images.

    Args:
        decoder: Keras model from latents, float32 (batch, latent_dim), to images.
        prior: Keras layer from noise to latents, of one shape.
    """
    given = keras.Input(decoder.input_shape[1:], name=LATENTS if prior is None else NOISE, dtype="float32")
    return keras.Model(given, decoder(given if prior is None else prior(given)))
