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
    """Writes a float32 decoder as a SavedModel with the signature `serving_default`, z to image."""
    del metadata  # a SavedModel has no place for it
    # Not Keras's ExportArchive, which writes each weight twice (3.15): its variables' two faces count as two.
    module = tf.Module()
    module.weights = [variable.value for variable in decoder.variables]
    module.serve = serving_function(decoder)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: module.serve})


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
