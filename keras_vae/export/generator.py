"""Prior and decoder in one: from standard normal noise to images. And what decoders take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_vae.export.formats import CONDITION, LATENTS, NOISE
from keras_vae.support.keras_defaults import keras_defaults


def inputs_of(decoder: keras.Model, first: str = LATENTS) -> dict[str, tuple[int, ...]]:
    """What a decoder takes, the shapes of rows by name: latents, and conditions if it is conditional.

    Args:
        decoder: Keras model.
        first: name of the first: `noise` of a generator.
    """
    return dict(zip((first, CONDITION), (tuple(given.shape[1:]) for given in decoder.inputs), strict=False))


def as_inputs(given: Sequence[Any]) -> Any:
    """Inputs as a Keras model is called with them: a single one alone, several as a list."""
    return given[0] if len(given) == 1 else list(given)


@keras_defaults()
def compose(decoder: keras.Model, prior: keras.layers.Layer | None) -> keras.Model:
    """A Keras model of named inputs: `noise` to images where there is a prior, else `z` to images.

    With a conditional decoder it takes `condition` too, and so does the prior.

    Args:
        decoder: Keras model from latents, float32 (batch, latent_dim), and conditions, to images.
        prior: Keras layer from noise, and conditions, to latents of the noise's shape.
    """
    rows = inputs_of(decoder, LATENTS if prior is None else NOISE)
    first, *others = (keras.Input(row, name=name, dtype="float32") for name, row in rows.items())
    z = first if prior is None else prior(first, *others)
    return keras.Model(as_inputs([first, *others]), decoder(as_inputs([z, *others])))
