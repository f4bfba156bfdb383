"""The prior as a separate ONNX file, noise to z, for apps that change latents before they decode them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from keras_vae.export import latents
from keras_vae.export.conditional import condition_of, every_kind
from keras_vae.export.formats import CONDITION, LATENTS, NOISE
from keras_vae.export.on_images import relative_difference
from keras_vae.export.runtime import CPU, Kind, open_session
from keras_vae.export.writers import onnx_graph
from keras_vae.export.writers.onnx import check_file, converted_prior, put, save
from keras_vae.support.conditions import Condition
from keras_vae.support.keras_defaults import keras_defaults
from keras_vae.support.true_float32 import true_float32

PRIOR = Kind("prior", [NOISE], [LATENTS], may_be_conditional=True)
TOLERANCE = 1e-4
BATCH_SIZES = (1, 64)


@keras_defaults()
def export_prior(prior: keras.layers.Layer, path: Path, metadata: Mapping[str, str] | None = None) -> float:
    """Writes a prior as ONNX: `noise`, standard normal float32 (batch, latent_dim), to `z` of the same shape.

    With a condition in the metadata it takes `condition` too, float32 (batch, names), and so does the prior. It is
    compared with Keras on noise before it is put in place.

    Args:
        prior: Keras layer of `keras_vae.priors`, or any with an attribute `latent_dim` that maps noise to latents in
            float32.
        path: a file ending in .onnx.
        metadata: entries for the file; of a conditional model's prior `Condition.metadata()` too.

    Returns:
        The largest difference from Keras that was found, relative to values above 1.

    Raises:
        ExportError: a path that cannot be written, or metadata that do not name what the prior's conditions are.
        VerificationError: the file differs from Keras by more than 1e-4; what was there stays.
    """
    check_file(path)
    condition = Condition.of_metadata(metadata or {})
    size = getattr(prior, "condition_dim", len(condition or ()))  # a standard normal takes any
    rows = {NOISE: (prior.latent_dim,), **({CONDITION: (size,)} if size else {})}
    condition_of(metadata or {}, rows.get(CONDITION, ()), path)

    def write(new: Path, entries: dict[str, str]) -> None:
        model = converted_prior(prior, rows)
        onnx_graph.tidy(model.graph, "prior")
        save(model, new, {"latent_dim": str(prior.latent_dim), **entries})

    return put(path, "prior", write, lambda new: _difference(prior, condition, new), TOLERANCE, metadata)


@true_float32()
def _difference(prior: keras.layers.Layer, condition: Condition | None, path: Path) -> float:
    session, _, _ = open_session(path, [CPU], PRIOR)
    differences = []
    for batch in BATCH_SIZES:
        rows: list[np.ndarray] = [latents.draw(batch, prior.latent_dim, seed=0)]
        rows += [] if condition is None else [every_kind(condition, batch)]
        (found,) = session.run([LATENTS], dict(zip((NOISE, CONDITION), rows, strict=False)))
        differences.append(relative_difference(found, prior(*rows)))
    return max(differences)
