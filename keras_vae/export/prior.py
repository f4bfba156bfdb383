"""The prior as an ONNX file of its own, for apps that change latents before they decode them: noise to z."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import onnx

from keras_vae.export import graph, latents, seal
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.files import aside, is_writable, replace
from keras_vae.export.keras_defaults import keras_defaults
from keras_vae.export.latents import LATENTS, NOISE
from keras_vae.export.onnx import converted_layer
from keras_vae.export.reference import true_float32
from keras_vae.export.runtime import CPU, open_session

TOLERANCE = 1e-4
BATCH_SIZES = (1, 64)


@keras_defaults()
def export_prior(prior: keras.layers.Layer, path: Path, metadata: Mapping[str, str] | None = None) -> float:
    """Writes a prior as ONNX: `noise`, standard normal float32 (batch, latent_dim), to `z` of the same shape.

    It is compared with Keras's on noise before it takes its place.

    Args:
        prior: Keras layer of `keras_vae.priors`, or any that has `latent_dim` and maps noise to latents in float32.
        path: a file ending in .onnx.
        metadata: entries for the file.

    Returns:
        The largest difference from Keras that was found, relative to values above 1.

    Raises:
        ExportError: a path that cannot be written.
        VerificationError: the file differs from Keras by more than 1e-4; what was there stays.
    """
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"{path}: name a file that ends in .onnx")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not is_writable(parent):
        raise ExportError(f"cannot write {path}: {parent} is not a folder that can be written to")
    with aside(path) as new:
        _write(prior, new, {"format_version": str(seal.FORMAT_VERSION), **(metadata or {})})
        difference = max(_difference(prior, new, batch) for batch in BATCH_SIZES)
        if not difference <= TOLERANCE:
            raise VerificationError(f"{path} was not written: the prior differs from Keras by {difference:.2g}")
        replace(new, path)
    return difference


def _write(prior: keras.layers.Layer, path: Path, metadata: Mapping[str, str]) -> None:
    row = (prior.latent_dim,)
    model = converted_layer(prior, NOISE, LATENTS, row, row)
    graph.tidy(model.graph, "prior")
    onnx.helper.set_model_props(model, {"latent_dim": str(prior.latent_dim), **metadata})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(seal.seal_onnx(model.SerializeToString(deterministic=True)))


@true_float32()
def _difference(prior: keras.layers.Layer, path: Path, batch: int) -> float:
    noise = latents.draw(batch, prior.latent_dim, seed=0)
    session, _ = open_session(path, [CPU], "prior", [NOISE], [LATENTS])
    (found,) = session.run([LATENTS], {NOISE: noise})
    wanted = keras.ops.convert_to_numpy(prior(noise))
    return float((np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))).max())
