"""What the commands that measure a model do, apart from parsing and printing."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_vae import data, pictures
from keras_vae.errors import InputError
from keras_vae.evaluation.bounds import importance_weighted_bound
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.files import check_output_file
from keras_vae.models import BATCH, Model, open_model

if TYPE_CHECKING:
    from keras_vae.vae import VAE


def reconstruct(path: Path, source: str | None, out: Path, count: int) -> dict[str, Any]:
    """Writes held-out images above their reconstructions.

    Returns:
        `picture`, `images`, and over these images `psnr` (dB) and `sharpness` (1 is the originals').

    Raises:
        InputError: no model, a decoder alone, unusable data, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    model = open_model(path)
    vae = model.whole("reconstructing")
    images = data_of(model, vae, source, batch_size=1)
    originals = np.concatenate(list(images.test.take(count).as_numpy_iterator()))
    reconstructions = vae.predict(originals, batch_size=BATCH, verbose=0)
    pictures.save(pictures.side_by_side(originals, reconstructions), out)
    return {
        "picture": str(out),
        "images": len(originals),
        "psnr": psnr(originals, reconstructions),
        "sharpness": sharpness_ratio(originals, reconstructions),
    }


def evaluate(
    path: Path, source: str | None, importance_samples: int | None, limit: int | None, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """Measures a model on held-out images.

    Returns:
        `images`, the model's metrics as `VAE.evaluate` finds them, and with importance samples K
        `importance_weighted_bound` (nats per image), its `standard_error` and `sampling_error`, as in
        `keras_vae.evaluation.bounds.Bound`.

    Raises:
        InputError: no model, a decoder alone, unusable data, or numbers below 1.
    """
    for name, value in (("importance-samples", importance_samples), ("limit", limit), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: give a whole number from 1 on")
    model = open_model(path)
    vae = model.whole("evaluating")
    if not vae.compiled:
        vae.compile()
    batch_size = batch_size or model.config.get("batch_size", BATCH)
    images = data_of(model, vae, source, batch_size=1)
    count = min(images.test_size, limit or images.test_size)
    test = images.test.unbatch().take(count).batch(batch_size)
    # Keras warns of data that ends where it was not told.
    test = test.apply(tf.data.experimental.assert_cardinality(math.ceil(count / batch_size)))
    figures: dict[str, Any] = {"images": count}
    has_features = vae.perceptual is not None
    if has_features:
        try:
            vae.load_perceptual()
        except InputError as error:  # the rest needs no feature network
            print(f"without the perceptual term and the loss: {error}", file=sys.stderr)
            vae.perceptual = None
            del vae.trackers["perceptual"]
    figures |= vae.evaluate(test, verbose=0, return_dict=True)
    if vae.perceptual is None and has_features:
        del figures["loss"]
    if importance_samples is not None:
        bound = importance_weighted_bound(vae, test, importance_samples, seed, total=count)
        figures |= {
            "importance_samples": importance_samples,
            "importance_weighted_bound": bound.mean,
            "standard_error": bound.standard_error,
            "sampling_error": bound.sampling_error,
        }
    return figures


def data_of(model: Model, vae: VAE, source: str | None, batch_size: int) -> data.ImageData:
    """The images that a model was trained on, or others, in its size and crop."""
    source = source or model.config.get("data")
    if source is None:
        raise InputError(f"{model.path} does not say what it was trained on: give --data")
    height, width, _ = vae.image_shape
    size = height if height == width else None  # images that are not square come in their own size
    images = data.load(source, size, batch_size, crop=model.config.get("crop"))
    if images.image_shape != vae.image_shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.image_shape, vae.image_shape))
        raise InputError(f"the images of {source} are {found}: {model.path} takes {wanted}")
    return images
