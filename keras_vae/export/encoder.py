"""The encoder as an ONNX file of its own, beside the decoder's: images to mean and log-variance of their latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_vae.export.artifact import float32_copy
from keras_vae.export.on_images import TOLERANCE, Run, difference, mean_and_log_var, of_encoder
from keras_vae.export.runtime import CPU, Encoder
from keras_vae.export.writers import onnx_graph
from keras_vae.export.writers.onnx import check_file, converted_function, log1p, put, save
from keras_vae.support.keras_defaults import keras_defaults

OUTPUTS = ("mean", "log_var")


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

    def write(new: Path, entries: Mapping[str, str]) -> None:
        _write(reference, new, entries)

    def compare(new: Path) -> float:
        return difference(opened(new)[0], of_encoder(reference), reference.input_shape[1:])

    return put(path, "encoder", write, compare, TOLERANCE, metadata)


def opened(path: Path) -> tuple[Run, dict[str, str]]:
    """An exported encoder as a function to arrays by name, on the CPU, and its metadata.

    Raises:
        ExportError: as `Encoder`.
    """
    encoder = Encoder(path, [CPU])
    return lambda images: dict(zip(OUTPUTS, encoder.encode(images), strict=True)), encoder.metadata


def _write(encoder: keras.Model, path: Path, metadata: Mapping[str, str]) -> None:
    def encode(image: Any) -> dict[str, Any]:
        return mean_and_log_var(encoder, image)

    image_shape, latent_dim = encoder.input_shape[1:], _latent_dim(encoder)
    rows = dict.fromkeys(OUTPUTS, (latent_dim,))
    model = converted_function(encode, {"image": image_shape}, rows, {"Log1p": (log1p, [])})
    onnx_graph.tidy(model.graph, "encoder")
    save(model, path, {"latent_dim": str(latent_dim), "image_shape": json.dumps(list(image_shape)), **metadata})


def _latent_dim(encoder: keras.Model) -> int:
    shapes: Any = encoder.output_shape
    return int((shapes["mean"] if isinstance(shapes, dict) else shapes[0])[-1])
