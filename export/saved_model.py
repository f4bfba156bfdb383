"""The decoder as a TensorFlow SavedModel, the format of TF Serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from export.errors import ExportError
from export.verify import Runner

SIGNATURE = "serving_default"


def serving_function(decoder: keras.Model) -> Any:
    """The decoder as a function from `z` to `{"image"}`: what both formats are made from."""
    spec = tf.TensorSpec((None, decoder.input_shape[1]), tf.float32, name="z")

    def serve(z: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"image": decoder(z, training=False)}

    return tf.function(serve, input_signature=[spec], autograph=False)


def write(decoder: keras.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a float32 decoder as a SavedModel.

    Its signatures, each with a free batch and no state:
        serving_default: z float32 (batch, latent_dim) to image float32 (batch, height, width, channels) in [0, 1].
        png: z to png, string (batch,): each image as a PNG file, which a REST client gets in base64.
        sample: count and seed, int64 scalars, to image and its z, drawn from the standard normal prior; the same seed
            gives the same images, as many as count, the first ones alike whatever the count.
    """
    del metadata  # a SavedModel has no place for it
    # Not Keras's ExportArchive, which writes each weight twice (3.15): its variables' two faces count as two.
    module = tf.Module()
    module.weights = [variable.value for variable in decoder.variables]
    module.serve = serving_function(decoder)
    module.png = _png_function(decoder)
    module.sample = _sample_function(decoder)
    signatures = {SIGNATURE: module.serve, "sample": module.sample}
    if module.png is not None:
        signatures["png"] = module.png
    tf.saved_model.save(module, str(path), signatures=signatures)


def _png_function(decoder: keras.Model) -> Any:
    if decoder.output_shape[-1] not in (1, 3):
        return None  # PNG files have no such channels
    spec = tf.TensorSpec((None, decoder.input_shape[1]), tf.float32, name="z")

    def png(z: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.cast(tf.round(255.0 * tf.clip_by_value(decoder(z, training=False), 0.0, 1.0)), tf.uint8)
        return {"png": tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.string)}

    return tf.function(png, input_signature=[spec], autograph=False)


def _sample_function(decoder: keras.Model) -> Any:
    latent_dim = decoder.input_shape[1]
    scalars = [tf.TensorSpec((), tf.int64, name=name) for name in ("count", "seed")]

    def row_of_normals(seeds: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_normal((latent_dim,), seeds, alg="philox")

    def sample(count: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        # One seed a row: a generator asked for more numbers at once would give others.
        rows = tf.stack([tf.fill([count], seed), tf.range(count)], axis=1)
        z = tf.map_fn(
            lambda row: tf.random.stateless_normal((latent_dim,), row, alg="philox"),
            rows,
            fn_output_signature=tf.float32,
        )
        return {"image": decoder(z, training=False), "z": z}

    return tf.function(sample, input_signature=scalars, autograph=False)


def is_saved_model(path: Path) -> bool:
    """Whether the folder holds a SavedModel."""
    return (path / "saved_model.pb").is_file()


def runner(path: Path) -> Runner:
    """Loads a SavedModel's decoder.

    Raises:
        ExportError: it cannot be read, or has another signature.
    """
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # a damaged SavedModel raises whatever its damage leads to
        raise ExportError(f"cannot read the SavedModel {path}: {str(error).splitlines()[0]}") from error
    signature = loaded.signatures.get(SIGNATURE)
    arguments = signature.structured_input_signature[1] if signature is not None else {}
    if signature is None or list(arguments) != ["z"] or list(signature.structured_outputs) != ["image"]:
        raise ExportError(f"{path} is no decoder: its signature {SIGNATURE!r} does not take z and return image")

    def run(z: np.ndarray) -> np.ndarray:
        return signature(z=tf.constant(z, tf.float32))["image"].numpy()

    # The signature lives only as long as the object it was loaded from.
    run.model = loaded  # type: ignore[attr-defined]
    run.latent_dim = arguments["z"].shape[1]  # type: ignore[attr-defined]
    return run
