"""The encoder as an ONNX file of its own, beside the decoder's: images to mean and log-variance of their latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vae.export.artifact import float32_copy
from keras_vae.export.runtime import CPU, Encoder
from keras_vae.export.writers import onnx_graph
from keras_vae.export.writers.onnx import check_file, converted_function, log1p, put, relative_difference, save
from keras_vae.export.writers.saved_model import mean_and_log_var
from keras_vae.support.keras_defaults import keras_defaults
from keras_vae.support.true_float32 import true_float32

OUTPUTS = ("mean", "log_var")
TOLERANCE = 1e-4
BATCH_SIZES = (1, 7)


@keras_defaults()
def export_encoder(encoder: keras.Model, path: Path, metadata: Mapping[str, str] | None = None) -> float:
    """Writes an encoder as ONNX: `image`, float32 (batch, height, width, channels), to `mean` and `log_var`.

    It computes in float32, whatever the encoder's precision, and is compared with Keras on noise before it is put in
    place.

    Args:
        encoder: Keras model that returns mean and log-variance.
        path: a file ending in .onnx.
        metadata: entries for the file.

    Returns:
        The largest difference from Keras that was found, relative to values above 1.

    Raises:
        ExportError: an encoder that cannot be exported, or a path that cannot be written.
        VerificationError: the file differs from Keras by more than 1e-4; what was there stays.
    """
    check_file(path)
    reference = float32_copy(encoder)

    def difference(new: Path) -> float:
        opened = Encoder(new, providers=[CPU])
        return max(_difference(reference, opened, batch) for batch in BATCH_SIZES)

    return put(path, "encoder", lambda new, entries: _write(reference, new, entries), difference, TOLERANCE, metadata)


def _write(encoder: keras.Model, path: Path, metadata: Mapping[str, str]) -> None:
    def encode(image: Any) -> dict[str, Any]:
        return dict(zip(OUTPUTS, mean_and_log_var(encoder, image), strict=True))

    image_shape, latent_dim = encoder.input_shape[1:], _latent_dim(encoder)
    rows = dict.fromkeys(OUTPUTS, (latent_dim,))
    model = converted_function(encode, {"image": image_shape}, rows, {"Log1p": (log1p, [])})
    onnx_graph.tidy(model.graph, "encoder")
    save(model, path, {"latent_dim": str(latent_dim), "image_shape": json.dumps(list(image_shape)), **metadata})


def _latent_dim(encoder: keras.Model) -> int:
    shapes: Any = encoder.output_shape
    return int((shapes["mean"] if isinstance(shapes, dict) else shapes[0])[-1])


@true_float32()
def _difference(encoder: keras.Model, opened: Encoder, batch: int) -> float:
    images = np.random.default_rng(0).uniform(size=(batch, *encoder.input_shape[1:])).astype(np.float32)
    pairs = zip(opened.encode(images), mean_and_log_var(encoder, images), strict=True)
    return max(relative_difference(found, wanted) for found, wanted in pairs)
